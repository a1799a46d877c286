"""Tab: what a shell is told, and that telling it loads nothing heavy."""

import os
import shlex
import subprocess
import sys

import pytest
import typer

from clipcoco.cli import COMMANDS, app
from harness import python

HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "tensorboard", "httpx2", "jinja2", "tokenizers")
# One command in a fresh interpreter, and which of HEAVY it has loaded.
DRIVER = f"""
import os, sys
from clipcoco.cli import run
sys.argv = ["clipcoco", *sys.argv[1:]]
code = run(sys.argv[1:])
heavy = set({HEAVY}) & set(sys.modules)
sys.exit(code or (f"loaded for nothing: {{heavy}}" if heavy else 0))
"""


@pytest.fixture
def folder(tmp_path):
    for run in ("runs/demo-1", "runs/demo-2", "runs/tiny-1", "elsewhere/far", "runs/$(touch bad)"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "config.yaml").touch()
    for name in ("best", "last", "previous", "epoch_003"):
        (tmp_path / f"runs/demo-1/checkpoints/{name}.pt").touch()
    (tmp_path / "runs/demo-1/checkpoints/.writing.pt").touch()
    (tmp_path / "runs/search").mkdir()  # no run
    for name in ("mine.yaml", "old.yml", "picture.jpg", "downloaded.pt", "a b.pt"):
        (tmp_path / name).touch()
    return tmp_path


def bash(line):
    """What bash tells a program when Tab is typed at the end of `line`."""
    return {"_CLIPCOCO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("clipcoco pre", ["prepare-data"]),
        ("clipcoco train --preset ", ["demo", "tiny", "small", "medium", "full", "own"]),
        ("clipcoco prepare-data --preset t", ["tiny"]),
        ("clipcoco train --preset demo --init d", ["demo-1", "demo-2", "downloaded.pt"]),
        ("clipcoco train --init demo-1/b", ["demo-1/best"]),
        ("clipcoco eval ", ["demo-1", "demo-2", "downloaded.pt", "tiny-1"]),
        ("clipcoco eval demo-1/", ["demo-1/best", "demo-1/epoch_003", "demo-1/last", "demo-1/previous"]),
        ("clipcoco eval runs/demo-1/checkpoints/e", ["runs/demo-1/checkpoints/epoch_003.pt"]),
        ("clipcoco eval --runs-dir elsewhere ", ["downloaded.pt", "far"]),
        ("clipcoco eval --runs-dir=elsewhere f", ["far"]),
        ("clipcoco resume --plain t", ["tiny-1"]),
        ("clipcoco report demo-", ["demo-1", "demo-2"]),
        ("clipcoco runs demo-1 t", ["tiny-1"]),
        ("clipcoco search --run tiny", ["tiny-1"]),
        ("clipcoco export --format o", ["open_clip", "onnx"]),
        ("clipcoco export --format onnx t", ["tiny-1"]),
        ("clipcoco train --device c", ["cpu", "cuda", "cuda:"]),
        ("clipcoco eval --split t", ["train", "test"]),
        ("clipcoco eval --protocol ", ["own", "1k", "eccv", "all"]),
        ("clipcoco train --set train.ep", ["train.epochs="]),
        ("clipcoco train demo data.fl", ["data.flip="]),
        ("clipcoco train demo data.flip=t", ["data.flip=true"]),
        (
            "clipcoco train --set model.vision.backbone=resnet1",
            ["model.vision.backbone=resnet18", "model.vision.backbone=resnet101"],
        ),
        ("clipcoco train demo train.precision = b", ["bfloat16"]),  # as bash cuts it
        ("clipcoco train demo train.frozen_epochs=a", ["train.frozen_epochs=auto", "train.frozen_epochs=all"]),
        ("clipcoco train demo train.lr=", []),
        ("clipcoco train demo train.nothing=a", []),
        ("clipcoco inspect-config m", ["medium", "mine.yaml"]),
        ("clipcoco inspect-config o", ["own", "old.yml"]),
        ("clipcoco eval nothing", []),  # the shell then offers files
        ("clipcoco eval ../", []),
    ],
)
def test_bash_completes(clipcoco, folder, line, offered):
    done = clipcoco(cwd=folder, env=bash(line))
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.split() == offered


def test_zsh_and_fish_complete(clipcoco, folder):
    words = {"_TYPER_COMPLETE_ARGS": "clipcoco eval demo-"}
    zsh = clipcoco(cwd=folder, env={"_CLIPCOCO_COMPLETE": "complete_zsh", **words}).stdout
    assert [word for word in ("demo-1", "demo-2", "tiny-1") if f'"{word}"' in zsh] == ["demo-1", "demo-2"]
    fish = {"_CLIPCOCO_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert clipcoco(cwd=folder, env={**fish, **words}).stdout.split() == ["demo-1", "demo-2"]


def test_where_there_are_no_runs_the_shell_offers_files(clipcoco, tmp_path):
    done = clipcoco(cwd=tmp_path, env=bash("clipcoco eval d"))
    assert (done.code, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_script_for_bash_works_in_a_real_one(clipcoco, folder):
    source = clipcoco(cwd=folder, env={"_CLIPCOCO_COMPLETE": "source_bash"}).stdout
    bin_ = folder / "bin"
    bin_.mkdir()
    start = "import sys; sys.argv[0] = 'clipcoco'; from clipcoco.__main__ import main; main()"
    (bin_ / "clipcoco").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    (bin_ / "clipcoco").chmod(0o755)
    told = 'COMP_WORDS=(clipcoco eval demo-1/e); COMP_CWORD=2; _clipcoco_completion clipcoco; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{source}\n{told}"],
        cwd=folder,
        env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("demo-1/epoch_003\n", "")


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["train", "--help"], {}),
        (["runs"], {}),
        (["env"], {}),
        (["inspect-config"], {}),
        ([], bash("clipcoco eval demo-1/")),
        ([], bash("clipcoco train --preset ")),
    ],
)
def test_answers_without_loading_what_it_does_not_need(folder, words, env):
    done = python(DRIVER, *words, cwd=folder, env={**os.environ, **env})
    assert done.stderr == ""
    assert done.stdout


@pytest.mark.parametrize(("words", "env"), [(["--help"], {}), (["--version"], {}), ([], bash("clipcoco pre"))])
def test_a_list_of_commands_imports_none_of_them(folder, words, env):
    driver = DRIVER.replace("'torch'", "'torch', 'yaml', 'clipcoco.config.schema', 'clipcoco.console'", 1)
    assert python(driver, *words, cwd=folder, env={**os.environ, **env}).stdout


def commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("name", commands())
def test_help_opens_with_a_line_and_two_examples_that_parse(name):
    command = commands()[name]
    summary, *examples = (part.strip() for part in command.help.split("\n\n"))
    assert summary == COMMANDS[name][2]  # as it is listed
    assert "\n" not in summary
    assert summary.endswith(".")
    assert len(examples) == 2
    for example in examples:
        assert example.startswith(f"[bold]clipcoco {name}")
        assert example.endswith("[/bold]")
        line = example.removeprefix("[bold]").removesuffix("[/bold]").partition(" > ")[0]
        with command.make_context(name, shlex.split(line)[2:]) as context:
            assert not context.args


@pytest.mark.parametrize("columns", [80, 60])
def test_help_fits_its_terminal_and_names_every_option(clipcoco, tmp_path, columns):
    for name, command in commands().items():
        text = clipcoco(name, "--help", cwd=tmp_path, env={"COLUMNS": str(columns)}).stdout
        assert max(map(len, text.splitlines())) <= columns
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert [option for option in options if f" {option} " not in text] == []

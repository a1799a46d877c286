"""What hands used to other programs type ends in one line that says what to type here. In process: no command runs."""

import shlex

import pytest

from clipcoco.cli import run
from clipcoco.cli.options import load_from
from clipcoco.config.messages import ALIASES
from clipcoco.config.schema import SETTINGS

HINTS = [
    ("train --preset demo --epochs 3", "train.epochs=3"),
    ("train --preset demo --epochs=3 --lr 1", "train.epochs=3"),
    ("train --preset demo --batch-size 64", "train.batch_size=64"),
    ("train --preset demo --batch_size=64", "train.batch_size=64"),
    ("train --preset demo -lr 1e-4", "train.lr=1e-4"),
    ("train --preset demo -b 64", "train.batch_size=64"),
    ("train --preset demo --train.lr 1e-4", "train.lr=1e-4"),
    ("train --preset demo --data 'my pictures'", "'data.root=my pictures'"),
    ("train --preset demo --no-flip", "data.flip=false"),
    ("train --preset demo --amp", "train.precision=VALUE, one of auto, float32"),
    ("train --preset demo --epochs many", "train.epochs=VALUE, a whole number of at least 1"),
    ("train --preset demo --output_dir out", "--runs-dir out"),
    ("train --preset demo --runs_dir out", "--runs-dir out"),
    ("train --preset demo --run-name a", "--name a"),
    ("train --preset demo --gpu", "--device cuda?"),
    ("train --preset demo --gpu 1", "--device cuda:1"),
    ("train --preset demo --no-cuda", "--device cpu"),
    ("train --preset demo -v", "--debug"),
    ("train --preset demo --prest demo", "Did you mean --preset demo?"),
    ("train -c mine.yaml", "--config mine.yaml"),
    ("train --config presets/medium.yaml --resume epoch_10.pt", "clipcoco resume epoch_10.pt"),
    ("train --preset demo --checkpoint=a.pt", "clipcoco resume a.pt; a new run with its weights: --init a.pt"),
    ("train --preset demo --images my", "data.root=FOLDER. It is made of your own by clipcoco prepare-data"),
    ("train --preset demo --num-gpus 1", "Did you mean --device cuda?"),
    ("train --preset demo --steps 100", "train.epochs=N"),
    ("train --preset demo --overwrite", "Take another --name, or go on: clipcoco resume RUN"),
    ("train --preset demo --wandb", "tensorboard --logdir runs"),
    ("resume --last", "Did you mean clipcoco resume?"),
    ("runs --compare a b", "Did you mean clipcoco runs A B?"),
    ("search dog --image-dir my", "Did you mean --images my?"),
    ("prepare-data --val 0.2", "Did you mean --val-fraction 0.2?"),
    ("train --preset demo --quux", "See clipcoco train --help"),
    ("resume --epochs 9", "train.epochs=9"),
    ("resume --checkpoint a.pt", "clipcoco resume a.pt"),
    ("eval --model a.pt", "--checkpoint a.pt"),
    ("eval --workers 2", "data.workers=2"),
    ("eval --batch-size 2", "train.batch_size, which comes with the checkpoint"),
    ("search dog --workers 2", "--set data.workers=2"),
    ("search dog --checkpoint a.pt", "--run a.pt"),
    ("export", "open_clip, safetensors or onnx"),
    ("inspect-config --preset tiny", "clipcoco inspect-config tiny"),
    ("prepare-data small", "--preset small"),
    ("prepare-data --data-dir x", "--root x"),
    ("evaluate", "clipcoco eval?"),
    ("download", "clipcoco prepare-data"),
    ("trian", "clipcoco train?"),
    ("small", "clipcoco train --preset small"),
    ("xyzzy", "See clipcoco --help"),
    ("-", "See clipcoco --help"),
]


@pytest.mark.parametrize(("line", "hint"), HINTS)
def test_a_habit_is_answered_in_one_line(capsys, line, hint):
    assert run(shlex.split(line)) == 2
    said = capsys.readouterr().err.replace("\n", " ")  # as wrapped at the width of a test's terminal
    assert said.count("error: ") == 1
    assert hint in said


@pytest.mark.parametrize("name", [name for name, setting in ALIASES.items() if setting in SETTINGS])
def test_every_alias_of_a_setting_is_one_as_an_option(capsys, name):
    assert run(["train", "--preset", "demo", f"--{name.replace('_', '-')}"]) == 2
    assert f"It is the setting {ALIASES[name]}" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("words", [["-V"], ["version"], ["help", "train"], ["help"]])
def test_version_and_help_are_words_too(capsys, words):
    assert run(words) == 0
    assert "clipcoco" in capsys.readouterr().out


RUN_WORDS = [
    ("train r", "r is a run, not a configuration (command line). To go on with a run: clipcoco resume r"),
    ("train --preset r", "To go on with a run: clipcoco resume r"),
    (
        "train s --runs-dir others",
        "s is a run, not a configuration (command line). To go on with a run: clipcoco resume others/s",
    ),
    ("train runs/r", "runs/r is a run, not a configuration (command line). To go on with a run: clipcoco resume r"),
    ("train runs/r/checkpoints/last.pt", "last.pt is a checkpoint, not a configuration"),
    ("train --config runs/r/checkpoints/last.pt", "To go on with a run: clipcoco resume runs/r/checkpoints/last.pt"),
    ("train demo", "no captions at nowhere"),
    ("train runs/r/config.yaml", "no captions at nowhere"),
    ("eval --checkpoint r", "It is a run: clipcoco eval r"),
    ("eval --checkpoint runs/r", "It is a run: clipcoco eval r"),
    ("eval --checkpoint r/last", "It is a run: clipcoco eval r/last"),
    ("eval --checkpoint s --runs-dir others", "It is a run: clipcoco eval others/s"),
    ("eval --checkpoint nobody", "A run keeps its own in RUN/checkpoints"),
]


@pytest.mark.parametrize(("line", "hint"), RUN_WORDS)
def test_a_run_where_something_else_is_wanted_is_known_as_one(capsys, monkeypatch, tmp_path, line, hint):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "runs/r", tmp_path / "runs/demo", tmp_path / "others/s"):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text("extends: tiny\ndata: {root: nowhere}\n")
        (folder / "checkpoints" / "last.pt").write_bytes(bytes(2**20 + 1))
    assert run([*shlex.split(line), *(["data.root=nowhere"] if line == "train demo" else [])]) in (2, 3, 4)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("error: ") == 1
    assert hint in said


def test_train_takes_a_preset_or_a_file_as_a_word(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: tiny\n")
    assert load_from(None, None, None, ["small", "train.epochs=2"]).chain[-1] == "small"
    loaded = load_from(None, None, ["seed=3"], ["train.epochs=2", str(tmp_path / "mine.yaml")])
    assert (loaded.chain[-1], loaded.config.train.epochs, loaded.config.seed) == ("tiny", 2, 3)

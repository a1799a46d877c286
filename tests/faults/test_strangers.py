"""Folders that a stranger made: whatever is at a name that the program opens, nothing outside is touched."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from clipcoco.cli import run
from clipcoco.data.manifest import Manifest, read_manifest
from clipcoco.disk import files, links
from clipcoco.errors import DataError
from clipcoco.runs.metrics import LogFile

OF_A_RUN = [
    *("log.txt", "status.json", "metrics.jsonl", "config.yaml", "evaluation.json", "report.html", ".lock"),
    *(".status.json.1.tmp", "checkpoints", "checkpoints/last.pt", "checkpoints/best.pt", "checkpoints/.last.pt.1.tmp"),
    *("tensorboard", "tensorboard/events.out.tfevents.1", "figures", "figures/loss.svg", "search", "search/x.html"),
    *("index", *(f"index/val2017-best.{kind}" for kind in ("f16", "arrays", "json", "lock"))),
]
ON_A_RUN = [
    "resume {run}",
    "resume {run}/last train.epochs=9",
    "eval {run}",
    "report {run}",
    "search red --run {run}",
    "train --preset demo --init {run}",
    "train --preset demo --name {run} --or-resume",
    "runs {run} {run}",
    "runs",
]
OF_A_ROOT = [
    ".clipcoco",
    *(f".clipcoco/features-resnet50-0-val2017.{kind}" for kind in ("f16", "json", "lock")),
    *(f".clipcoco/captions-val2017.{kind}" for kind in ("arrays", "lock")),
    *(f".clipcoco/{name}" for name in ("lock", "holder", "own.json", "originals.jsonl", "incoming")),
    *(".clipcoco/unpacking-val2017", ".clipcoco/unpacking-val2017/val2017"),
    *(".clipcoco/val2017.zip.part", ".clipcoco/val2017.zip.part.json"),
    *("prepared-256", "prepared-256/manifest.jsonl", "prepared-256/val2017"),
    *("prepared-256/val2017/000000500001.jpg", "prepared-256/val2017/.000000500001.jpg.tmp"),
]
OF_ANYBODY = ["annotations", "annotations/captions_val2017.json", "val2017", "val2017/000000500001.jpg"]
ON_A_ROOT = [
    "train --preset demo --dry-run data.root=data",
    "prepare-data --preset demo --root data",
    "prepare-data --preset tiny --root data --source data",
    "prepare-data --all --root data --verify",
    "prepare-data --captions captions.csv --images data/train2017 --root data",
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What is somebody's own: a file and a folder."""
    folder = tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    for name in ("file", "folder/last.pt", "folder/.x.tmp", "folder/epoch_001.pt", "folder/000000500001.jpg"):
        (folder / name).write_text("a thesis\n" * 1000)
        os.utime(folder / name, (1, 1))
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Names, contents and times of all below `folder`."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path): (path.is_symlink(), path.is_file() and path.read_bytes(), path.is_file() and path.stat().st_mtime_ns)
        for path in paths
    }


def plant(path: Path, kind: str, outside: Path) -> None:
    """A link or a pipe at `path`, in the place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"file": outside / "file", "folder": outside / "folder", "nowhere": outside / "new"}[kind])


def refuses(capsys: pytest.CaptureFixture[str], command: str, code: int, outside: Path, name: str) -> None:
    before = state(outside)
    answer, said = run(shlex.split(command)), capsys.readouterr().err
    assert state(outside) == before, command
    assert (answer, said.count("\n"), "\nerror" in said) == (code, 1, False), f"{command}: {said}"
    assert name.split("/")[0] in said, f"{command}: {said}"


def a_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").write_bytes(b"no checkpoint")
    (folder / "config.yaml").write_text("extends: demo\n")
    (folder / "status.json").write_text('{"state": "stopped", "checkpoint": "checkpoints/last.pt"}')


@pytest.mark.parametrize("kind", ["file", "folder", "nowhere", "pipe"])
def test_nothing_below_a_run_directory_leads_out_of_it(work, outside, capsys, kind):
    for number, name in enumerate(OF_A_RUN):
        path = work / "runs" / f"run{number}"
        a_run(path)
        plant(path / name, kind, outside)
        for command in ON_A_RUN[:-1] if number == 0 else [ON_A_RUN[number % 8]]:  # the door is one, the ways are many
            if name == "config.yaml":
                continue  # no run then; `runs` lists it
            refuses(capsys, command.format(run=path.name), 4, outside, f"{path.name}/")
    before = state(outside)
    assert run(["runs"]) == 0  # reads the small files of all
    assert state(outside) == before


def test_a_run_that_is_a_link_must_be_named_by_its_path(work, outside, capsys):
    a_run(outside / "theirs")
    (work / "runs").mkdir()
    (work / "runs" / "mine").symlink_to(outside / "theirs")
    for command in ("resume mine", "report mine", "train --preset demo --name mine --or-resume"):
        refuses(capsys, command, 4, outside, "runs/mine is a link")
    refuses(capsys, "resume", 4, outside, "no run in runs")
    assert run(["report", "runs/mine"]) == 0  # the user's own word
    assert (outside / "theirs" / "report.html").is_file()


def test_the_indexes_of_other_models_are_not_links(work, outside, capsys, scenes):
    model = work / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {}}}')
    (work / "runs").mkdir()
    for name in ("search", "search/model", "search/model/index"):
        plant(work / "runs" / name, "folder", outside)
        command = f"search red --images {scenes}/val2017 --model local-dir:model"
        refuses(capsys, command, 4, outside, "runs/search")


@pytest.mark.parametrize("kind", ["file", "folder", "nowhere", "pipe"])
def test_nothing_below_a_data_folder_leads_out_of_it(work, outside, capsys, scenes, kind):
    data = work / "data"
    shutil.copytree(scenes, data)
    (work / "captions.csv").write_text("image,caption\n000000000001.jpg,a\n000000000002.jpg,b\n")
    for number, name in enumerate(OF_A_ROOT):
        own = {"captions": str(work / "captions.csv"), "images": str(data / "train2017")}
        (data / ".clipcoco").mkdir(exist_ok=True)
        (data / ".clipcoco" / "own.json").write_text(json.dumps(own))  # as if this very call had made it
        plant(data / name, kind, outside)
        for command in ON_A_ROOT if number == 0 else [ON_A_ROOT[number % len(ON_A_ROOT)]]:
            refuses(capsys, command, 3, outside, f"data/{name}")
        for folder in (data / ".clipcoco", data / "prepared-256"):
            folder.unlink() if folder.is_symlink() or folder.is_fifo() else shutil.rmtree(folder, ignore_errors=True)
    if kind != "pipe":  # which counts as missing, as does whatever else is not a file
        for name in reversed(OF_ANYBODY):
            plant(data / name, kind, outside)
            refuses(capsys, ON_A_ROOT[0], 3, outside, f"data/{name}")
            (data / name).unlink()
            source = scenes / name
            shutil.copytree(source, data / name) if source.is_dir() else shutil.copy(source, data / name)


def test_links_that_the_user_allowed_are_followed_for_that_folder_alone(work, outside, capsys, scenes, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(work / "mine"))
    shutil.copytree(scenes, work / "data")
    shutil.move(work / "data" / "val2017", outside / "my pictures")
    (work / "data" / "val2017").symlink_to(outside / "my pictures")
    train = "train --preset demo --dry-run data.root=data model.vision.backbone=resnet18 data.workers=0"
    assert run(shlex.split(train)) == 3
    told = capsys.readouterr().err.strip()
    line = shlex.split(told.partition("If it is yours: clipcoco ")[2])
    assert run(line) == 0
    kept = json.loads((work / "mine" / "clipcoco" / "links.json").read_text())
    assert kept == {str(work / "data"): [str(outside / "my pictures")]}
    assert links.may_lead(work / "data")[1:] == [str(outside / "my pictures")]
    assert run([*line[:2], "elsewhere", *line[3:]]) == 0
    os.rename(work / "data", work / "moved")
    assert run(shlex.split(train.replace("=data ", "=moved "))) == 3


def test_a_source_may_be_spread_over_volumes_but_no_picture_of_it_leads_elsewhere(work, outside, capsys, scenes):
    shutil.copytree(scenes, outside / "stick")
    shutil.move(outside / "stick" / "val2017", outside / "volume")
    (outside / "stick" / "val2017").symlink_to(outside / "volume")
    prepare = "prepare-data --all --root data --source ../outside/stick --set data.prepared_size=0 --dry-run"
    assert run(shlex.split(prepare)) == 0
    capsys.readouterr()
    plant(outside / "stick" / "train2017" / "000000000003.jpg", "file", outside)
    refuses(capsys, prepare, 3, outside, "000000000003.jpg is a link that leaves")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', '{"x": [3, null]}', "[" * 100_000])
def test_a_damaged_note_of_what_is_allowed_allows_nothing(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    root = tmp_path / "x"
    (tmp_path / "clipcoco").mkdir()
    (tmp_path / "clipcoco" / "links.json").write_text(content.replace('"x"', json.dumps(str(root))))
    assert links.may_lead(root) == [str(root)]
    links.allow(root, [tmp_path / "y"])
    assert links.may_lead(root) == [str(root), str(tmp_path / "y")]


def test_without_a_home_nothing_is_allowed_and_one_line_says_where_to_keep_it(work, capsys, monkeypatch):
    (work / "file").write_text("")
    for home, place in ((str(work / "file"), None), (".", None), ("/", ".")):
        monkeypatch.setenv("HOME", home) if place is None else monkeypatch.setenv("HOME", ".")
        monkeypatch.setenv("XDG_CONFIG_HOME", place or "")
        assert links.may_lead(work) == [str(work)]
        assert run(["prepare-data", "--root", ".", "--allow-links", "/tmp"]) == 5
        assert "Set XDG_CONFIG_HOME" in capsys.readouterr().err
    assert os.listdir(work) == ["file"]


def test_what_has_another_name_elsewhere_is_not_appended_to(tmp_path, outside):
    before = state(outside)
    for number, write in enumerate(
        (
            lambda path: LogFile(path)("a line"),
            lambda path: files.open_to_append(path).close(),
            lambda path: files.open_new(path).close(),
            lambda path: Manifest(path, {}).__enter__().__exit__(None, None, None),
        )
    ):
        os.link(outside / "file", tmp_path / str(number))
        write(tmp_path / str(number))
        assert (tmp_path / str(number)).stat().st_nlink == 1
    assert state(outside) == before


def test_a_manifest_names_no_file_outside(tmp_path):
    names = ["val2017/1.jpg", "../x", "val2017/..", "../../x", "/etc/passwd", "val2017/../../x", "..", "", 3, None]
    names.append(["val2017/1.jpg"])
    rows = [{}, *({"file": name, "size": 1, "sha256": "0" * 64} for name in names)]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "[" * 10**5 + "\n")
    assert list(read_manifest(tmp_path / "manifest.jsonl")[1]) == ["val2017/1.jpg"]


def test_scenes_are_not_drawn_through_links(tmp_path, outside):
    from clipcoco.prepare.scenes import README, README_TEXT, draw_scenes

    before = state(outside)
    for name in ("annotations", "train2017", "val2017"):
        root = tmp_path / name
        root.mkdir()
        (root / README).write_text(README_TEXT)  # as if it had begun
        (root / name).symlink_to(outside / "folder")
        with pytest.raises(DataError, match="is a link"):
            draw_scenes(root, train=1, val=1, size=48)
    (tmp_path / "train2017" / "train2017").unlink()
    (tmp_path / "train2017" / "train2017").mkdir()
    (tmp_path / "train2017" / "train2017" / "000000000001.jpg").symlink_to(outside / "file")
    draw_scenes(tmp_path / "train2017", train=1, val=1, size=48)
    assert state(outside) == before

import errno
import json
from pathlib import Path

import pytest

from clipcoco.errors import CheckpointError, ConfigError
from clipcoco.runs.directory import RunDir, Status, create, is_ours
from clipcoco.runs.names import find_run
from harness import raising


def make(runs: Path, name: str, started: float) -> RunDir:
    run = create(runs, "demo", name)
    run.config.write_text("extends: demo\n")
    run.write_status(started=started)
    (run.checkpoints / "last.pt").touch()
    return run


def test_a_run_is_named_after_its_preset_or_file_and_never_twice(tmp_path):
    names = [create(tmp_path, preset, None).name for preset in ("small", "small", "my config (2)", "...")]
    assert len(set(names)) == 4
    for name, stem in zip(names, ("small-20", "small-20", "my-config-2--20", "run-20"), strict=True):
        assert name.startswith(stem)
    with pytest.raises(ConfigError, match="exists"):
        create(tmp_path, "small", names[0])


def test_words_find_the_run_that_they_mean(tmp_path):
    old, new = make(tmp_path, "small-20260101-000000", 1.0), make(tmp_path, "small-20260102-000000", 2.0)
    other = make(tmp_path, "first-try", 0.5)
    create(tmp_path, "demo", "never-saved").write_status(started=9.0)
    found = {word: find_run(tmp_path, word).run for word in (None, "small", "first", "small-20260101", str(old.path))}
    assert found == {None: new, "small": new, "first": other, "small-20260101": old, str(old.path): old}
    assert find_run(tmp_path, "small/last").checkpoint == new.checkpoints / "last.pt"
    for words in ("", "/", "nobody", "small/best"):
        with pytest.raises(CheckpointError):
            find_run(tmp_path, words)
    with pytest.raises(CheckpointError, match="could be any of 2 runs"):
        find_run(tmp_path, "small-202601")


@pytest.mark.parametrize(
    "left", [(), ("checkpoints/.last.pt.1.tmp", ".status.json.1.tmp"), ("status.json", "config.yaml")]
)
def test_what_a_kill_or_a_power_cut_left_of_a_start_is_ours(tmp_path, left):
    run = RunDir(tmp_path / "run")
    assert not is_ours(run)  # nothing is there
    run.checkpoints.mkdir(parents=True)
    for name in left:
        (run.path / name).touch()
    assert is_ours(run)


@pytest.mark.parametrize("name", ["precious.txt", "checkpoints/model.bin", ".git"])
def test_a_folder_that_holds_anything_else_is_not_ours(tmp_path, name):
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / name).touch()
    assert not is_ours(run)


def test_a_run_that_can_not_be_begun_leaves_no_folder(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("clipcoco.runs.directory.write_json", raising(full))
    with pytest.raises(OSError, match="No space"):
        create(tmp_path, "demo", "run")
    assert not list(tmp_path.iterdir())


def test_a_status_keeps_what_a_later_version_wrote_and_is_refused_whole_when_one_kind_is_wrong(tmp_path):
    run = RunDir(tmp_path)
    run.status_file.write_text('{"state": "running", "step": 3, "shards": [1, 2]}')
    run.write_status(step=4, reason="no image \udcff.jpg")
    assert json.loads(run.status_file.read_text()) == {
        "state": "running", "step": 4, "shards": [1, 2], "reason": "no image \\udcff.jpg",
    }  # fmt: skip
    assert (run.status().state, run.status().step, run.status().total_steps) == ("running", 4, None)
    run.status_file.write_text('{"state": "running", "chance": 7, "chance_loss": "x"}')  # for the report alone
    assert (run.status().state, run.status().chance) == ("running", None)
    for damaged in ('{"state": "running", "step": "x"}', '{"best": {"r1": NaN, "epoch": 1}}', "[]", "{"):
        run.status_file.write_text(damaged)
        assert run.read_status() is None
        assert run.status() == Status()

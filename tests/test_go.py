"""A run as the commands conduct it: what is left of it when something fails."""

import errno
import itertools
import math
import os
import shutil
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipcoco.config.load import LoadedConfig, load_config
from clipcoco.engine import checkpoint, step
from clipcoco.engine.device import choose_as_trained
from clipcoco.engine.embeddings import Seen
from clipcoco.errors import DataError, EnvironmentProblem, NumericError
from clipcoco.events import CheckpointSaved, Progress, RunEnded, RunStarted, StepDone, Warned
from clipcoco.runs import go as going
from clipcoco.runs import rehearse as rehearsing
from clipcoco.runs import training
from clipcoco.runs.directory import RunDir, Status
from clipcoco.runs.measure import measure_run
from clipcoco.runs.names import Found
from clipcoco.runs.resume import open_saved, plan_resume, resumed_run
from clipcoco.runs.start import new_run, plan_run
from conftest import LIGHT
from harness import raising, rows

QUICK = ("train.epochs=2", "train.batch_size=6", "data.train_fraction=0.25", "checkpoint.keep=0")
HERE = {"device_name": "cpu", "init": None}


def loaded(root, *changes) -> LoadedConfig:
    """Two epochs of two steps, unless `changes` say otherwise."""
    return load_config("demo", overrides=[*LIGHT, *QUICK, f"data.root={root}", *changes])


def start(root, folder, *changes, events=None, stop=lambda: None, seen=None) -> RunDir:
    events = [] if events is None else events
    plan = plan_run(loaded(root, *changes), **HERE, name="run", runs_dir=folder, report=events.append)
    plan = plan.looked_at(events.append)
    with new_run(plan, folder, "run") as (run, note):
        going.go(plan, run, note, events.append, stop, seen)
    return run


def resume(run: RunDir, events=None) -> RunEnded:
    events = [] if events is None else events
    with open_saved(Found(run, None), []) as saved:
        plan = plan_resume(saved, runs_dir=run.path.parent, device_name="cpu", report=events.append)
        with resumed_run(saved, plan, run.path.parent):
            return going.go(plan, run, "", events.append, lambda: None)


@pytest.fixture(scope="module")
def calm(scenes, tmp_path_factory) -> RunDir:
    return start(scenes, tmp_path_factory.mktemp("calm"))


def assert_same(run: RunDir, calm: RunDir, *names: str) -> None:
    for name in names or ("last.pt", "best.pt"):
        ours, theirs = (checkpoint.load(folder.checkpoints / name) for folder in (run, calm))
        assert checkpoint.weights_sha256(ours["model"]) == checkpoint.weights_sha256(theirs["model"])
        assert ours["state"]["step"] == theirs["state"]["step"]
        assert ours["state"]["best_epoch"] == theirs["state"]["best_epoch"]
        assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]


def test_what_training_saw_is_taken_for_its_own_weights_and_captions_alone(scenes, tmp_path, monkeypatch):
    data, seen = tmp_path / "data", Seen()
    shutil.copytree(scenes, data)
    run = start(data, tmp_path, "train.epochs=1", seen=seen)
    monkeypatch.setattr("clipcoco.runs.measure.embed", raising(NumericError("seen again")))

    def measured(seen: Seen) -> object:
        return measure_run(run, None, "cpu", lambda event: None, seen).embeddings.texts

    assert measured(seen) is seen.embeddings.texts
    for other in (
        Seen(),
        replace(seen, weights="0" * 64),
        replace(seen, embeddings=replace(seen.embeddings, false=None)),
    ):
        with pytest.raises(NumericError, match="seen again"):
            measured(other)
    file = data / "annotations/captions_val2017.json"
    file.write_text(file.read_text().replace(" red ", " blue "))
    with pytest.raises(NumericError, match="seen again"):
        measured(seen)


@pytest.fixture
def sick_evaluation(monkeypatch):
    """The second evaluation fails, by whatever is asked for."""
    real, calls = training.embed, itertools.count(1)

    def fail_with(error):
        monkeypatch.setattr(training, "embed", lambda *given: (real if next(calls) != 2 else raising(error))(*given))

    return fail_with


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory"), EnvironmentProblem),
        (DataError("val2017/7.jpg can't be read"), DataError),
    ],
)
def test_an_evaluation_that_fails_costs_no_step(scenes, tmp_path, calm, sick_evaluation, error, told):
    sick_evaluation(error)
    with pytest.raises(told) as failed:
        start(scenes, tmp_path)
    run, events = RunDir(tmp_path / "run"), []
    assert checkpoint.load(run.checkpoints / "last.pt")["state"]["step"] == 4
    assert run.status().state == "failed"
    assert "Step 4" not in run.status().reason
    if told in (EnvironmentProblem, DataError):
        assert str(failed.value).endswith(f"Step 4 is saved, go on there with clipcoco resume {run.words}")
    if told is EnvironmentProblem:
        assert str(failed.value).startswith("an evaluation, in batches of 128, does not fit into the memory of cpu")
    resume(run, events)
    assert not [event for event in events if isinstance(event, StepDone)]
    assert rows(run.path) == rows(calm.path)
    assert_same(run, calm)


def test_a_stop_in_an_evaluation_writes_no_second_time_what_is_there(scenes, tmp_path):
    events = []

    def stop():
        evaluating = isinstance(events[-1], Progress) and events[-1].phase == "evaluate"
        return "enough" if evaluating and len([e for e in events if isinstance(e, CheckpointSaved)]) == 1 else None

    run = start(scenes, tmp_path, events=events, stop=lambda: stop() if events else None)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2]
    assert run.status().state == "stopped"


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_damaged_validation_image_is_told_before_the_first_step(scenes, tmp_path, frozen):
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    victims = sorted((root / "val2017").iterdir())[3:5]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:99])
    events = []
    words = rf"{victims[0].name} can't be read \(a damaged image: .*\), nor can 1 others, .*Get them again"
    with pytest.raises(DataError, match=words):
        start(root, tmp_path, f"train.frozen_epochs={frozen}", events=events)
    assert not [event for event in events if isinstance(event, StepDone)]
    if not frozen:
        assert not [event for event in events if isinstance(event, RunStarted)]
        assert [event.done for event in events] == list(range(1, 25))
        assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=words):
        rehearsal(root, tmp_path, f"train.frozen_epochs={frozen}")


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_resume_reads_validation_images_again_only_where_something_is_another(scenes, tmp_path, frozen):
    root, begun, victims = shutil.copytree(scenes, tmp_path / "data"), [], sorted(scenes.glob("val2017/*"))

    def stop():
        return "enough" if sum(isinstance(event, StepDone) for event in begun) == 3 else None

    run = start(root, tmp_path, f"train.frozen_epochs={frozen}", events=begun, stop=stop)
    assert run.status().state == "stopped"

    def read_before_the_first_step() -> int:
        events = []
        with suppress(DataError), open_saved(Found(run, None), []) as saved:
            plan_resume(saved, runs_dir=tmp_path, device_name="cpu", report=events.append)
        return sum(isinstance(event, Progress) and event.phase == "check" for event in events)

    assert read_before_the_first_step() == 0
    victim = root / "val2017" / victims[3].name
    shutil.copy(victims[5], victim)  # another one, whole
    assert read_before_the_first_step() == 24
    victim.write_bytes(victim.read_bytes()[:99])
    with pytest.raises(
        DataError, match=rf"{victim.name} can't be read \(a damaged image: .*\), and recall over the rest"
    ):
        resume(run)


def rehearsal(root: Path, folder: Path, *changes: str) -> dict[str, str]:
    plan = plan_run(loaded(root, *changes), **HERE, name=None, runs_dir=folder, report=lambda event: None)
    return rehearsing.rehearse(plan, lambda event: None)


def test_a_dry_run_encodes_a_batch_of_an_evaluation(scenes, tmp_path, monkeypatch):
    seen = []

    def embed(model, split, *rest):
        seen.append((model.training, len(split.table.files)))
        raise MemoryError

    monkeypatch.setattr(rehearsing, "embed", embed)
    monkeypatch.setattr(rehearsing, "EVALUATION_BATCH", 16)  # of 24 images
    with pytest.raises(EnvironmentProblem, match=r"an evaluation, in batches of 128, does not fit"):
        rehearsal(scenes, tmp_path)
    assert [images for _, images in seen] == [16]


# ---- a full disk


@pytest.fixture
def disk(monkeypatch):
    """Which saves (from 1) the disk refuses: through torch, as /dev/full does."""
    real, refused, calls = checkpoint.write_temporary, set(), []

    def write(path, fill):
        calls.append(path)
        if len(calls) in refused:
            with open("/dev/full", "wb", buffering=0) as file:
                fill(file)
        return real(path, fill)

    monkeypatch.setattr(checkpoint, "write_temporary", write)
    return refused


NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")


@NEEDS_FULL
@pytest.mark.parametrize("saves", [{2}, {1, 2}, {2, 3}, {3}, {2, 3, 4}])  # of steps 1, 2 twice, 3 and 4 twice
def test_a_disk_that_is_full_for_a_while_changes_nothing(scenes, tmp_path, calm, disk, saves):
    disk |= saves
    events = []
    run = start(scenes, tmp_path, "checkpoint.every_steps=1", events=events)
    warnings = [event.message for event in events if isinstance(event, Warned) and event.step]
    assert len(warnings) == len(saves)
    for message in warnings:
        assert "No space left on device" in message
        assert "MiB are free there. Free space: one takes" in message
    assert [row for row in rows(run.path) if row["event"] != "warning" or not row["step"]] == rows(calm.path)
    assert_same(run, calm)
    best = checkpoint.load(run.checkpoints / "best.pt")["state"]
    assert best["evaluated_epochs"] == best["best_epoch"] == run.status().best.epoch
    assert not list(run.checkpoints.glob(".*"))


def test_a_checkpoint_is_due_after_ten_minutes_too(scenes, tmp_path, calm, monkeypatch):
    monkeypatch.setattr("clipcoco.engine.train.SAVE_SECONDS", -1.0)
    events = []
    run = start(scenes, tmp_path, events=events)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 2, 3, 4, 4]
    assert rows(run.path) == rows(calm.path)
    assert_same(run, calm)


@NEEDS_FULL
def test_the_third_step_that_can_not_be_saved_ends_the_run(scenes, tmp_path, disk):
    disk |= set(range(2, 99))
    with pytest.raises(
        EnvironmentProblem, match=r"Free space\. Step 1 is saved, go on there with clipcoco resume"
    ) as end:
        start(scenes, tmp_path, "checkpoint.every_steps=1")
    assert "inline_container" not in str(end.value)
    run = RunDir(tmp_path / "run")
    assert run.status().state == "failed"
    assert checkpoint.newest(run.checkpoints)[1]["state"]["step"] == 1
    disk.clear()
    assert resume(run).state == "finished"


@NEEDS_FULL
def test_what_can_not_be_saved_at_the_end_or_at_a_stop_is_an_error_at_once(scenes, tmp_path, disk):
    disk |= {4}  # of steps 2 and 4, each twice
    with pytest.raises(EnvironmentProblem, match="No space left"):
        start(scenes, tmp_path / "end")
    disk |= {5}
    asked = []
    with pytest.raises(EnvironmentProblem, match="No space left"):
        start(scenes, tmp_path / "stop", stop=lambda: asked.append(1) or ("enough" if len(asked) > 1 else None))


def test_only_a_full_disk_asks_for_room(tmp_path, monkeypatch):
    for number, words in ((errno.EDQUOT, "Free space"), (errno.EIO, "Input/output error. See that the folder")):
        monkeypatch.setattr(checkpoint, "write_temporary", raising(OSError(number, os.strerror(number))))
        with pytest.raises(EnvironmentProblem) as told:
            checkpoint.save(tmp_path, {}, best=False, epoch=None, keep=0)
        assert words in str(told.value)
        assert ("Free space" in str(told.value)) == (number == errno.EDQUOT)


def test_a_status_says_that_the_run_failed_even_on_a_full_disk(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.write_status(state="running", checkpoint="checkpoints/last.pt")
    real = RunDir.write_status

    def write(self, **changes):
        if self.status_file.exists():  # no room for a second one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, **changes)

    monkeypatch.setattr(RunDir, "write_status", write)
    going._note_failure(run, going.TrainState(step=7), EnvironmentProblem("\n\n  the disk is full\nby far"))
    assert run.status() == Status(
        state="failed", step=7, exit_code=5, reason="the disk is full", checkpoint="checkpoints/last.pt"
    )


# ---- numbers


def sick(monkeypatch, first: int) -> None:
    """The loss is NaN from step `first` on."""
    real, calls = step.gradient, itertools.count(1)
    monkeypatch.setattr(step, "gradient", lambda *given: real(*given) * (math.nan if next(calls) >= first else 1))


def test_a_numeric_error_names_the_checkpoint_that_is_left(scenes, tmp_path, monkeypatch):
    sick(monkeypatch, 4)
    with pytest.raises(
        NumericError, match=r"at step 13, .*last good: step 3 .*Step 12 is saved, .*--init \S*run/last$"
    ):
        start(scenes, tmp_path, "train.epochs=7")


@pytest.mark.parametrize("epoch", [1, 2])
def test_embeddings_that_can_not_be_ranked_name_the_best_where_there_is_one(
    scenes, tmp_path, sick_evaluation, monkeypatch, epoch
):
    error = NumericError("No recall: 8 of 8 image embeddings hold NaN, and only finite ones can be ranked")
    if epoch == 2:
        sick_evaluation(error)
    else:
        monkeypatch.setattr(training, "embed", raising(error))
    with pytest.raises(NumericError) as told:
        start(scenes, tmp_path)
    assert ("--init" in str(told.value)) == (epoch == 2)
    assert ("with a lower train.lr" in str(told.value)) == (epoch == 1)


# ---- another precision


def test_a_float16_run_goes_on_in_float32_where_there_is_no_float16(scenes, tmp_path, calm):
    shutil.copytree(calm.path.parent, tmp_path, dirs_exist_ok=True)
    run, events = RunDir(tmp_path / "run"), []
    for path in run.checkpoints.glob("*.pt"):
        content = checkpoint.load(path)
        content["state"] |= {"precision": "float16", "evaluated_epochs": 1, "best_epoch": 1}
        content["scaler"] = torch.amp.GradScaler("cpu").state_dict()
        path.unlink()
        torch.save(content, path)
    resume(run, events)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert dict(started.header)["exact"].startswith("not to the bit: float16 -> float32 (cpu has no float16)")
    assert checkpoint.newest(run.checkpoints)[1]["state"]["precision"] == "float32"


def test_a_gpu_is_made_current_so_that_no_other_one_is_touched(monkeypatch):
    from clipcoco.engine.device import Device

    seen = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: seen.append(device) or nullcontext())
    with Device(torch.device("cuda", 1), "float32", "").made_current(), choose_as_trained("cpu", "").made_current():
        assert seen == [torch.device("cuda", 1)]

"""The records of a run, before and after a resume, and when the disk refuses them."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipcoco.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    ImageReplaced,
    Progress,
    RunEnded,
    RunStarted,
    StepDone,
    StepSkipped,
    Warned,
)
from clipcoco.runs.metrics import LogFile, MetricsFile, fan_out
from clipcoco.runs.tensorboard import TensorBoard
from harness import file_size_limit, python


def step(number: int, loss: float = 3.0) -> StepDone:
    clock = {"seconds": 1.0, "images_per_second": 65.0, "data_wait": 0.03}
    return StepDone(number, 1, loss, 3e-4, 0.069, 1.5, clock)


def evaluation(number: int, r1: float = 4.0) -> Evaluated:
    recalls = {"r1": r1, "r5": 10.0, "r10": 20.0, "median_rank": 30.0}
    return Evaluated(number, 1, 2.5, recalls, recalls, r1, 60.0, "00ff", True, {"seconds": 2.0})


def started(folder: Path, number: int = 0) -> RunStarted:
    return RunStarted(number, 1, "a", "a", folder, 9, 3, 3, 4, (), {}, math.log(4), ())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_hold_the_recorded_events_as_they_come(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    metrics(started(tmp_path))
    for event in (Progress("train", 1, 9), step(1), StepSkipped(2, 1, "loss"), ImageReplaced(2, 1, "a.jpg")):
        metrics(event)
    assert [row["event"] for row in read(metrics.path)] == ["step", "skipped", "replaced"], "flushed each row"
    metrics(evaluation(3))
    metrics(CheckpointSaved(3, 1, tmp_path / "last.pt", 5, 0.1))
    rows = read(metrics.path)
    assert rows == metrics.rows
    assert rows[0] == {
        "step": 1,
        "epoch": 1,
        "loss": 3.0,
        "lr": 3e-4,
        "temperature": 0.069,
        "grad_norm": 1.5,
        "clock": {"seconds": 1.0, "images_per_second": 65.0, "data_wait": 0.03},
        "event": "step",
    }
    assert rows[-1]["i2t"]["median_rank"] == 30.0


def test_metrics_of_a_resumed_run_read_as_one(tmp_path: Path) -> None:
    before = MetricsFile(tmp_path / "metrics.jsonl", [])
    before(started(tmp_path))
    before(step(1))
    saved = list(before.rows)
    before(step(2, loss=99.0))  # after the checkpoint: lost with the process
    with open(before.path, "a") as file:
        file.write('{"event": "st')
    after = MetricsFile(before.path, saved)
    after(started(tmp_path, 1))
    assert read(after.path) == saved
    after(step(2))
    assert [(row["step"], row["loss"]) for row in read(after.path)] == [(1, 3.0), (2, 3.0)]


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    metrics(evaluation(1, r1=math.nan))
    assert "NaN" not in metrics.path.read_text()
    assert read(metrics.path)[0]["i2t"]["r1"] is None


def test_full_disk_costs_a_warning_and_no_row_once_there_is_room(tmp_path: Path) -> None:
    seen: list[Event] = []
    metrics, tensorboard = MetricsFile(tmp_path / "metrics.jsonl", []), TensorBoard(tmp_path / "tensorboard", None)
    report = fan_out(metrics, tensorboard, seen.append)
    report(started(tmp_path))
    report(step(1))
    with file_size_limit(250):
        report(step(2))
        report(step(3))
    report(step(4))
    tensorboard.close()
    assert len([event for event in seen if isinstance(event, Warned)]) == 2, "one a sink"
    steps = [row["step"] for row in read(tmp_path / "metrics.jsonl") if row["event"] == "step"]
    assert steps == [1, 2, 3, 4]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_one_unbroken_curve_after_a_resume(tmp_path: Path) -> None:
    before = TensorBoard(tmp_path, None)
    for number in (1, 2, 3, 4):
        before(step(number, loss=float(number)))
    before(evaluation(4))
    before.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    train = {"loss", "lr", "temperature", "grad_norm", "images_per_second", "data_wait"}
    recalls = {f"{way}/{key}" for way in ("i2t", "t2i") for key in ("r1", "r5", "r10", "median_rank")}
    assert found.keys() == {f"train/{tag}" for tag in train} | {f"val/{tag}" for tag in recalls | {"r1", "loss"}}
    after = TensorBoard(tmp_path, 2)
    for number in (3, 4, 5):
        after(step(number, loss=10.0 * number))
    after.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert found.get("val/r1", []) == [], "the evaluation after the checkpoint is taken back"


def test_unwritable_tensorboard_folder_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    seen: list[Event] = []
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    report = fan_out(TensorBoard(tmp_path / "tensorboard", None), metrics, seen.append)
    for number in (1, 2, 3):
        report(step(number))
    warned = [event for event in seen if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "tensorboard" in warned[0].message
    assert [row["step"] for row in metrics.rows if row["event"] == "step"] == [1, 2, 3]
    assert [event.step for event in seen if isinstance(event, StepDone)] == [1, 2, 3]


def test_log_keeps_names_that_are_not_unicode(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.txt")
    log(f"warning: {os.fsdecode(b'caf' + bytes([0xE9]))}.jpg ±")
    log("")
    first, second = log.path.read_text(encoding="utf-8").splitlines()
    assert first.endswith(" warning: caf\\udce9.jpg ±")
    assert len(second) == len("2026-11-24 08:12:41")


@pytest.mark.parametrize("found", [None, SimpleNamespace(Event=lambda **given: 1 / 0)])
def test_a_tensorboard_that_does_not_work_is_one_warning(tmp_path: Path, monkeypatch, found: object) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", found)
    seen: list[Event] = []
    report = fan_out(TensorBoard(tmp_path / "tensorboard", None), seen.append)
    for number in (1, 2):
        report(step(number))
    [warned] = [event for event in seen if isinstance(event, Warned)]
    assert "incomplete from here on: TensorBoard fails" in warned.message
    assert len(seen) == 3


def test_tensorboard_writes_without_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from test_metrics import *
TensorBoard(Path({str(tmp_path)!r}), None)(step(1))
print({{"torch", "tensorflow"}} & set(sys.modules))
"""
    assert python(code, cwd=Path(__file__).parent).stdout == "set()\n"


def test_tensorboard_holds_the_settings_in_the_run_itself(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    settings = {"train.lr": 5e-4, "data.flip": True, "model.vision.backbone": "resnet18", "data.crop_scale": [0.5, 1]}
    sink = TensorBoard(tmp_path, None, settings)
    sink(started(tmp_path))
    sink(RunEnded(step=3, epoch=1, state="finished", reason="", seconds=1.0))
    sink.close()
    reader = EventAccumulator(str(tmp_path)).Reload()
    content = {tag: reader.SummaryMetadata(tag).plugin_data.content for tag in reader.PluginTagToContent("hparams")}
    start = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = start.session_start_info.hparams
    assert values["train.lr"].number_value == 5e-4
    assert values["data.flip"].bool_value is True
    assert values["model.vision.backbone"].string_value == "resnet18"
    assert values["data.crop_scale"].string_value == "[0.5, 1]"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    described = {info.name.tag: info.description for info in experiment.metric_infos}
    assert "mean of both directions, in percent" in described["val/r1"]
    end = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_end_info"])
    assert end.session_end_info.status == 1  # success

"""A run that was stopped anywhere, by real signals, ends in the bits of the run that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import LIGHT
from fork_server import ForkServer, Process
from harness import rows, until

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads signal masks from /proc")
TWELVE_STEPS = ("train.epochs=2", "checkpoint.every_steps=4", "checkpoint.keep=0")


def arguments(data: Path, workers: int = 0) -> list[str]:
    settings = [f"data.root={data}", f"data.workers={workers}", *LIGHT, *TWELVE_STEPS]
    return ["train", "--preset", "demo", "--name", "run", *settings]


@pytest.fixture(scope="module")
def calm(clipcoco: ForkServer, scenes: Path, tmp_path_factory) -> Path:
    """The run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    clipcoco(*arguments(scenes), cwd=folder).ok()
    return folder / "runs" / "run"


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "runs" / "run"


@pytest.fixture
def begun(clipcoco, scenes, tmp_path, run):
    """Starts the run, and waits until it has so many rows or until what is asked of its folder holds."""

    def begin(there: int | Callable[[Path], bool], *words: str, workers: int = 0, **more) -> Process:
        process = clipcoco.start(*arguments(scenes, workers), *words, cwd=tmp_path, **more)
        until(lambda: len(rows(run)) >= there if isinstance(there, int) else there(run), process)
        return process

    return begin


@pytest.fixture
def stopped(begun):
    """Starts the run and stops it there."""

    def stop(there: int | Callable[[Path], bool], *words: str) -> None:
        process = begun(there, *words)
        process.signal(signal.SIGTERM)
        assert process.wait().code == 75

    return stop


def assert_same(run: Path, calm: Path) -> None:
    assert rows(run) == rows(calm)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, calm))
        for key in ("model", "optimizer"):
            assert_equal(ours[key], theirs[key])


def assert_equal(ours, theirs) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list):
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
    else:
        assert ours == theirs


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".last.pt.*.tmp"))


def evaluated(run: Path) -> bool:
    return any(row["event"] == "evaluation" for row in rows(run))


def test_a_checkpoint_that_was_copied_out_of_its_run_goes_on_in_a_new_one(clipcoco, calm, stopped, tmp_path):
    stopped(evaluated)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(tmp_path / "runs/run/checkpoints/last.pt", tmp_path / "checkpoints/checkpoint_epoch_10.pt")
    shutil.rmtree(tmp_path / "runs")
    no_data = clipcoco("resume", "checkpoints/checkpoint_epoch_10.pt", "data.root=none", cwd=tmp_path)
    assert (no_data.code, (tmp_path / "runs").exists()) == (3, False), "all is checked before there is a run"
    resumed = clipcoco("resume", "checkpoints/checkpoint_epoch_10.pt", cwd=tmp_path).ok()
    assert "belongs to no run: it goes on in a new one in runs" in resumed.stderr.splitlines()[0]
    [run] = (tmp_path / "runs").glob("checkpoint_epoch_10-*")
    assert_same(run, calm)
    assert (run / "report.html").is_file()
    (tmp_path / "done.pt").write_bytes((run / "checkpoints/last.pt").read_bytes())
    assert "done.pt is finished (12 steps)" in clipcoco("resume", "done.pt", cwd=tmp_path).ok().stderr


SLOW = """
import time
from clipcoco.engine.model import DualEncoder
encode = DualEncoder.encode_images
DualEncoder.encode_images = lambda *given: time.sleep(0.3) or encode(*given)
"""
PLACES = {
    "in the middle of an epoch": lambda run: len(rows(run)) >= 3,
    "in an evaluation": lambda run: any(row["step"] == 6 for row in rows(run)),
    "at an epoch's end": evaluated,
    "in a save": saving,
}


@pytest.mark.parametrize(
    ("place", "number", "group", "workers"),
    [
        pytest.param("in the middle of an epoch", signal.SIGINT, False, 0, marks=pytest.mark.slow),
        ("in the middle of an epoch", signal.SIGTERM, True, 2),
        ("in an evaluation", signal.SIGTERM, False, 0),
        pytest.param("in an evaluation", signal.SIGUSR1, True, 2, marks=pytest.mark.slow),
        ("at an epoch's end", signal.SIGINT, True, 0),
        pytest.param("at an epoch's end", signal.SIGINT, True, 2, marks=pytest.mark.slow),
        ("in a save", signal.SIGUSR1, False, 0),
        pytest.param("in a save", signal.SIGHUP, True, 0, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(clipcoco, calm, begun, run, place, number, group, workers):
    process = begun(PLACES[place], workers=workers, prelude=SLOW if place == "in an evaluation" else "")
    (process.signal_group if group else process.signal)(number)
    stopped = process.wait()
    assert stopped.code == 75, stopped.stderr
    assert "Go on with: clipcoco resume run" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert 0 < status["step"] < 12
    if place == "in an evaluation":
        assert not evaluated(run)
    others = workers if place == "in an evaluation" else 0  # with as many workers, or with none: the same bits
    resumed = clipcoco("resume", f"data.workers={others}", cwd=run.parents[1]).ok()
    assert f"at step {status['step']} of 12" in resumed.stderr
    assert_same(run, calm)


def test_kill_9_and_many_stops_end_in_the_same_bits(clipcoco, scenes, calm, run, tmp_path):
    process = clipcoco.start(*arguments(scenes), cwd=tmp_path)
    for seen, number in ((6, signal.SIGKILL), (8, signal.SIGTERM), (9, signal.SIGKILL)):
        until(lambda seen=seen: len(rows(run)) >= seen, process)
        process.signal(number)
        assert process.wait().code in (-signal.SIGKILL, 75)
        process = clipcoco.start("resume", cwd=tmp_path)
        process.wait_for("step ")
    assert process.wait().code == 0
    assert_same(run, calm)
    assert not list((run / "checkpoints").glob(".*"))  # what the kills left is cleared away


def test_a_damaged_last_checkpoint_falls_back_with_a_warning(clipcoco, calm, stopped, run):
    stopped(8)
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    resumed = clipcoco("resume", cwd=run.parents[1]).ok()
    assert "warning: " in resumed.stderr
    assert "Taking previous.pt" in resumed.stderr
    assert_same(run, calm)


def test_tensorboard_reads_one_unbroken_curve_after_stops(clipcoco, calm, begun, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    process = begun(7)
    process.signal(signal.SIGKILL)  # steps after the last checkpoint are on the disk, and will come again
    process.wait()
    clipcoco("resume", cwd=run.parents[1]).ok()
    curves = []
    for folder in (run, calm):
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        curves.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert curves[0] == curves[1]


def test_a_finished_run_says_so_and_can_be_prolonged(clipcoco, calm):
    again = clipcoco("resume", "run", cwd=calm.parents[1]).ok()
    assert "run is finished (12 steps)" in again.stderr
    assert "--init run" in again.stderr


def test_a_run_at_work_is_locked(clipcoco, begun, tmp_path):
    process = begun(lambda run: (run / "checkpoints" / "last.pt").exists(), "train.epochs=50")
    second = clipcoco("resume", "run", cwd=tmp_path)
    process.signal(signal.SIGTERM)
    assert second.code == 5
    assert second.stderr.strip().splitlines()[-1].startswith("error: run run is already running in another process")
    assert process.wait().code == 75


def test_a_second_ctrl_c_leaves_at_once_and_harms_nothing(clipcoco, begun, run):
    previous = run / "checkpoints" / "previous.pt"
    process = begun(lambda run: previous.exists(), "train.epochs=50", "train.batch_size=48")
    until(lambda: saving(run), process)
    process.signal(signal.SIGINT)
    process.wait_for("Ctrl-C: stopping")
    process.signal(signal.SIGINT)
    done = process.wait()
    assert done.code in (75, 130), done.stderr  # 75 when the save was quicker than the second signal
    assert "Traceback" not in done.stderr
    clipcoco("eval", "--checkpoint", previous, cwd=run.parents[1]).ok()


@NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_before_there_is_anything_to_save_a_signal_ends_the_command(clipcoco, scenes, tmp_path, number):
    process = clipcoco.start(*arguments(scenes), cwd=tmp_path)
    until(lambda: signal.SIGTERM in signals(process.pid, "SigCgt"), process)  # the command has begun
    process.signal(number)
    done = process.wait()
    began = (tmp_path / "runs").exists()  # it was quicker than the signal
    assert done.code == (75 if began else 130 if number == signal.SIGINT else 143), done.stderr
    assert "Traceback" not in done.stderr


@NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_heard_from_the_first_moment(tmp_path, number):
    words = [sys.executable, "-m", "clipcoco", "train", "--preset", "demo"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while number not in signals(process.pid, "SigCgt"):
        assert process.poll() is None
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 143)
    assert not list(tmp_path.iterdir())


def test_a_reader_that_is_gone_does_not_stop_the_saving(begun, run, tmp_path):
    """`clipcoco train 2>&1 | tee log`, then Ctrl-C: the signal takes tee first."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = begun(3, "train.epochs=50", streams=(os.devnull, pipe, pipe))
    os.close(reader)
    process.signal(signal.SIGINT)
    assert process.wait().code == 75
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


@pytest.fixture
def finished(calm, tmp_path) -> Path:
    """A copy of the finished run, to be mistreated."""
    shutil.copytree(calm.parents[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "run"


def test_a_kill_after_the_last_save_costs_nothing_and_adds_nothing(clipcoco, calm, finished):
    (finished / "status.json").unlink()
    (finished / "report.html").unlink()
    assert "image -> text" in clipcoco("resume", cwd=finished.parents[1]).ok().stdout
    assert (finished / "report.html").exists()
    assert_same(finished, calm)


def test_an_early_stop_stays_one(clipcoco, scenes, run, tmp_path):
    words = ("train.epochs=4", "train.batch_size=24", "train.early_stop_epochs=1", "train.lr=1e-9")
    clipcoco(*arguments(scenes), *words, cwd=tmp_path).ok()
    before = rows(run)
    assert before[-1]["epoch"] < 4
    (run / "report.html").unlink()
    clipcoco("resume", cwd=tmp_path).ok()
    assert rows(run) == before
    clipcoco("resume", "--set", "train.early_stop_epochs=0", cwd=tmp_path).ok()
    assert rows(run)[-1]["epoch"] == 4


def test_going_back_would_destroy_what_came_after_and_is_refused(clipcoco, stopped, run, tmp_path):
    stopped(9, "checkpoint.keep=3")
    before = rows(run)
    refused = clipcoco("resume", "run/epoch_001", cwd=tmp_path)
    assert refused.code == 4
    assert "epoch_001.pt is of step 6" in refused.stderr
    assert rows(run) == before
    for name in ("last.pt", "previous.pt"):  # now the epoch's file is the newest there is
        (run / "checkpoints" / name).unlink(missing_ok=True)
    clipcoco("resume", "run/epoch_001", cwd=tmp_path).ok()
    assert rows(run)[-1]["step"] == 12


def test_a_killed_run_leaves_no_workers_behind(begun):
    process = begun(3, "train.epochs=50", workers=2)
    process.signal(signal.SIGKILL)
    process.wait()
    until(lambda: not session_members(process.pid))


def at_work(process: Process) -> list[int]:
    """The data workers: children of the fork server."""
    parents = session_members(process.pid)
    return [pid for pid, parent in parents.items() if parent in parents and parent != process.pid]


@pytest.mark.parametrize("batch", [2, 48])  # in the middle of an epoch; all images of an epoch are fetched ahead
def test_a_worker_that_dies_ends_the_run_saved_and_in_one_line(begun, run, batch):
    words = ("train.epochs=200", f"train.batch_size={batch}", "checkpoint.every_steps=1000")
    process = begun(3, *words, workers=2)
    os.kill(at_work(process)[-1], signal.SIGKILL)
    done = process.wait()
    assert done.code == 5, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [error[:26] for error in errors] == ["error: a data worker died,"]
    assert "Traceback" not in done.stderr
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert last["state"]["step"] == json.loads((run / "status.json").read_text())["step"] == rows(run)[-1]["step"]


@NEEDS_PROC
def test_a_signal_to_the_group_can_not_reach_workers_and_is_heeded_while_they_hang(begun):
    process = begun(3, "train.epochs=50", workers=2)
    others = [pid for pid in session_members(process.pid) if pid != process.pid]
    deaf = []
    for pid in others:
        unheard = signals(pid, "SigBlk") | signals(pid, "SigIgn")
        deaf.append(unheard >= {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP})
    assert len(others) >= 4  # two workers, their fork server, the resource tracker
    assert all(deaf)
    for worker in at_work(process):
        os.kill(worker, signal.SIGSTOP)
    process.signal(signal.SIGTERM)
    assert process.wait(60).code == 75
    until(lambda: not session_members(process.pid))  # the helpers leave after us


def signals(pid: int, field: str) -> set[int]:
    """The signals in a mask that the kernel shows of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(dict(line.split(":", 1) for line in status.splitlines())[field], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def session_members(session: int) -> dict[int, int]:
    """Processes of a session that run (zombies do not), with the parent of each."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,sess=,stat="], capture_output=True, text=True).stdout
    fields = [line.split() for line in listed.splitlines()]
    return {int(pid): int(ppid) for pid, ppid, sess, stat in fields if int(sess) == session and stat[0] != "Z"}


def test_a_job_that_died_before_its_first_save_can_start_again(clipcoco, scenes, run, tmp_path):
    (run / "checkpoints").mkdir(parents=True)
    (run / "status.json").write_text('{"checkpoint": "checkpoints/last.pt", "seconds": "long"}')  # of another version
    assert "status.json of run" in clipcoco(*arguments(scenes), "--or-resume", cwd=tmp_path).stderr
    (run / "status.json").unlink()  # as when it was never written
    clipcoco(*arguments(scenes), "--or-resume", "train.epochs=1", cwd=tmp_path).ok()
    assert [row["step"] for row in rows(run) if row["event"] == "step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["..", "", ".", "mine"])
def test_only_a_dead_run_of_ours_is_ever_cleared_away(clipcoco, scenes, tmp_path, name):
    for folder in (tmp_path, tmp_path / "runs" / "mine"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "precious.txt").write_text("mine")
    words = [name if word == "run" else word for word in arguments(scenes)]
    done = clipcoco(*words, "--or-resume", cwd=tmp_path)
    assert done.code == 2, done.stderr
    assert (tmp_path / "precious.txt").exists()
    assert (tmp_path / "runs" / "mine" / "precious.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt", "runs"]


def test_a_dry_run_never_resumes(clipcoco, scenes, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    words = ["other" if word == "run" else word for word in arguments(scenes)]
    done = clipcoco(*words, "--or-resume", "--dry-run", "--json", cwd=finished.parents[1]).ok()
    assert done.json["wrote"] == "nothing (--dry-run)"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert not (finished.parent / "other").exists()

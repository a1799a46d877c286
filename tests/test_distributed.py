"""One run on several processes, which talk by gloo: the same run, whatever happens to one of them."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from clipcoco.engine import checkpoint
from conftest import LIGHT
from harness import rows, until


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def started(clipcoco, size, *words, cwd, each=lambda rank: (), **more):
    """The processes of a launcher: each is told who it is, and where they meet."""
    port = str(free_port())
    known = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more.pop("env", {})}
    return [
        clipcoco.start(*words, *each(rank), cwd=cwd, env={**known, "RANK": str(rank)}, **more) for rank in range(size)
    ]


def finished(clipcoco, size, *words, **more):
    return [process.wait() for process in started(clipcoco, size, *words, **more)]


# Four epochs of three steps; BatchNorm sees 4 images of 2 x 2 places in its last layers.
TRAIN = ("train", "--preset", "demo", *LIGHT, "data.image_size=64", "train.batch_size=16", "train.micro_batch_size=4")
TRAIN = (*TRAIN, "train.epochs=4", "train.lr=1e-5", "train.warmup_steps=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


def step_losses(run):
    return [row["loss"] for row in rows(run) if row["event"] == "step"]


@pytest.fixture(scope="module")
def calm(clipcoco, scenes, folder) -> Path:
    """On one process, without a stop."""
    clipcoco(*TRAIN, f"data.root={scenes}", "--name", "calm", cwd=folder).ok()
    return folder / "runs/calm"


@pytest.fixture(scope="module")
def two(clipcoco, scenes, folder):
    """The same run by two processes: what each said."""
    return finished(clipcoco, 2, *TRAIN, f"data.root={scenes}", "--name", "two", cwd=folder)


@pytest.mark.parametrize(
    ("steps", "sizes"),
    [(2, (2,)), pytest.param(50, (2, 4), marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_gradients_and_losses_are_those_of_one_process(clipcoco, scenes, tmp_path, steps, sizes):
    env = {"ROOT": str(scenes), "FOUND": str(tmp_path), "STEPS": str(steps)}
    for size in (1, *sizes):
        for process in started(clipcoco, size, cwd=tmp_path, env=env, prelude="import ranks; ranks.main()"):
            assert process.wait(1200).code == 0, process.stderr
    one = torch.load(tmp_path / "1-0.pt")
    for size in sizes:
        found = [torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size)]
        for kind, limit in (("float64", 1e-9), ("float32", 1e-5)):
            shares = [[ids for _, _, ids in each[kind]] for each in found]
            assert [[*itertools.chain(*ids)] for ids in zip(*shares, strict=True)] == [ids for _, _, ids in one[kind]]
            for each in found:
                losses, norms, _ = zip(*each[kind], strict=True)
                of_losses, of_norms, _ = zip(*one[kind], strict=True)
                torch.testing.assert_close(torch.tensor(losses), torch.tensor(of_losses), rtol=limit, atol=0)
                torch.testing.assert_close(torch.tensor(norms), torch.tensor(of_norms), rtol=limit, atol=0)
        for each in found:
            for name, gradient in one["gradient"].items():
                assert (each["gradient"][name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name
            norm, moved = each["skipped"]
            assert not math.isfinite(norm)
            assert not moved, "what is not finite on one process is skipped by all"
            for ours, theirs in zip(each["embeddings"], one["embeddings"], strict=True):
                assert torch.equal(ours, theirs), "to the bit, and so every recall to the digit"
            assert each["features"] == one["features"]


def test_two_processes_train_the_run_of_one_and_the_first_alone_speaks(folder, calm, two):
    (first, second), run = two, folder / "runs/two"
    assert (first.ok().code, second.code) == (0, 0)
    assert "16 images in pieces of 4 with BatchNorm statistics of their own on 2 processes" in first.stderr
    assert second.stdout + second.stderr == ""
    assert "Evaluated(step=3" in (run / "log.1.txt").read_text()
    for ours, theirs in zip(step_losses(run)[:10], step_losses(calm)[:10], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 0)


def test_the_share_of_a_process_is_written_down_so_that_one_can_repeat_the_run(clipcoco, scenes, folder):
    """From scratch, where it is what BatchNorm takes its statistics over. And a rank that is left over in the
    environment is no launcher."""
    words = (*TRAIN, "train.micro_batch_size=whole", f"data.root={scenes}", "train.epochs=1", "--name", "shares")
    for _ in range(2):  # the second time it is finished
        done = finished(clipcoco, 2, *words, "--or-resume", cwd=folder)
        assert [one.code for one in done] == [0, 0], done[0].stderr
    config = folder / "runs/shares/config.yaml"
    assert re.search("micro_batch_size: 8 +# --set, where whole is the share of a process", config.read_text())
    left_over = {"RANK": "3", "LOCAL_RANK": "3"}
    alone = clipcoco("train", "--config", config, "--name", "again", cwd=folder, env=left_over).ok()
    assert "Finished: 3 steps" in alone.stderr
    for ours, theirs in zip(step_losses(folder / "runs/again"), step_losses(folder / "runs/shares"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_from_features_all_begin_where_the_closed_form_of_the_first_ends(clipcoco, scenes, folder):
    torch.manual_seed(1)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "backbone.pth")
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "train.frozen_epochs=all", "train.lr=1e-5"]
    words += ["train.micro_batch_size=4"]  # which draws what is dropped
    words += ["model.vision.backbone=resnet18", f"model.vision.weights={folder / 'backbone.pth'}"]
    clipcoco(*words, "--name", "alone", cwd=folder).ok()
    for done in finished(clipcoco, 2, *words, "--name", "together", cwd=folder):
        assert done.code == 0, done.stderr
    for ours, theirs in zip(step_losses(folder / "runs/together"), step_losses(folder / "runs/alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def signalled(number, rank, step):
    """That process gets the signal within that step of its own, when what its pieces make of BatchNorm is there."""
    return f"""
import itertools, os
from clipcoco.engine.distributed import Group

def add_gradients(*of):
    if next(steps) == {step} and os.environ.get("RANK", "0") == "{rank}":
        os.kill(os.getpid(), {int(number)})
    add(*of)

add, steps, Group.add_gradients = Group.add_gradients, itertools.count(1), add_gradients
"""


def test_a_run_goes_on_with_another_number_of_processes(clipcoco, scenes, folder, calm):
    """SIGTERM to the second of two, then one alone, then four: a quarter of the batch is a piece."""
    run, words = folder / "runs/changing", (*TRAIN, f"data.root={scenes}", "--name", "changing")
    two = finished(clipcoco, 2, *words, cwd=folder, prelude=signalled(signal.SIGTERM, rank=1, step=2))
    assert [done.code for done in two] == [75, 75]
    assert json.loads((run / "status.json").read_text())["reason"] == "SIGTERM"
    assert "Go on with: clipcoco resume changing" in two[0].stderr
    one = clipcoco("resume", "changing", cwd=folder, prelude=signalled(signal.SIGTERM, rank=0, step=6))
    assert (one.code, len(step_losses(run))) == (75, 8)
    assert "processes 2 -> 1" in one.stderr
    four = finished(clipcoco, 4, "resume", "changing", cwd=folder)
    assert [done.code for done in four] == [0, 0, 0, 0], four[0].stderr
    assert "processes 1 -> 4" in four[0].stderr
    for ours, theirs in zip(step_losses(run)[:10], step_losses(calm)[:10], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(step_losses(run)) == 12
    again = finished(clipcoco, 2, "resume", "changing", cwd=folder)
    assert [done.code for done in again] == [0, 0]
    assert "is finished" in again[0].stderr
    eight = finished(clipcoco, 8, "resume", "changing", "train.epochs=5", cwd=folder)
    assert [done.code for done in eight] == [2] * 8
    assert "pieces of 4 leave a remainder of a batch of 16 that 8 processes share equally" in eight[0].stderr


def test_a_killed_process_ends_the_others_in_one_line(clipcoco, scenes, folder):
    """And what was learnt since the last save, after the third step, is kept."""
    run, words = folder / "runs/killed", (*TRAIN, f"data.root={scenes}", "--name", "killed")
    first, second = finished(clipcoco, 2, *words, cwd=folder, prelude=signalled(signal.SIGKILL, rank=1, step=5))
    status = json.loads((run / "status.json").read_text())
    assert (first.code, second.code) == (7, -signal.SIGKILL)
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 7, 4)
    assert first.stderr.count("error: ") == 1
    assert "error: process 1 of 2 is gone, or answers no more (RANK)" in first.stderr
    assert "Step 4 is saved, go on there with clipcoco resume killed" in first.stderr
    assert checkpoint.load(run / "checkpoints/last.pt")["state"]["step"] == 4


def test_where_the_first_process_is_killed_another_says_so(clipcoco, scenes, folder):
    words = (*TRAIN, f"data.root={scenes}", "train.batch_size=24", "train.epochs=2", "--name", "headless")
    first, *others = finished(clipcoco, 3, *words, cwd=folder, prelude=signalled(signal.SIGKILL, rank=0, step=3))
    assert [done.code for done in (first, *others)] == [-signal.SIGKILL, 7, 7]
    assert "error: process 0 of 3 is gone" in others[0].stderr
    assert "error: " not in others[1].stderr
    assert "step 2 of 4" in clipcoco("resume", "headless", cwd=folder).ok().stderr


def test_a_process_that_hangs_is_waited_for_only_so_long(clipcoco, scenes, folder):
    run, words = folder / "runs/hung", (*TRAIN, f"data.root={scenes}", "--name", "hung")
    going = started(clipcoco, 2, *words, "train.epochs=50", cwd=folder, env={"CLIPCOCO_TIMEOUT": "3"})
    until(lambda: len(step_losses(run)) >= 2, going[0])
    going[1].signal(signal.SIGSTOP)
    first = going[0].wait(60)
    going[1].signal(signal.SIGKILL)
    assert first.code == 7
    assert "error: process 1 of 2 is gone, or answers no more" in first.stderr


def test_an_error_on_one_process_is_told_once_with_its_own_exit_code(clipcoco, scenes, folder, tmp_path):
    """More unreadable images than would be replaced: the process that finds the last of them ends all."""
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    images = sorted((root / "train2017").iterdir())
    for image in images[:1]:
        image.write_bytes(b"no image")
    first, second = finished(
        clipcoco, 2, *TRAIN, f"data.root={root}", "train.epochs=1", "--name", "one-bad", cwd=folder
    )
    replaced = [row for row in rows(folder / "runs/one-bad") if row["event"] == "replaced"]
    assert (first.ok().code, second.code, len(replaced)) == (0, 0, 1)
    for image in images[:3]:
        image.write_bytes(b"no image")
    first, second = finished(clipcoco, 2, *TRAIN, f"data.root={root}", "--name", "bad", cwd=folder)
    assert (first.code, second.code, second.stderr) == (3, 3, "")
    assert first.stderr.count("error: ") == 1
    assert "error: 3 of 48 training images can't be read" in first.stderr
    kept = checkpoint.load(folder / "runs/bad/checkpoints/last.pt")
    assert f"Step {kept['state']['step']} is saved" in first.stderr, "and what was learnt in the epoch until then"
    assert len(kept["state"]["unreadable"]) == len([row for row in kept["metrics"] if row["event"] == "replaced"]) == 2


def test_processes_that_were_asked_for_different_things_end_at_once(clipcoco, scenes, folder, tmp_path):
    def other_rate(rank):
        return ("train.lr=2e-4",) if rank else ()

    words = (*TRAIN, f"data.root={scenes}", "--name", "different")
    first, second = finished(clipcoco, 2, *words, cwd=folder, each=other_rate)
    assert (first.code, second.code, second.stderr) == (2, 2, ""), first.stderr
    assert "error: process 1 has another train.lr than process 0: 0.0002, not 1e-05 (RANK)" in first.stderr
    assert not (folder / "runs/different").exists()
    # ---- and where each has a disk of its own, and they are not alike
    for rank in (0, 1):
        shutil.copytree(scenes, tmp_path / str(rank) / "data")
    captions = tmp_path / "1/data/annotations/captions_train2017.json"
    content = json.loads(captions.read_text())
    content["annotations"][0]["caption"] = "something else"
    captions.write_text(json.dumps(content))
    port = str(free_port())
    known = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    going = [
        clipcoco.start(*TRAIN, "data.root=data", cwd=tmp_path / str(rank), env={**known, "RANK": str(rank)})
        for rank in (0, 1)
    ]
    first, second = (process.wait() for process in going)
    assert (first.code, second.code) == (2, 2)
    assert "process 1 has another training images than process 0" in first.stderr


def test_a_full_disk_ends_all_processes(clipcoco, scenes, small_disk):
    words = (*TRAIN, f"data.root={scenes}", "--runs-dir", small_disk, "--name", "no-room")
    first, second = finished(clipcoco, 2, *words, cwd=small_disk.parent)
    assert (first.code, second.code, second.stderr) == (5, 5, "")


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is None, and not one of 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and not one of 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "0", "CLIPCOCO_TIMEOUT": "soon"}, "'soon'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "CLIPCOCO_TIMEOUT": "inf"}, "infinity"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "PORT"}, "EADDRINUSE"),
    ],
)
def test_processes_that_can_not_meet_say_why(clipcoco, scenes, folder, env, why):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {name: value.replace("PORT", str(taken.getsockname()[1])) for name, value in env.items()}
        done = clipcoco(*TRAIN, f"data.root={scenes}", cwd=folder, env={"CLIPCOCO_TIMEOUT": "3", **env})
    assert done.code == 5
    if env.get("RANK") != "1":
        assert done.stderr.startswith("error: 2 processes can't meet: ")
        assert why in done.stderr


def test_several_processes_are_refused_where_one_is_meant(clipcoco, scenes, folder):
    env = {"WORLD_SIZE": "2", "RANK": "0"}
    done = clipcoco(*TRAIN, f"data.root={scenes}", "--dry-run", cwd=folder, env=env)
    assert (done.code, done.stderr.count("\n")) == (7, 1)
    assert "2 processes were started, and --dry-run is for one" in done.stderr
    second = clipcoco("inspect-config", "demo", cwd=folder, env={"WORLD_SIZE": "2", "RANK": "1"}).ok()
    assert second.stdout == second.stderr == ""


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process_to_the_same_weights(scenes, folder, two):
    """The launcher itself: it ends the others, starts all again, and they resume."""
    words = [*TRAIN, f"data.root={scenes}", "checkpoint.every_steps=4", "--name", "elastic", "--or-resume", "--plain"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    run = folder / "runs/elastic"
    going = subprocess.Popen(
        [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "clipcoco", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    until(lambda: len(step_losses(run)) >= 5, going)
    # of the children the one that is not first: its environment says so
    for process in Path("/proc").iterdir():
        try:
            if "RANK=1" in (process / "environ").read_text().split("\0") and process.joinpath(
                "stat"
            ).read_text().split()[3] == str(going.pid):
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
    _, stderr = going.communicate(timeout=300)
    assert going.returncode == 0, stderr
    assert "process 1 of 2 is gone" in stderr
    assert "Finished: 12 steps" in stderr
    two = checkpoint.load(folder / "runs/two/checkpoints/last.pt")["model"]
    assert checkpoint.weights_sha256(
        checkpoint.load(run / "checkpoints/last.pt")["model"]
    ) == checkpoint.weights_sha256(two)


@pytest.mark.slow
def test_a_slurm_job_saves_when_its_time_is_up_and_queues_again(scenes, tmp_path):
    """docs/slurm.sh as SLURM would run it: bash, its variables, and two commands of SLURM that do as little as here."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (commands / "scontrol").write_text(f'#!/bin/bash\n[ $1 = show ] && echo 127.0.0.1 || touch "{tmp_path}/queued"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    known = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one"}
    env = {**os.environ, **known, "PATH": path, "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    words = ["bash", Path(__file__).parents[1] / "docs/slurm.sh", "job", *TRAIN[1:], f"data.root={scenes}"]
    run = tmp_path / "runs/job"
    going = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until(lambda: len(step_losses(run)) >= 2, going)
    going.send_signal(signal.SIGTERM)
    _, stderr = going.communicate(timeout=200)
    assert json.loads((run / "status.json").read_text())["state"] == "stopped", stderr
    assert (tmp_path / "queued").exists()
    (tmp_path / "queued").unlink()
    again = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    assert "Finished: 12 steps" in again.stderr
    assert not (tmp_path / "queued").exists()


@pytest.fixture
def two_hosts():
    """Prefixes of commands that run them on two hosts of a network, and the address of the first: network namespaces
    where this machine lets us make them."""
    ip, hosts = shutil.which("ip"), [f"clipcoco{os.getpid()}-{number}" for number in range(2)]
    if not ip or subprocess.run([ip, "netns", "add", hosts[0]], capture_output=True).returncode:
        yield [[], []], "127.0.0.1"
        return

    def run(*words: str) -> None:
        subprocess.run([ip, *words], check=True, capture_output=True)

    try:
        run("netns", "add", hosts[1])
        run("link", "add", "wire0", "netns", hosts[0], "type", "veth", "peer", "name", "wire0", "netns", hosts[1])
        for number, host in enumerate(hosts, start=1):
            run("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "wire0")
            for link in ("lo", "wire0"):
                run("-n", host, "link", "set", link, "up")
        yield [[ip, "netns", "exec", host] for host in hosts], "10.77.0.1"
    finally:
        for host in hosts:
            subprocess.run([ip, "netns", "delete", host], capture_output=True)


@pytest.mark.slow
def test_two_machines_train_the_run_of_one(scenes, folder, calm, two_hosts):
    """Two launchers, each with a process of its own, who meet where the first one is."""
    hosts, address = two_hosts
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{free_port()}", "--rdzv-id", "1"]
    words = [*TRAIN, f"data.root={scenes}", "--name", "machines", "--or-resume"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if hosts[0]:
        env["GLOO_SOCKET_IFNAME"] = "wire0"
    both = []
    for number, host in enumerate(hosts, start=1):
        own = ["--local-addr", f"10.77.0.{number}", "--rdzv-conf", f"is_host={number == 1}"] if host else []
        command = [*host, *launcher, *own, "-m", "clipcoco", *words]
        both.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True))
    said = [one.communicate(timeout=280)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    for ours, theirs in zip(step_losses(folder / "runs/machines")[:10], step_losses(calm)[:10], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)

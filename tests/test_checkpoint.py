import os
import random
import signal
import time

import pytest
import torch

from clipcoco.engine import checkpoint
from clipcoco.errors import CheckpointError, EnvironmentProblem
from harness import file_size_limit, until


def content(step=1, size=2000):
    model = {"w": torch.arange(size, dtype=torch.float32) + step}
    return {"model": model, "config": {}, "tokenizer": {}, "state": {"step": step}}


def save(folder, step, best=False, epoch=None, keep=1):
    return checkpoint.save(folder, content(step), best=best, epoch=epoch, keep=keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_old_last_becomes_previous_and_the_best_stays(tmp_path):
    save(tmp_path, 1, best=True, epoch=1)
    save(tmp_path, 2)
    save(tmp_path, 3)
    steps = {name: checkpoint.load(tmp_path / name)["state"]["step"] for name in names(tmp_path)}
    assert steps == {"best.pt": 1, "epoch_001.pt": 1, "last.pt": 3, "previous.pt": 2}


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [12]), (3, [10, 11, 12])])
def test_the_newest_epochs_are_kept(tmp_path, keep, left):
    for epoch in range(1, 13):
        save(tmp_path, epoch, epoch=epoch, keep=keep)
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == [f"epoch_{n:03d}.pt" for n in left]


def test_the_newest_valid_step_wins(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-100])
    path, found, damaged = checkpoint.newest(tmp_path)
    assert (path.name, found["state"]["step"], len(damaged)) == ("previous.pt", 1, 1)
    (tmp_path / "previous.pt").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.newest(tmp_path)


def test_between_the_two_renames_previous_is_found(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    assert checkpoint.newest(tmp_path)[1]["state"]["step"] == 1


def test_every_truncation_is_refused(tmp_path):
    save(tmp_path, 1)
    whole = (tmp_path / "last.pt").read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / "cut.pt")


def test_a_flipped_bit_never_changes_a_weight_unseen(tmp_path):
    save(tmp_path, 1)
    whole = (tmp_path / "last.pt").read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "bit.pt").write_bytes(damaged)
        try:
            read = checkpoint.load(tmp_path / "bit.pt")
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(read["model"]["w"], content(1)["model"]["w"])
            assert read["state"] == {"step": 1}
    assert refused > 250


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8\xff\xe0 a picture", b'{"json": 1}', b"PK\x05\x06" + bytes(18)])
def test_other_files_are_not_checkpoints(tmp_path, data):
    (tmp_path / "file.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a clipcoco checkpoint"):
        checkpoint.load(tmp_path / "file.pt")


def test_a_foreign_torch_file_and_a_newer_format_are_named(tmp_path):
    for content, said in (({"state_dict": {}}, "names no format"), ({"format": 99}, "Upgrade clipcoco")):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(CheckpointError, match=said):
            checkpoint.load(tmp_path / "file.pt")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    torch.save({"format": 1, "model": Evil(tmp_path / "sentinel")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "sentinel").exists()


SAVER = """
import itertools, torch
from pathlib import Path
from clipcoco.engine import checkpoint
for step in itertools.count(1):
    weights = {"w": torch.full((300_000,), float(step))}
    content = {"model": weights, "config": {}, "tokenizer": {}, "state": {"step": step}}
    checkpoint.save(Path(), content, best=step % 3 == 0, epoch=step, keep=2)
    print(step, flush=True)
"""


# As beside the steps of a GPU: by another thread, out of a buffer that is used again.
IN_A_THREAD = SAVER.replace("for step", "pool, w = ThreadPoolExecutor(1), torch.empty(300_000)\nfor step")
IN_A_THREAD = IN_A_THREAD.replace("torch.full((300_000,), float(step))", "w.fill_(step)").replace(
    "checkpoint.save(Path(), content, best=step % 3 == 0, epoch=step, keep=2)",
    "pool.submit(checkpoint.save, Path(), content, best=step % 3 == 0, epoch=step, keep=2).result()",
)
IN_A_THREAD = "from concurrent.futures import ThreadPoolExecutor\n" + IN_A_THREAD


@pytest.mark.parametrize("saver", [SAVER, IN_A_THREAD], ids=["itself", "a thread"])
def test_kill_9_at_any_moment_of_saving_leaves_a_whole_checkpoint(clipcoco, tmp_path, saver):
    rng = random.Random(0)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = clipcoco.start(cwd=folder, prelude=saver)
        until(lambda process=process: "1\n" in process.stdout, process)
        time.sleep(rng.uniform(0, 0.15))
        process.signal(signal.SIGKILL)
        told = [*map(int, process.wait().stdout.split())]
        _, found, damaged = checkpoint.newest(folder)
        assert not damaged
        step = found["state"]["step"]
        assert step >= told[-1]
        assert torch.equal(found["model"]["w"], torch.full((300_000,), float(step)))


def test_a_disk_that_refuses_harms_nothing(tmp_path):
    save(tmp_path, 1, best=True)
    with file_size_limit(100_000), pytest.raises(EnvironmentProblem, match="can't be written"):
        checkpoint.save(tmp_path, content(2, 300_000), best=True, epoch=1, keep=1)
    assert names(tmp_path) == ["best.pt", "last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["state"]["step"] == 1


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(EnvironmentProblem, match="can't be written"):
        save(tmp_path / "gone", 1)


def test_the_hash_of_weights_sees_names_values_and_buffers():
    a, b = torch.ones(2), torch.zeros((), dtype=torch.int64)
    whole = checkpoint.weights_sha256({"a": a, "b": b})
    assert whole == checkpoint.weights_sha256({"b": b.clone(), "a": a.clone()})
    assert whole not in [checkpoint.weights_sha256(state) for state in ({"a": a, "b": b + 1}, {"c": a, "b": b})]

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
from multiprocessing import forkserver, util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipcoco.config.load import load_config
from clipcoco.data.captions import read_captions
from clipcoco.data.loader import TrainingLoader, epoch_order, evaluation_images
from clipcoco.data.tokenizer import END, PAD, Tokenizer
from clipcoco.data.workers import _end, begin_workers, choose_workers, guarded, image_loader
from clipcoco.errors import DataError, EnvironmentProblem
from conftest import TOY


def loader(root, workers=0, batch=8, seed=3, flip="true", captions=1):
    config = load_config("demo", overrides=[*TOY, f"data.root={root}", f"data.flip={flip}"]).config.data
    table = read_captions(root, "train2017")
    tokens = Tokenizer.train(table.captions, 400).encode(table.captions, 32)
    return TrainingLoader(config, table, tokens, batch, seed, workers, pin_memory=False, captions=captions)


def everything(batches):
    return [(batch.images, batch.tokens, batch.image_ids, batch.replaced) for batch in batches]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine[:3], other[:3], strict=True))
        assert mine[3] == other[3]


def test_an_epoch_shows_each_image_once_and_leaves_another_tail_each_time():
    orders = [epoch_order(0, epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order[48:]) for order in orders}) == 3
    assert np.array_equal(epoch_order(0, 1, 50), orders[1])
    assert not np.array_equal(epoch_order(1, 1, 50), orders[1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 8 are more than most laptops have
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_batches_are_the_same_for_every_number_of_workers(scenes, workers):
    assert_equal(everything(loader(scenes).epoch(1)), everything(loader(scenes, workers).epoch(1)))


def test_an_epoch_goes_on_from_any_batch_and_the_same_loader_serves_the_next(scenes):
    calm, interrupted, others = loader(scenes), loader(scenes, workers=2), set(multiprocessing.active_children())
    whole = everything(calm.epoch(0))
    half = interrupted.epoch(0)
    first = [next(half) for _ in range(2)]
    workers = set(multiprocessing.active_children()) - others
    assert_equal(whole[:2], everything(first))
    rest = interrupted.epoch(0, start=2)
    assert_equal(whole[2:], everything(next(rest) for _ in whole[2:]))
    rest.close()  # as training does it: it counts the batches, and never asks for the end
    assert_equal(everything(calm.epoch(1)), everything(interrupted.epoch(1)))
    assert len(workers) == 2
    assert workers <= set(multiprocessing.active_children())  # the same all along: to start them takes seconds


def test_views_and_captions_change_from_epoch_to_epoch(scenes):
    whole = loader(scenes)
    texts = [{}, {}]
    for epoch in (0, 1):
        for batch in whole.epoch(epoch):
            texts[epoch] |= {int(i): t.tolist() for i, t in zip(batch.image_ids, batch.tokens, strict=True)}
    assert texts[0].keys() == texts[1].keys()
    changed = sum(texts[0][i][:16] != texts[1][i][:16] for i in texts[0])
    assert changed > len(texts[0]) / 2  # four of five captions are others


def test_tokens_are_cut_to_the_longest_caption_of_the_batch_and_belong_to_the_image(scenes):
    whole = loader(scenes)
    table, seen = whole.table, 0
    for batch in whole.epoch(0):
        lengths = (batch.tokens != PAD).sum(dim=1)
        assert batch.tokens.shape[1] % 8 == 0
        assert batch.tokens.shape[1] >= max(16, int(lengths.max()))
        assert batch.tokens.shape[1] - max(16, int(lengths.max())) < 8
        for image_id, row in zip(batch.image_ids.tolist(), batch.tokens, strict=True):
            place = int(np.searchsorted(table.image_ids, image_id))
            own = whole.tokens[table.offsets[place] : table.offsets[place + 1], : batch.tokens.shape[1]]
            assert (own == row).all(dim=1).any()
            assert int(row[int((row != PAD).sum()) - 1]) == END
            seen += 1
    assert seen == 48


def test_several_captions_are_differing_ones_of_the_image_and_the_first_is_the_one_that_it_would_be(scenes):
    for captions in (3, 5, 7):
        for one, several in zip(loader(scenes).epoch(0), loader(scenes, captions=captions).epoch(0), strict=True):
            assert torch.equal(one.image_ids, several.image_ids)
            assert torch.equal(one.images, several.images)
            assert several.tokens.shape[:2] == (8, captions)
            length = one.tokens.shape[1]
            assert torch.equal(several.tokens[:, 0, :length], one.tokens)
            for own in several.tokens.tolist():
                assert len({tuple(row) for row in own}) == min(captions, 5), "of five captions none is left out"
                assert own[5:] == own[:2][: captions - 5]


@pytest.fixture
def root(scenes, tmp_path):
    """A copy of the scenes, to be spoilt."""
    return shutil.copytree(scenes, tmp_path / "broken")


def test_an_unreadable_image_is_replaced_by_the_same_other_one_whatever_the_workers(root):
    victim = sorted((root / "train2017").iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:200])
    calm, busy = everything(loader(root).epoch(0)), everything(loader(root, workers=2).epoch(0))
    assert_equal(calm, busy)
    assert [row for batch in calm for row in batch[3]] == [5]
    victim_id = int(victim.stem)
    assert all(victim_id not in batch[2].tolist() for batch in calm)


def test_a_folder_of_rubbish_is_an_error(root):
    for path in (root / "train2017").iterdir():
        path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="can be read"):
        next(loader(root).epoch(0))


def test_evaluation_refuses_an_unreadable_image(root):
    victim = sorted((root / "val2017").iterdir())[3]
    victim.write_bytes(b"")
    config = load_config("demo", overrides=[*TOY, f"data.root={root}"]).config.data
    table = read_captions(root, "val2017")
    with pytest.raises(DataError, match=victim.name):
        list(evaluation_images(config, table, workers=0, pin_memory=False))


def test_workers_are_chosen_with_a_reason():
    assert choose_workers(3, "cpu", 32, 8) == (3, "asked for")
    assert choose_workers("auto", "cpu", 32, 8)[0] == 0
    assert 1 <= choose_workers("auto", "cuda", 32, 8)[0] <= 8


@pytest.fixture
def started():
    """The processes that the test has started; at its end all must be gone."""
    before = set(multiprocessing.active_children())
    yield lambda: set(multiprocessing.active_children()) - before
    for child in set(multiprocessing.active_children()) - before:
        child.join(60)
        assert not child.is_alive()


class _Unsendable(str):
    def __reduce__(self) -> str:
        raise TypeError("can't be sent")


class _Sick(torch.utils.data.Dataset):
    """What is asked for happens in the worker."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __len__(self) -> int:
        return 8

    def __getitem__(self, position: int) -> object:
        if self.what == "no room":
            raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")
        if self.what == "no files":
            raise OSError(errno.EMFILE, "Too many open files")
        return _Unsendable()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no room", r"a data worker failed: RuntimeError: unable to write .*\(28\) \(data.workers\)"),
        ("no files", r"a data worker failed: OSError: .*Too many open files \(data.workers\)"),
        ("no message", "a data worker died"),
    ],
)
def test_what_a_worker_dies_of_is_one_line(started, what, says):
    with pytest.raises(EnvironmentProblem, match=says):
        list(guarded(image_loader(_Sick(what), 1, pin_memory=False), lambda: None))


def test_a_worker_that_hangs_is_told_of_and_never_waited_for(scenes, started, monkeypatch):
    def hang(batches) -> None:
        next(batches)
        for child in started():
            os.kill(child.pid, signal.SIGSTOP)

    busy = loader(scenes, workers=1, batch=4)
    batches = busy.epoch(0)
    hang(batches)
    with monkeypatch.context() as context:
        context.setattr("clipcoco.data.workers._PATIENCE_SECONDS", 0.1)
        with pytest.raises(EnvironmentProblem, match="have given nothing"):
            list(batches)
    stopped: list[str] = []
    busy.stop = lambda: stopped
    batches = busy.epoch(0)
    hang(batches)
    stopped.append("SIGTERM")
    assert len(list(batches)) < busy.steps_per_epoch - 1  # it ends, and the workers with it


def test_workers_without_room_are_refused_or_fewer(monkeypatch):
    free = 64 * 2**20  # a container's /dev/shm
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    monkeypatch.setattr("clipcoco.data.workers.usable_cores", lambda: 9)
    if os.path.isdir("/dev/shm"):
        assert choose_workers("auto", "cuda", 224, 128) == (1, "/dev/shm has 64.0 MiB free")
        assert choose_workers(1, "cuda", 224, 128) == (1, "asked for")
        with pytest.raises(EnvironmentProblem, match=r"no room for 2 data workers: /dev/shm has 64.0 MiB .*or set 1"):
            choose_workers(2, "cpu", 224, 128)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 40, hard))
        with pytest.raises(EnvironmentProblem, match=r"no room for 4 data workers: .* files may be open"):
            choose_workers(4, "cpu", 32, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_workers_are_forked_from_starts_once_and_ends_with_us_in_the_middle_of_its_imports(monkeypatch):
    server = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "_forkserver", server)
    begin_workers(1)
    begin_workers(2)
    [end] = [one for one in util._finalizer_registry.values() if getattr(one, "_weakref", list)() is server]
    end()  # as at our exit
    assert os.waitpid(server._forkserver_pid, 0)[1] == signal.SIGKILL


def test_workers_are_ended_though_torch_has_closed_the_queue_of_a_thread_that_pins():
    queue, waits = multiprocessing.get_context("forkserver").Queue(), threading.Event()
    queue.close()
    pinning = threading.Thread(target=waits.wait)
    pinning.start()
    worker = subprocess.Popen(["sleep", "600"])
    done = threading.Event()
    iterator = SimpleNamespace(
        _pin_memory_thread=pinning, _pin_memory_thread_done_event=done, _worker_result_queue=queue
    )
    _end(iterator, [SimpleNamespace(is_alive=lambda: worker.poll() is None, kill=worker.kill)])
    assert worker.wait(60) == -signal.SIGKILL
    assert done.is_set()
    waits.set()

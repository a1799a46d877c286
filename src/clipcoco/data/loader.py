"""The order of an epoch, a pure function, and the batches that come of it.

Letters: B images, H and W pixels, L tokens. A sample is an image with one of its captions.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.features import Features
from clipcoco.data.images import UnreadableImage, evaluation_view, read, sample_rng, training_view
from clipcoco.data.tokenizer import PAD
from clipcoco.errors import DataError, EnvironmentProblem

EVALUATION_BATCH = 128  # fixed, so that `eval` repeats `train`'s table to the digit
MAX_REPLACEMENTS = 100  # neighbours tried for one unreadable image before the folder is called broken
# A worker and its helpers outlive a signal to the process group: only the main process decides.
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The permutation of range(images) in which `epoch` (from 0) shows them: int64 (images,)."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(images)


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 (B,3,H,W), or a frozen backbone's features of them, float16 (B,F)
    tokens: Tensor  # int32 (B,L), L the longest caption rounded up to 8, at least 16
    image_ids: Tensor  # int64 (B,)
    replaced: tuple[int, ...]  # rows of the table whose image could not be read

    def to(self, device: torch.device) -> "Batch":
        images = self.images.to(device, non_blocking=True)
        return Batch(images, self.tokens.to(device, non_blocking=True), self.image_ids, self.replaced)


class _EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields (epoch, row) pairs: workers are told the epoch, for they never see an attribute set later."""

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self.seed, self.images, self.batch_size = seed, images, batch_size
        self.epoch = self.start = 0  # set before each iteration, in the main process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.seed, self.epoch, self.images).tolist()
        for batch in range(self.start, self.images // self.batch_size):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, row) for row in rows]


class _TrainingImages(Dataset[tuple[Tensor, int, int, int]]):
    """(epoch, row) -> view, row shown, caption, and the row that was asked for when it is another one."""

    def __init__(self, config: DataConfig, table: CaptionTable, seed: int) -> None:
        self.folder = table.folder
        self.size, self.flip = config.image_size, config.flip
        self.crop_scale = (config.crop_scale[0], config.crop_scale[1])
        self.files, self.image_ids, self.offsets = table.files, table.image_ids, table.offsets
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int, int]:
        epoch, asked = key
        for distance in range(min(len(self.files), MAX_REPLACEMENTS)):
            row = (asked + distance) % len(self.files)
            try:
                image = read(self.folder / self.files[row])
            except UnreadableImage:
                continue
            image_id = int(self.image_ids[row])
            rng = sample_rng(self.seed, epoch, image_id, "view")
            view = training_view(image, self.size, self.crop_scale, self.flip, rng)
            return view, row, self.caption(epoch, row), asked if row != asked else -1
        # No image in sight: let the main process say so, as an exception here would lose its one line.
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8), asked, -1, asked

    def caption(self, epoch: int, row: int) -> int:
        """The one of its captions that an image has in this epoch."""
        first, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return sample_rng(self.seed, epoch, int(self.image_ids[row]), "caption").randrange(first, end)


class _EvaluationImages(Dataset[tuple[Tensor, int]]):
    """The n-th of `rows` -> view, and its row when its image can't be read, else -1."""

    def __init__(self, table: CaptionTable, rows: Sequence[int], size: int) -> None:
        self.folder, self.files, self.rows, self.size = table.folder, table.files, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row = self.rows[position]
        try:
            return evaluation_view(read(self.folder / self.files[row]), self.size), -1
        except UnreadableImage:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), row


class TrainingLoader:
    """The batches of any epoch from any position, equal for every number of workers."""

    def __init__(
        self,
        config: DataConfig,
        table: CaptionTable,
        tokens: np.ndarray,
        batch_size: int,
        seed: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        """`tokens`: int32 (M,context), one row a caption of `table`."""
        self.table = table
        self.tokens = torch.from_numpy(tokens)
        self.lengths = (self.tokens != PAD).sum(dim=1)
        self.steps_per_epoch = len(table.files) // batch_size
        self._batches = _EpochBatches(seed, len(table.files), batch_size)
        self._images = _TrainingImages(config, table, seed)
        self._loader = _loader(self._images, workers, pin_memory, batch_sampler=self._batches, keep=True)

    def epoch(self, epoch: int, start: int = 0, features: Features | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from number `start` on; of `features` where there are any.

        These show the same images with the same captions, in the evaluation's view or mirrored.
        """
        self._batches.epoch, self._batches.start = epoch, start
        cached = (self._cached(features, keys) for keys in self._batches) if features else None
        samples = cached or _guarded(self._loader)
        for images, rows, captions, replaced in samples:
            if (captions < 0).any():
                file = self.table.files[int(replaced[captions < 0][0])]
                raise DataError(
                    f"neither {file} nor the {MAX_REPLACEMENTS} images after it can be read (data.root). "
                    f"Is the disk there, and the folder whole?"
                )
            length = max(16, -(-int(self.lengths[captions].max()) // 8) * 8)
            yield Batch(
                images,
                self.tokens[captions, :length],
                torch.from_numpy(self.table.image_ids)[rows],
                tuple(replaced[replaced >= 0].tolist()),
            )

    def _cached(self, features: Features, keys: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """What a batch of `_TrainingImages` is, of the pairs (epoch, row), with features for views."""
        images, rows, captions, mirrored, replaced = self._images, [], [], [], []
        for epoch, asked in keys:
            row = _next_readable(features, asked)
            rng = sample_rng(images.seed, epoch, int(images.image_ids[row]), "view")
            mirrored.append(images.flip and rng.random() < 0.5)
            rows.append(row)
            captions.append(images.caption(epoch, row))
            replaced.append(asked if row != asked else -1)
        views = torch.from_numpy(features.take(rows, mirrored))
        return views, torch.tensor(rows), torch.tensor(captions), torch.tensor(replaced)


def _next_readable(features: Features, asked: int) -> int:
    """As with images: the next one takes the place of one that can't be read."""
    for distance in range(len(features.readable)):
        row = (asked + distance) % len(features.readable)
        if features.readable[row]:
            return row
    raise DataError("no image of the training set can be read (data.root). Is the folder whole?")


def evaluation_images(config: DataConfig, table: CaptionTable, workers: int, pin_memory: bool) -> Iterator[Tensor]:
    """All images of the table in its order, uint8 (B,3,H,W), B = EVALUATION_BATCH but for the last."""
    rows = range(len(table.files))
    for images, broken in evaluation_views(table, rows, config.image_size, workers, pin_memory):
        if broken:
            raise DataError(
                f"{table.folder / table.files[broken[0]]} can't be read, and recall over the rest would "
                f"be another number (data.root). Get the file anew, or give another --fraction"
            )
        yield images


def evaluation_views(
    table: CaptionTable, rows: Sequence[int], size: int, workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, list[int]]]:
    """These images of the table, uint8 (B,3,H,W), and which rows of it are black since they can't be read."""
    dataset = _EvaluationImages(table, rows, size)
    for images, unreadable in _guarded(_loader(dataset, workers, pin_memory, batch_size=EVALUATION_BATCH)):
        yield images, unreadable[unreadable >= 0].tolist()


def _loader(
    dataset: Dataset[Any],
    workers: int,
    pin_memory: bool,
    batch_sampler: _EpochBatches | None = None,
    batch_size: int = 1,
    keep: bool = False,
) -> DataLoader[Any]:
    context = None
    if workers:
        # Set explicitly: Python 3.14 changes the default, and a fork of a process with threads may hang.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["clipcoco.data.loader"])
    return DataLoader(
        dataset,
        batch_size=1 if batch_sampler else batch_size,
        batch_sampler=batch_sampler,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=keep and workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_with_parent,
        # Its own: otherwise every epoch draws from the global stream, and workers would change dropout.
        generator=torch.Generator(),
    )


def _leave_with_parent(worker: int) -> None:
    """A killed run must leave no workers behind; torch's own watchdog sees only the fork server, which lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _guarded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches; a worker that dies is one line and not a traceback."""
    with _signals_held_back(loader.num_workers > 0):
        iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise EnvironmentProblem(
                "a data worker died, perhaps for want of memory or of shared memory (data.workers). "
                "Lower --set data.workers, 0 needs neither"
            ) from error
        yield batch


@contextmanager
def _signals_held_back(needed: bool) -> Iterator[None]:
    """Processes started inside inherit blocked signals; those sent to us meanwhile come afterwards."""
    if not needed:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM behind itself, so it must come first
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def choose_workers(asked: int | str, device_type: str) -> tuple[int, str]:
    """The number of decoding processes, with the reason that is printed."""
    if isinstance(asked, int):
        return asked, "asked for"
    if device_type == "cpu":
        return 0, "on a CPU the step needs the cores"
    cores = os.cpu_count() or 1
    return min(8, max(1, cores - 1)), f"{cores} cores"

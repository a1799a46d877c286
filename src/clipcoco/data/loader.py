"""The order of an epoch, a pure function, and the batches that come of it.

Letters: B images, H and W pixels, L tokens. A sample is an image with one of its captions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.false_captions import FalseTexts
from clipcoco.data.features import Features, Sentences
from clipcoco.data.images import evaluation_view, read, sample_rng, training_view
from clipcoco.data.readable import refuse_unreadable
from clipcoco.data.tokenizer import PAD
from clipcoco.data.viewer import UnreadableImage
from clipcoco.data.workers import guarded, image_loader
from clipcoco.errors import DataError

EVALUATION_BATCH = 128  # fixed, so that `eval` repeats `train`'s table to the digit
MAX_REPLACEMENTS = 100  # neighbours tried for one unreadable image before the folder is called broken


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The permutation of range(images) in which `epoch` (from 0) shows them: int64 (images,)."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(images)


@dataclass(frozen=True)
class Batch:
    """Images with a caption each; of a frozen backbone, what it saw in them in their place. Of a frozen text encoder,
    what it made of the captions beside them."""

    images: Tensor | None  # uint8 (B,3,H,W)
    features: Tensor | None  # float16 (B,F)
    tokens: Tensor  # int32 (B,L), L the longest caption rounded up to 8, at least 16; (B,C,L) with C captions of each
    image_ids: Tensor  # int64 (B,)
    replaced: tuple[int, ...]  # rows of the table whose image could not be read
    sentences: Tensor | None = None  # float16 (B,S), or (B,C,S)
    false: Tensor | None = (
        None  # int32 (B,K,L), or (B,C,K,L): of false captions of the same images, PAD where there is none
    )

    def to(self, device: torch.device) -> "Batch":
        given = {name: getattr(self, name) for name in ("images", "features", "tokens", "sentences", "false")}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in given.items() if v is not None}
        return replace(self, **moved)

    def split(self, size: int) -> list["Batch"]:
        """In pieces of `size` rows, one after another, each as if it had been a batch of its own."""
        count = len(self.image_ids)
        if count <= size:
            return [self]
        names = ("images", "features", "tokens", "image_ids", "sentences", "false")
        parts = {name: value.split(size) for name in names if (value := getattr(self, name)) is not None}
        return [
            replace(self, **{name: part[i] for name, part in parts.items()}, replaced=()).cut()
            for i in range(-(-count // size))
        ]

    def cut(self) -> "Batch":
        """With no more tokens than the longest caption asks for."""
        both = [tokens for tokens in (self.tokens, self.false) if tokens is not None]
        length = padded(torch.cat([(tokens != PAD).sum(dim=-1).flatten() for tokens in both]))
        shorter = None if self.false is None else self.false[..., :length]
        return replace(self, tokens=self.tokens[..., :length], false=shorter)


def padded(lengths: Tensor) -> int:
    """The length of captions side by side: the longest of them rounded up to 8, at least 16."""
    return max(16, -(-int(lengths.max()) // 8) * 8)


class _EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields (epoch, row) pairs: workers are told the epoch, for they never see an attribute set later."""

    def __init__(self, seed: int, images: int, batch_size: int, share: slice) -> None:
        self.seed, self.images, self.batch_size, self.share = seed, images, batch_size, share
        self.epoch = self.start = 0  # set before each iteration, in the main process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.seed, self.epoch, self.images).tolist()
        for batch in range(self.start, self.images // self.batch_size):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.share]
            yield [(self.epoch, row) for row in rows]


class Sample(NamedTuple):
    """An image in an epoch, with some of its captions; of a batch each entry is a tensor."""

    view: Tensor | int  # uint8 (3,H,W), or the number of a view whose features are kept
    row: int  # of the table
    captions: np.ndarray  # int64 (C,), of the table; -1: neither the image nor those after it can be read
    asked: int  # the row in whose place this one is shown, where it is another one


class _TrainingImages(Dataset[Sample]):
    """(epoch, row) -> its sample."""

    def __init__(self, config: DataConfig, table: CaptionTable, seed: int, captions: int) -> None:
        self.folder = table.folder
        self.size, self.flip = config.image_size, config.flip
        self.crop_scale = (config.crop_scale[0], config.crop_scale[1])
        self.files, self.image_ids, self.offsets = table.files, table.image_ids, table.offsets
        self.seed, self.captions = seed, captions

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.sample(*key)

    def sample(self, epoch: int, asked: int, features: Features | None = None) -> Sample:
        """Of the image `asked` or of the next one that can be read; with `features` the same, but for the view."""
        view: Tensor | int
        for distance in range(len(self.files) if features else min(len(self.files), MAX_REPLACEMENTS)):
            row = (asked + distance) % len(self.files)
            image_id = int(self.image_ids[row])
            rng = sample_rng(self.seed, epoch, image_id, "view")
            if features is None:
                try:
                    image = read(self.folder / self.files[row])
                except UnreadableImage:
                    continue
                view = training_view(image, self.size, self.crop_scale, self.flip, rng)
            elif features.readable[row]:
                view = rng.randrange(features.rows.shape[1])
            else:
                continue
            own = range(*self.offsets[row : row + 2].tolist())
            chosen = sample_rng(self.seed, epoch, image_id, "caption").sample(own, min(self.captions, len(own)))
            return Sample(view, row, np.resize(chosen, self.captions), asked)  # fewer are told again
        # No image in sight: let the main process say so, as an exception here would lose its one line.
        nothing = 0 if features else torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        return Sample(nothing, asked, np.full(self.captions, -1), asked)


@dataclass(frozen=True)
class Crops:
    """Random training views of an image that never change, whatever the run's seed."""

    count: int = 0
    scale: tuple[float, float] = (1, 1)
    flip: bool = False  # half of them


class _EvaluationImages(Dataset[tuple[Tensor, int]]):
    """The n-th of `rows` -> view and crops (1+C,3,H,W), and its row when its image can't be read, else -1."""

    def __init__(self, table: CaptionTable, rows: Sequence[int], size: int, crops: Crops) -> None:
        self.folder, self.files, self.image_ids = table.folder, table.files, table.image_ids
        self.rows, self.size, self.crops = rows, size, crops

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row, size, crops = self.rows[position], self.size, self.crops
        try:
            image = read(self.folder / self.files[row])
        except UnreadableImage:
            return torch.zeros(1 + crops.count, 3, size, size, dtype=torch.uint8), row
        rngs = [sample_rng(0, crop, int(self.image_ids[row]), "crop") for crop in range(crops.count)]
        views = [training_view(image, size, crops.scale, crops.flip, rng) for rng in rngs]
        return torch.stack([evaluation_view(image, size), *views]), -1


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
        stop: Callable[[], object] = lambda: None,
        sentences: Sentences | None = None,
        share: slice = slice(None),
        false: FalseTexts | None = None,
        captions: int = 1,
    ) -> None:
        """`tokens`, int16 or int32 (M,context), and `sentences` have one row a caption of `table`. `stop` is asked
        while a worker is waited for. `share`: which rows of each batch are this process's; `captions`: of an image."""
        self.table, self.stop, self.sentences, self.false = table, stop, sentences, false
        self.tokens = torch.from_numpy(tokens)
        self.seed = seed
        self.steps_per_epoch = len(table.files) // batch_size
        self._batches = _EpochBatches(seed, len(table.files), batch_size, share)
        self._images = _TrainingImages(config, table, seed, captions)
        self._loader = image_loader(self._images, workers, pin_memory, batch_sampler=self._batches)

    def epoch(self, epoch: int, start: int = 0, features: Features | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), from number `start` on, or until a stop; of `features` where there are any.

        These show the same images with the same captions, each in one of the views that are kept.
        """
        self._batches.epoch, self._batches.start = epoch, start
        kept = ([self._images.sample(*key, features) for key in keys] for keys in self._batches)
        batches = map(default_collate, kept) if features else guarded(self._loader, self.stop)
        for views, rows, captions, asked in batches:
            if (captions < 0).any():
                file = self.table.files[int(asked[(captions < 0).any(dim=1)][0])]
                raise DataError(
                    f"neither {file} nor the {MAX_REPLACEMENTS} images after it can be read (data.root). "
                    f"Is the disk there, and the folder whole?"
                )
            image_ids = torch.from_numpy(self.table.image_ids)[rows]
            captions = captions if captions.shape[1] > 1 else captions[:, 0]
            yield Batch(
                None if features else views,
                torch.from_numpy(features.take(rows, views)) if features else None,
                self.tokens[captions].int(),
                image_ids,
                tuple(asked[asked != rows].tolist()),
                torch.from_numpy(self.sentences.take(captions)) if self.sentences else None,
                self._false(epoch, captions, image_ids),
            ).cut()

    def _false(self, epoch: int, captions: Tensor, image_ids: Tensor) -> Tensor | None:
        """int32 (B,K,context) or (B,C,K,context): what is made of each caption, chosen by (seed, epoch, image), PAD
        where it is less."""
        if not self.false:
            return None
        chosen = []
        for own, image_id in zip(captions.view(len(captions), -1).tolist(), image_ids.tolist(), strict=True):
            rng = sample_rng(self.seed, epoch, image_id, "false")
            for made in map(self.false.of, own):
                chosen.append(rng.sample(made, min(self.false.count, len(made))))
        rows = torch.from_numpy(self.false.encode([text for texts in chosen for text in texts]))
        tokens = torch.full((len(chosen), self.false.count, rows.shape[1]), PAD, dtype=torch.int32)
        tokens[torch.arange(self.false.count) < torch.tensor([len(texts) for texts in chosen])[:, None]] = rows
        return tokens.view(*captions.shape, *tokens.shape[1:])


def evaluation_images(
    config: DataConfig,
    table: CaptionTable,
    workers: int,
    pin_memory: bool,
    stop: Callable[[], object] = lambda: None,
    rows: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """All images of the table, or those of `rows`, or until a stop: uint8 (B,3,H,W), B = EVALUATION_BATCH but for the
    last."""
    rows = range(len(table.files)) if rows is None else rows
    for images, broken in evaluation_views(table, rows, config.image_size, workers, pin_memory, Crops(), stop):
        refuse_unreadable(table, broken)
        yield images[:, 0]


def evaluation_views(
    table: CaptionTable,
    rows: Sequence[int],
    size: int,
    workers: int,
    pin_memory: bool,
    crops: Crops,
    stop: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Tensor, list[int]]]:
    """These images of the table, each with its crops behind it, uint8 (B,1+C,3,H,W), and which rows of the table
    are black since they can't be read; until a stop."""
    dataset = _EvaluationImages(table, rows, size, crops)
    for images, unreadable in guarded(image_loader(dataset, workers, pin_memory, batch_size=EVALUATION_BATCH), stop):
        yield images, unreadable[unreadable >= 0].tolist()

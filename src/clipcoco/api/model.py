"""A trained model that encodes images and texts, and `load`, which opens it."""

import html
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from clipcoco.api.restore import globals_restored, kernels_restored
from clipcoco.config.schema import Config
from clipcoco.data.images import evaluation_view, pixels_of, read
from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.data.viewer import UnreadableImage
from clipcoco.engine.device import Device, choose_as_trained, choose_deterministic_kernels, in_memory
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.errors import DataError
from clipcoco.events import Event, Progress
from clipcoco.runs.names import Found, find_run
from clipcoco.runs.record import measured, say_measured
from clipcoco.search.models import unknown_words

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | Tensor
Pictures = Iterable[Picture] | npt.NDArray[np.uint8] | Tensor
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """What `Model.search` found."""

    score: float  # cosine similarity
    index: int  # of the picture among those that were searched
    image: Any  # as it was given; of vectors their row


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, in the precision that it was trained in; `load` makes it."""

    path: Path  # of the checkpoint
    config: Config
    tokenizer: Tokenizer
    model: DualEncoder  # an nn.Module, on `device`
    device: Device
    # What these weights were measured to reach, by protocol as in `eval --json`: recall["own"]["i2t"]["r1"]; with
    # a "caution" where the text encoder has seen the captions before. None when they were never evaluated, as after a
    # stop within an epoch.
    recall: dict[str, Any] | None
    run: str | None  # whose checkpoint it is
    file: ModelFile  # which holds the same `model`

    def __repr__(self) -> str:
        return f"<clipcoco model {self.path}, on {self.device.device}: {say_measured(self.recall)}>"

    def _repr_html_(self) -> str:
        """The line and, where all six recalls are known, their table, for a notebook."""
        rows = []
        for way, name in (("i2t", "image to text"), ("t2i", "text to image")):
            found = (self.recall or {"own": {}})["own"].get(way)
            if found:
                cells = "".join(f"<td>{found[key]:.2f}</td>" for key in ("r1", "r5", "r10"))
                rows.append(f"<tr><td>{name}</td>{cells}</tr>")
        head = "<tr><th></th><th>R@1</th><th>R@5</th><th>R@10</th></tr>"
        table = f"<table>{head}{''.join(rows)}</table>" if rows else ""
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{table}"

    def encode_images(
        self,
        images: Picture | Pictures,
        batch_size: int = EVALUATION_BATCH,
        *,
        report: Callable[[Event], None] | None = None,
    ) -> Vectors:
        """Unit vectors, float32 (N,D), of one picture (D,): what `eval` computes, to the bit for equal batches.

        Each image is a path, a PIL image, or uint8: an array, (H,W,3) in RGB, (H,W,4) with alpha, or (H,W) in grey, or
        a tensor (3,H,W). Several are any iterable of these, an array (N,H,W,3) or a tensor (N,3,H,W).
        The model sees the largest centred square of what a viewer shows: a PIL image, too, is turned as its EXIF
        says, and brought to sRGB by its profile. They are read batch by batch, so a generator of paths may name
        millions. `report` gets a `clipcoco.events.Progress` after each batch, its total 0 where nobody can know it.
        Raises DataError for one that can't be read, or whose mode (I, F) does not say which value is white.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if _is_one(images):
            one: Vectors = self.encode_images([images], report=report)[0]  # type: ignore[list-item]
            return one
        total, done = len(images) if isinstance(images, Sized) else 0, 0
        size = self.config.data.image_size
        views = (evaluation_view(_pixels(number, image), size) for number, image in enumerate(images))  # type: ignore[arg-type]
        batches = []
        for batch in _batched(views, batch_size):
            batches.append(self._encode(self.model.encode_images, torch.stack(batch)))
            done += len(batch)
            if report is not None:
                report(Progress("encode", done, total))
        return self._joined(batches)

    def encode_texts(self, texts: str | Iterable[str]) -> Vectors:
        """Unit vectors, float32 (N,D), of one text (D,). A text longer than the context is cut."""
        if isinstance(texts, str):
            one: Vectors = self.encode_texts([texts])[0]
            return one
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {number} is a {type(text).__name__}, not a str")
        tokens = self.tokenizer.encode(texts, self.config.model.text.context_length)
        # Each distinct text once and in this order, as `eval` does it.
        distinct, place = np.unique(tokens, axis=0, return_inverse=True)
        batches = [
            self._encode(self.model.encode_texts, batch)
            for batch in torch.from_numpy(distinct).split(EVALUATION_BATCH)
            if len(batch)
        ]
        return self._joined(batches)[place.reshape(-1)]

    def search(self, text: str, images: Pictures | Vectors, k: int = 5) -> list[Hit]:
        """The `k` images that are nearest to `text`, the best first.

        `images` is what `encode_images` takes, or the vectors (N,D) that it gave, which answers at once. A word of
        `text` that no training caption has is a warning.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if unknown := self.unknown_words(text):
            warnings.warn(f"in no training caption: {', '.join(unknown)}", stacklevel=2)
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            vectors, given = images, list(images)
        else:
            given = list(images)
            vectors = self.encode_images(given)
        scores = vectors @ self.encode_texts(text)
        best = np.argsort(-scores, kind="stable")[:k].tolist()
        return [Hit(float(scores[place]), place, given[place]) for place in best]

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that are in no training caption; none where an older checkpoint does not tell."""
        return unknown_words(self.file, text)

    def _encode(self, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        was_training = self.model.training
        kernels = kernels_restored() if self.device.device.type == "cuda" else nullcontext()
        advice = "(batch_size). Give a smaller one, or load it with another device"
        with kernels, in_memory(f"a batch of {len(batch)}", self.device, advice):
            choose_deterministic_kernels(self.device.device)
            self.model.eval()
            try:
                with torch.inference_mode(), self.device.autocast():
                    return encode(batch.to(self.device.device)).cpu()
            finally:
                self.model.train(was_training)

    def _joined(self, batches: list[Tensor]) -> npt.NDArray[np.float32]:
        return torch.cat([torch.empty(0, self.config.model.projection_dim, dtype=torch.float32), *batches]).numpy()


def load(run_or_file: str | os.PathLike[str], *, runs_dir: str | Path = "runs", device: str | None = None) -> Model:
    """The model of a run (name, unique prefix, preset, path, "RUN/last"; its best weights) or of a checkpoint file.

    `device`: auto, cpu, cuda, cuda:N or mps. Raises CheckpointError when there is no such run or file, or it is
    damaged, and EnvironmentProblem when the device is not there.

    >>> load("first/last").config.train.epochs
    2
    """
    return open_found(find_run(Path(runs_dir), os.fspath(run_or_file)), device)


def open_found(found: Found, device_name: str | None) -> Model:
    with globals_restored():
        file = open_model(found.weights())
        device = choose_as_trained(device_name, file.content["state"].get("precision", "float32"))
        model = device.place(file.model)
        model.eval()
    recall = measured(found.run, file.content, file.config.model.text.caution)
    return Model(
        file.path, file.config, file.tokenizer, model, device, recall, found.run.name if found.run else None, file
    )


def _is_one(images: object) -> bool:
    """Whether it is a picture and not several: of an array and a tensor its dimensions tell."""
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or images.shape[2:] in ((3,), (4,))
    if isinstance(images, Tensor):
        return images.ndim == 3
    return isinstance(images, str | os.PathLike | Image.Image)


def _pixels(number: int, image: Picture) -> Tensor:
    """uint8 RGB (3,H,W)."""
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        if not image.numel():
            raise ValueError(f"image {number} has no pixels: {tuple(image.shape)}")
        return image.cpu()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,), (4,)):
        if image.ndim < 2 or not image.size:
            raise ValueError(f"image {number} has no pixels: {image.shape}")
        image = Image.fromarray(image)
    try:
        if isinstance(image, str | os.PathLike):
            return read(Path(image))
        if isinstance(image, Image.Image):
            return pixels_of(image)
    except UnreadableImage as error:
        raise DataError(f"image {number} can't be read: {error}. Leave it out, or get it again") from error
    what = type(image).__name__
    if isinstance(image, np.ndarray | Tensor):
        what = f"{image.dtype} {'array' if isinstance(image, np.ndarray) else 'tensor'} {tuple(image.shape)}"
    raise TypeError(
        f"image {number} is a {what}; give a path, a PIL image, a uint8 array (H,W,3), (H,W,4) or (H,W), "
        f"or a uint8 tensor (3,H,W)"
    )


def _batched(views: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while batch := list(islice(views, size)):
        yield batch

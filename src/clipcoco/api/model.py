"""A trained model that encodes images and texts, and `load`, which opens it."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from clipcoco.engine.model_file import open_model
from clipcoco.errors import DataError
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import Found, find_run
from clipcoco.runs.record import read_record

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, in the precision that it was trained in; `load` makes it."""

    path: Path  # of the checkpoint
    config: Config = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    model: DualEncoder = field(repr=False)  # an nn.Module, on `device`
    device: Device = field(repr=False)
    # What these weights were measured to reach, by protocol as in `eval --json`: recall["own"]["i2t"]["r1"].
    # None when they were never evaluated, as after a stop within an epoch.
    recall: dict[str, Any] | None = field(repr=False)

    def encode_images(self, images: Iterable[Picture], batch_size: int = EVALUATION_BATCH) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 (N,D): what `eval` computes, to the bit for equal batches.

        Each image is a path, a PIL image, or a uint8 array, (H,W,3) in RGB, (H,W,4) with alpha, or (H,W) in grey.
        The model sees the largest centred square of what a viewer shows: a PIL image, too, is turned as its EXIF
        says, and brought to sRGB by its profile. They are read batch by batch, so a generator of paths may name
        millions. A single image goes into a list. Raises DataError for one that can't be read, or whose mode (I, F)
        does not say which value is white.
        """
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise TypeError("encode_images takes several images, not one: encode_images([image])")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        size = self.config.data.image_size
        views = (evaluation_view(_pixels(number, image), size) for number, image in enumerate(images))
        batches = [self._encode(self.model.encode_images, torch.stack(batch)) for batch in _batched(views, batch_size)]
        return self._joined(batches)

    def encode_texts(self, texts: Iterable[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 (N,D). A text longer than the context is cut; a single one goes into a list."""
        if isinstance(texts, str):
            raise TypeError("encode_texts takes several texts, not one: encode_texts([text])")
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
    return Model(file.path, file.config, file.tokenizer, model, device, _measured(found.run, file.content))


def _measured(run: RunDir | None, content: dict[str, Any]) -> dict[str, Any] | None:
    """The recall of the weights in `content`, and of no others: those of this very step."""
    step = content["state"].get("step")
    record, _ = read_record(run) if run else (None, "")
    if record is not None and record.result.step == step:
        own, folds = record.result.protocols["own"], record.result.protocols.get("1k")
        return {"own": own.to_plain()} | ({"1k": folds.to_plain()} if folds else {})
    for row in content.get("metrics", []):  # what training saw
        if (row["event"], row["step"]) == ("evaluation", step):
            seen = {key: row.get(key) for key in ("i2t", "t2i", "r1", "rsum")}
            return {"own": {**seen, "images": content.get("data", {}).get("val_images")}}
    return None


def _pixels(number: int, image: Picture) -> Tensor:
    """uint8 RGB (3,H,W)."""
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
    what = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise TypeError(f"image {number} is a {what}; give a path, a PIL image or a uint8 array (H,W,3), (H,W,4) or (H,W)")


def _batched(views: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while batch := list(islice(views, size)):
        yield batch

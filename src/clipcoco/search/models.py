"""The models that can search: a checkpoint of ours, or any model of open_clip in a folder.

Letters: B pictures or texts, H, W pixels, L tokens, D dimensions of the shared space.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipcoco.config.text import expanded
from clipcoco.data.images import evaluation_view
from clipcoco.data.tokenizer import END, PAD, START
from clipcoco.data.viewer import VIEW
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import Device, choose_as_trained, choose_device
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.errors import CheckpointError, ConfigError, EnvironmentProblem, NumericError
from clipcoco.search.folder import HOW, read_description

LOCAL = "local-dir:"
MAX_RATIO = 8  # of a picture's sides: open_clip resizes the whole of it before it crops


@dataclass(frozen=True)
class Towers:
    """A model on its device; encoding raises NumericError for what is not finite."""

    view: Callable[[Tensor], Tensor]  # uint8 RGB (3,H,W) -> what encode_images takes, without B
    encode_images: Callable[[Tensor], Tensor]  # (B,3,H,W) -> float32 unit vectors (B,D) on the CPU
    encode_texts: Callable[[Tensor], Tensor]  # (B,L) -> float32 unit vectors (B,D) on the CPU


@dataclass(frozen=True)
class Model:
    words: str  # for a person: "best", or the folder's name
    label: str  # in the names of index files
    home: str  # the folder of its indexes where no run has one
    source: str  # the checkpoint's path, or local-dir:FOLDER
    key: str  # of the weights and the size of the view: what an index is made for
    width: int  # D
    tokenize: Callable[[list[str]], Tensor]  # -> (B,L)
    note: Callable[[str], str | None]  # what a person should know about how a query is understood
    place: Callable[[str | None], Towers]  # on the device of that name


def open_checkpoint(path: Path) -> tuple[Model, ModelFile]:
    """Raises CheckpointError."""
    file = open_model(path)
    model, text = file.model.eval(), file.config.model.text
    size = file.config.data.image_size

    def tokenize(texts: list[str]) -> Tensor:
        return torch.from_numpy(file.tokenizer.encode(texts, text.context_length))

    def place(name: str | None) -> Towers:
        device = choose_as_trained(name, file.content["state"].get("precision", "float32"))
        placed = device.place(model)
        return Towers(
            partial(evaluation_view, size=size),
            partial(_encode, device, placed.encode_images),
            lambda tokens: _encode(device, placed.encode_texts, tokens[:, : int((tokens != PAD).sum(1).max())]),
        )

    key = f"{weights_sha256(model.state_dict())} {size} view {VIEW}"
    label = _file_name(path.stem)
    home, width = f"{label}-{_sum(path)}", file.config.model.projection_dim
    return Model(path.stem, label, home, str(path), key, width, tokenize, partial(_note, file), place), file


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name.encode("ascii", "replace").decode())[:60].strip(".-") or "model"


def _sum(path: Path) -> str:
    """Tells models of the same name apart."""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:8]


def _encode(device: Device, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    with torch.inference_mode(), device.autocast():
        vectors = F.normalize(encode(batch.to(device.device)).float(), dim=1).cpu()
    if not vectors.isfinite().all():
        raise NumericError("the model gives embeddings that are not finite (search). Try another, or --device cpu")
    return vectors


def _note(file: ModelFile, query: str) -> str | None:
    context = file.config.model.text.context_length
    ids = file.tokenizer.encode([query], context + 1)[0]  # one more than fits
    if ids[-1] != PAD:
        return (
            f"the query is longer than the model reads, it ends for it at: {file.tokenizer.decode(ids[: context - 1])}"
        )
    if set(ids.tolist()) - {PAD, START, END} <= file.tokenizer.last_resort:
        trained = file.config.model.text.weights == "none"
        who = "no captions of the training data have a word" if trained else "the text encoder knows no word"
        return f"{who} of this query: the order means nothing"
    return None


def open_folder(words: str) -> Model:
    """A model of open_clip in a folder; nothing is ever downloaded.

    Raises ConfigError for another name, CheckpointError for a folder without a model or that reaches beyond
    itself, and EnvironmentProblem when open_clip is not installed.
    """
    if not words.startswith(LOCAL):
        raise ConfigError(f"'{words}' is not a folder, and search downloads nothing (--model). {HOW}")
    folder = expanded(words.removeprefix(LOCAL))
    width, context = _sizes(read_description(folder))
    loaded: list[tuple[Any, Any, Any]] = []

    def parts() -> tuple[Any, Any, Any]:
        if not loaded:
            loaded.append(_load(folder))
        return loaded[0]

    def tokenize(texts: list[str], length: int | None = None) -> Tensor:
        tokens: Tensor = parts()[2](texts, context_length=length or context)
        return tokens

    def note(query: str) -> str | None:
        last, empty = tokenize([query, ""], context + 1)[:, -1].tolist()
        return None if last == empty else f"the query is longer than the {context} tokens that the model reads"

    def place(name: str | None) -> Towers:
        model, preprocess, _ = parts()
        device = choose_device(name, "auto")
        if device.device.type == "cpu":
            device = replace(device, precision="float32")
        model.to(device.device)
        return Towers(
            partial(_view, preprocess),
            partial(_encode, device, model.encode_image),
            partial(_encode, device, model.encode_text),
        )

    name = folder.resolve().name
    label = f"{_file_name(name)}-{_sum(folder)}"
    return Model(name, label, label, LOCAL + str(folder), f"{_key(folder)} view {VIEW}", width, tokenize, note, place)


def _sizes(description: Any) -> tuple[int, int]:
    """D, and the tokens of a text."""
    try:
        model = description["model_cfg"]
        width, length = model["embed_dim"], model["text_cfg"].get("context_length", 77)
    except (KeyError, TypeError, AttributeError):
        width = length = None
    if not (type(width) is type(length) is int and 1 <= width <= 2**16 and 3 <= length <= 4096):
        raise CheckpointError(f"open_clip_config.json has no usable model_cfg.embed_dim or .text_cfg (--model). {HOW}")
    return width, length


def _key(folder: Path) -> str:
    """Changes with any file of the folder; gigabytes of weights are known by size and time."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        small = path.suffix in (".json", ".txt") and path.is_file()
        digest.update(f"{path.name} {stat.st_size} {'' if small else stat.st_mtime_ns}\n".encode())
        if small:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _load(folder: Path) -> tuple[Any, Any, Any]:
    # Read when huggingface_hub and transformers are imported: a folder may name others that live on the network.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    name = LOCAL + str(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        try:
            import open_clip

            model, preprocess = open_clip.create_model_from_pretrained(name)
            return model.eval(), preprocess, open_clip.get_tokenizer(name)
        except ModuleNotFoundError as error:
            package = "'clipcoco[export]'" if error.name == "open_clip" else error.name
            raise EnvironmentProblem(
                f"this model needs {error.name}, which is not installed (--model). Get it: pip install {package}"
            ) from error
        except Exception as error:  # open_clip has no error of its own for a folder that holds no whole model
            raise CheckpointError(f"{folder} holds no open_clip model: {_why(error)} (--model). {HOW}") from error


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0][:200] if text else type(error).__name__


def _view(preprocess: Callable[[Image.Image], Tensor], pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    longest = MAX_RATIO * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    middle = pixels[:, top : top + longest, left : left + longest]
    return preprocess(Image.fromarray(middle.permute(1, 2, 0).contiguous().numpy()))

"""The models that can search: a checkpoint of ours, or any model of open_clip in a folder.

Letters: B pictures or texts, H, W pixels, L tokens, D dimensions of the shared space.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipcoco.data.images import evaluation_view
from clipcoco.data.tokenizer import END, PAD, START, words_in
from clipcoco.data.viewer import VIEW
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import Device, choose_as_trained, choose_device
from clipcoco.engine.model_file import ModelFile, read_model
from clipcoco.engine.trained_on import known_words
from clipcoco.errors import CheckpointError, NumericError
from clipcoco.search.folder import HOW, LOCAL, named_folder, needs, read_description, sizes

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
    notes: Callable[[str], Iterable[str]]  # what a person should know about how a query is understood
    place: Callable[[str | None], Towers]  # on the device of that name


def open_checkpoint(path: Path) -> tuple[Model, ModelFile]:
    """Its image tower is built when there is a picture to encode. Raises CheckpointError, then too."""
    file = read_model(path)
    tower, text, size = file.text.eval(), file.config.model.text, file.config.data.image_size

    def tokenize(texts: list[str]) -> Tensor:
        return torch.from_numpy(file.tokenizer.encode(texts, text.context_length))

    def place(name: str | None) -> Towers:
        device = choose_as_trained(name, file.content["state"].get("precision", "float32"))

        def encode_images(batch: Tensor) -> Tensor:
            return _encode(device, device.place(file.model.eval()).encode_images, batch)

        def encode_texts(tokens: Tensor) -> Tensor:
            longest, placed = int((tokens != PAD).sum(1).max()), tower.to(device.device)
            return _encode(device, lambda batch: F.normalize(placed(batch), dim=1), tokens[:, :longest])

        return Towers(partial(evaluation_view, size=size), encode_images, encode_texts)

    key = f"{weights_sha256(file.content['model'])} {size} view {VIEW}"
    label = _file_name(path.stem)
    home, width = f"{label}-{_sum(path)}", file.config.model.projection_dim
    return Model(path.stem, label, home, str(path), key, width, tokenize, partial(_notes, file), place), file


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


def _notes(file: ModelFile, query: str) -> Iterator[str]:
    text = file.config.model.text
    ids = file.tokenizer.encode([query], text.context_length + 1)[0]  # one more than fits
    if ids[-1] != PAD:
        end = file.tokenizer.decode(ids[: text.context_length - 1])
        yield f"the query is longer than the model reads, it ends for it at: {end}"
    trained, means_nothing = text.weights == "none", ": the order means nothing"
    if new := unknown_words(file, query):
        said = " and ".join(filter(None, (", ".join(map(repr, new[:-1])), repr(new[-1]))))
        said += f" occur{'s' * (len(new) == 1)} in no training caption"
        if not trained:
            yield f"{said}: only what the text encoder learnt before can tell"
        else:
            yield said + means_nothing * (len(new) == len(words_in([query])))
    elif set(ids.tolist()) - {PAD, START, END} <= file.tokenizer.last_resort:  # where nobody kept the words, or no word
        who = "no captions of the training data have a word" if trained else "the text encoder knows no word"
        yield f"{who} of this query{means_nothing}"


def unknown_words(file: ModelFile, query: str) -> list[str]:
    """Words of the query that are in no training caption; none where the checkpoint does not know these."""
    known = known_words(file.content)
    return [] if known is None else [word for word in words_in([query]) if word not in known]


def open_folder(words: str) -> Model:
    """A model of open_clip in a folder; nothing is ever downloaded.

    Raises ConfigError for another name, CheckpointError for a folder without a model or that reaches beyond
    itself, and EnvironmentProblem when open_clip is not installed.
    """
    folder = named_folder(words)
    width, context = sizes(read_description(folder))
    loaded: list[tuple[Any, Any, Any]] = []

    def parts() -> tuple[Any, Any, Any]:
        if not loaded:
            loaded.append(_load(folder))
        return loaded[0]

    def tokenize(texts: list[str], length: int | None = None) -> Tensor:
        tokens: Tensor = parts()[2](texts, context_length=length or context)
        return tokens

    def notes(query: str) -> Iterator[str]:
        last, empty = tokenize([query, ""], context + 1)[:, -1].tolist()
        if last != empty:
            yield f"the query is longer than the {context} tokens that the model reads"

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
    return Model(name, label, label, LOCAL + str(folder), f"{_key(folder)} view {VIEW}", width, tokenize, notes, place)


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
            raise needs(str(error.name)) from error
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

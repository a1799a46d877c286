"""What a run is made of, read and checked in the order of the exit codes before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipcoco.config.derive import Derived, as_cached, count_parameters, derive, fitting, micro_batch
from clipcoco.config.load import LoadedConfig
from clipcoco.config.schema import Config
from clipcoco.data.annotations import prepare_command
from clipcoco.data.captions import CaptionTable
from clipcoco.data.doubts import doubts, say_cut
from clipcoco.data.false_captions import FalseCaptions, FalseTexts
from clipcoco.data.kept import Encoded, encode_captions, learn_tokenizer
from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.data.split import ORIGINALS, Source, open_splits
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.data.workers import begin_workers, choose_workers
from clipcoco.disk.files import need_room
from clipcoco.engine.device import Device, choose_as_trained, choose_device
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.engine.loss import LOSSES, Loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.sentence import read_tokenizer
from clipcoco.engine.state import TrainState
from clipcoco.engine.trained_on import Pictures, pictures_of, with_earlier
from clipcoco.events import Report
from clipcoco.prepare.scenes import drawn_false_captions, false_texts
from clipcoco.runs.header import say_captions, say_data, say_features, say_model, say_training
from clipcoco.version import __version__


@dataclass(frozen=True)
class Parts:
    """Device, data and tokenizer, and what follows from them for the configuration."""

    config: Config
    device: Device
    train_table: CaptionTable
    val_table: CaptionTable
    source: Source
    tokenizer: Tokenizer
    tokens: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]  # of the captions of train and val
    words: Sequence[str]  # of the training captions
    false: FalseCaptions | None  # of drawn validation scenes, where to encode them is cheap
    false_tokens: npt.NDArray[np.int32] | None
    false_texts: FalseTexts | None  # of the captions of train
    derived: Derived
    workers: int
    micro_batch: int  # rows that pass the encoders at once; 0: as many as fit, which the first step finds out
    group: Group
    warnings: tuple[str, ...]
    header: tuple[tuple[str, str], ...]  # (label, text) for a person

    @property
    def loss(self) -> Loss:
        return LOSSES[self.config.train.loss]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of the data."""
        copies = {"copies": self.source.sha256} if self.source.name != ORIGINALS else {}
        return {
            "source": self.source.name,
            **copies,
            "train": self.train_table.fingerprint(),
            "val": self.val_table.fingerprint(),
            "train_images": len(self.train_table.files),
            "val_images": len(self.val_table.files),
        }


@dataclass(frozen=True)
class Plan:
    """A run that can begin, or go on. Nothing is written yet."""

    loaded: LoadedConfig  # its settings, each with its source
    parts: Parts
    model: DualEncoder
    state: TrainState
    header: tuple[tuple[str, str], ...]
    began: dict[str, str]  # SHA-256 of what the run began with, "weights" or "init"
    init: str = ""  # what --init named
    content: dict[str, Any] | None = None  # of the checkpoint that the run goes on from
    before: Pictures | None = None  # those that the weights have learnt from already
    words: set[str] | None = None  # of captions, from the same source; None: nobody knows them
    pictures: Pictures | None = None  # with those of this run; None: nobody has looked at them yet

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the data and the first weights, as a checkpoint keeps it."""
        return {**self.parts.fingerprint, **self.began}

    def looked_at(self, report: Report) -> "Plan":
        """With the contents of all pictures, each read once and remembered in `data.root`/.clipcoco."""
        now = pictures_of(self.parts.train_table, self.parts.val_table, self.parts.source, report)
        return replace(self, pictures=with_earlier(now, self.before))


def read_parts(
    config: Config,
    device_name: str | None,
    precision: str,
    tokenizer: Tokenizer | None,
    *,
    preset: str = "base",
    origin: str = "",
    source_like: str | None = None,
    frozen_epochs: int | None = None,
    micro_batch_size: int = 0,
    group: Group = ALONE,
    keep: bool = True,
) -> Parts:
    """Choose the device, then read the data and check it. `tokenizer` None trains one on the captions.

    Of a run that goes on: `source_like` is where it read its images from, `precision`, `frozen_epochs` and
    `micro_batch_size` what was resolved; on a device without that precision it goes on in float32.
    To tell a person: `preset` is the one to prepare data for, `origin` where the weights are from. Without `keep`
    nothing is written into the data's folder.
    """
    get_them = prepare_command(config.data, preset)
    device = (choose_device if source_like is None else choose_as_trained)(device_name, precision)
    root = config.data.folder
    train, val = open_splits(config.data, "train", "val", like=source_like, get_them=get_them, keep=keep)
    train_table, val_table, source = train.table, val.table, train.source
    whole_train, whole_val = ((len(split.whole.files), len(split.whole.captions)) for split in (train, val))
    as_it_began = config
    if frozen_epochs is not None and config.train.frozen_epochs == "auto":
        train_as = config.train.model_copy(update={"frozen_epochs": frozen_epochs})
        as_it_began = config.model_copy(update={"train": train_as})
    derived = derive(as_it_began, whole_train, whole_val, str(root), device.device.type)
    if frozen_epochs is not None:
        derived = replace(derived, frozen_reason="as the run began")
    if derived.cached:
        config = as_cached(config, fitting(config.train.cached, derived.train_images))
    rows = micro_batch(config.train, group.size, derived.normalised, micro_batch_size)
    if group.size > 1 and derived.normalised:  # so that one process can repeat it
        config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": rows})})
    tokenizer, of_train, of_val, cut = _encoded(config, tokenizer, train_table, val_table, keep)
    tokens, context = (of_train.tokens, of_val.tokens), config.model.text.context_length
    views = 1 + (config.data.cached_crops if derived.frozen_epochs else 0)
    largest = max(config.train.batch_size, EVALUATION_BATCH * views)
    workers, why = choose_workers(config.data.workers, device.device.type, config.data.image_size, largest)
    begin_workers(workers)
    false = None if config.model.text.weights != "none" else drawn_false_captions(root, val_table)[0]  # it takes long
    encode = partial(tokenizer.encode, context_length=context)
    negatives = false_texts(root, train_table, config.train.text_negatives, encode)
    warnings = (*doubts(train_table, val_table, root), *cut)
    header = (
        ("", f"clipcoco {__version__} · torch {torch.__version__} · {device.description}"),
        ("data", say_data(config, train_table, val_table, source, workers, why)),
        ("model", say_model(config, count_parameters(config.model, tokenizer.vocab_size), origin)),
        ("train", say_training(config, derived, rows, group.size)),
        *([("features", say_features(config, derived))] if derived.frozen_epochs else []),
        *([("captions", say_captions(config, sum(map(len, tokens))))] if config.model.text.caution else []),
    )
    of_false = false, encode(false.false) if false else None, negatives
    data = train_table, val_table, source, tokenizer, tokens, of_train.words
    return Parts(config, device, *data, *of_false, derived, workers, rows, group, warnings, header)


def _encoded(
    config: Config, tokenizer: Tokenizer | None, train: CaptionTable, val: CaptionTable, keep: bool
) -> tuple[Tokenizer, Encoded, Encoded, list[str]]:
    """The tokenizer, which None asks for, what it makes of the captions, and a sentence on those that are cut."""
    root, text = config.data.folder, config.model.text
    if tokenizer is None and text.weights != "none":
        tokenizer = read_tokenizer(text)
    if tokenizer is None:
        tokenizer = learn_tokenizer(root, train.captions, text.vocab_size, keep)
    one, two = (encode_captions(root, tokenizer, of.captions, text.context_length, keep) for of in (train, val))
    captions = len(one.tokens) + len(two.tokens)
    return tokenizer, one, two, say_cut(one.cut + two.cut, one.equal + two.equal, captions, text.context_length)


def check_disk(runs_dir: Path, derived: Derived) -> None:
    """Room for every checkpoint that is kept and for the one being written."""
    kept, instead = derived.checkpoints_kept, "--set checkpoint.keep=0, or --runs-dir DIR"
    what = f"{kept} checkpoints and one being written need"
    need_room(runs_dir, derived.checkpoint_bytes * (kept + 1), what, "--runs-dir", instead)

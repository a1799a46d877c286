"""What a run is made of, read and checked in the order of the exit codes before anything is written."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipcoco.config.derive import Derived, count_parameters, derive
from clipcoco.config.schema import Config
from clipcoco.data.annotations import prepare_command
from clipcoco.data.captions import CaptionTable
from clipcoco.data.doubts import doubts, encoded
from clipcoco.data.features import Features
from clipcoco.data.loader import EVALUATION_BATCH, TrainingLoader
from clipcoco.data.readable import refuse_unreadable
from clipcoco.data.split import ORIGINALS, Source, open_splits
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.data.workers import choose_workers
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import Device, choose_as_trained, choose_device, encoding_in_memory
from clipcoco.engine.evaluate import Inputs, embed, in_order, validation_loss
from clipcoco.engine.features import cache_features, feature_key
from clipcoco.engine.loss import LOSSES, Loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import build_optimizer
from clipcoco.engine.recall import RecallTable, recall_table
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Stop, Training, temperature
from clipcoco.engine.trained_on import Pictures, pictures_of, with_earlier
from clipcoco.errors import EnvironmentProblem
from clipcoco.events import Report
from clipcoco.runs.header import say_data, say_features, say_model, say_training
from clipcoco.version import __version__


@dataclass(frozen=True)
class Assembled:
    """Everything that a run needs, read and checked; nothing is written yet."""

    config: Config
    device: Device
    train_table: CaptionTable
    val_table: CaptionTable
    source: Source
    tokenizer: Tokenizer
    tokens: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # of the captions of train and val
    derived: Derived
    workers: int
    warnings: tuple[str, ...]
    header: tuple[tuple[str, str], ...]
    pictures: Pictures | None = None  # None: nobody has looked at them yet
    before: Pictures | None = None  # those that the weights have learnt from already
    began: dict[str, str] = field(default_factory=dict)  # SHA-256 of what the run began with, "weights" or "init"

    @property
    def loss(self) -> Loss:
        return LOSSES["infonce"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        copies = {"copies": self.source.sha256} if self.source.name != ORIGINALS else {}
        return {
            "source": self.source.name,
            **copies,
            "train": self.train_table.fingerprint(),
            "val": self.val_table.fingerprint(),
            "train_images": len(self.train_table.files),
            "val_images": len(self.val_table.files),
            **self.began,
        }

    def differing(self, before: dict[str, Any]) -> list[str]:
        """What is not as in an earlier fingerprint. Copies may have been made anew: the pictures tell."""
        return [name for name, value in self.fingerprint.items() if name != "copies" and before.get(name) != value]

    def looked_at(self, report: Report) -> "Assembled":
        """With the contents of all pictures."""
        now = pictures_of(self.train_table, self.val_table, self.source, report)
        return replace(self, pictures=with_earlier(now, self.before))

    def begun(self, what: str, sha256: str, said: str) -> "Assembled":
        """With a line of the header for the weights that it begins with."""
        row = ("weights", f"{said}, SHA-256 {sha256[:12]}")
        return replace(self, header=(*self.header, row), began={what: sha256})


@dataclass(frozen=True)
class Cached:
    """A frozen backbone's features of both splits."""

    train: Features
    val: Features


def assemble(
    config: Config,
    device_name: str | None,
    precision: str,
    tokenizer: Tokenizer | None,
    *,
    preset: str = "base",
    origin: str | None = None,
    source_like: str | None = None,
    frozen_epochs: int | None = None,
) -> Assembled:
    """Choose the device, then read the data and check it. `tokenizer` None trains one on the captions.

    Of a run that goes on: `source_like` is where it read its images from, `precision` and `frozen_epochs` what was
    resolved; on a device without that precision it goes on in float32.
    To tell a person: `preset` is the one to prepare data for, `origin` where the weights are from.
    """
    get_them = prepare_command(config.data, preset)
    device = (choose_device if source_like is None else choose_as_trained)(device_name, precision)
    root = config.data.folder
    train, val = open_splits(config.data, "train", "val", like=source_like, get_them=get_them)
    train_table, val_table, source = train.table, val.table, train.source
    derived = derive(
        config,
        train_images=len(train.whole.files),
        train_captions=len(train.whole.captions),
        val_images=len(val.whole.files),
        val_captions=len(val.whole.captions),
        counted_from=str(root),
        device=device.device.type,
    )
    if frozen_epochs is not None:
        derived = replace(derived, frozen_epochs=frozen_epochs)
    if tokenizer is None:
        tokenizer = Tokenizer.train(train_table.captions, config.model.text.vocab_size)
    views = 1 + (config.data.cached_crops if derived.frozen_epochs else 0)
    largest = max(config.train.batch_size, EVALUATION_BATCH * views)
    workers, why = choose_workers(config.data.workers, device.device.type, config.data.image_size, largest)
    tokens, cut = encoded(tokenizer, (train_table, val_table), config.model.text.context_length)
    warnings = (*doubts(train_table, val_table, root), *cut)
    header = (
        ("", f"clipcoco {__version__} · torch {torch.__version__} · {device.description}"),
        ("data", say_data(config, train_table, val_table, source, workers, why)),
        ("model", say_model(config, count_parameters(config.model, tokenizer.vocab_size), origin)),
        ("train", say_training(config, derived, device)),
        *([("features", say_features(config, derived))] if derived.frozen_epochs else []),
    )
    return Assembled(
        config, device, train_table, val_table, source, tokenizer, tokens, derived, workers, warnings, header
    )


def backbone_features(parts: Assembled, model: DualEncoder, report: Report, stop: Stop) -> Cached | None:
    """What the frozen backbone sees in the training and the validation images, computed where it is not kept yet.

    None when stopped meanwhile.
    """
    config, device, root = parts.config, parts.device, parts.config.data.folder
    device.place(model).eval()
    weights = weights_sha256(model.visual.trunk.state_dict())
    cached = []
    for table, training in ((parts.val_table, False), (parts.train_table, True)):
        key = feature_key(config, weights, device, parts.source, training)
        with encoding_in_memory("the backbone's features", device):
            features = cache_features(
                model.visual.features, key, table, root, parts.source, parts.workers, device, report, stop
            )
        if features is None:
            return None
        if not training:
            refuse_unreadable(table, (~features.readable).nonzero()[0].tolist())
        cached.append(features)
    return Cached(val=cached[0], train=cached[1])


def build_training(
    parts: Assembled, model: DualEncoder, state: TrainState, cached: Cached | None, report: Report, stop: Stop
) -> Training:
    """Model on its device, optimiser, loader and evaluation; saving comes with the run directory."""
    config, derived, device = parts.config, parts.derived, parts.device
    device.place(model)
    train_tokens, val_tokens = parts.tokens
    val = Inputs(config.data, parts.val_table, val_tokens, parts.workers)

    def evaluate() -> tuple[float, RecallTable] | None:
        frozen = cached is not None and state.evaluated_epochs < derived.frozen_epochs
        inputs = replace(val, features=cached.val) if cached is not None and frozen else val
        with encoding_in_memory("an evaluation", device):
            embeddings = embed(model, inputs, device, report, stop)
            if embeddings is None:
                return None
            ordered = in_order(embeddings, parts.val_table.order)
            val_loss = validation_loss(ordered, parts.loss, config.train.batch_size, temperature(model))
            return val_loss, recall_table(embeddings.images, embeddings.texts, embeddings.owners)

    return Training(
        model=model,
        loss=parts.loss,
        optimizer=build_optimizer(model, config.train.lr, config.train.weight_decay, derived.backbone_lr_scale),
        scaler=device.scaler(),
        device=device,
        schedule=Schedule(
            config=config.train,
            seed=config.seed,
            total_steps=derived.total_steps,
            warmup_steps=derived.warmup_steps,
            frozen_epochs=derived.frozen_epochs,
            checkpoint_steps=config.checkpoint.every_steps,
        ),
        state=state,
        loader=TrainingLoader(
            config.data,
            parts.train_table,
            train_tokens,
            config.train.batch_size,
            config.seed,
            parts.workers,
            pin_memory=device.device.type == "cuda",
            stop=stop,
        ),
        features=cached.train if cached else None,
        evaluate=evaluate,
        save=lambda best, epoch: None,
    )


def check_disk(runs_dir: Path, derived: Derived) -> None:
    """Room for every checkpoint that is kept and for the one being written."""
    volume = runs_dir.absolute()
    while not volume.exists():
        volume = volume.parent
    needed, free = derived.checkpoint_bytes * (derived.checkpoints_kept + 1), shutil.disk_usage(volume).free
    if free < needed:
        raise EnvironmentProblem(
            f"{derived.checkpoints_kept} checkpoints and one being written need {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free on "
            f"{volume}. Free space, or --set checkpoint.keep=0, or --runs-dir DIR"
        )

"""`train --dry-run`: every check of a run, and a few batches on the device; writes nothing."""

import resource
import sys
import time

import numpy as np
import torch

from clipcoco.config.backbones import MINILM
from clipcoco.config.schema import Config
from clipcoco.data.features import Features, Sentences
from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.data.readable import check_readable
from clipcoco.data.tokenizer import PAD
from clipcoco.engine.device import encoding_in_memory, training_in_memory
from clipcoco.engine.evaluate import Inputs, embed
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.step import Training, start_epoch, train_step
from clipcoco.events import Report, Warned
from clipcoco.runs.plan import Parts, Plan
from clipcoco.runs.training import build_training


def rehearse(plan: Plan, report: Report) -> dict[str, str]:
    """A few real steps of a planned run on the device; writes nothing. What to tell, by label."""
    parts, model = plan.parts, plan.model
    config, device, derived = parts.config, parts.device, parts.derived
    for message in parts.warnings:
        report(Warned(0, 1, message))
    frozen, views = derived.frozen_epochs > 0, config.data.cached_views
    blank = _blank_features(config, derived.train_images) if frozen else None
    sentences = _blank_sentences(parts) if config.model.text.weights != "none" else None
    training = build_training(parts, model, plan.state, None, lambda event: None, lambda: None, sentences)
    epochs = {0: derived.frozen_epochs, derived.frozen_epochs: config.train.epochs - derived.frozen_epochs}
    if frozen:
        check_readable(parts.val_table, report)
    with encoding_in_memory("an evaluation", device):
        _encode_a_batch(parts, model)
        encoding = _seconds_an_image(training, views) if frozen else 0.0
        making = _seconds_a_caption(parts, model) if sentences else 0.0
    with training_in_memory(config.train.batch_size, device):
        steps = {
            first: _seconds_a_step(training, first, blank if first < derived.frozen_epochs else None)
            for first, many in epochs.items()
            if many
        }
    if device.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated(device.device) / 2**30:.1f} GiB on {device.device}"
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        memory = f"{kilobytes / 2**20:.1f} GiB"
    minutes = sum(seconds * epochs[first] for first, seconds in steps.items()) * derived.steps_per_epoch / 60
    each = ", later ".join(f"{seconds:.2f} s a step" for seconds in steps.values())
    once = f"{derived.train_images * encoding / 60:,.0f} min for the features, once, then " if frozen else ""
    if sentences:
        once += f"{sum(map(len, parts.tokens)) * making / 60:,.0f} min at most for the sentences, once, then "
    return {
        **dict(plan.header),
        "memory": f"peak {memory}",
        "disk": f"{derived.checkpoints_kept} checkpoints of {derived.checkpoint_bytes / 1e6:,.0f} MB at most",
        "time": f"{once}{each}, {minutes:,.0f} min of steps, evaluations apart",
        "wrote": "nothing (--dry-run)",
    }


def _encode_a_batch(parts: Parts, model: DualEncoder) -> None:
    """Of an evaluation, whose batch is fixed: one of training may fit where this one does not."""
    config = parts.config
    table = parts.val_table.subset(min(1, EVALUATION_BATCH / len(parts.val_table.files)), config.data.subset_seed)
    tokens = parts.tokenizer.encode(table.captions, config.model.text.context_length)
    embed(model, Inputs(config.data, table, tokens, workers=0), parts.device, lambda event: None, lambda: None)


def _blank_features(config: Config, images: int) -> Features:
    """A row of zeros for every image: what a step costs does not depend on what it sees."""
    shape = (1, config.data.cached_views, config.model.vision.width)
    return Features(np.zeros(shape, np.float16), np.zeros(images, np.int64), np.ones(images, np.bool_))


def _blank_sentences(parts: Parts) -> list[Sentences]:
    """The same of captions."""
    rows = np.zeros((1, MINILM.width), np.float16)
    return [Sentences(rows, np.zeros(len(tokens), np.int64)) for tokens in parts.tokens]


def _seconds_a_step(training: Training, epoch: int, features: Features | None) -> float:
    """Of `epoch`: with the backbone frozen or not. The first steps warm up."""
    start_epoch(training.model, epoch, training.schedule.frozen_epochs)
    batches, seconds = training.loader.epoch(epoch, features=features), []
    for _ in range(min(4, training.loader.steps_per_epoch)):
        began = time.monotonic()
        train_step(training, next(batches).to(training.device.device), training.schedule.config.lr)
        seconds.append(time.monotonic() - began)
    return min(seconds)


@torch.inference_mode()
def _seconds_a_caption(parts: Parts, model: DualEncoder) -> float:
    """Of its way through the whole text encoder."""
    tokens, began = torch.from_numpy(parts.tokens[0][:EVALUATION_BATCH]), time.monotonic()
    longest = int((tokens != PAD).sum(dim=1).max())
    with parts.device.autocast():
        float(model.encode_texts(tokens[:, :longest].to(parts.device.device)).sum())
    return (time.monotonic() - began) / len(tokens)


@torch.inference_mode()
def _seconds_an_image(training: Training, views: int) -> float:
    """Of reading it, and its views through the backbone."""
    seconds, device = [], training.device
    batches = training.loader.epoch(0)
    for _ in range(min(2, training.loader.steps_per_epoch)):
        began = time.monotonic()
        batch = next(batches).to(device.device)
        reading = time.monotonic() - began
        with device.autocast():
            assert batch.images is not None
            float(training.model.visual.features(batch.images).sum())
        seconds.append((reading + views * (time.monotonic() - began - reading)) / len(batch.images))
    return min(seconds)

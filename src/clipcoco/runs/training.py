"""What a run trains with: a frozen encoder's kept features, then model, optimiser, batches and evaluation."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from clipcoco.data.features import Features, Sentences
from clipcoco.data.loader import TrainingLoader
from clipcoco.data.readable import refuse_unreadable
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.closed_form import closed_form
from clipcoco.engine.composition import judge
from clipcoco.engine.device import encoding_in_memory
from clipcoco.engine.embeddings import Embeddings, Seen
from clipcoco.engine.evaluate import Inputs, embed, in_order, validation_loss
from clipcoco.engine.features import cache_features, cache_sentences, feature_key
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import build_optimizer, learning_rate, restore_moments, set_learning_rate
from clipcoco.engine.recall import ranks, table_of
from clipcoco.engine.results import RecallTable
from clipcoco.engine.sentence import SentenceEncoder
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Stop, Training, temperature
from clipcoco.errors import CheckpointError, is_out_of_memory
from clipcoco.events import ClosedForm, Report, Warned
from clipcoco.runs.plan import Parts


def make_ready(
    parts: Parts,
    model: DualEncoder,
    state: TrainState,
    content: dict[str, Any] | None,
    report: Report,
    stop: Stop,
    compared: bool = True,
    seen: Seen | None = None,
) -> Training:
    """All but the saving. `content` is of the checkpoint that the run goes on from; not yet `compared`, a run from kept
    features is first told what these give without training. `seen` takes what evaluations see with the best weights."""
    # ---- what a frozen encoder sees or makes, once for all epochs in which it is frozen
    frozen = state.evaluated_epochs < parts.derived.frozen_epochs
    cached = backbone_features(parts, model, report, stop) if frozen else None
    if cached and parts.derived.cached and not state.step:
        if not compared:
            report_closed_form(parts, cached, report, stop, model)
        model.load_state_dict(parts.group.spread(model.state_dict()))
    sentences = sentence_vectors(parts, model, report, stop)
    # ---- model, optimiser and random state, as they were where the run goes on
    training = build_training(parts, model, state, cached, report, stop, sentences, seen)
    if content:
        restore(training, content)
    return training


def restore(training: Training, content: dict[str, Any]) -> None:
    """Moments, scale, random state and the rate of the last step as they were: what is saved next tells of no stop."""
    last, schedule = max(0, training.state.step - 1), training.schedule
    rate = learning_rate(last, schedule.total_steps, schedule.warmup_steps, schedule.config.lr)
    set_learning_rate(training.optimizer, rate)
    try:
        restore_moments(training.optimizer, content["optimizer"])
        if content["scaler"]:  # of a run in float16
            training.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"]["torch"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the optimiser of this checkpoint does not fit its model: {error}") from error


@dataclass(frozen=True)
class Cached:
    """A frozen backbone's features of both splits."""

    train: Features
    val: Features


def backbone_features(parts: Parts, model: DualEncoder, report: Report, stop: Stop) -> Cached | None:
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
                model.visual.features, key, table, root, parts.source, parts.workers, device, report, stop, parts.group
            )
        if features is None:
            return None
        if not training:
            refuse_unreadable(table, (~features.readable).nonzero()[0].tolist())
        cached.append(features)
    return Cached(val=cached[0], train=cached[1])


def report_closed_form(parts: Parts, cached: Cached, report: Report, stop: Stop, model: DualEncoder) -> None:
    """What the features give without training, told before its first step; not when stopped meanwhile. `model` begins
    with it where model.start says so."""
    began, data = time.monotonic(), parts.config.data
    train = Inputs(data, parts.train_table, parts.tokens[0], parts.workers, cached.train)
    val = Inputs(data, parts.val_table, parts.tokens[1], parts.workers, cached.val)
    try:
        table = closed_form(train, val, report, stop, model if parts.config.model.begins_closed else None)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        report(Warned(0, 1, "the closed form is left out: it does not fit into the memory"))
        return
    if table is not None:
        clock = {"seconds": time.monotonic() - began}
        report(ClosedForm(0, 1, table.i2t, table.t2i, table.r1, table.rsum, clock))


def sentence_vectors(parts: Parts, model: DualEncoder, report: Report, stop: Stop) -> list[Sentences] | None:
    """What a frozen text encoder makes of the captions of train and val, computed where it is not kept yet.

    None when the text tower is trained, or when stopped meanwhile.
    """
    if not isinstance(model.text, SentenceEncoder):
        return None
    device, encoder = parts.device, model.text.encoder
    device.place(model).eval()
    with encoding_in_memory("the sentence vectors", device):
        weights, root = weights_sha256(encoder.state_dict()), parts.config.data.folder
        return cache_sentences(encoder, weights, parts.tokens, root, device, report, stop, parts.group)


def build_training(
    parts: Parts,
    model: DualEncoder,
    state: TrainState,
    cached: Cached | None,
    report: Report,
    stop: Stop,
    sentences: list[Sentences] | None = None,
    seen: Seen | None = None,
) -> Training:
    """Model on its device, optimiser, loader and evaluation; saving comes with the run directory."""
    config, derived, device = parts.config, parts.derived, parts.device
    device.place(model)
    model.visual.dropout.p *= derived.cached  # else augmentation does what dropped features do
    (train_tokens, val_tokens), (of_train, of_val) = parts.tokens, sentences or (None, None)
    val = Inputs(config.data, parts.val_table, val_tokens, parts.workers, None, of_val, parts.false_tokens)

    def evaluate() -> tuple[float, RecallTable, dict[str, float] | None] | None:
        frozen = cached is not None and state.evaluated_epochs < derived.frozen_epochs
        inputs = replace(val, features=cached.val) if cached is not None and frozen else val
        best = seen if inputs.features is None else None  # those are rounded, by which a digit might differ at the end
        with encoding_in_memory("an evaluation", device):
            if found := embed(model, inputs, device, report, stop, parts.group):
                return parts.group.from_first(lambda: _measured(parts, model, found, state.best_r1, best))
        return None

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
            sentences=of_train,
            share=parts.group.rows(config.train.batch_size),
            false=parts.false_texts,
            captions=config.train.captions_per_image,
        ),
        features=cached.train if cached else None,
        evaluate=evaluate,
        save=lambda best, epoch: None,
        group=parts.group,
    )


def _measured(
    parts: Parts, model: DualEncoder, found: Embeddings, best_r1: float, seen: Seen | None
) -> tuple[float, RecallTable, dict[str, float] | None]:
    """Validation loss, recall, and of drawn scenes the accuracy on false captions. What is better than `best_r1` is
    kept in `seen`."""
    ordered, batch_size = in_order(found, parts.val_table.order), parts.config.train.batch_size
    bias = None if model.logit_bias is None else model.logit_bias.detach().cpu()
    val_loss = validation_loss(ordered, parts.loss, batch_size, temperature(model), bias)
    ranked, false = ranks(found.images, found.texts, found.owners), parts.false
    table = table_of(ranked, found.owners)
    if seen and table.r1 > best_r1:
        seen.weights, seen.embeddings, seen.ranks = weights_sha256(model.state_dict()), found, ranked
    return val_loss, table, judge(found, false, parts.val_table).accuracies() if false else None

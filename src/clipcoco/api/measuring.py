"""Measure a model's recall from Python."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipcoco.api.model import Model, load
from clipcoco.api.restore import globals_restored
from clipcoco.api.training import Overrides, as_typed
from clipcoco.config.load import override
from clipcoco.data.annotations import MEASURED
from clipcoco.errors import ConfigError
from clipcoco.events import Event
from clipcoco.runs.measure import evaluate_checkpoint


def evaluate(
    model: Model | str | os.PathLike[str],
    changes: Overrides = (),
    *,
    split: str = "val",
    runs_dir: str | Path = "runs",
    device: str | None = None,
    report: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Measure a model as `clipcoco eval --json` does, to the same digits; gives what that prints.

    `model`: what `load` gave, as it is now, or what `load` takes. `changes`: other data, as {"data.root": "coco"}.
    `split`: "val", "train", or "test" of your own data, "karpathy-test" of COCO.

    >>> from clipcoco import evaluate
    >>> measured = evaluate("first")
    >>> measured["images"], sorted(measured["protocols"]["own"]["i2t"])
    (24, ['median_rank', 'r1', 'r10', 'r5'])

    Raises ConfigError, DataError, CheckpointError or EnvironmentProblem.
    """
    if split not in MEASURED:
        raise ConfigError(f"no split {split!r}. Choose val, train, test or karpathy-test")
    if wrong := [change for change in as_typed(changes) if not change.startswith("data.")]:
        raise ConfigError(f"{wrong[0]} would change the model, not the measurement. Only data.* can be set")
    if not isinstance(model, Model):
        model = load(model, runs_dir=runs_dir, device=device)
    config = override(model.config, as_typed(changes)) if changes else model.config
    with globals_restored():
        evaluation = evaluate_checkpoint(
            model.file,
            model.run,
            config.data,
            split,
            None,
            ("own", "1k", "eccv"),
            device or str(model.device.device),
            report or (lambda event: None),
        )
    return evaluation.result

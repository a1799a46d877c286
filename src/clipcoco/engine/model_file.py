"""A checkpoint file -> the model, its tokenizer and its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipcoco.config.load import config_from_plain
from clipcoco.config.schema import Config
from clipcoco.config.text import shown
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine.checkpoint import load
from clipcoco.engine.model import DualEncoder, build
from clipcoco.engine.weights import first_spoilt, fits
from clipcoco.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class ModelFile:
    path: Path
    config: Config
    tokenizer: Tokenizer
    model: DualEncoder  # on the CPU
    content: dict[str, Any]  # all of the checkpoint: untrusted data


def open_model(path: Path, content: dict[str, Any] | None = None) -> ModelFile:
    """Read `path` (or take its `content`, when that was read before).

    Raises CheckpointError for a file that is damaged, of another kind or does not fit its own configuration.
    """
    content = load(path) if content is None else content
    try:
        config = config_from_plain(content["config"], str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} has a configuration that can't be used: {error.mistakes[0]}") from error
    tokenizer = Tokenizer.from_plain(content["tokenizer"])
    with torch.device("meta"):  # shapes first: a crafted configuration must not make us allocate
        check_weights(build(config.model, tokenizer.vocab_size), content["model"], str(path))
    model = build(config.model, tokenizer.vocab_size)
    model.load_state_dict(content["model"])
    return ModelFile(path, config, tokenizer, model, content)


def check_weights(model: DualEncoder, state: Any, where: str) -> None:
    """Raise CheckpointError unless `state` fits the model, name by name, and is finite."""
    own = model.state_dict()
    given = state if isinstance(state, dict) else {}
    wrong = [name for name in {**own, **given} if name not in own or not fits(given.get(name), own[name])]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit its own configuration: {len(wrong)} of {len(own)} weights are missing, "
            f"unexpected or of another shape or kind, first {', '.join(shown(name) for name in wrong[:3])}. "
            f"Use another checkpoint"
        )
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in given.values()}
    if sum(value.numel() * value.element_size() for value in given.values()) > sum(storages.values()):
        raise CheckpointError(f"{where} has weights that share their bytes. Use another checkpoint")
    if spoilt := first_spoilt(given):
        raise CheckpointError(f"{where} has weights of no use: {spoilt}. Use another checkpoint")

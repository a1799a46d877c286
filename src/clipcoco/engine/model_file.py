"""A checkpoint file -> the model, its tokenizer and its configuration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipcoco.config.load import config_from_plain
from clipcoco.config.schema import Config
from clipcoco.config.text import shown
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine.checkpoint import load
from clipcoco.engine.model import DualEncoder, TextEncoder, build, text_tower
from clipcoco.engine.sentence import SentenceEncoder
from clipcoco.engine.weights import first_spoilt, fits
from clipcoco.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class ModelFile:
    path: Path
    config: Config
    tokenizer: Tokenizer
    content: dict[str, Any]  # all of the checkpoint but the optimizer: untrusted data

    @cached_property
    def model(self) -> DualEncoder:
        """On the CPU. Raises CheckpointError when the weights do not fit their own configuration."""
        with _shapes_alone():  # first: a crafted configuration must not make us allocate
            own = self._built().state_dict()
        check_weights(own, self.content["model"], str(self.path))
        model = self._built()
        model.load_state_dict(self.content["model"])
        return model

    def _built(self) -> DualEncoder:
        model = build(self.config.model, self.tokenizer.vocab_size)
        if self.config.train.loss == "sigmoid":
            model.learn_bias(0.0)
        return model

    @cached_property
    def text(self) -> TextEncoder | SentenceEncoder:
        """The text tower alone, by the same rules: whether the other weights fit, `model` tells."""
        state = self.content["model"] if isinstance(self.content["model"], dict) else {}
        with _shapes_alone():
            own = text_tower(self.config.model, self.tokenizer.vocab_size).state_dict(prefix="text.")
        others = {name: value for name, value in state.items() if not str(name).startswith("text.")}
        check_weights(own | {k: v for k, v in others.items() if isinstance(v, Tensor)}, state, str(self.path))
        tower = text_tower(self.config.model, self.tokenizer.vocab_size)
        tower.load_state_dict({name.removeprefix("text."): state[name] for name in own})
        return tower


def open_model(path: Path, content: dict[str, Any] | None = None) -> ModelFile:
    """`read_model` of `path` (or of its `content`, when that was read before), with its model built."""
    file = read_model(path, content)
    _ = file.model  # what is wrong with it is told here
    return file


def read_model(path: Path, content: dict[str, Any] | None = None) -> ModelFile:
    """Read `path`; no tower is built yet.

    Raises CheckpointError for a file that is damaged, of another kind or does not fit its own configuration.
    """
    if content is None:
        content = load(path, mapped=True)
        content.pop("optimizer", None)  # two thirds of the file, which then are not read
    try:
        config = config_from_plain(content["config"], str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} has a configuration that can't be used: {error.mistakes[0]}") from error
    return ModelFile(path, config, Tokenizer.from_plain(content["tokenizer"]), content)


def check_weights(own: Mapping[str, Tensor], state: Any, where: str) -> None:
    """Raise CheckpointError unless `state` fits a model's `own`, name by name, and is finite."""
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


class _Undrawn(TorchFunctionMode):
    """Normal numbers are not drawn: torch imports its compiler to draw them without room for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").endswith("normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Tensors made inside have shapes and take no room."""
    with torch.device("meta"), _Undrawn():
        yield

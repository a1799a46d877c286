"""Weights that came from a file: whether it is whole, and they are the ones that were meant."""

import contextlib
import hashlib
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clipcoco.config.backbones import BACKBONES
from clipcoco.config.schema import VisionConfig
from clipcoco.config.text import expanded, shown
from clipcoco.errors import CheckpointError, EnvironmentProblem

_COUNTER = "num_batches_tracked"  # of BatchNorm
_NEVER_NEGATIVE = ("running_var", "exp_avg_sq", "step", _COUNTER)


def fits(given: object, own: Tensor) -> bool:
    """Whether `given` is a plain tensor of the shape and kind of `own`."""
    return (
        isinstance(given, Tensor)
        and given.layout == torch.strided
        and given.device.type == "cpu"
        and given.shape == own.shape
        and given.is_floating_point() == own.is_floating_point()
        and given.is_complex() == own.is_complex()
        # all of it is there: with strides of 0 a few bytes would become any number of them
        and given.numel() * given.element_size() <= given.untyped_storage().nbytes()
    )


def check_sums(path: Path, kind: str) -> None:
    """Raise CheckpointError unless every part of the file is there and as it was written.

    torch's files are zip archives whose sums torch does not check: one flipped bit in four would pass it unseen.
    It stores the parts as they are. Compressed ones are not read: few bytes could become any number of them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise zipfile.BadZipFile("its parts are compressed")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise zipfile.BadZipFile("its parts overlap")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a {kind}, or damaged or cut off: {error}. Use another one") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the sum of {damaged!r} is wrong. Use another one")


def first_spoilt(tensors: Mapping[str, Tensor]) -> str:
    """The first that holds what is not finite, or a variance below 0; "" when all are sound."""
    for name, value in tensors.items():
        if value.numel():
            # aminmax reads them once and writes nothing: a quarter of the time of isfinite().all()
            low, high = torch.aminmax(value)
            if not (low.isfinite() and high.isfinite()):
                return f"{shown(name)} is not finite"
            if low < 0 and name.endswith(_NEVER_NEGATIVE):
                return f"{shown(name)} is negative"
    return ""


@dataclass(frozen=True, eq=False)
class Weights:
    state: dict[str, Tensor]
    sha256: str  # of the file, in hexadecimal
    checked: str  # by what its content is known to be whole, for a person


def read_weights(config: VisionConfig) -> Weights | None:
    """What the configuration asks for, verified; None for `none`.

    Published weights must have the SHA-256 that they were published with, a file of one's own the sums inside it.
    Raises EnvironmentProblem when published weights are neither in TORCH_HOME nor to be fetched, and
    CheckpointError for a file that is damaged or of another kind.
    """
    if config.weights == "none":
        return None
    if config.weights.startswith("imagenet-"):
        path = _fetched(config)
    else:
        path = expanded(config.weights)
        if not path.is_file():
            choices = "imagenet-v1, imagenet-v2, none or a file"
            raise CheckpointError(f"no weights at {path} (model.vision.weights). Give {choices}")
    try:
        sha256, digits = file_sha256(path), path.stem.rpartition("-")[2]
        published = path.name in BACKBONES[config.backbone].published.values()
        if published and not sha256.startswith(digits):
            raise CheckpointError(
                f"{path} is not what was published under that name: its SHA-256 begins with {sha256[:8]}, not {digits} "
                f"(model.vision.weights). Remove it, and it is fetched again, or put the right file there"
            )
        checked = "as published" if published else "whole by its own sums"
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            check_sums(path, "file of weights")
        elif not published:
            checked = "a file of torch's old kind, without sums to check"
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load has no error of its own for a file that is none
        raise CheckpointError(
            f"{path} is not a file of weights (model.vision.weights): {type(error).__name__}. "
            f"Give a torchvision state dict, saved by torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} does not hold a state dict (model.vision.weights). Give a torchvision one")
    return Weights(state, sha256, checked)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched(config: VisionConfig) -> Path:
    """Where the published weights are, fetched by torch when they are not there."""
    from clipcoco.data.vision import torchvision

    variant = "IMAGENET1K_" + config.weights.removeprefix("imagenet-").upper()
    weights = torchvision.models.get_model_weights(config.backbone)[variant]
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if target.is_file():
        return target
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where --json belongs, torch.hub tells of its download
            weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        # URLError is an OSError, a wrong hash a RuntimeError, a damaged file any of them.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(
            f"can't get the {config.weights} weights of {config.backbone}: {reason} "
            f"(model.vision.weights). Put {weights.url} at {target} (TORCH_HOME moves that folder), its SHA-256 "
            f"begins with {target.stem.rpartition('-')[2]}; or train from scratch: --set model.vision.weights=none"
        ) from error
    return target


def pretrained_backbone(config: VisionConfig, weights: Weights | None = None) -> dict[str, Tensor] | None:
    """The trunk's part of `weights`, or of what the configuration asks for; None for `none`.

    Raises what `read_weights` does, and CheckpointError when they are those of another backbone.
    """
    weights = weights or read_weights(config)
    if weights is None:
        return None
    from clipcoco.data.vision import torchvision

    with torch.device("meta"):
        expected = torchvision.models.get_model(config.backbone, weights=None)
    head = classifier(expected) + "."
    # The counter has no effect here, and files older than it lack it, published ones too: torch fills it in.
    state, own = (
        {name: value for name, value in whole.items() if not name.startswith(head) and not name.endswith(_COUNTER)}
        for whole in (weights.state, expected.state_dict())
    )
    wrong = [name for name in own if not fits(state.get(name), own[name])]
    if wrong or len(state) != len(own):
        first = shown((wrong or [name for name in state if name not in own])[0])
        raise CheckpointError(
            f"{config.weights} holds no {config.backbone} weights, first difference: {first} "
            f"(model.vision.weights). Give a torchvision state dict of that backbone"
        )
    if spoilt := first_spoilt(state):
        raise CheckpointError(
            f"{config.weights} holds weights of no use: {spoilt} (model.vision.weights). Get it again"
        )
    return state


def classifier(trunk: nn.Module) -> str:
    """The name of a torchvision model's last part, which we have no use for."""
    return "fc" if hasattr(trunk, "fc") else "classifier"

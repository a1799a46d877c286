"""Parameter groups, AdamW and the learning rate as a pure function of the step."""

import math
from inspect import unwrap
from typing import Any

import torch

from clipcoco.config.text import shown
from clipcoco.engine.weights import first_spoilt, fits
from clipcoco.errors import CheckpointError


class _AdamW(torch.optim.AdamW):
    """Without what keeps torch's compiler out of it: that imports the compiler, which takes as long as torch itself."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def build_optimizer(
    model: torch.nn.Module, lr: float, weight_decay: float, backbone_lr_scale: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019), fused, in four groups: backbone and rest, each with and without decay.

    Vectors and scalars (biases, norms, temperature) do not decay. A group's `lr_scale` multiplies the
    schedule. A frozen parameter has no gradient, so AdamW leaves it and its moments alone.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("visual.trunk."), parameter.ndim >= 2), []).append(parameter)
    return _AdamW(
        [
            {
                "params": parameters,
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": backbone_lr_scale if backbone else 1.0,
            }
            for (backbone, decays), parameters in groups.items()
        ],
        lr=lr,
        fused=True,
    )


def restore_moments(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Take the moments out of `saved`, the state of an earlier one; all else about it is a matter of the configuration.

    Raises CheckpointError for moments that do not fit or are not finite: one step would spread them over all weights.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(moments, dict):
        raise CheckpointError("the optimiser's moments are not there")
    for number, own in moments.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(own, dict):
            raise CheckpointError(f"the optimiser's moments are not those of this model, first {shown(number)}")
        if own.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise CheckpointError(f"the optimiser's moments of weight {number} are not those of AdamW")
        like = parameters[number].detach()
        if not (fits(own["step"], like.sum()) and fits(own["exp_avg"], like) and fits(own["exp_avg_sq"], like)):
            raise CheckpointError(f"the optimiser's moments do not fit weight {number} of this model")
        if spoilt := first_spoilt(own):
            raise CheckpointError(f"the optimiser's moments of weight {number} are of no use: {spoilt}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """The rate for the step after `step` finished ones: linear warm-up to `peak`, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

"""Parameter groups, AdamW and the learning rate as a pure function of the step."""

import math

import torch


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
    return torch.optim.AdamW(
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


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """The rate for the step after `step` finished ones: linear warm-up to `peak`, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

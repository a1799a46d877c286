import math

import pytest
import torch

from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer, learning_rate, set_learning_rate
from test_model import batch_of, captions, random_images, toy


def test_learning_rate_warms_up_linearly_then_follows_half_a_cosine():
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)  # halfway down
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_without_warm_up_it_starts_at_the_peak():
    assert learning_rate(0, 100, 0, 2.0) == 2.0


def test_biases_norms_and_temperature_do_not_decay():
    model = build(toy(), 300)
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.5, backbone_lr_scale=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = name.endswith("bias") or ".bn" in name or "ln_" in name or name == "logit_scale"
        exempt = exempt or ".downsample.1." in name
        assert decays[id(parameter)] == (0.0 if exempt else 0.5), name


def test_the_backbone_moves_at_its_own_rate_and_not_at_all_when_frozen():
    torch.manual_seed(0)
    model = build(toy(), 300)
    for parameter in model.text.parameters():  # where residual branches are 0, what lies in them has no gradient
        torch.nn.init.normal_(parameter, std=0.1)
    for parameter in model.visual.trunk.parameters():
        parameter.requires_grad = False
    optimizer = build_optimizer(model, lr=1.0, weight_decay=0.5, backbone_lr_scale=0.1)
    set_learning_rate(optimizer, 0.01)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group_names(model, group)}
    assert rates["visual.trunk.conv1.weight"] == pytest.approx(0.001)
    assert rates["visual.head.proj.weight"] == pytest.approx(0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    images, texts, temperature = model(batch_of(random_images(2), captions([1, 7, 2], [1, 9, 2])))
    ((images * texts).sum() / temperature).backward()
    optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("visual.trunk."), name


def group_names(model, group):
    members = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in members]

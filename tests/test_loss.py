import math

import pytest
import torch
import torch.nn.functional as F

from clipcoco import evaluate, load_config, resume, train
from clipcoco.engine.checkpoint import load, weights_sha256
from clipcoco.engine.loss import LOSSES
from clipcoco.errors import ConfigError
from clipcoco.runs.start import plan_run
from conftest import LIGHT
from harness import rows

infonce = LOSSES["infonce"].of


def literal_loss(images, texts, temperature):
    """The definition, one pair at a time."""
    size, total = len(images), 0.0
    for own in range(size):
        for queries, gallery in ((images, texts), (texts, images)):
            scores = [torch.dot(queries[own], gallery[other]) / temperature for other in range(size)]
            total = total - scores[own] + torch.stack(scores).exp().sum().log()
    return total / (2 * size)


def leaves(seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    made.append(torch.tensor(0.07, dtype=torch.float64))
    return [leaf.requires_grad_() for leaf in made]


def test_loss_and_gradients_equal_the_literal_double_loop():
    results = []
    for loss_of in (infonce, literal_loss):
        images, texts, temperature = leaves()
        loss = loss_of(F.normalize(images, dim=1), F.normalize(texts, dim=1), temperature)
        loss.backward()
        results.append([loss.detach(), images.grad, texts.grad, temperature.grad])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)


def test_a_model_that_knows_nothing_is_at_chance():
    same = F.normalize(torch.ones(64, 8), dim=1)
    assert math.isclose(infonce(same, same, torch.tensor(0.07)), math.log(64), rel_tol=1e-6)


def test_matching_pairs_cost_nearly_nothing():
    pairs = torch.eye(8)
    assert infonce(pairs, pairs, torch.tensor(0.01)) < 1e-6


def literal_sigmoid(images, texts, temperature, bias):
    size, total = len(images), 0.0
    for i in range(size):
        for j in range(size):
            logit = torch.dot(images[i], texts[j]) / temperature + bias
            total = total + torch.log1p(torch.exp(-logit if i == j else logit))
    return total / size


def literal_triplet(images, texts, hardest):
    size, total = len(images), 0.0
    for queries, gallery in ((images, texts), (texts, images)):
        for own in range(size):
            right = torch.dot(queries[own], gallery[own])
            costs = [0.2 + torch.dot(queries[own], gallery[j]) - right for j in range(size) if j != own]
            costs = [cost.clamp(min=0) for cost in costs]
            total = total + (max(costs) if hardest else sum(costs) / len(costs))
    return total / (2 * size)


@pytest.mark.parametrize("name", ["sigmoid", "triplet", "triplet while it warms up"])
def test_the_other_losses_equal_their_literal_loops_too(name):
    results, warming = [], name.endswith("up")
    loss = LOSSES[name.partition(" ")[0]]
    for literally in (False, True):
        images, texts, temperature = leaves()
        bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True) if loss.bias else None
        both = F.normalize(images, dim=1), F.normalize(texts, dim=1)
        if not literally:
            value = loss.of(*both, temperature, bias=bias, warming=warming)
        elif loss.bias:
            value = literal_sigmoid(*both, temperature, bias)
        else:
            value = literal_triplet(*both, hardest=not warming)
        value.backward()
        of_bias = [bias.grad] if loss.bias else []
        of_temperature = [temperature.grad] if loss.scaled else []
        results.append([value.detach(), images.grad, texts.grad, *of_temperature, *of_bias])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_parts_of_the_rows_have_the_whole_as_their_mean(name):
    loss, whole, parts = LOSSES[name], leaves(size=6), leaves(size=6)
    loss.of(*whole).backward()
    for part in (slice(0, 3), slice(3, 6)):
        (loss.of(*parts, part) / 2).backward()
    for ours, theirs in zip(parts[:2], whole[:2], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("pairs", [2, 64])
def test_chance_is_what_like_embeddings_cost(name, pairs):
    loss, same = LOSSES[name], torch.zeros(pairs, 8)
    bias = torch.tensor(loss.bias(pairs)) if loss.bias else None
    for warming in (False, True):
        value = loss.of(same, same, torch.tensor(0.07), bias=bias, warming=warming)
        assert math.isclose(value, loss.chance(pairs), rel_tol=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "triplet"])
def test_a_run_with_another_loss_learns_resumes_and_gives_its_weights_away(scenes, tmp_path, name):
    """SigLIP's bias is in the checkpoint, goes on with it, and stays behind where a run begins from its weights."""
    settings = load_config("demo", overrides=[*LIGHT, f"data.root={scenes}", f"train.loss={name}", "train.epochs=2"])
    reasons = iter([None] * 7 + ["enough"])
    stopped = train(settings, name="run", runs_dir=tmp_path, stop=lambda: next(reasons, "enough"))
    assert stopped.state == "stopped"
    done = resume("run", runs_dir=tmp_path)
    whole = train(settings, name="whole", runs_dir=tmp_path)
    losses = [[row["loss"] for row in rows(run.path) if row["event"] == "step"] for run in (done, whole)]
    assert losses[0] == losses[1]
    states = [load(run.path / "checkpoints/last.pt")["model"] for run in (done, whole)]
    assert weights_sha256(states[0]) == weights_sha256(states[1])
    assert ("logit_bias" in states[0]) == (name == "sigmoid")
    assert evaluate(done.path)["r1"] == done.best.r1
    other = load_config("demo", overrides=[*LIGHT, f"data.root={scenes}", "train.epochs=1"])
    plan = plan_run(
        other, name=None, runs_dir=tmp_path, device_name="cpu", init=done.path / "checkpoints/last.pt", report=print
    )
    assert "logit_bias" not in plan.model.state_dict()
    with pytest.raises(ConfigError, match=r"train.loss can't change at a resume"):
        resume("run", ["train.loss=infonce"], runs_dir=tmp_path)

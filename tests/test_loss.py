import math

import pytest
import torch
import torch.nn.functional as F

from clipcoco import evaluate, load_config, resume, train
from clipcoco.engine.checkpoint import load, weights_sha256
from clipcoco.engine.loss import LOSSES, text_keys
from clipcoco.errors import ConfigError
from clipcoco.runs.start import plan_run
from conftest import LIGHT
from harness import rows

infonce = LOSSES["infonce"].of


def literally(name, images, texts, temperature, bias=None, warming=False, keys=None):
    """The definition, one query at a time: what its own answer costs among all others that are none."""
    texts, false = (texts, [[]] * len(texts)) if texts.dim() == 2 else (texts[:, 0], texts[:, 1:])
    size, total = len(images), 0.0
    for i in range(size):
        for queries, gallery, more in ((images, texts, false[i]), (texts, images, [])):
            others = [gallery[j] for j in range(size) if j != i and (keys is None or keys[i] != keys[j])]
            others += [one for one in more if one.any()]
            right, *wrong = [torch.dot(queries[i], other) for other in (gallery[i], *others)]
            if name == "infonce":
                exps = [((one - right) / temperature).exp() for one in wrong]
                total = total + torch.log(1 + sum(exps))
            elif name == "sigmoid":
                logits = [one / temperature + bias for one in (right, *wrong)]
                total = total + sum(torch.log1p(torch.exp(one if n else -one)) for n, one in enumerate(logits))
            elif wrong:
                costs = [(0.2 + one - right).clamp(min=0) for one in wrong]
                total = total + (sum(costs) / len(costs) if warming else max(costs))
    return total / (2 * size)


def leaves(seed=0, size=5, false=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (size, 4), (size, 1 + false, 4) if false else (size, 4)
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    made.append(torch.tensor(0.07, dtype=torch.float64))
    return [leaf.requires_grad_() for leaf in made]


def test_a_model_that_knows_nothing_is_at_chance():
    same = F.normalize(torch.ones(64, 8), dim=1)
    assert math.isclose(infonce(same, same, torch.tensor(0.07)), math.log(64), rel_tol=1e-6)


def test_matching_pairs_cost_nearly_nothing():
    pairs = torch.eye(8)
    assert infonce(pairs, pairs, torch.tensor(0.01)) < 1e-6


@pytest.mark.parametrize("more", ["plain", "some texts are equal", "false captions", "both"])
@pytest.mark.parametrize("name", [*LOSSES, "triplet while it warms up"])
def test_losses_and_gradients_equal_their_literal_loops(name, more):
    results, warming = [], name.endswith("up")
    name = name.partition(" ")[0]
    loss = LOSSES[name]
    keys = torch.tensor([7, 8, 7, 9, 7]) if more in ("some texts are equal", "both") else None
    for literal in (False, True):
        images, texts, temperature = leaves(false=2 if more in ("false captions", "both") else 0)
        bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True) if loss.bias else None
        units = F.normalize(texts, dim=-1)
        if units.dim() == 3:  # of the second image there is one, of the fourth none
            units = units * torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])[..., None]
        both = F.normalize(images, dim=1), units
        if literal:
            value = literally(name, *both, temperature, bias, warming, keys)
        else:
            value = loss.of(*both, temperature, bias=bias, warming=warming, keys=keys)
        value.backward()
        of_bias = [bias.grad] if loss.bias else []
        of_temperature = [temperature.grad] if loss.scaled else []
        results.append([value.detach(), images.grad, texts.grad, *of_temperature, *of_bias])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)


def test_texts_that_are_equal_have_equal_keys_and_others_not():
    """Whatever is padded behind them; of vectors the keys of their bits."""
    tokens = torch.randint(3, 8, (2000, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    keys = text_keys(tokens)
    assert torch.equal(keys, text_keys(F.pad(tokens, (0, 5))))
    _, same = tokens.unique(dim=0, return_inverse=True)
    assert torch.equal(keys[:, None] == keys, same[:, None] == same)
    vectors = torch.randn(5, 8)[[0, 1, 2, 1]]
    assert (text_keys(vectors)[:, None] == text_keys(vectors)).sum() == 6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("false", [0, 2])
def test_several_captions_of_an_image_cost_their_mean_each_among_one_of_every_other(name, false):
    images, temperature = F.normalize(leaves()[0], dim=1), torch.tensor(0.07)
    texts = F.normalize(torch.stack([leaves(seed, false=false)[1] for seed in (1, 2, 3)], dim=1), dim=-1)
    keys, bias = torch.tensor([[1, 4, 6], [2, 4, 7], [3, 4, 6], [1, 5, 7], [1, 5, 6]]), torch.tensor(-1.5)
    each = [literally(name, images, texts[:, n], temperature, bias, False, keys[:, n]) for n in range(3)]
    value = LOSSES[name].of(images, texts, temperature, bias=bias if name == "sigmoid" else None, keys=keys)
    torch.testing.assert_close(value, sum(each) / 3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("false", [0, 2])
def test_equal_parts_of_the_rows_have_the_whole_as_their_mean(name, false):
    loss, whole, parts = LOSSES[name], leaves(size=6, false=false), leaves(size=6, false=false)
    keys = torch.tensor([1, 2, 3, 4, 1, 5])
    loss.of(*whole, keys=keys).backward()
    for part in (slice(0, 3), slice(3, 6)):
        (loss.of(*parts, part, keys=keys) / 2).backward()
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


@pytest.mark.parametrize("change", ["loss=sigmoid", "loss=triplet", "text_negatives=2", "captions_per_image=2"])
def test_a_run_with_another_loss_learns_resumes_and_gives_its_weights_away(scenes, tmp_path, change):
    """SigLIP's bias is in the checkpoint, goes on with it, and stays behind where a run begins from its weights."""
    of_one = "train.captions_per_image=1"
    settings = load_config(
        "demo", overrides=[*LIGHT, f"data.root={scenes}", of_one, f"train.{change}", "train.epochs=1"]
    )
    reasons = iter([None] * 4 + ["enough"])
    stopped = train(settings, name="run", runs_dir=tmp_path, stop=lambda: next(reasons, "enough"))
    assert stopped.state == "stopped"
    done = resume("run", runs_dir=tmp_path)
    whole = train(settings, name="whole", runs_dir=tmp_path)
    losses = [[row["loss"] for row in rows(run.path) if row["event"] == "step"] for run in (done, whole)]
    assert losses[0] == losses[1]
    states = [load(run.path / "checkpoints/last.pt")["model"] for run in (done, whole)]
    assert weights_sha256(states[0]) == weights_sha256(states[1])
    assert ("logit_bias" in states[0]) == (change == "loss=sigmoid")
    assert evaluate(done.path)["r1"] == done.best.r1
    other = load_config("demo", overrides=[*LIGHT, f"data.root={scenes}", "train.epochs=1"])
    plan = plan_run(
        other, name=None, runs_dir=tmp_path, device_name="cpu", init=done.path / "checkpoints/last.pt", report=print
    )
    assert "logit_bias" not in plan.model.state_dict()
    name = f"train.{change.partition('=')[0]}"
    with pytest.raises(ConfigError, match=rf"{name} can't change at a resume"):
        resume("run", [f"{name}={'infonce' if name == 'train.loss' else 1}"], runs_dir=tmp_path)

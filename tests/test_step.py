"""The gradient of a batch, in one piece or in many."""

import dataclasses
import math

import pytest
import torch

from clipcoco.config.derive import micro_batch
from clipcoco.config.load import load_config
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.distributed import Group
from clipcoco.engine.loss import LOSSES, text_keys
from clipcoco.engine.model import build
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import gradient, settle_micro_batch, start_epoch, step_seed, train_step
from clipcoco.errors import ConfigError, DistributedError
from clipcoco.runs.plan import read_parts
from clipcoco.runs.training import build_training
from conftest import TOY
from harness import raising


def training(root, *changes, pretrained=False, dtype=torch.float64, frozen=False, size=0):
    """A toy's, in the middle of its run; `pretrained` as if its BatchNorm had statistics to keep."""
    changes = (*TOY, f"data.root={root}", "train.batch_size=12", "model.text.layers=2", *changes)
    config = load_config("demo", overrides=changes).config
    parts = read_parts(config, "cpu", "float32", None)
    make_deterministic(0, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    model.visual.pretrained = pretrained
    run = build_training(parts, model, TrainState(step=5, micro_batch_size=size), None, print, lambda: None)
    run.model.to(dtype)
    start_epoch(run.model, 0, int(frozen))
    return run


def gradients(run):
    return {name: one.grad.clone() for name, one in run.model.named_parameters() if one.grad is not None}


def far(ours, theirs):
    """The largest difference in any parameter, relative to the largest number of its own gradient."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in ours)


def literally(run, batch, size):
    """The loss of all pieces in one graph, each encoded as a batch of its own: all memory at once."""
    images, texts = [], []
    for number, piece in enumerate(batch.split(size)):
        torch.manual_seed(step_seed(run.schedule.seed, run.state.step, number))
        one, other, temperature = run.model(piece)
        images.append(one)
        texts.append(other)
    loss = run.loss.of(torch.cat(images), torch.cat(texts), temperature, keys=text_keys(batch.tokens))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("of_each", [1, 3], ids=["", "captions, true and false"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("pretrained", [True, False], ids=["eval", "training"])
def test_in_pieces_the_gradient_is_that_of_the_whole_batch(scenes, pretrained, frozen, loss, of_each):
    """With dropout, of every parameter, the temperature's among them, against one graph of all pieces."""
    found = []
    for of in (gradient, lambda run, batch: literally(run, batch, 3)):
        more = f"train.captions_per_image={of_each}", f"train.text_negatives={of_each - 1}"
        run = training(scenes, *more, pretrained=pretrained, frozen=frozen, size=3)
        run = dataclasses.replace(run, loss=LOSSES[loss])
        found.append((float(of(run, next(run.loader.epoch(0)))), gradients(run)))
    (ours, of_ours), (theirs, of_theirs) = found
    assert math.isclose(ours, theirs, rel_tol=1e-12)
    assert ("logit_scale" in of_ours) == LOSSES[loss].scaled
    assert ("visual.trunk.conv1.weight" in of_ours) == (not frozen)
    assert far(of_ours, of_theirs) < 1e-9


def test_where_nothing_is_drawn_and_nothing_normalised_pieces_change_nothing(scenes):
    """In float64 and in float32, clipped, and after a step of the optimiser: against the batch at once."""
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        found = {}
        for size in (12, 4):
            run = training(scenes, "model.text.dropout=0", pretrained=True, dtype=dtype, size=size)
            batch = next(run.loader.epoch(0))
            gradient(run, batch)
            of_all = gradients(run)
            run.optimizer.zero_grad()
            step = train_step(run, batch, 1e-3)
            found[size] = of_all, step
        assert far(found[4][0], found[12][0]) < limit
        assert math.isclose(found[4][1].grad_norm, found[12][1].grad_norm, rel_tol=limit)
        assert found[12][1].grad_norm > run.schedule.config.grad_clip, "it is clipped"


def test_running_statistics_move_once_a_step_by_the_mean_of_the_pieces(scenes):
    run = training(scenes, size=4)
    norm, batch = run.model.visual.trunk.bn1, next(run.loader.epoch(0))
    before, seen = norm.running_mean.clone(), []
    hook = norm.register_forward_hook(lambda module, given, out: seen.append(given[0].mean(dim=(0, 2, 3))))
    gradient(run, batch)
    hook.remove()
    assert len(seen) == 5, "the last piece is not encoded again"
    moved = 0.9 * before + 0.1 * torch.stack(seen[:3]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, moved, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == 1


def test_a_step_in_pieces_that_comes_to_nothing_moves_no_statistics(scenes, monkeypatch):
    """Where its gradient is not finite, and where another process is gone before it is known."""
    run = training(scenes, size=4)
    batch, before = next(run.loader.epoch(0)), {name: one.clone() for name, one in run.model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(Group, "add_gradients", raising(DistributedError("process 1 of 2 is gone")))
        with pytest.raises(DistributedError):
            train_step(run, batch, 1e-3)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    run.model.text.text_projection.register_hook(lambda grad: grad * float("inf"))
    assert not math.isfinite(train_step(run, batch, 1e-3).grad_norm)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_pieces_draw_their_own_dropout_and_each_step_another():
    seeds = {step_seed(seed, step, piece) for seed in (0, 1, 2**32 - 1) for step in range(300) for piece in range(300)}
    assert len(seeds) == 3 * 300 * 300


@pytest.mark.parametrize(
    ("changes", "processes", "normalised", "stored", "size"),
    [
        ([], 1, True, 0, 64),
        ([], 4, True, 0, 16),
        (["train.micro_batch_size=8"], 1, True, 0, 8),
        (["train.micro_batch_size=8"], 8, True, 0, 8),
        (["train.micro_batch_size=auto"], 2, False, 0, 0),
        ([], 1, True, 16, 16),  # goes on with the pieces of four processes
        ([], 2, False, 64, 32),
        (["train.micro_batch_size=16"], 2, False, 64, 16),
        (["train.micro_batch_size=24"], 1, True, 0, "pieces of 24 leave a remainder of a batch of 64 .* Give 16 or 32"),
        (["train.micro_batch_size=16"], 8, True, 0, "a batch of 64 that 8 processes share equally .* Give 8"),
        ([], 3, True, 0, r"3 processes can't share a batch of 64 equally \(train.batch_size\). Start 1 or 2"),
        ([], 4, True, 32, r"pieces of 32 of a batch of 64, which 4 processes can't share .* Start 1 or 2"),
        (["train.micro_batch_size=auto"], 1, True, 0, "can't be auto where BatchNorm is trained: .* 8, 16, 32 or 64"),
    ],
)
def test_pieces_fit_the_batch_and_the_processes_or_the_line_says_what_does(
    changes, processes, normalised, stored, size
):
    train = load_config("base", overrides=changes).config.train
    if isinstance(size, int):
        assert micro_batch(train, processes, normalised, stored) == size
    else:
        with pytest.raises(ConfigError, match=size):
            micro_batch(train, processes, normalised, stored)


def test_auto_takes_the_most_rows_whose_gradient_fits(scenes):
    """An encoder that has room for four images; the run goes on in such pieces, to the gradient of the whole."""
    run = training(scenes, "model.text.dropout=0", pretrained=True)
    room, events = 4, []

    def narrow(module, given):
        if len(given[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    sought = run.schedule.config.model_copy(update={"micro_batch_size": "auto"})
    run = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, config=sought))
    batch = next(run.loader.epoch(0))
    hook = run.model.visual.trunk.register_forward_pre_hook(narrow)
    settle_micro_batch(run, batch, 1, events.append)
    assert run.state.micro_batch_size == 3, "after 12 and 6: a half at most, which divides 12"
    assert events[0].message.startswith("more than 3 images at once do not fit")
    assert not any(parameter.grad is not None for parameter in run.model.parameters())
    gradient(run, batch)
    ours = gradients(run)
    hook.remove()
    run.optimizer.zero_grad()
    run.state.micro_batch_size = 12
    gradient(run, batch)
    assert far(ours, gradients(run)) < 1e-9

import contextlib
import dataclasses
import math

import pytest
import torch

from clipcoco.assemble import assemble, build_training, check_disk
from clipcoco.config.load import load_config
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import choose_device, is_out_of_memory, make_deterministic, out_of_memory
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.evaluate import retrievals_worth_showing
from clipcoco.engine.model import build
from clipcoco.engine.recall import ranks
from clipcoco.engine.state import TrainState
from clipcoco.engine.train import train, train_step
from clipcoco.engine.watch import count_step, log_interval
from clipcoco.errors import ConfigError, EnvironmentProblem, NumericError
from clipcoco.events import Evaluated, StepDone, StepSkipped, Warned
from conftest import TOY


def training(root, *changes, report=lambda event: None):
    config = load_config("demo", overrides=[*TOY, f"data.root={root}", *changes]).config
    parts = assemble(config, "cpu", config.train.precision, None)
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    return build_training(parts, model, TrainState(), None, report, stop=lambda: None)


def everything(run):
    """All that a step may change: parameters, buffers, moments."""
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    return [value.clone() for value in (*run.model.state_dict().values(), *moments)]


def test_one_memorised_batch_reaches_a_loss_of_nothing(scenes):
    run = training(scenes, "train.lr=3e-3", "model.text.dropout=0")
    run.model.train()
    batch = next(run.loader.epoch(0))
    losses = [train_step(run, batch, 3e-3)[0] for _ in range(80)]
    assert losses[0] > 1
    assert losses[-1] < 0.05


@pytest.mark.parametrize("poison", ["weights", "gradient"])
def test_a_step_that_is_not_finite_leaves_every_bit_as_it_was(scenes, poison):
    run = training(scenes)
    run.model.train()
    batches = run.loader.epoch(0)
    for _ in range(2):
        train_step(run, next(batches), 1e-3)
    before = everything(run)
    if poison == "weights":  # NaN runs forward, through every BatchNorm
        hook = run.model.visual.trunk.conv1.register_forward_hook(lambda m, i, out: out * float("nan"))
    else:  # the loss is finite, a gradient is not
        hook = run.model.text.text_projection.register_hook(lambda grad: grad * float("inf"))
    loss, norm = train_step(run, next(batches), 1e-3)
    hook.remove()
    assert not (math.isfinite(loss) and math.isfinite(norm))
    assert math.isfinite(loss) == (poison == "gradient")
    assert all(torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))
    assert all(map(math.isfinite, train_step(run, next(batches), 1e-3)))
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))


def test_skipped_steps_are_counted_and_ten_in_a_row_end_the_run(scenes):
    events = []
    run = training(scenes, "train.batch_size=4")  # no evaluation within ten steps
    run.model.visual.trunk.conv1.register_forward_hook(lambda m, i, out: out * float("nan"))
    before = weights_sha256(run.model.state_dict())
    with pytest.raises(NumericError, match=r"Try a lower train\.lr"):
        train(run, events.append, stop=lambda: None)
    assert [event.step for event in events if isinstance(event, StepSkipped)] == list(range(1, 11))
    assert weights_sha256(run.model.state_dict()) == before


def test_a_huge_learning_rate_ends_in_one_line_not_in_nan_weights(scenes):
    run = training(scenes, "train.lr=10", "train.epochs=6", "train.grad_clip=1000000", "train.warmup_steps=0")
    with contextlib.suppress(NumericError):
        train(run, lambda event: None, stop=lambda: None)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


def test_a_step_leaves_the_temperature_in_its_bounds(scenes):
    run = training(scenes)
    with torch.no_grad():
        run.model.logit_scale.fill_(9.0)
    train_step(run, next(run.loader.epoch(0)), 1e-3)
    assert run.model.logit_scale.item() == pytest.approx(math.log(100))


def test_events_tell_each_step_and_each_epoch(scenes):
    events = []
    run = training(scenes)
    ended = train(run, events.append, stop=lambda: None)
    steps = [event for event in events if isinstance(event, StepDone)]
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert (ended.state, ended.step) == ("finished", 18)
    assert [event.step for event in steps] == list(range(1, 19))
    assert [(event.step, event.epoch) for event in evaluations] == [(6, 1), (12, 2), (18, 3)]
    best = max(evaluations, key=lambda event: event.r1)
    assert run.state.best_r1 == best.r1
    assert steps[0].lr == pytest.approx(1e-3 * 1 / math.ceil(18 * 0.05), rel=1)


def test_frozen_epochs_leave_the_backbone_alone_then_let_it_learn(scenes):
    run = training(scenes, "train.frozen_epochs=1")
    trunk = [value.clone() for value in run.model.visual.trunk.parameters()]
    seen = []

    def watch(event):
        if isinstance(event, Evaluated):
            now = run.model.visual.trunk.parameters()
            seen.append(all(torch.equal(a, b) for a, b in zip(trunk, now, strict=True)))

    train(run, watch, stop=lambda: None)
    assert seen == [True, False, False]


def test_early_stopping_ends_a_run_that_no_longer_improves(scenes):
    run = training(scenes, "train.early_stop_epochs=1", "train.epochs=40", "train.lr=1e-9")
    ended = train(run, lambda event: None, stop=lambda: None)
    assert ended.state == "finished"
    assert ended.reason == "early stop"
    assert ended.step < 240


def test_a_loss_that_stays_at_chance_is_told_once():
    events = []
    state = TrainState()
    for _ in range(400):
        state.step += 1
        count_step(state, 1, math.log(8), 0.0, 1e-3, events.append)
        log_interval(state, 1, 8, 1e-3, 0.07, events.append)
    warnings = [event for event in events if isinstance(event, Warned)]
    assert [event.step for event in warnings] == [300]
    assert "has stayed at or above chance (ln 8 = 2.079)" in warnings[0].message


def test_devices_and_precisions_that_are_not_here_are_errors():
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        choose_device("gpu", "auto")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="cuda is not available"):
            choose_device("cuda", "auto")
    with pytest.raises(EnvironmentProblem, match="float16 is not possible on cpu"):
        choose_device("cpu", "float16")
    assert choose_device("cpu", "bfloat16").precision == "bfloat16"
    assert "(" in choose_device(None, "auto").description


def test_retrievals_show_the_right_answer_of_a_miss():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(80, 8, generator=generator), dim=1)
    owners = torch.arange(40).repeat_interleave(2)
    embeddings = Embeddings(images, texts, owners.numpy(), owners.numpy(), owners)
    place = ranks(images, texts, owners)
    by_text, by_image = retrievals_worth_showing(embeddings, place, seed=0)
    for chosen, rank, owns in (
        (by_text, place.t2i, lambda query, hit: owners[query] == hit),
        (by_image, place.i2t, lambda query, hit: owners[hit] == query),
    ):
        assert [retrieval.drawn for retrieval in chosen] == [True] * 6 + [False] * 6
        worst = [retrieval.rank for retrieval in chosen[6:]]
        assert worst == sorted(worst, reverse=True)
        for retrieval in chosen:
            assert retrieval.rank == rank[retrieval.query]
            right = [bool(owns(retrieval.query, hit)) for hit in retrieval.found]
            assert right.index(True) == min(retrieval.rank - 1, 5)


def test_a_disk_too_small_for_the_checkpoints_is_told_before_anything_is_written(scenes, tmp_path):
    config = load_config("demo", overrides=[*TOY, f"data.root={scenes}"]).config
    derived = assemble(config, "cpu", "float32", None).derived
    check_disk(tmp_path / "runs", derived)
    with pytest.raises(EnvironmentProblem, match=r"GB are free on .*--set checkpoint\.keep=0"):
        check_disk(tmp_path / "runs", dataclasses.replace(derived, checkpoint_bytes=10**15))
    assert not list(tmp_path.iterdir())


def test_memory_that_does_not_suffice_names_a_smaller_batch():
    error = out_of_memory(512, choose_device("cpu", "float32"))
    assert "--set train.batch_size=256 (255 negatives an image, not 511)" in str(error)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))

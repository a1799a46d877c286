import contextlib
import dataclasses
import errno
import math
import os
import platform
import subprocess
import sys

import pytest
import torch

from clipcoco.config.load import load_config
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import (
    choose_as_trained,
    choose_device,
    encoding_in_memory,
    make_deterministic,
    training_in_memory,
)
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.evaluate import retrievals_worth_showing
from clipcoco.engine.loss import Loss, infonce
from clipcoco.engine.model import build
from clipcoco.engine.recall import ranks
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Step, train_step
from clipcoco.engine.train import train
from clipcoco.engine.watch import count_step, log_interval
from clipcoco.errors import ConfigError, EnvironmentProblem, NumericError
from clipcoco.events import Evaluated, Progress, StepDone, StepSkipped, Warned
from clipcoco.runs.plan import check_disk, read_parts
from clipcoco.runs.training import build_training
from conftest import TOY


def training(root, *changes, report=lambda event: None, stop=lambda: None):
    config = load_config("demo", overrides=[*TOY, f"data.root={root}", *changes]).config
    parts = read_parts(config, "cpu", config.train.precision, None)
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    return build_training(parts, model, TrainState(), None, report, stop)


def everything(run):
    """All that a step may change: parameters, buffers, moments."""
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    return [value.clone() for value in (*run.model.state_dict().values(), *moments)]


def test_one_memorised_batch_reaches_a_loss_of_nothing(scenes):
    run = training(scenes, "train.lr=3e-3", "model.text.dropout=0")
    run.model.train()
    batch = next(run.loader.epoch(0))
    losses = [train_step(run, batch, 3e-3).loss for _ in range(40)]
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
    step = train_step(run, next(batches), 1e-3)
    hook.remove()
    assert not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
    assert math.isfinite(step.loss) == (poison == "gradient")
    assert not step.calibrating
    assert all(torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))
    assert math.isfinite(train_step(run, next(batches), 1e-3).grad_norm)
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))


def test_skipped_steps_are_counted_and_ten_in_a_row_end_the_run(scenes):
    events = []
    run = training(scenes, "train.batch_size=4")  # no evaluation within ten steps
    run.model.visual.trunk.conv1.register_forward_hook(lambda m, i, out: out * float("nan"))
    before = weights_sha256(run.model.state_dict())
    words = r"last good: step 0 \(loss nan, .*, images train2017/0.*\.jpg, .* and 2 more\)\. Try a lower train\.lr"
    with pytest.raises(NumericError, match=words):
        train(run, events.append, stop=lambda: None)
    assert [event.step for event in events if isinstance(event, StepSkipped)] == list(range(1, 11))
    assert weights_sha256(run.model.state_dict()) == before


def test_twelve_overflows_are_how_float16_finds_its_scale_and_no_fault(scenes):
    """A real scaler, and a gradient that float16 can hold only below a scale of 2: twelve halvings from 4,096."""
    events = []
    run = training(scenes, "train.batch_size=4", "train.epochs=2")
    run = dataclasses.replace(run, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12))

    def overflows(grad):
        return grad * float("inf") if run.scaler.get_scale() > 1 else grad

    run.model.text.text_projection.register_hook(overflows)
    train(run, events.append, stop=lambda: None)
    assert not [event for event in events if isinstance(event, StepSkipped)]
    assert run.state.calibration_steps == 12
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(13, 25))


def test_a_gradient_that_no_scale_helps_ends_a_float16_run_too(scenes):
    run = training(scenes, "train.batch_size=4", "train.epochs=3")
    run = dataclasses.replace(run, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    run.model.text.text_projection.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NumericError, match="the gradient is not finite at step 12"):
        train(run, lambda event: None, stop=lambda: None)
    assert (run.state.calibration_steps, run.state.skipped_in_a_row) == (2, 10)


def test_a_huge_learning_rate_ends_in_one_line_not_in_nan_weights(scenes):
    run = training(scenes, "train.lr=10", "train.epochs=3", "train.grad_clip=1000000", "train.warmup_steps=0")
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


def test_a_stop_in_the_last_step_of_an_epoch_leaves_the_evaluation_for_later(scenes):
    done, phases = [0], set()

    def watch(event) -> None:
        if isinstance(event, Progress):
            phases.add(event.phase)
            done[0] = event.done if event.phase == "train" else done[0]

    def stop() -> str | None:
        return "a test" if done[0] >= 6 else None

    run = training(scenes, report=watch, stop=stop)
    ended = train(run, watch, stop)
    assert (ended.state, ended.step, run.state.evaluated_epochs, phases) == ("stopped", 6, 0, {"train"})


@pytest.mark.parametrize(("chance", "loss", "told"), [(math.log, math.log(8), 1), (lambda batch: 3.0, 2.58, 0)])
def test_a_loss_that_stays_at_its_own_chance_is_told_once(scenes, chance, loss, told):
    events = []
    run = dataclasses.replace(training(scenes), loss=Loss(infonce, chance))
    for _ in range(400):
        run.state.step += 1
        count_step(run.state, 1, Step(loss, 0.0, 1e-3, False, torch.arange(8)), None, events.append)
        log_interval(run, 1, 1e-3, events.append)
    warnings = [event for event in events if isinstance(event, Warned)]
    assert [event.step for event in warnings] == [300] * told
    assert all("has stayed at or above chance (2.079)" in event.message for event in warnings)


def test_devices_and_precisions_that_are_not_here_are_errors():
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        choose_device("gpu", "auto")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="cuda is not available"):
            choose_device("cuda", "auto")
    with pytest.raises(EnvironmentProblem, match="float16 is not possible on cpu"):
        choose_device("cpu", "float16")
    assert choose_device("cpu", "bfloat16").precision == "bfloat16"
    assert choose_as_trained("cpu", "float16").precision == "float32"
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
    derived = read_parts(config, "cpu", "float32", None).derived
    check_disk(tmp_path / "runs", derived)
    with pytest.raises(EnvironmentProblem, match=r"GB are free on .*--set checkpoint\.keep=0"):
        check_disk(tmp_path / "runs", dataclasses.replace(derived, checkpoint_bytes=10**15))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, max allowed: 9.07 GiB). Tried to allocate"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("unable to mmap 1048576 bytes from file </torch_7_3>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        MemoryError("Unable to allocate 8.00 GiB for an array with shape (1, 2)"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: str(error)[:24],
)
def test_every_word_for_a_lack_of_memory_is_understood(error):
    device = choose_device("cpu", "float32")
    with pytest.raises(EnvironmentProblem) as told, training_in_memory(512, device):
        raise error
    assert str(told.value) == (
        "a training batch of 512 does not fit into the memory of cpu (train.batch_size). "
        "Try --set train.micro_batch_size=256 (the same negatives, more time), or train.batch_size=256 (255 negatives "
        "an image, not 511)"
    )
    words = r"^an evaluation, in batches of 128, does not fit .*another --device"
    both = training_in_memory(2, device), encoding_in_memory("an evaluation", device)
    with pytest.raises(EnvironmentProblem, match=words), both[0], both[1]:
        raise error


def test_what_is_not_a_lack_of_memory_stays_what_it_is_and_no_batch_below_two_is_advised():
    device = choose_device("cpu", "float32")
    for error in (RuntimeError("shapes cannot be multiplied"), OSError(errno.ENOSPC, "full"), ValueError("memory")):
        with pytest.raises(type(error)), training_in_memory(512, device):
            raise error
    for batch in (2, 3):
        with (
            pytest.raises(EnvironmentProblem, match=r"Try a smaller data\.image_size"),
            training_in_memory(batch, device),
        ):
            raise MemoryError


# Once a block did not fit, glibc may look for others elsewhere, where none as large is kept: hence a new process.
HEAP = """
import resource
import torch
from clipcoco.engine.device import choose_device, encoding_in_memory, training_in_memory

def faults():  # pages that the system had to clear, for ten blocks as large as a layer's output
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

device, anew = choose_device("cpu", "float32"), faults()
with training_in_memory(64, device):
    with encoding_in_memory("features", device):
        faults()
    assert faults() < anew / 5, "inside another one, too"
    inside = resident()
assert resident() < inside - 2**25
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have thresholds of their own")
def test_what_a_step_gives_back_is_there_for_the_next_and_in_the_end_the_system_has_it():
    subprocess.run([sys.executable, "-c", HEAP], check=True)

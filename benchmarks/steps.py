"""A training step on the CPU: ours, open_clip's RN50, Hugging Face's towers, and the most that the cores can do.

    python benchmarks/steps.py [--size 224] [--batch 32] [--rounds 3] [--busy N] [--ways WORD ...]

Each way is a process of its own that makes one step when it is asked to, so that they take turns; ratios are medians
over the rounds, of the clock and of processor seconds, which are what counts where others share the cores. --busy
starts as many loops beside them. Needs open_clip_torch and transformers; a way whose package is missing is left out.

Weights are random. Ours is `base` from scratch with all of the backbone trained, as `clipcoco train` runs it: its heap
is kept, its threads wait for microseconds. The peers have the precision that clipcoco chooses here, channels-last and
fused AdamW, which are their best settings; open_clip pads to 77 tokens, Hugging Face's run_clip to 128. Work is counted
by torch's FlopCounterMode.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.config.load import load_config
from clipcoco.data.loader import Batch
from clipcoco.engine.device import DTYPES, choose_device, encoding_in_memory, make_deterministic
from clipcoco.engine.loss import LOSSES
from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Training, start_epoch, train_step

Step = Callable[[], object]
HEAP = "the same, heap not kept"
DEVICE = choose_device("cpu", "auto")
WAYS = ("open_clip RN50", "HF, 128 tokens", "HF, 24 tokens", HEAP, "clipcoco")


def captions(batch: int, length: int) -> Tensor:
    """Of 10 to 20 tokens, as COCO's are, padded to `length`."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 9_000, (batch, length), dtype=torch.int32, generator=generator)
    ends = torch.randint(9, 20, (batch, 1), generator=generator)
    places = torch.arange(length)
    return tokens.masked_fill(places > ends, 0).masked_fill(places == ends, 2).masked_fill(places == 0, 1)


def ours(size: int, batch: int) -> Step:
    config = load_config("base", overrides=["model.vision.weights=none", f"train.batch_size={batch}"]).config
    make_deterministic(0, DEVICE.device)
    model = DEVICE.place(build(config.model, 10_000))
    start_epoch(model, 0, 0)
    run = Training(
        model=model,
        loss=LOSSES["infonce"],
        optimizer=build_optimizer(model, 1e-4, 0.01, 1.0),
        scaler=DEVICE.scaler(),
        device=DEVICE,
        schedule=Schedule(config.train, 0, 1000, 0, 0, 1000),
        state=TrainState(),
        loader=SimpleNamespace(steps_per_epoch=100),  # type: ignore[arg-type]
        features=None,
        evaluate=lambda: None,
        save=lambda best, epoch: None,
    )
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    tokens = captions(batch, 24)
    return lambda: train_step(run, Batch(images, None, tokens, torch.arange(batch), ()), 1e-4)


def theirs(towers: torch.nn.Module, embeddings: Callable[[], tuple[Tensor, Tensor]]) -> Step:
    """A symmetric step in the same precision, channels-last, with fused AdamW."""
    towers.to(memory_format=torch.channels_last).train()
    scale = torch.nn.Parameter(torch.tensor(2.66))
    optimizer = torch.optim.AdamW([*towers.parameters(), scale], lr=1e-4, fused=True)

    def step() -> None:
        with DEVICE.autocast():
            images, texts = (F.normalize(one, dim=1) for one in embeddings())
            logits = scale.exp() * images @ texts.T
            own = torch.arange(len(logits))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def open_clip_rn50(size: int, batch: int) -> Step:
    import open_clip

    model = open_clip.create_model("RN50", force_image_size=size)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    tokens = captions(batch, 77).long()
    return theirs(model, lambda: (model.encode_image(images), model.encode_text(tokens)))


def hugging_face(size: int, batch: int, length: int) -> Step:
    """The parts of a VisionTextDualEncoder of ResNet-50 and BERT of 6 x 512, whose own forward refuses a ResNet."""
    from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

    shape = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
    text = BertModel(BertConfig(vocab_size=10_000, **shape))
    vision, heads = ResNetModel(ResNetConfig()), [torch.nn.Linear(wide, 256, bias=False) for wide in (2048, 512)]
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    tokens = captions(batch, length).long()

    def embeddings() -> tuple[Tensor, Tensor]:
        seen = vision(images).pooler_output.flatten(1)
        read = text(tokens, attention_mask=(tokens != 0).long()).pooler_output
        return heads[0](seen), heads[1](read)

    return theirs(torch.nn.ModuleList([text, vision, *heads]), embeddings)


def step_of(way: str, size: int, batch: int) -> Step:
    if way.startswith("open_clip"):
        return open_clip_rn50(size, batch)
    if way.startswith("HF"):
        return hugging_face(size, batch, int(way.split()[1]))
    return ours(size, batch)


def serve(way: str, size: int, batch: int) -> None:
    """A step and its cost for each line of stdin; first the work of one, in GFLOP an image."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    step = step_of(way, size, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    step()
    print(json.dumps(counter.get_total_flops() / batch / 1e9), flush=True)
    kept = encoding_in_memory("a step", DEVICE)
    if way == "clipcoco":
        kept.__enter__()
        step()
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - began, time.process_time() - used]), flush=True)


def peak() -> tuple[float, float]:
    """GFLOP/s of that precision: a product of 2,048 cubed, and ResNet's 3x3 convolution at 28 px; the best of each."""
    dtype = DTYPES[DEVICE.precision]
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    x = torch.randn(32, 128, 28, 28, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    found = []
    with torch.inference_mode():
        for work, flops in ((lambda: a @ b, 2 * 2048**3), (lambda: F.conv2d(x, w, padding=1), 18 * 32 * 784 * 128**2)):
            seconds = []
            for _ in range(20):
                began = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - began)
            found.append(flops / min(seconds) / 1e9)
    return found[0], found[1]


def measured(ways: list[str], given: argparse.Namespace) -> dict[str, tuple[float, list[list[float]]]]:
    """By way: its work, and the seconds of each round by the clock and of the processors."""
    environment = {"GOMP_SPINCOUNT": "10000"} | os.environ
    running: dict[str, tuple[subprocess.Popen[str], float]] = {}
    for way in ways:
        command = [sys.executable, __file__, "--serve", way, "--size", str(given.size), "--batch", str(given.batch)]
        # Only ours knows how to wait.
        mine = environment if "open" not in way and "HF" not in way else dict(os.environ)
        one = subprocess.Popen(command, env=mine, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert one.stdout is not None
        running[way] = one, json.loads(one.stdout.readline())
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
    try:
        for _ in range(given.rounds):
            for way, (one, _) in running.items():
                assert one.stdin is not None
                assert one.stdout is not None
                one.stdin.write("\n")
                one.stdin.flush()
                seconds[way].append(json.loads(one.stdout.readline()))
    finally:
        for process in [*busy, *(one for one, _ in running.values())]:
            process.kill()
    return {way: (work, seconds[way]) for way, (_, work) in running.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=[""], help="those in whose names one of these words is")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.size, given.batch)
        return
    needs = {"open_clip": "open_clip", "HF": "transformers"}
    there = [way for way in WAYS if any(word in way for word in given.ways)]
    for name, package in needs.items():
        if importlib.util.find_spec(package) is None:
            there = [way for way in there if not way.startswith(name)]
            print(f"{package} is not installed")
    product, convolution = peak()
    load = f"load {os.getloadavg()[0]:.1f}, {given.busy} busy loops"
    print(f"torch {torch.__version__}, {DEVICE.description}, {given.size} px, batch {given.batch}, {load}")
    print(f"{DEVICE.precision} at its best: product {product:.0f}, 3x3 convolution {convolution:.0f} GFLOP/s\n")
    found = measured(there, given)
    reference = found[there[0]][1]
    print("| way | GFLOP an image | images/s | x the first | CPU s an image | x the first | share of the peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for way, (work, rows) in found.items():
        clock, used = (statistics.median(row[kind] for row in rows) for kind in (0, 1))
        gains = [statistics.median(a[kind] / b[kind] for a, b in zip(reference, rows, strict=True)) for kind in (0, 1)]
        share = work * given.batch / clock / max(product, convolution)
        cells = f"{given.batch / clock:.1f} | {gains[0]:.2f} | {used / given.batch:.4f} | {gains[1]:.2f} | {share:.2f}"
        print(f"| {way} | {work:.1f} | {cells} |")


if __name__ == "__main__":
    main()

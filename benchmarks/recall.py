"""Recall of 5,000 images x 25,014 captions x 256: ours, the float32 product alone, CLIP_benchmark's way.

    python benchmarks/recall.py [--threads N] [--rounds N]

Times come from rounds in which the methods take turns in one process; memory from a fresh process each, as
the growth of its peak over what the embeddings take. The peer is written from its definition: a dense matrix
of positives, and topk in batches of 64 queries for each K and direction. Where other processes share the cores,
set OMP_WAIT_POLICY=passive: threads that wait actively for a core taken by others make small steps ten times
as slow, and the figures say nothing.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from clipcoco.engine.recall import CUTOFFS, ranks, recall_table

IMAGES, DIM, BATCH = 5000, 256, 64
ROOM: list[Tensor] = []


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """val2017's shape: 12 images have six captions, one has seven, the rest five."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.full((IMAGES,), 5)
    captions[:12], captions[12] = 6, 7
    owners = torch.repeat_interleave(torch.arange(IMAGES), captions)
    image = torch.nn.functional.normalize(torch.randn(IMAGES, DIM, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(len(owners), DIM, generator=generator), dim=1)
    return image, torch.nn.functional.normalize(image[owners] + 4 * noise, dim=1), owners


def product_alone(image: Tensor, text: Tensor, owners: Tensor) -> Tensor:
    """Into the same room each time: fresh memory for 500 MB of scores costs about half as much again."""
    if not ROOM:
        ROOM.append(torch.empty(len(image), len(text)))
    return torch.mm(image, text.T, out=ROOM[0])


def clip_benchmark(image: Tensor, text: Tensor, owners: Tensor) -> list[tuple[float, float]]:
    """(text to image, image to text) recall in percent for each K."""
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owners] = True
    return [(hit_share(scores, positive, k), hit_share(scores.T, positive.T, k)) for k in CUTOFFS]


def hit_share(scores: Tensor, positive: Tensor, k: int) -> float:
    """Percent of queries whose recall over their positives is above zero.

    As the peer does it: every one of the k places becomes a dense row over the gallery, times the positives.
    """
    recalls = []
    for start in range(0, len(scores), BATCH):
        wanted = positive[start : start + BATCH]
        places = torch.nn.functional.one_hot(scores[start : start + BATCH].topk(k, dim=1).indices, scores.shape[1])
        recalls.append((places * wanted[:, None]).sum((1, 2)) / wanted.sum(1))
    return 100 * float((torch.cat(recalls) > 0).double().mean())


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "product alone": product_alone,
    "clipcoco ranks": ranks,
    "clipcoco table": recall_table,
    "CLIP_benchmark's way": clip_benchmark,
}


def extra_memory(name: str) -> float:
    """MiB by which the method raises the peak of this fresh process."""
    inputs = embeddings()
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # wakes the library's own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    METHODS[name](*inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(extra_memory, (name,)) for name in METHODS}
    torch.set_num_threads(arguments.threads)
    inputs = embeddings()
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    product_alone(*inputs)
    for _ in range(arguments.rounds):
        for name, method in METHODS.items():
            start = time.perf_counter()
            method(*inputs)
            seconds[name].append(time.perf_counter() - start)
    table, peer = recall_table(*inputs), clip_benchmark(*inputs)
    ours = [(table.t2i[f"r{k}"], table.i2t[f"r{k}"]) for k in CUTOFFS]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, load {load}")
    gap = max(abs(a - b) for pair in zip(ours, peer, strict=True) for a, b in zip(*pair, strict=True))
    print(f"R@1 t2i, i2t: {ours[0]}; the peer differs by {gap:.1g} at most; ties {table.ties}")
    print(f"{'':22}{'seconds, by round':32}{'x product':>10}{'peer / it':>10}{'best':>8}{'MiB':>8}")
    alone, slow = seconds["product alone"], seconds["CLIP_benchmark's way"]
    for name, taken in seconds.items():
        ratio = sorted(a / b for a, b in zip(taken, alone, strict=True))[len(taken) // 2]
        gain = sorted(a / b for a, b in zip(slow, taken, strict=True))[len(taken) // 2]
        rounds = " ".join(f"{value:7.3f}" for value in taken)
        best = min(taken) / min(alone)
        print(f"{name:22}{rounds:32}{ratio:10.2f}{gain:10.1f}{best:8.2f}{memory[name]:8.0f}")


if __name__ == "__main__":
    sys.exit(main())

"""What several processes gain, measured here, and what the same arithmetic says of 8 and of 64 GPUs.

    python benchmarks/scaling.py [ROUNDS]       # gloo processes on this machine's cores, one thread each

A step is its own computing, then talk: embeddings gathered, their gradient and that of all weights added. Each is
measured in 1, 2 and 4 processes; the step of 2 and of 4 is then told from the parts, beside the measured one. `ddp`
is torch's DistributedDataParallel around the same model, which adds gradients while it computes them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from pieces import prepared

from clipcoco.engine.distributed import join
from clipcoco.engine.step import gradient

BATCH, SIZE = 64, 96
H100 = 1_984  # images/s of `full`'s step on one, benchmarks/RESULTS.md
WEIGHTS = 42e6  # numbers of `full` whose gradients are added
LINKS = {"8 GPUs, one machine (NVLink)": (8, 200e9), "64 GPUs, 8 machines (400 Gbit/s each)": (64, 40e9)}  # bytes/s


def measure(rounds: int) -> dict[str, float]:
    """Median seconds of a step and of its parts, on this process's share."""
    group = join()
    share = BATCH // group.size
    training, batch = prepared(SIZE, share, share)
    parameters = list(training.model.parameters())
    times: dict[str, list[float]] = {"step": [], "compute": [], "gather": [], "add": [], "ddp": []}

    def clock(name: str, work: Any) -> None:
        if group.size > 1:
            dist.barrier()
        began = time.monotonic()
        work()
        times[name].append(time.monotonic() - began)
        training.optimizer.zero_grad(set_to_none=False)

    alone = prepared(SIZE, share, share)[0]
    together = object.__setattr__  # a frozen Training takes the group here
    together(training, "group", group)
    embeddings = torch.zeros(share, 256)
    wrapped = torch.nn.parallel.DistributedDataParallel(alone.model) if group.size > 1 else alone.model

    def ddp() -> None:
        images, texts, temperature = wrapped(batch)
        training.loss.of(images, texts, temperature).backward()

    def talk() -> None:
        for _ in range(2):
            group.added(group.gathered(embeddings))

    for _ in range(rounds + 1):  # the first warms up
        clock("step", lambda: gradient(training, batch))
        clock("compute", lambda: gradient(alone, batch))
        clock("gather", talk)
        clock("add", lambda: group.add_gradients(parameters))
        clock("ddp", ddp)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def in_processes(size: int, rounds: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    if size > 1:
        environment["WORLD_SIZE"] = str(size)
    command = [sys.executable, __file__, "--process", str(rounds)]
    going = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    found = [json.loads(process.communicate()[0]) for process in going]
    return {name: max(one[name] for one in found) for name in found[0]}


def main() -> None:
    if sys.argv[1:2] == ["--process"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    found = {size: in_processes(size, rounds) for size in (1, 2, 4)}
    print(f"Batch {BATCH}, ResNet-50 at {SIZE} px, {os.cpu_count()} cores, torch {torch.__version__}, gloo\n")
    print(
        "| processes | step, s | computing | gathering | adding gradients | told from the parts | steps/s x 1 | ddp |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size, one in found.items():
        told = one["compute"] + one["gather"] + one["add"]
        seconds = " | ".join(f"{one[name]:.3f}" for name in ("step", "compute", "gather", "add"))
        print(f"| {size} | {seconds} | {told:.3f} | {found[1]['step'] / one['step']:.2f} | {one['ddp']:.3f} |")
    print(
        "\n| where | batch | computing, ms | gathering | adding | step | GB of logits a GPU | input, images/s a GPU |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for where, (gpus, bandwidth) in LINKS.items():
        for batch in (128 * gpus, 32_768):
            share = batch / gpus
            compute = 1e3 * share / H100
            gather = 1e3 * 2 * 2 * batch * 256 * 4 / bandwidth  # two matrices, there and back
            add = 1e3 * 2 * WEIGHTS * 4 / bandwidth  # a ring passes each number twice
            step = compute + gather + add
            logits = 2 * 3 * share * batch * 4 / 1e9  # both directions: scores, softmax, gradient
            print(
                f"| {where} | {batch:,} | {compute:.0f} | {gather:.1f} | {add:.1f} | {step:.0f} "
                f"| {logits:.2f} | {1e3 * share / step:,.0f} |"
            )


if __name__ == "__main__":
    main()

"""A checkpoint of `full` against a bare torch.save of the same content, in turn: weights and moments of 500 MB.

    python benchmarks/saving.py [--rounds N] [--folder DIR]

Ours is written beside, synced, read back against its sums, and takes its name.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clipcoco.config.load import load_config
from clipcoco.engine import checkpoint
from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    model = build(load_config("full").config.model, 10_000)
    optimizer = build_optimizer(model, 1e-3, 0.1, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": {"step": 1}}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        ways: dict[str, Callable[[], object]] = {
            "torch.save": lambda: torch.save(content, Path(folder, "bare.pt")),
            "clipcoco's": lambda: checkpoint.save(Path(folder), content, best=True, epoch=None, keep=0),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:  # the first warms up
                    taken[name].append(time.perf_counter() - start)
        size = Path(folder, "last.pt").stat().st_size
    print(f"torch {torch.__version__}, {size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
    print(f"{'':20}{'median s':>10}{'worst s':>10}{'x torch.save':>14}")
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(times, taken["torch.save"], strict=True))
        print(f"{name:20}{statistics.median(times):10.3f}{max(times):10.3f}{ratio:14.2f}")


if __name__ == "__main__":
    main()

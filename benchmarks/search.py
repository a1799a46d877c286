"""`search` over 100,000 pictures: the time from the query's vector to the hits, and what the product alone takes.

    python benchmarks/search.py [--images N] [--threads N] [--rounds N]

The rows lie as float16 in an index file, as `clipcoco search` makes it of pictures that cost nothing to encode: what
is written for it, to what is left, is told, and what opening it takes once, before the first question. In each round
take turns: our search; the float32 product alone, with the rows as float32 in memory already, which is the
limit of any exact search; converting all rows first, which is the plain way from float16. Where other processes
share the cores, set OMP_WAIT_POLICY=passive.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from clipcoco.search.index import Encoding, Index, Item, refresh
from clipcoco.search.query import nearest

DIM, HITS = 256, 5


def write_index(file: Path, images: int) -> tuple[list[Item], float]:
    """An index of random unit vectors; gives its items, and the bytes written to those that are left."""
    generator = torch.Generator().manual_seed(0)

    def encode(batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(len(batch), DIM, generator=generator), dim=1)

    names = (f"2024/{row // 1000:03}/IMG_{row:06}.jpg" for row in range(images))
    items = [Item(name, f"{3_000_000 + row} {10**18 + row}") for row, name in enumerate(names)]
    encoding, before = Encoding(lambda name: name.encode(), lambda data: torch.empty(0), encode, 2), bytes_written()
    refresh(Index(file, "benchmark", DIM), items, encoding, lambda event: None, print)
    return items, (bytes_written() - before) / sum(path.stat().st_size for path in file.parent.iterdir())


def bytes_written() -> int:
    """By this process, so far; 0 where the system does not count them."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().partition("wchar: ")[2].split()[0]) if counts.exists() else 0


def convert_first(rows: Tensor, query: Tensor) -> Tensor:
    return (rows.float() @ query).topk(HITS).indices


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "index.f16")
        items, written = write_index(file, arguments.images)
        start = time.perf_counter()
        index = Index(file, "benchmark", DIM)
        known = index.is_of(items)
        names, array = index.gallery()
        loading = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    assert known
    assert len(names) == arguments.images
    query = torch.nn.functional.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(1)), dim=0)
    rows = torch.from_numpy(array)
    whole, room = rows.float(), torch.empty(len(rows))
    ways: dict[str, Callable[[], object]] = {
        "float32 product alone": lambda: torch.mv(whole, query, out=room),
        "clipcoco": lambda: nearest(rows, query, HITS),
        "all to float32 first": lambda: convert_first(rows, query),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(arguments.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    assert nearest(rows, query, HITS)[0] == convert_first(rows, query).tolist()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, load {load}")
    print(
        f"{arguments.images:,} x {DIM}; index of {size / 1e6:.0f} MB, {written:.2f}x written for it, "
        f"open in {loading:.2f} s"
    )
    print(f"{'':24}{'median ms':>10}{'worst ms':>10}{'x product':>11}{'best x':>8}")
    alone = seconds["float32 product alone"]
    for name, taken in seconds.items():
        ratio = sorted(a / b for a, b in zip(taken, alone, strict=True))[len(taken) // 2]
        median = sorted(taken)[len(taken) // 2]
        best = min(taken) / min(alone)
        print(f"{name:24}{1000 * median:10.1f}{1000 * max(taken):10.1f}{ratio:11.2f}{best:8.2f}")


if __name__ == "__main__":
    sys.exit(main())

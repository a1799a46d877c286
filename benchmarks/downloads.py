"""Single images over a network with latency: several connections against one request after another.

    python benchmarks/downloads.py [--images N] [--latency MS] [--rounds N]

A server in a process of its own answers each request after the latency. The sequential way is one httpx2 client
that keeps its connection and does nothing but read; ours decodes every image as well, to check it.
"""

import argparse
import io
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from clipcoco.prepare.single_images import RemoteImage, fetch_images

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from http_server import Server

SIDE = 170  # of noise, 20 kB as a JPEG


def content(count: int) -> dict[str, bytes]:
    noise = np.random.default_rng(0)
    files = {}
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "JPEG", quality=80)
        files[f"/train2017/{index:012d}.jpg"] = file.getvalue()
    return files


def serve(files: dict[str, bytes], latency: float, pipe: Connection) -> None:
    with Server(files, latency) as server:
        pipe.send(server.url)
        while pipe.recv():
            pipe.send((len(server.requests), server.most_in_flight))
            server.requests.clear()
            server.most_in_flight = 0


def one_by_one(images: Sequence[RemoteImage]) -> int:
    with httpx2.Client() as client:
        return sum(len(client.get(image.urls[0]).content) for image in images)


def ours(images: Sequence[RemoteImage], connections: int) -> int:
    sizes: list[int] = []
    fetch_images(images, lambda image, data: sizes.append(len(data)), lambda progress: None, connections=connections)
    return sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--latency", type=float, default=20, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    files = content(asked.images)
    total = sum(map(len, files.values()))
    pipe, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(files, asked.latency / 1000, theirs))
    server.start()
    url = pipe.recv()
    images = [RemoteImage(path[1:], (url + path,), SIDE, SIDE) for path in files]
    ways: dict[str, Callable[[], int]] = {"one by one": lambda: one_by_one(images)}
    for connections in (4, 8, 16, 32):
        ways[f"{connections} connections"] = lambda n=connections: ours(images, n)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    counts = {}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            assert way() == total
            seconds[name].append(time.perf_counter() - start)
            pipe.send(True)
            counts[name] = pipe.recv()
    pipe.send(False)
    server.join()
    print(
        f"{asked.images} images of {total / asked.images / 1000:.1f} kB, {asked.latency:g} ms latency, best of "
        f"{asked.rounds}; {platform.machine()}, {os.cpu_count()} cores, httpx2 {httpx2.__version__}"
    )
    print(f"{'':16}{'requests':>9}{'at once':>9}{'seconds':>9}{'images/s':>10}{'ratio':>7}")
    base = min(seconds["one by one"])
    for name, times in seconds.items():
        requests, at_once = counts[name]
        best = min(times)
        print(f"{name:16}{requests:9}{at_once:9}{best:9.2f}{asked.images / best:10.0f}{base / best:7.1f}")


if __name__ == "__main__":
    main()

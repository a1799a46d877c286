"""Making smaller copies, and feeding a training from them: images a second, ours and others' taking turns.

    python benchmarks/preparing.py FOLDER [--rounds N] [--images N]

FOLDER holds photographs as published (COCO's have about 640x480 pixels), in any sub folders; those whose shorter
side is no larger than a copy's are passed over. They are taken again and again, as links, until there are N.
Copies: make_copies on all cores against Pillow, one by one in one process, at the same settings, both from file
to file. Input: decoding, random crop and resize to 224 px, from originals and from copies, against open_clip's
training transform where that is installed. Ratios are medians over the rounds, with the spread. Where other
processes share the cores, look at the processor time of this process (not of its workers) instead.
"""

import argparse
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipcoco.config.load import load_config
from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.images import read, training_view
from clipcoco.data.loader import TrainingLoader
from clipcoco.data.manifest import copies_folder
from clipcoco.prepare.resize import QUALITY, SUBSAMPLING, make_copies

SIZE, VIEW, SCALE, BATCH = 256, 224, (0.9, 1.0), 32  # open_clip's crop


def photographs(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as picture:
            if min(picture.size) > SIZE:
                found.append(path.resolve())
    return found


def one_by_one(root: Path, files: list[str], target: Path) -> None:
    for file in files:
        picture = Image.open(root / file).convert("RGB")
        scale = SIZE / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture.resize(size, Image.Resampling.BICUBIC).save(target / file, quality=QUALITY, subsampling=SUBSAMPLING)


def ours(root: Path, files: list[str], scale: tuple[float, float] = SCALE, flip: bool = False) -> None:
    for number, file in enumerate(files):
        training_view(read(root / file), VIEW, scale, flip, random.Random(number))


class Theirs(Dataset[Tensor]):
    """Images through open_clip's transform."""

    def __init__(self, root: Path, files: list[str]) -> None:
        from open_clip.transform import image_transform

        self.root, self.files = root, files
        self.transform = image_transform(VIEW, is_train=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        view: Tensor = self.transform(Image.open(self.root / self.files[index]))
        return view


def our_loader(root: Path, files: list[str], workers: int) -> Callable[[], int]:
    count = len(files)
    table = CaptionTable(
        folder=root,
        image_ids=np.arange(count),
        files=files,
        sizes=np.zeros((count, 2), np.int64),
        caption_ids=np.arange(count),
        captions=["a caption"] * count,
        offsets=np.arange(count + 1),
        order="ids",
        notes=(),
    )
    config = DataConfig.model_construct(image_size=VIEW, crop_scale=list(SCALE), flip=False)
    loader = TrainingLoader(config, table, np.ones((count, 32), np.int32), BATCH, 0, workers, False)
    return lambda: sum(len(batch.images) for batch in loader.epoch(0))


def their_loader(root: Path, files: list[str], workers: int) -> Callable[[], int]:
    loader = DataLoader(
        Theirs(root, files),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    return lambda: sum(len(batch) for batch in loader)


def compare(ways: dict[str, tuple[Callable[[], object], int]], before: Callable[[], None], rounds: int) -> None:
    """Print images a second of each way, and how many times the first one's that is."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy = dict.fromkeys(ways, 0.0)
    for round_ in range(rounds + 1):
        for name, (way, _) in ways.items():
            before()
            start, start_busy = time.perf_counter(), time.process_time()
            way()
            if round_:  # the first one starts workers and warms caches
                seconds[name].append(time.perf_counter() - start)
                busy[name] += time.process_time() - start_busy
    first, first_count = next(iter(seconds.values())), next(iter(ways.values()))[1]
    for name, taken in seconds.items():
        count = ways[name][1]
        ratios = [a / first_count / (b / count) for a, b in zip(first, taken, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rate = count / statistics.median(taken)
        work = f"{1000 * busy[name] / rounds / count:6.2f} ms of processor"
        print(f"  {name:46}{rate:6.0f} images/s  x {statistics.median(ratios):5.2f} ({spread}){work}", flush=True)


def copying(root: Path, files: list[str], rounds: int) -> None:
    cores = os.cpu_count() or 1
    target, alone = copies_folder(root, SIZE), root / "one by one"

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(alone, ignore_errors=True)
        (alone / "train2017").mkdir(parents=True)

    def make(threads: int) -> Callable[[], object]:
        return lambda: make_copies(root, files, SIZE, lambda progress: None, threads)

    few = files[: len(files) // 2]
    print(f"Copies of {SIZE} px, quality {QUALITY}, {SUBSAMPLING}, from file to file:")
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "Pillow, one by one": (lambda: one_by_one(root, few, alone), len(few)),
        "make_copies, 1 thread": (make(1), len(files)),
        f"make_copies, {cores} threads": (make(cores), len(files)),
    }
    compare(ways, clear, rounds)


def feeding(root: Path, files: list[str], rounds: int) -> None:
    copies, workers = copies_folder(root, SIZE), os.cpu_count() or 1
    few = files[: max(BATCH, len(files) // 3)]
    some = few[: len(few) // BATCH * BATCH]
    whole = files[: len(files) // BATCH * BATCH]
    alone: dict[str, tuple[Callable[[], object], int]] = {}
    loaders: dict[str, tuple[Callable[[], object], int]] = {}
    try:
        theirs, their_copies = Theirs(root, few), Theirs(copies, few)
        alone["open_clip's transform, originals"] = (lambda: [theirs[i] for i in range(len(few))], len(few))
        alone["open_clip's transform, copies"] = (lambda: [their_copies[i] for i in range(len(few))], len(few))
        loaders["DataLoader, open_clip's transform, originals"] = (their_loader(root, some, workers), len(some))
        loaders["DataLoader, open_clip's transform, copies"] = (their_loader(copies, some, workers), len(some))
    except ImportError:
        print("open_clip is not installed")
    alone["clipcoco, originals"] = (lambda: ours(root, few), len(few))
    alone["clipcoco, copies"] = (lambda: ours(copies, files), len(files))
    shipped = load_config("small").config.data
    alone["clipcoco, copies, crop and flip as shipped"] = (
        lambda: ours(copies, files, shipped.crop_scale, shipped.flip),
        len(files),
    )
    loaders["TrainingLoader, originals"] = (our_loader(root, some, workers), len(some))
    loaders["TrainingLoader, copies"] = (our_loader(copies, whole, workers), len(whole))
    print(f"Decode, crop, resize to {VIEW} px, one process, one thread:")
    compare(alone, lambda: None, rounds)
    print(f"The same in {workers} workers, batches of {BATCH}:")
    compare(loaders, lambda: None, rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=960)
    arguments = parser.parse_args()
    found = photographs(arguments.folder)
    if not found:
        parser.error(f"no photographs of more than {SIZE} pixels in {arguments.folder}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "train2017").mkdir()
        files = [f"train2017/{number:012d}.jpg" for number in range(arguments.images)]
        for number, file in enumerate(files):
            (root / file).symlink_to(found[number % len(found)])
        mean = statistics.mean(path.stat().st_size for path in found) / 1000
        print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{len(found)} photographs of {mean:.0f} kB on average, as {len(files)}")
        copying(root, files, arguments.rounds)
        made = make_copies(root, files, SIZE, lambda progress: None)
        if made.made:
            print(f"A copy has {made.bytes_after / made.made / 1000:.1f} kB")
        feeding(root, files, arguments.rounds)
        print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.exit(main())

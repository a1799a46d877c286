"""How cost grows with captions, galleries and batches: processor seconds of ours and of a peer, in turn.

    python benchmarks/growth.py CAPTIONS [--most 1.0] [--size 64]

CAPTIONS is a file of COCO such as captions_val2017.json, whose captions are taken again and again until there are 1, 10
and 100 % as many as train2017 has, with new ids; --most stops before. Each row has what a unit costs: flat is linear.
Peers: pycocotools' COCO() for reading; for recall the float32 product alone, which no exact way can go below.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pycocotools.coco import COCO
from steps import ours
from torch import Tensor

from clipcoco.data.captions import read_captions
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine.recall import ranks

IMAGES = 118_287  # of train2017


def cost(work: Callable[..., object], *given: object, times: int = 1) -> float:
    """Processor seconds of `work(*given)`, the least of `times`."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work(*given)
        found.append(time.process_time() - began)
    return min(found)


def repeated(source: dict, images: int, file: Path) -> int:
    """An annotation file of so many images; gives the number of its captions."""
    by_image: dict[int, list[str]] = {}
    for one in source["annotations"]:
        by_image.setdefault(one["image_id"], []).append(one["caption"])
    kept, many = list(by_image.values()), 0
    content: dict[str, list[dict]] = {"images": [], "annotations": []}
    for number in range(1, images + 1):
        content["images"].append({"id": number, "file_name": f"{number:012}.jpg", "width": 640, "height": 480})
        for caption in kept[number % len(kept)]:
            many += 1
            content["annotations"].append({"id": many, "image_id": number, "caption": caption})
    file.write_text(json.dumps(content))
    return many


def reading(source: dict, shares: list[float]) -> None:
    print("| captions | read, us each | COCO(), us each | COCO() / ours | tokens, us each |")
    print("| --- | --- | --- | --- | --- |")
    for share in shares:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "annotations").mkdir()
            (root / "train2017").mkdir()
            file = root / "annotations/captions_train2017.json"
            many = repeated(source, round(IMAGES * share), file)
            seconds = cost(read_captions, root, "train2017")
            with contextlib.redirect_stdout(io.StringIO()):
                peer = cost(COCO, file)
            captions = read_captions(root, "train2017").captions
        tokenizer = Tokenizer.train(captions[:25_000], 10_000)
        encoding = cost(tokenizer.encode, captions, 32)
        each = (f"{1e6 * one / many:.2f}" for one in (seconds, peer))
        print(f"| {many:,} | {' | '.join(each)} | {peer / seconds:.2f} | {1e6 * encoding / many:.2f} |", flush=True)


def product(images: Tensor, texts: Tensor) -> None:
    for part in images.split(1_000):
        part @ texts.T


def searching(galleries: list[int]) -> None:
    print("\n| images x captions | ranks, s | the product alone, s | ranks / product |\n| --- | --- | --- | --- |")
    generator = torch.Generator().manual_seed(0)
    for size in galleries:
        images = torch.nn.functional.normalize(torch.randn(size, 256, generator=generator), dim=1)
        texts = images.repeat_interleave(5, 0) + torch.randn(5 * size, 256, generator=generator) / 4
        texts, owners = torch.nn.functional.normalize(texts, dim=1), torch.arange(size).repeat_interleave(5)
        seconds = cost(ranks, images, texts, owners, times=2)
        alone = cost(product, images, texts, times=2)
        print(f"| {size:,} x {5 * size:,} | {seconds:.2f} | {alone:.2f} | {seconds / alone:.2f} |", flush=True)


def stepping(batches: list[int], size: int) -> None:
    print(f"\n| batch, {size} px | CPU s a step | ms an image |\n| --- | --- | --- |")
    for batch in batches:
        step = ours(size, batch)
        step()
        seconds = cost(step, times=3)
        print(f"| {batch} | {seconds:.2f} | {1000 * seconds / batch:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--most", type=float, default=1.0, help="of train2017, and of galleries of 25,000")
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    reading(json.loads(given.captions.read_text()), [one for one in (0.01, 0.1, 1.0) if one <= given.most])
    searching([one for one in (1_000, 5_000, 10_000, 25_000) if one <= 25_000 * given.most])
    stepping([16, 32, 64, 128, 256], given.size)


if __name__ == "__main__":
    main()

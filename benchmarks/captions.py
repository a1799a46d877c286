"""Opening train2017's captions again, with their tokens, against pycocotools, in one process and in turn.

    python benchmarks/captions.py [captions_val2017.json] [--rounds N]

The file is made as large as train2017's: val2017's captions 24 times, with ids of their own, for 118,287 images;
without it a tenth of them, those of 500 drawn scenes 24 times. What is kept of them, of the tokenizer and of the tokens
is made first, which is told, as is what open_clip's tokenizer takes for the same captions where it is installed. Where
other processes share the cores, compare ratios alone.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pycocotools.coco import COCO

from clipcoco.data.annotations import annotation_file
from clipcoco.data.captions import read_captions
from clipcoco.data.kept import encode_captions, learn_tokenizer, open_captions
from clipcoco.prepare.scenes import draw_scenes

IMAGES, COPIES, SPLIT = 118_287, 24, "train2017"
VOCABULARY, CONTEXT = 10_000, 32


def enlarge(source: Path, target: Path) -> None:
    """Each image and caption COPIES times, until there are IMAGES."""
    whole = json.loads(source.read_text())
    images = [
        {**row, "id": row["id"] + copy * 10**6, "file_name": f"{row['id'] + copy * 10**6:012}.jpg"}
        for copy in range(COPIES)
        for row in whole["images"]
    ][:IMAGES]
    known = {row["id"] for row in images}
    captions = [
        {**row, "id": row["id"] + copy * 10**7, "image_id": row["image_id"] + copy * 10**6}
        for copy in range(COPIES)
        for row in whole["annotations"]
        if row["image_id"] + copy * 10**6 in known
    ]
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps({**whole, "images": images, "annotations": captions}))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - start


def open_clips(texts: list[str]) -> float | None:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError:
        return None
    tokenizer = SimpleTokenizer()
    return seconds(lambda: tokenizer(texts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("captions", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, drawn = Path(folder, "large"), Path(folder, "drawn")
        if given.captions is None:
            draw_scenes(drawn, train=1, val=500, size=32)
        enlarge(given.captions or annotation_file(drawn, "val2017"), annotation_file(root, SPLIT))
        time.sleep(2.1)  # what has changed just now is read again each time
        reading = seconds(lambda: read_captions(root, SPLIT))
        table = open_captions(root, SPLIT)
        start = time.perf_counter()
        tokenizer = learn_tokenizer(root, table.captions, VOCABULARY)
        learning = time.perf_counter() - start
        encoding = seconds(lambda: encode_captions(root, tokenizer, table.captions, CONTEXT))
        peer = open_clips(list(table.captions))
        ways: dict[str, Callable[[], object]] = {
            "pycocotools COCO()": lambda: COCO(annotation_file(root, SPLIT)),
            "captions": lambda: open_captions(root, SPLIT),
            "captions and tokens": lambda: encode_captions(
                root, tokenizer, open_captions(root, SPLIT).captions, CONTEXT
            ),
            "these and the tokenizer": lambda: encode_captions(
                root,
                learn_tokenizer(root, (again := open_captions(root, SPLIT)).captions, VOCABULARY),
                again.captions,
                CONTEXT,
            ),
        }
        taken = {name: [] for name in ways}
        for turn in range(given.rounds + 1):
            for name, way in ways.items():
                took = seconds(way)
                if turn:  # the first warms up
                    taken[name].append(took)
    print(f"{len(table.files):,} images, {len(table.captions):,} captions, load {os.getloadavg()[0]:.1f}")
    print(f"once: reading {reading:.2f} s, learning the tokenizer {learning:.2f} s, encoding {encoding:.2f} s", end="")
    print(f"; open_clip's tokenizer {peer:.2f} s" if peer else "")
    print(f"{'':26}{'median ms':>10}{'worst ms':>10}{'COCO() / it':>13}")
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(taken["pycocotools COCO()"], times, strict=True))
        print(f"{name:26}{1000 * statistics.median(times):10.1f}{1000 * max(times):10.1f}{ratio:13.0f}")


if __name__ == "__main__":
    main()

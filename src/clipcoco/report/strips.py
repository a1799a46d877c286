"""Retrievals as pictures for TensorBoard: a caption's nearest images side by side, the right one framed."""

import base64
import io
from contextlib import closing, suppress

from PIL import Image

from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import Query, Record, read_record
from clipcoco.runs.tensorboard import TensorBoard

CELL = 168  # pixels, a thumbnail and its frame
RIGHT, OTHER = (46, 125, 50), (238, 238, 238)


def show_in_tensorboard(run: RunDir) -> None:
    """The report's retrievals, a second time: a full disk costs nothing that needs a word."""
    record, _ = read_record(run)
    if record is not None:
        with suppress(OSError), closing(TensorBoard(run.tensorboard, None)) as tensorboard:
            tensorboard.pictures(record.result.step, strips(record))


def strips(record: Record) -> dict[str, tuple[str, Image.Image]]:
    """The captions and the images of the report, by tag: a description, which holds the words, and what it found."""
    found = {}
    for number, text in enumerate(record.retrievals.texts, start=1):
        said = f"{text.caption} Its image is at rank {text.rank:,}; {_chosen(text)}."
        strip = _strip(record, [(hit.file, hit.right) for hit in text.hits])
        found[f"retrievals/text_to_image/{number:02}"] = said, strip
    for number, image in enumerate(record.retrievals.images, start=1):
        lines = "; ".join(f"{hit.caption}{' (right)' if hit.right else ''}" for hit in image.hits)
        said = f"Nearest captions: {lines} The best of its own is at rank {image.rank:,}; {_chosen(image)}."
        found[f"retrievals/image_to_text/{number:02}"] = said, _strip(record, [(image.file, False)])
    return found


def _chosen(query: Query) -> str:
    return "drawn by the seed" if query.drawn else "one of the worst"


def _strip(record: Record, cells: list[tuple[str, bool]]) -> Image.Image:
    strip = Image.new("RGB", (CELL * len(cells), CELL), OTHER)
    for place, (file, right) in enumerate(cells):
        if right:
            strip.paste(RIGHT, (place * CELL, 0, (place + 1) * CELL, CELL))
        if file in record.thumbnails:
            small = Image.open(io.BytesIO(base64.b64decode(record.thumbnails[file])))
            strip.paste(small, (place * CELL + (CELL - small.width) // 2, (CELL - small.height) // 2))
    return strip

"""Retrievals as pictures for TensorBoard: a caption's nearest images side by side, the right one framed."""

import base64
import io

from PIL import Image

from clipcoco.runs.record import Record
from clipcoco.runs.tensorboard import Picture

CELL = 168  # pixels, a thumbnail and its frame
RIGHT, OTHER = (46, 125, 50), (238, 238, 238)


def strips(record: Record) -> list[Picture]:
    """The captions and the images of the report, each with what it found; the words stand in the description."""
    found = []
    for number, text in enumerate(record.retrievals.texts, start=1):
        cells = [(hit.file, hit.right) for hit in text.hits]
        said = f"{text.caption} Its image is at rank {text.rank:,}; {_chosen(text.drawn)}."
        found.append(_picture(record, f"retrievals/text_to_image/{number:02}", said, cells))
    for number, image in enumerate(record.retrievals.images, start=1):
        lines = "; ".join(f"{hit.caption}{' (right)' if hit.right else ''}" for hit in image.hits)
        said = f"Nearest captions: {lines} The best of its own is at rank {image.rank:,}; {_chosen(image.drawn)}."
        found.append(_picture(record, f"retrievals/image_to_text/{number:02}", said, [(image.file, False)]))
    return found


def _chosen(drawn: bool) -> str:
    return "drawn by the seed" if drawn else "one of the worst"


def _picture(record: Record, tag: str, description: str, cells: list[tuple[str, bool]]) -> Picture:
    strip = Image.new("RGB", (CELL * len(cells), CELL), OTHER)
    for place, (file, right) in enumerate(cells):
        if right:
            strip.paste(RIGHT, (place * CELL, 0, (place + 1) * CELL, CELL))
        if file in record.thumbnails:
            small = Image.open(io.BytesIO(base64.b64decode(record.thumbnails[file])))
            strip.paste(small, (place * CELL + (CELL - small.width) // 2, (CELL - small.height) // 2))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return Picture(tag, description, buffer.getvalue(), strip.width, strip.height)

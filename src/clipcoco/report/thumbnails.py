"""Small copies of images, as text that a record and a page can hold."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

SIDE = 160  # pixels, the longer side


def thumbnails(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """JPEG in base64 by file; an image that can't be read has none."""
    found = {}
    for file in files:
        try:
            found[file] = _thumbnail(folder / file)
        except (OSError, Image.DecompressionBombError):
            continue
    return found


def _thumbnail(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.draft("RGB", (SIDE, SIDE))
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()

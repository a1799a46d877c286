"""Small copies of images, as text that a record and a page can hold."""

import base64
from collections.abc import Iterable
from pathlib import Path

from clipcoco.data.viewer import thumbnail

SIDE = 160  # pixels, the longer side


def thumbnails(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """JPEG in base64 by file; an image that can't be read has none."""
    found = ((file, thumbnail(folder / file, SIDE)) for file in files)
    return {file: base64.b64encode(data).decode() for file, data in found if data}

"""What is odd about the data of a run, and what is lost of its captions: told before anything is trained."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipcoco.data.captions import CaptionTable, overlap
from clipcoco.data.viewer import narrow

_LOOKED_AT = 64  # pictures, for what the first of them tell of all


def _first_originals(root: Path, files: Sequence[str]) -> Iterator[Path]:
    """Also where copies are read, of which alone it was seen that no link leaves the root."""
    inside = Path(os.path.realpath(root))
    for file in files[:_LOOKED_AT]:
        path = Path(os.path.realpath(root / file))
        if path.is_relative_to(inside) and path.is_file():
            yield path


def doubts(train: CaptionTable, val: CaptionTable, root: Path) -> list[str]:
    """What is odd about the data, a sentence each."""
    found = [*train.notes, *val.notes]
    if note := narrow(_first_originals(root, train.files)):
        found.append(note)
    if both := overlap(train, val):
        found.append(f"{both:,} images are in both splits: recall on them says little")
    return found


def say_cut(cut: int, equal: int, captions: int, context: int) -> list[str]:
    """A sentence on captions that are cut, if any are."""
    same = f", {equal:,} of them are then equal to another" if equal else ""
    said = f"{cut:,} of {captions:,} captions are longer than {context} tokens and are cut (model.text.context_length)"
    return [said + same] if cut else []

"""What captions, a tokenizer and a manifest come to, kept as arrays in data.root/.clipcoco: read and encoded once.

Which file it was is known by its size and its times, and where these differ by its SHA-256. Tokens and tokenizers go by
the captions themselves, a manifest by its content. What is damaged, of another version or not to be written is worked
out again.
Letters: N images, M captions, L tokens.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from clipcoco.data.annotations import PREPARE, annotation_file, name_of, opened
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.manifest import content_of, parsed
from clipcoco.data.texts import Texts, joined, sha256_of
from clipcoco.data.tokenizer import Tokenizer, words_in
from clipcoco.disk.arrays import Arrays, keep_arrays, read_arrays
from clipcoco.disk.sums import sums_of
from clipcoco.errors import CheckpointError

FORMAT = 2
LEAST = 2**19  # bytes of captions, or of a manifest: fewer are read within a tenth of a second
Result = TypeVar("Result")
_NAME = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-\n"  # what names of files are made of
_SUMS = b"0123456789abcdef\n"


def open_captions(root: Path, split: str, *, get_them: str = PREPARE, keep: bool = True) -> CaptionTable:
    """`read_captions`, at once where it has been kept. Raises what that raises. Without `keep` nothing is written."""
    file = annotation_file(root, split)
    with opened(root, split, get_them):
        if not keep or file.stat().st_size < LEAST:
            return read_captions(root, split, get_them=get_them)

    def sha256() -> str:
        return sums_of(root, [str(file.relative_to(root))], "annotations")[0]

    path, key = root / ".clipcoco" / f"captions-{split}.arrays", [FORMAT, unicodedata.unidata_version, sha256()]
    with suppress(LookupError, ValueError, TypeError):  # of a stranger's
        if (kept := read_arrays(path, key)) and (table := _table(kept, root, split)):
            return table
    table = read_captions(root, split, get_them=get_them)
    if sha256() == key[-1]:  # nobody has written it meanwhile
        keep_arrays(path, key, _arrays(table, split))
    return table


def _arrays(table: CaptionTable, split: str) -> Arrays:
    about = [table.order, table.coco, table.name != split, sha256_of(table.captions), *table.notes]
    return {
        **{name: getattr(table, name) for name in ("image_ids", "sizes", "caption_ids", "offsets")},
        "files": _bytes(joined(file.removeprefix(f"{split}/") for file in table.files)),
        "captions": _bytes(joined(table.captions)),
        "about": _bytes(json.dumps(about).encode()),
    }


def _table(kept: Arrays, root: Path, split: str) -> CaptionTable | None:
    """None for what `_arrays` has not made: offsets that lead nowhere, a file in another folder."""
    ids, sizes, captions, offsets = (kept[name] for name in ("image_ids", "sizes", "caption_ids", "offsets"))
    order, coco, adopted, sha256, *notes = json.loads(kept["about"].tobytes())
    sound = (
        {array.dtype.str for array in (ids, sizes, captions, offsets)} == {"<i8"}
        and len(offsets) == len(ids) + 1 == len(sizes) + 1 > 1
        and sizes.shape[1:] == (2,)
        and (offsets[0], offsets[-1]) == (0, len(captions))
        and (np.diff(offsets) > 0).all()
        and (np.diff(ids) > 0).all()
        and not kept["files"].tobytes().translate(None, _NAME)
    )
    if not sound:
        return None
    return CaptionTable(
        folder=root,
        image_ids=ids,
        files=Texts(kept["files"], len(ids), before=f"{split}/"),
        sizes=sizes,
        caption_ids=captions,
        captions=Texts(kept["captions"], len(captions), sha256=sha256),
        offsets=offsets,
        order=order,
        notes=tuple(notes),
        name=name_of(root, split, adopted),
        coco=coco,
    )


def open_copies(path: Path, root: Path, keep: bool = True) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Of the manifest at `path` its settings, and by file the SHA-256 of a copy and of its original, "" if unknown."""
    content = content_of(path)

    def make() -> Arrays:
        entries = parsed(content)[1].values()
        return {name: _bytes(joined(getattr(one, name) for one in entries)) for name in ("file", "sha256", "source")}

    def read(made: Arrays) -> dict[str, tuple[str, str]]:
        contents = [made[name].tobytes() for name in ("file", "sha256", "source")]
        files, *both = (content.decode().split("\n") for content in contents)
        if {*map(len, chain(*both))} - {0, 64} or any(content.translate(None, _SUMS) for content in contents[1:]):
            raise ValueError("no sums")
        return dict(zip(files, zip(*both, strict=True), strict=True))

    of_files = _kept(root, "copies", [], Texts(_bytes(content), 1), make, read, keep)
    return parsed(content[: content.find(b"\n") + 1])[0], of_files


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a tokenizer makes of M captions."""

    tokens: npt.NDArray[np.integer]  # (M,L), int16 where they fit: half of what is read, checked and mapped
    cut: int  # captions that are longer than L
    equal: int  # of them, those that are then equal to another
    words: Sequence[str]  # each word of the captions once, in lower case


def encode_captions(root: Path, tokenizer: Tokenizer, texts: Sequence[str], context: int, keep: bool = True) -> Encoded:
    """Encoded to `context` tokens L, as `Tokenizer.encode_counted` does."""
    dtype = np.dtype("<i2" if tokenizer.vocab_size < 2**15 else "<i4")

    def make() -> Arrays:
        tokens, *counts = tokenizer.encode_counted(texts, context)
        return {"tokens": tokens.astype(dtype), "counts": np.array(counts), "words": _bytes(joined(words_in(texts)))}

    def read(made: Arrays) -> Encoded:
        tokens, counts, words = made["tokens"], made["counts"], made["words"].tobytes().decode().split()
        if (tokens.dtype, tokens.shape, counts.shape) != (dtype, (len(texts), context), (2,)):
            raise ValueError("of another form")
        if tokens.view(f"<u{dtype.itemsize}").max(initial=0) >= tokenizer.vocab_size:  # so a negative one is, too
            raise ValueError("not in the vocabulary")
        cut, equal = counts.tolist()
        return Encoded(tokens, cut, equal, words)

    return _kept(root, "tokens", [tokenizer.sha256, context], texts, make, read, keep)


def learn_tokenizer(root: Path, texts: Sequence[str], vocab_size: int, keep: bool = True) -> Tokenizer:
    """`Tokenizer.train` on captions."""

    def make() -> Arrays:
        return {"plain": _bytes(json.dumps(Tokenizer.train(texts, vocab_size).to_plain()).encode())}

    def read(made: Arrays) -> Tokenizer:
        return Tokenizer.from_plain(json.loads(made["plain"].tobytes()))

    return _kept(root, "tokenizer", [vocab_size], texts, make, read, keep)


def _kept(
    root: Path,
    what: str,
    how: list[Any],
    texts: Sequence[str],
    make: Callable[[], Arrays],
    read: Callable[[Arrays], Result],
    keep: bool,
) -> Result:
    """`read` of what `make` makes of `texts`, `how` it does so deciding with them; made again where what is kept is an
    error to `read`."""
    if not keep or len(joined(texts)) < LEAST:
        return read(make())
    key = [FORMAT, unicodedata.unidata_version, tokenizers.__version__, sha256_of(texts), *how]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = root / ".clipcoco" / f"{what}-{digest[:12]}.arrays"
    with suppress(LookupError, ValueError, TypeError, CheckpointError):  # of a stranger's
        if kept := read_arrays(path, key):
            return read(kept)
    keep_arrays(path, key, made := make())
    return read(made)


def _bytes(content: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)

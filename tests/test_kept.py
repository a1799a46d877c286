"""What is kept of captions: equal to what is read anew, noticed where it is not, and done without where it can't be."""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from clipcoco.data import kept
from clipcoco.data.annotations import PREPARE
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.kept import encode_captions, learn_tokenizer, open_captions, open_copies
from clipcoco.data.manifest import Entry, Manifest, copies_manifest, read_manifest
from clipcoco.data.tokenizer import Tokenizer, words_in
from clipcoco.disk.arrays import keep_arrays, read_arrays
from clipcoco.errors import DataError
from harness import file_size_limit, flip_a_bit, raising, tree

CONTEXT, VOCABULARY = 32, 2000


def equal(one: CaptionTable, other: CaptionTable) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(CaptionTable)]
    same = [np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs]
    return all(same) and one.fingerprint() == other.fingerprint()


@pytest.fixture
def nothing_is_read_again(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for what in ("read_captions", "words_in"):
        monkeypatch.setattr(kept, what, raising(AssertionError(what)))
    monkeypatch.setattr(Tokenizer, "train", raising(AssertionError("train")))
    monkeypatch.setattr(Tokenizer, "encode", raising(AssertionError("encode")))
    return monkeypatch


def test_what_is_kept_of_val2017_is_what_is_read(shared, tmp_path, request):
    (tmp_path / "annotations").mkdir()
    shutil.copy(shared / "coco-annotations/captions_val2017.json", tmp_path / "annotations")
    fresh = read_captions(tmp_path, "val2017")
    learnt = Tokenizer.train(fresh.captions, VOCABULARY)
    tokens, cut, same = learnt.encode_counted(fresh.captions, CONTEXT)
    for again in (False, True):
        if again:
            request.getfixturevalue("nothing_is_read_again")
        table = open_captions(tmp_path, "val2017")
        tokenizer = learn_tokenizer(tmp_path, table.captions, VOCABULARY)
        encoded = encode_captions(tmp_path, tokenizer, table.captions, CONTEXT)
        assert len(table.captions) == 25_014
        assert equal(table, fresh)
        assert tokenizer.to_plain() == learnt.to_plain()
        assert (encoded.tokens == tokens).all()
        assert encoded.tokens.dtype == np.int16
        assert (encoded.cut, encoded.equal, encoded.words) == (cut, same, list(words_in(fresh.captions)))
        half, other = table.subset(0.5, 0), fresh.subset(0.5, 0)
        assert equal(half, other)


@pytest.fixture
def data(scenes, tmp_path, monkeypatch) -> Path:
    """A folder of few captions, of which all the same something is kept."""
    monkeypatch.setattr(kept, "LEAST", 0)
    monkeypatch.setattr("clipcoco.disk.sums._JUST_NOW", -(10**12))  # what was written just now counts as settled
    root = shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))
    assert equal(open_captions(root, "val2017"), read_captions(root, "val2017"))
    return root


def arrays_of(root: Path) -> Path:
    return root / ".clipcoco/captions-val2017.arrays"


def changed_caption(root: Path) -> None:
    """Of the same length, and the file of the same size and time."""
    file = root / "annotations/captions_val2017.json"
    before, content = file.stat(), json.loads(file.read_text())
    content["annotations"][0]["caption"] = content["annotations"][0]["caption"][::-1]
    file.write_text(json.dumps(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def from_a_stranger(root: Path, path: Path | None = None, **change: object) -> None:
    """Whole and with a right sum, but not what clipcoco writes."""
    path = path or arrays_of(root)
    key = json.loads(path.read_bytes().splitlines()[0])["key"]
    keep_arrays(path, key, {**read_arrays(path, key), **change})


def bytes_of(content: object) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode() if not isinstance(content, bytes) else content, np.uint8)


DAMAGE = {
    "another caption": changed_caption,
    "cut": lambda root: os.truncate(arrays_of(root), arrays_of(root).stat().st_size - 64),
    "empty": lambda root: os.truncate(arrays_of(root), 0),
    "head cut": lambda root: os.truncate(arrays_of(root), 40),
    **{f"a bit at {at}": lambda root, at=at: flip_a_bit(arrays_of(root), at) for at in (0, 0.02, 0.3, 0.6, 0.9)},
    "a folder": lambda root: (arrays_of(root).unlink(), arrays_of(root).mkdir()),
    "a file outside": lambda root: from_a_stranger(root, files=bytes_of(b"\n".join([b"../../x.jpg"] * 24))),
    "offsets that lead nowhere": lambda root: from_a_stranger(root, offsets=np.arange(25) * 10**6),
    "numbers that are none": lambda root: from_a_stranger(root, image_ids=bytes_of(b"x" * 24), about=bytes_of([])),
    "ids that repeat": lambda root: from_a_stranger(root, image_ids=np.zeros(24, np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_or_of_another_file_is_made_anew(data, damage):
    before = arrays_of(data).read_bytes()
    damage(data)
    fresh = read_captions(data, "val2017")
    assert equal(open_captions(data, "val2017"), fresh)
    if arrays_of(data).is_file():
        assert (arrays_of(data).read_bytes() == before) == (damage is not changed_caption)
        assert equal(open_captions(data, "val2017"), fresh)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("tokens", {"tokens": np.full((120, CONTEXT), 2**14, np.int16)}),
        ("tokens", {"tokens": np.full((120, CONTEXT), -1, np.int16)}),
        ("tokens", {"tokens": np.zeros((3, CONTEXT), np.int16)}),
        ("tokens", {"tokens": np.zeros((120, CONTEXT), np.int32)}),
        ("tokens", {"counts": np.zeros(5)}),
        ("tokens", {"words": bytes_of(b"\xff")}),
        ("tokenizer", {"plain": bytes_of({"vocab": {"a": 7}, "merges": []})}),
        ("tokenizer", {"plain": bytes_of(b"{")}),
    ],
)
def test_tokens_and_a_tokenizer_of_a_stranger_are_made_anew(data, what, change):
    captions = open_captions(data, "val2017").captions
    for _ in range(2):
        tokenizer = learn_tokenizer(data, captions, VOCABULARY)
        encoded = encode_captions(data, tokenizer, captions, CONTEXT)
        assert tokenizer.to_plain() == Tokenizer.train(captions, VOCABULARY).to_plain()
        assert (encoded.tokens == tokenizer.encode(captions, CONTEXT)).all()
        assert encoded.words == list(words_in(captions))
        (path,) = (data / ".clipcoco").glob(f"{what}-*.arrays")
        from_a_stranger(data, path, **change)


def made(data: Path) -> tuple[object, dict[str, tuple[str, str]]]:
    """Of a manifest with an entry of an older version, which knew no originals, what is read of its lines."""
    with Manifest(copies_manifest(data, 40), {"size": 40}) as manifest:
        for number in range(24):
            manifest.add(Entry(f"val2017/{number}.jpg", 9, f"{number:064x}", f"{number + 7:064x}" if number else ""))
    settings, entries = read_manifest(copies_manifest(data, 40))
    return settings, {file: (entry.sha256, entry.source) for file, entry in entries.items()}


def the_copies(data: Path) -> Path:
    return next((data / ".clipcoco").glob("copies-*.arrays"))


LINES = {
    "nothing": lambda data: None,
    "cut": lambda data: os.truncate(the_copies(data), the_copies(data).stat().st_size - 64),
    **{f"a bit at {at}": lambda data, at=at: flip_a_bit(the_copies(data), at) for at in (0, 0.02, 0.3, 0.6, 0.9)},
    "no sums": lambda data: from_a_stranger(data, the_copies(data), sha256=bytes_of(b"\n".join([b"x" * 64] * 24))),
    "short sums": lambda data: from_a_stranger(data, the_copies(data), source=bytes_of(b"\n".join([b"0"] * 24))),
    "fewer sums": lambda data: from_a_stranger(data, the_copies(data), source=bytes_of(b"0" * 64)),
    "no text": lambda data: from_a_stranger(data, the_copies(data), file=bytes_of(b"\xff\n" * 23)),
}


@pytest.mark.parametrize("damage", LINES.values(), ids=LINES)
def test_what_is_kept_of_a_manifest_is_what_its_lines_say(data, damage):
    lines = made(data)
    assert len(lines[1]) == 24
    for _ in range(2):
        assert open_copies(copies_manifest(data, 40), data) == lines
        damage(data)


def test_a_manifest_is_read_by_its_lines_where_it_is_another_one_and_only_there(data):
    path, (settings, copies) = copies_manifest(data, 40), made(data)
    assert open_copies(path, data) == (settings, copies)
    from_a_stranger(data, the_copies(data), file=bytes_of("\n".join(reversed(copies)).encode()))
    assert list(open_copies(path, data)[1]) == list(reversed(copies))  # which no line says
    path.write_bytes(path.read_bytes()[:-9])  # what a kill leaves of the last line
    assert list(open_copies(path, data)[1]) == list(copies)[:-1]
    path.unlink()
    assert open_copies(path, data)[0] == {}
    before = tree(data)
    assert made(data) == open_copies(path, data, keep=False)
    assert tree(data).keys() - before.keys() == {"prepared-40/manifest.jsonl"}


def test_captions_that_are_fewer_than_was_said_are_one_line(data):
    from_a_stranger(data, captions=bytes_of(b"a\nb"))
    with pytest.raises(DataError, match="what is kept of the captions is none of clipcoco's"):
        list(open_captions(data, "val2017").captions)


def test_an_error_in_the_file_is_told_though_another_was_kept(data):
    file = data / "annotations/captions_val2017.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"is not whole JSON"):
        open_captions(data, "val2017", get_them=PREPARE)
    file.unlink()
    with pytest.raises(DataError, match=r"no captions at"):
        open_captions(data, "val2017", get_them=PREPARE)


def test_where_nothing_can_be_written_it_is_read_each_time(data):
    shutil.rmtree(data / ".clipcoco")
    fresh = read_captions(data, "val2017")
    with file_size_limit(100):
        assert equal(open_captions(data, "val2017"), fresh)
    assert {path.suffix for path in (data / ".clipcoco").iterdir()} <= {".lock"}, "half a file is left"
    shutil.rmtree(data / ".clipcoco")
    (data / ".clipcoco").write_text("no folder")
    assert equal(open_captions(data, "val2017"), fresh)


def test_what_a_kill_left_is_removed_and_without_keep_nothing_is_written(data):
    left = data / ".clipcoco/.captions-val2017.arrays.0a1b2c3d.tmp"
    left.write_text("half")
    before = tree(data)
    changed_caption(data)
    caption = open_captions(data, "val2017", keep=False).captions[0]
    assert tree(data) | {"annotations/captions_val2017.json": b""} == before | {
        "annotations/captions_val2017.json": b""
    }
    assert open_captions(data, "val2017").captions[0] == caption
    assert not left.exists()

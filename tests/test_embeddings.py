"""Files of embeddings as other programs save them: measured as they mean, or refused by the name of the key."""

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcoco.engine.embeddings import Embeddings, read_embeddings
from clipcoco.errors import DataError, NumericError
from clipcoco.runs.measure import evaluate_embeddings
from harness import one_line

IMAGES, CAPTIONS, WIDTH = 6, 12, 8
TEXTS = np.array([f"{n:012d}" for n in range(IMAGES)])
NAMES = np.array([f"COCO_val2014_{n}" for n in range(IMAGES)])
ACCENTS = np.char.add("été ", NAMES)
LARGE = np.arange(IMAGES, dtype=np.uint64) + np.uint64(2**63)


def arrays() -> dict[str, np.ndarray]:
    rows = np.random.default_rng(0).normal(size=(IMAGES, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        "image_embeddings": rows.astype(np.float32),
        "text_embeddings": rows.repeat(2, 0).astype(np.float32),
        "image_ids": np.arange(IMAGES),
        "caption_image_ids": np.arange(IMAGES).repeat(2),
    }


def saved(path: Path, **changes: Any) -> Path:
    np.savez(path, **{name: value for name, value in (arrays() | changes).items() if value is not None})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_embeddings(path)
    return one_line(caught.value)


def same(one: Embeddings, other: Embeddings) -> bool:
    return all(np.all(np.asarray(a == b)) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "e.npz"


@pytest.mark.parametrize(
    ("ids", "owners"),
    [
        (TEXTS, TEXTS.repeat(2)),
        (TEXTS, arrays()["caption_image_ids"]),
        (arrays()["image_ids"], TEXTS.astype("S").repeat(2)),
        (np.char.zfill(TEXTS, 20), arrays()["caption_image_ids"]),
        (arrays()["image_ids"], np.char.zfill(TEXTS, 40).astype("S").repeat(2)),
        (arrays()["image_ids"].astype(np.float64), arrays()["caption_image_ids"].astype(">i2")),
    ],
)
def test_whole_numbers_are_matched_however_they_are_written(path: Path, ids: np.ndarray, owners: np.ndarray) -> None:
    plain, _ = read_embeddings(saved(path))
    assert same(read_embeddings(saved(path, image_ids=ids, caption_image_ids=owners))[0], plain)


@pytest.mark.parametrize(
    ("ids", "owners"),
    [
        (NAMES, NAMES),
        (NAMES.astype("S"), NAMES),
        (LARGE, LARGE),
        (ACCENTS, np.char.encode(ACCENTS, "utf-8")),
        (np.char.encode(ACCENTS, "utf-8"), ACCENTS),
        (np.char.encode(ACCENTS, "latin-1"), ACCENTS),
    ],
)
def test_other_ids_are_matched_as_they_stand(path: Path, ids: np.ndarray, owners: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(CAPTIONS)
    plain, _ = read_embeddings(saved(path, text_embeddings=arrays()["text_embeddings"][order],
                                     caption_image_ids=arrays()["caption_image_ids"][order]))  # fmt: skip
    found, _ = read_embeddings(saved(path, text_embeddings=arrays()["text_embeddings"][order],
                                     image_ids=ids, caption_image_ids=owners.repeat(2)[order]))  # fmt: skip
    assert (found.owners == plain.owners).all()
    assert (found.texts == plain.texts).all()


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"image_ids": NAMES}, "not in image_ids, first image 0 (--from-embeddings; image_ids are <U14, caption_image"),
        ({"image_ids": NAMES.astype(object)}, "image_ids in"),
        ({"image_ids": NAMES.astype(object)}, "array of objects"),
        ({"image_ids": np.arange(IMAGES) + 0.5}, "image_ids are float64, not all of them whole numbers"),
        ({"caption_image_ids": np.full(CAPTIONS, np.nan)}, "caption_image_ids are float64"),
        ({"image_ids": np.arange(IMAGES, dtype=np.float32) + 2**25}, "image_ids are float32"),
        ({"image_ids": np.arange(IMAGES) > 2}, "is of kind bool"),
        ({"caption_ids": np.zeros(CAPTIONS, "M8[s]")}, "is of kind datetime64[s]"),
        ({"image_ids": np.arange(IMAGES) // 2}, "image_ids repeat (--from-embeddings). Give each"),
        ({"image_ids": np.array([*"12345", "01"])}, "image_ids repeat as '1' and '01' are both 1 (--from"),
        ({"image_ids": np.array(["a", "b", "1", "a", "01", "c"])}, "image_ids repeat (--from-embeddings). Give each"),
        ({"caption_image_ids": np.r_[0, np.arange(CAPTIONS - 1) + 5]}, "of 12 captions belong to an image that is not"),
        ({"caption_image_ids": np.zeros(CAPTIONS, int)}, "5 of 6 images have no caption"),
        ({"image_embeddings": np.eye(IMAGES, WIDTH, dtype=int)}, "image_embeddings are int64, not floats"),
        ({"text_embeddings": np.zeros((CAPTIONS, WIDTH), "V2")}, "bfloat16 as float32"),
        ({"text_embeddings": np.eye(CAPTIONS, 3)}, "text_embeddings (12, 3)"),
        ({"image_ids": np.arange(3)}, "image_ids (3,)"),
        ({"caption_image_ids": np.array(5)}, "caption_image_ids ()"),
        ({"image_embeddings": np.zeros((IMAGES, 0)), "text_embeddings": np.zeros((CAPTIONS, 0))}, "do not fit"),
        ({"image_embeddings": None, "img_emb": np.eye(IMAGES, WIDTH)}, "image_embeddings not among 'img_emb'"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(path: Path, changes: dict[str, Any], needle: str) -> None:
    assert needle in refusal(saved(path, **changes))


def test_rows_that_are_not_finite_are_refused(path: Path) -> None:
    with pytest.raises(NumericError, match="6 of 6 image embeddings hold NaN"):
        evaluate_embeddings(saved(path, image_embeddings=np.full((IMAGES, WIDTH), np.nan)), ("own",))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "longdouble", ">f4"])
@pytest.mark.parametrize("scale", [1.0009, 0.9995, 3.0])
def test_rows_are_brought_to_unit_length(path: Path, kind: str, scale: float) -> None:
    scaled = (arrays()["image_embeddings"] * np.array([[scale], [1]] * 3)).astype(kind)
    found, note = read_embeddings(saved(path, image_embeddings=scaled))
    np.testing.assert_allclose(found.images.norm(dim=1), 1, atol=2e-7)
    assert note == "rows scaled to unit length"


def test_unit_vectors_stay_as_they_are_to_the_bit(path: Path) -> None:
    found, note = read_embeddings(saved(path))
    assert (found.images.numpy() == arrays()["image_embeddings"]).all()
    assert note == "unit vectors"
    np.savez_compressed(path, **arrays())
    assert same(read_embeddings(path)[0], found)


def test_extreme_rows_are_measured_and_odd_ones_counted(path: Path) -> None:
    rows = arrays()["image_embeddings"].astype(np.float64)
    plain, _ = read_embeddings(saved(path))
    for factor in (1e300, 1e-300):
        found, _ = read_embeddings(saved(path, image_embeddings=rows * factor))
        np.testing.assert_allclose(found.images, plain.images, atol=2e-7)
    rows[1], rows[2] = rows[0], 0
    assert read_embeddings(saved(path, image_embeddings=rows.astype(np.float32)))[1] == (
        "unit vectors, 1 image rows equal another one, 1 rows are zero"
    )


def test_captions_whose_ids_repeat_are_counted(path: Path) -> None:
    assert read_embeddings(saved(path, caption_ids=np.arange(CAPTIONS)))[1] == "unit vectors"
    found, note = read_embeddings(saved(path, caption_ids=np.arange(IMAGES).repeat(2)))
    assert (note, len(found.texts)) == ("unit vectors, 6 caption_ids equal another one", CAPTIONS)


def forged(header: str, content: bytes = b"", kind: int = zipfile.ZIP_STORED) -> bytes:
    """A file whose image_embeddings have this header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, array in arrays().items():
            inner = io.BytesIO()
            np.save(inner, array)
            line = header.encode() + b"\n"
            lying = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content
            archive.writestr(f"{name}.npy", lying if name == "image_embeddings" else inner.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (4,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, True)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,",
        "{" * 9000,
        "",
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(path: Path, header: str) -> None:
    path.write_bytes(forged(header))
    refusal(path)


def test_a_member_that_unpacks_to_far_more_is_refused_unread(path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (80000000, 1)}"
    path.write_bytes(forged(header, bytes(320_000_000), zipfile.ZIP_DEFLATED))
    assert "unpacks to more than 20 times its size" in refusal(path)


def test_damaged_files_are_one_line(path: Path, tmp_path: Path) -> None:
    whole = saved(path).read_bytes()
    flags = re.sub(rb"(PK\x01\x02....)..", lambda found: found[1] + b"!\0", whole, flags=re.DOTALL)  # encrypted
    first = whole.replace(b"\x93NUMPY", b"\x93NUMBY")
    for data in (b"", b"text", whole[:50], whole[:-30], flags, first, whole[:300] + b"xxxx" + whole[304:]):
        path.write_bytes(data)
        refusal(path)
    path.write_bytes(b"text")
    assert f"{path} is not an .npz file, or a damaged one" in refusal(path)
    np.save(path.with_suffix(".npy"), np.eye(3))
    assert "a single array" in refusal(path.with_suffix(".npy"))
    assert "no file at" in refusal(tmp_path / "none.npz")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is not a file (--from-embeddings)" in refusal(tmp_path / "pipe")


def test_no_code_in_them_is_run(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sentinel"),)

    refusal(saved(path, image_ids=np.array([Evil()] * IMAGES, dtype=object)))
    assert not (tmp_path / "sentinel").exists()

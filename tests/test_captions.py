"""What read_captions accepts, drops and refuses, and that nothing outside data.root is opened."""

import dataclasses
import itertools
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcoco.data.annotations import count_entries
from clipcoco.data.captions import CaptionTable, overlap, read_captions
from clipcoco.data.split import check_files
from clipcoco.disk.links import allow
from clipcoco.errors import DataError
from harness import one_line, python

IMAGES, CAPTIONS = 120, 5
GOLDEN = [15, 36, 99, 204, 246, 302, 323, 463, 477, 554, 729, 820]
Content = dict[str, Any]


def coco() -> Content:
    """120 images with 5 captions each, neither in the order of their ids."""
    ids = [7 * i + 1 for i in range(IMAGES)]
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 4, "width": 4} for i in ids]
    texts = [(i, f"caption {k} of {i}") for k in range(CAPTIONS) for i in ids]
    random.Random(0).shuffle(images)
    random.Random(1).shuffle(texts)
    annotations = [{"id": 10_000 - n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    return {"info": {}, "images": images, "annotations": annotations}


def write(root: Path, content: Any, split: str = "val2017") -> Path:
    path = root / "annotations" / f"captions_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def table_of(root: Path, content: Content) -> CaptionTable:
    write(root, content)
    return read_captions(root, "val2017")


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_captions(root, "val2017")
    return one_line(caught.value)


def draw_files(root: Path, content: Content, split: str = "val2017") -> Path:
    folder = root / split
    folder.mkdir()
    for row in content["images"]:
        (folder / row["file_name"]).write_bytes(b"")
    return folder


def test_table_is_sorted_by_image_then_caption_and_owners_match_the_file(tmp_path: Path) -> None:
    content = coco()
    table = table_of(tmp_path, content)
    assert table.image_ids.tolist() == sorted(row["id"] for row in content["images"])
    assert table.files[1] == "val2017/000000000008.jpg"
    assert len(table.offsets) == IMAGES + 1
    truth = {row["id"]: (row["image_id"], row["caption"]) for row in content["annotations"]}
    found = zip(table.image_ids[table.owners].tolist(), table.captions, strict=True)
    assert dict(zip(table.caption_ids.tolist(), found, strict=True)) == truth
    for i in range(IMAGES):
        own = table.caption_ids[table.offsets[i] : table.offsets[i + 1]].tolist()
        assert own == sorted(own)
        assert len(own) == CAPTIONS
    assert table.notes == ()
    assert count_entries(tmp_path, "val2017") == (IMAGES, IMAGES * CAPTIONS)
    assert count_entries(tmp_path, "train2017") is None


def test_order_in_the_file_changes_nothing_and_a_changed_text_changes_the_fingerprint(tmp_path: Path) -> None:
    content = coco()
    table = table_of(tmp_path, content)
    before = table.fingerprint()
    moved = table.offsets.copy()
    moved[1] += 1  # a caption of the second image becomes the first's
    assert dataclasses.replace(table, offsets=moved).fingerprint() != before
    content["images"].reverse()
    content["annotations"].reverse()
    assert table_of(tmp_path, content).fingerprint() == before
    content["annotations"][3]["caption"] += "!"
    assert table_of(tmp_path, content).fingerprint() != before


def test_nothing_is_printed_and_torch_is_not_loaded(tmp_path: Path) -> None:
    write(tmp_path, coco())
    code = (
        "import sys; from pathlib import Path; from clipcoco.data.captions import read_captions;"
        "read_captions(Path(sys.argv[1]), 'val2017'); assert 'torch' not in sys.modules"
    )
    done = python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("data", "needles"),
    [
        (b"", ["byte 0"]),
        (b'{"images": [{"id"', ["byte 17", "line 1"]),
        (b'{\n"images": [\nthis', ["byte 14", "line 3"]),
        (b"<html>Log in to the hotel</html>", ["not whole JSON", "prepare-data"]),
        ('{"caf\u00e9'.encode("latin-1"), ["not UTF-8", "byte 5"]),
        (json.dumps({"images": []}).encode("utf-16"), ["not UTF-8", "byte 0"]),
        (b"[" * 100_000, ["nesting"]),
        (b'{"images": ' + b"9" * 5000 + b"}", ["absurd numbers"]),
        (b"[]", ["holds a list"]),
        (b"null", ["holds missing or null"]),
        (b'{"annotations": [{"caption": "x"}]}', ['"images" is missing']),
        (b'{"images": null, "annotations": []}', ['"images" is missing or null']),
        (b'{"images": [], "annotations": {}}', ['"annotations" is an object']),
        (b'{"images": [], "annotations": null}', ['"annotations" is missing or null']),
        (b'{"images": [{"id": 1}]}', ["has no captions; expected captions_*.json"]),
        (b'{"images": [], "annotations": [{"id": 1, "bbox": []}]}', ["has no captions; expected"]),
    ],
)
def test_a_file_that_is_not_a_captions_file_is_refused(tmp_path: Path, data: bytes, needles: list[str]) -> None:
    path = write(tmp_path, data)
    message = refusal(tmp_path)
    assert all(needle in message for needle in [str(path), *needles]), message


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "annotations" / "captions_val2017.json"
    yours = "or use yours: --set data.root=DIR"
    assert refusal(tmp_path) == f"no captions at {path} (data.root). Get them: clipcoco prepare-data, {yours}"
    path.mkdir(parents=True)
    assert refusal(tmp_path).startswith(f"no captions at {path}")
    with pytest.raises(DataError, match="Get them: clipcoco prepare-data --preset small, or"):
        read_captions(tmp_path, "val2017", get_them="clipcoco prepare-data --preset small")


def test_more_than_two_gibibytes_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    os.truncate(path, 2**31 + 1)  # sparse: takes no room
    assert "2,147,483,649 bytes" in refusal(tmp_path)


MALFORMED = [
    ("annotations", "image_id", "absent"),
    ("annotations", "id", None),
    ("annotations", "caption", "absent"),
    ("annotations", "caption", None),
    ("annotations", "caption", 7),
    ("annotations", "image_id", "12abc"),
    ("annotations", "id", [1]),
    ("images", "file_name", "absent"),
    ("images", "file_name", 12),
    ("images", "id", "absent"),
]


@pytest.mark.parametrize(("key", "field", "value"), MALFORMED)
def test_one_malformed_row_is_dropped_and_counted_many_are_refused(
    tmp_path: Path, key: str, field: str, value: Any
) -> None:
    content = coco()

    def spoil(row: Content) -> None:
        row.pop(field)
        if value != "absent":
            row[field] = value

    spoil(content[key][5])
    table = table_of(tmp_path, content)
    lost = CAPTIONS if key == "images" else 1
    assert len(table.captions) == IMAGES * CAPTIONS - lost
    assert len(table.image_ids) == IMAGES - (key == "images")
    total = len(content[key])
    assert f"1 of {total} {key} are malformed, first {key}[5] has no usable {field}" in table.notes[0]
    for row in content[key][10:30]:
        spoil(row)
    write(tmp_path, content)
    assert f"21 of {total} {key} are malformed, first {key}[5]" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "field", "value", "needle"),
    [
        ("images", "id", math.nan, "id of images[5] is nan"),
        ("annotations", "id", True, "id of annotations[5] is True"),
        ("annotations", "image_id", 8.5, "image_id of annotations[5] is 8.5"),
        ("images", "id", 1e17, "id of images[5] is 1e+17"),
        ("images", "id", 2**63, "id of images[5] is 9223372036854775808"),
        ("images", "id", "copy", "images[5] repeats id"),
    ],
)
def test_false_ids_are_refused(tmp_path: Path, key: str, field: str, value: Any, needle: str) -> None:
    content = coco()
    content[key][5][field] = content[key][2][field] if value == "copy" else value
    write(tmp_path, content)
    assert needle in refusal(tmp_path)


def test_ids_of_captions_that_are_missing_or_start_again_are_renumbered(tmp_path: Path) -> None:
    content = coco()
    plain = table_of(tmp_path, content)
    for again in (False, True):
        seen: dict[int, int] = {}
        for row in content["annotations"]:
            seen[row["image_id"]] = seen.get(row["image_id"], -1) + 1
            row["id"] = seen[row["image_id"]] if again else None
        table = table_of(tmp_path, content)
        assert len(set(table.caption_ids.tolist())) == IMAGES * CAPTIONS
        assert sorted(zip(table.owners, table.captions, strict=True)) == sorted(
            zip(plain.owners, plain.captions, strict=True)
        )
        assert any("numbered in the order of the file" in note for note in table.notes)
    content["annotations"].append(content["annotations"][7])  # twice in the file
    write(tmp_path, content)
    assert "repeats id" in refusal(tmp_path)


def test_a_file_under_two_ids_and_captions_that_repeat_are_counted(tmp_path: Path) -> None:
    content = coco()
    content["images"][3]["file_name"] = content["images"][8]["file_name"]
    for row in content["annotations"]:
        row["caption"] = f"caption of {row['image_id']}"
    same, repeated = table_of(tmp_path, content).notes
    assert "1 of 120 images have the same file as another id, first 0000" in same
    assert "480 of 600 captions repeat another of their image" in repeated


def test_ids_written_as_texts_or_floats_are_integers(tmp_path: Path) -> None:
    content = coco()
    plain = table_of(tmp_path, content).fingerprint()
    for row in content["images"] + content["annotations"][::2]:
        row.update({name: str(row[name]) for name in row if name.endswith("id")})
    for row in content["annotations"][1::2]:
        row.update({name: float(row[name]) for name in row if name.endswith("id")})
    assert table_of(tmp_path, content).fingerprint() == plain


def test_orphans_and_images_without_captions_are_dropped_and_counted(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["image_id"] = 999_999
    bare = content["images"][0]["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != bare]
    table = table_of(tmp_path, content)
    assert bare not in table.image_ids
    assert len(table.notes) == 2
    assert "captions belong to no image, first caption 10000, dropped" in table.notes[0]
    assert f"1 of 120 images have no caption, first image {bare}, dropped" in table.notes[1]
    content["images"].append({"id": 5_000, "file_name": "a.jpg"})
    write(tmp_path, content)
    assert "2 of 121 images have no caption, first image" in refusal(tmp_path)


def test_captions_are_cleaned_and_empty_ones_dropped(tmp_path: Path) -> None:
    content = coco()
    dirty = {
        " A dog\n": "A dog",
        "two\t\tcats  sit\r\n": "two cats sit",
        "\x1b[31mred\x00 \x9b bus\u2028": "[31mred bus",
        "e\u0301clair \U0001f34e\u00a0": "\u00e9clair \U0001f34e",
        "\u05e9\u05dc\u05d5\u05dd": "\u05e9\u05dc\u05d5\u05dd",
        "half \ud83d of a pair": "half of a pair",
        "w" * 10_000: "w" * 10_000,
        "": None,
        " \n\t\u3000\x00 ": None,
    }
    for row, text in zip(content["annotations"], dirty, strict=False):
        row["caption"] = text
    table = table_of(tmp_path, content)
    expected = {row["id"]: clean for row, clean in zip(content["annotations"], dirty.values(), strict=False)}
    found = dict(zip(table.caption_ids.tolist(), table.captions, strict=True))
    assert {key: found.get(key) for key in expected} == expected
    assert any("2 of 600 captions are empty, dropped" in note for note in table.notes)


@pytest.mark.parametrize(
    "name", ["SECRET", "../secret.jpg", "a\0b.jpg", "x/y.jpg", "a.jpg\n", "a.eps", "\u017f.jpg", ""]
)
def test_a_file_name_that_could_lead_elsewhere_is_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    content = coco()
    content["images"][5]["file_name"] = str(secret) if name == "SECRET" else name
    path = write(root, content)
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    message = refusal(root)
    watching = False
    assert "is not a plain .jpg or .png name" in message
    assert str(path) in opened
    assert not [file for file in opened if "secret" in file]


def test_missing_images_are_counted_with_the_first_three(tmp_path: Path) -> None:
    content = coco()
    table = table_of(tmp_path, content)
    with pytest.raises(DataError, match=r"120 of 120 images are missing.*000000000001\.jpg"):
        check_files(table)
    folder = draw_files(tmp_path, content)
    check_files(table)
    for i in (71, 22, 8, 834):
        (folder / f"{i:012}.jpg").unlink()
    (folder / f"{71:012}.jpg").mkdir()  # a folder is not an image
    with pytest.raises(DataError, match="4 of 120 images are missing") as caught:
        check_files(table)
    names = [f"val2017/{i:012}.jpg" for i in (8, 22, 71)]
    assert f"first {', '.join(names)}. Get them: clipcoco prepare-data" in str(caught.value)


def test_links_may_not_leave_the_root_but_the_root_may_be_one(tmp_path: Path) -> None:
    content = coco()
    root = tmp_path / "root"
    root.mkdir()
    table = table_of(root, content)
    folder = draw_files(root, content)
    (tmp_path / "alias").symlink_to(root)
    check_files(read_captions(tmp_path / "alias", "val2017"))
    (tmp_path / "secret").write_text("secret")
    image = root / table.files[3]
    image.unlink()
    image.symlink_to(root / table.files[4])
    check_files(table)
    image.unlink()
    image.symlink_to("../../secret")
    with pytest.raises(DataError, match="is a link that leaves"):
        check_files(table)
    image.unlink()
    image.write_bytes(b"")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link that leaves"):
        check_files(table)
    (root / ".clipcoco").mkdir()  # the folder itself has no say in it
    (root / ".clipcoco" / "linked.json").write_text(json.dumps({"folders": [str(tmp_path / "elsewhere")]}))
    with pytest.raises(DataError, match=f"prepare-data --root {root} --allow-links {tmp_path / 'elsewhere'}"):
        check_files(table)
    allow(root, [tmp_path / "elsewhere"])
    check_files(table)
    shutil.copytree(root, tmp_path / "stranger", symlinks=True)
    with pytest.raises(DataError, match="is a link that leaves"):  # what is allowed to one root is not to another
        check_files(read_captions(tmp_path / "stranger", "val2017"))


def test_subsets_are_nested_rounded_and_fixed_for_ever(tmp_path: Path) -> None:
    table = table_of(tmp_path, coco())
    sizes = {0.01: 1, 0.1: 12, 0.2125: 26, 0.5: 60, 1.0: 120}  # 25.5 becomes 26
    subsets = [table.subset(fraction, seed=0) for fraction in sizes]
    assert [len(part.image_ids) for part in subsets] == list(sizes.values())
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller.image_ids) < set(larger.image_ids)
    # Written down, so that no later version chooses other images for data already fetched.
    assert subsets[1].image_ids.tolist() == GOLDEN
    assert set(table.subset(0.1, seed=1).image_ids) != set(GOLDEN)
    part = subsets[1]
    assert (np.diff(part.image_ids) > 0).all()
    for i, image in enumerate(part.image_ids.tolist()):
        whole = table.image_ids.tolist().index(image)
        assert part.files[i] == table.files[whole]
        own, theirs = (slice(t.offsets[k], t.offsets[k + 1]) for t, k in ((part, i), (table, whole)))
        assert part.captions[own] == table.captions[theirs]
        assert part.caption_ids[own].tolist() == table.caption_ids[theirs].tolist()
    assert part.fingerprint() != table.fingerprint()
    with pytest.raises(DataError, match="leaves none of 120 images"):
        table.subset(0.001, seed=0)


def test_overlap_counts_images_of_both_splits(tmp_path: Path) -> None:
    content = coco()
    val = table_of(tmp_path, content)
    moved = {row["id"]: row["id"] + 100_000 * (n >= 7) for n, row in enumerate(content["images"])}
    for row in content["images"]:
        row["id"] = moved[row["id"]]
    for row in content["annotations"]:
        row["image_id"] = moved[row["image_id"]]
    write(tmp_path, content, "train2017")
    assert overlap(read_captions(tmp_path, "train2017"), val) == 7


def test_overlap_counts_files_of_one_name_and_the_same_bytes(tmp_path: Path) -> None:
    for split, base in (("train2017", 0), ("val2017", 1000)):
        names = [f"{n}.jpg" for n in range(5)]
        images = [{"id": base + n, "file_name": name} for n, name in enumerate(names)]
        annotations = [{"image_id": base + n, "caption": "x"} for n in range(5)]
        write(tmp_path, {"images": images, "annotations": annotations}, split)
        (tmp_path / split).mkdir()
        for n, name in enumerate(names[:4]):
            (tmp_path / split / name).write_bytes(b"same" if n < 2 else split.encode() if n < 3 else b"x" * (5 + base))
    train, val = (read_captions(tmp_path, split) for split in ("train2017", "val2017"))
    assert overlap(train, val) == 2

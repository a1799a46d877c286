"""Published captions files in miniature, with drawn pictures: what is adopted, what is left out, what is refused."""

import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcoco.data.captions import CaptionTable, overlap, read_captions
from clipcoco.data.presence import check_files
from clipcoco.errors import ConfigError, DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.links import may_lead
from clipcoco.prepare.own import Adopted, adopt

NAMES = [f"{1000268201 + 7919 * number}_{number:010x}.jpg" for number in range(20)]
SPECIAL = {  # by (image, caption) number: what trips a careless reader
    (0, 0): 'A child says "hello", then, walks up 3/4 of the stairs .',
    (1, 1): '"Quoted" words begin and end with "marks"',
    (2, 2): "Le garçon à l'école — 北京 😀",
    (3, 3): "[not a list]",
}


def caption(image: int, number: int) -> str:
    return SPECIAL.get((image, number), f"caption {number} of picture {image} .")


PAIRS = [(name, number, caption(i, number)) for i, name in enumerate(NAMES) for number in range(5)]


def draw(path: Path, size: tuple[int, int] = (12, 8), kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.name) * 7 % 256, sum(path.name.encode()) % 256, 90)).save(path, kind)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "Images"
    for name in NAMES:
        draw(folder / name)
    return folder


def write(tmp_path: Path, text: str, name: str = "captions.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def table(rows: Iterable[Iterable[object]], delimiter: str = ",", end: str = "\n") -> str:
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter, lineterminator=end).writerows(rows)
    return target.getvalue()


def simple(names: list[str]) -> str:
    return table([("image", "caption"), *((name, f"text of {name}") for name in names)])


def take(captions: Path, images: Path, root: Path, **settings: Any) -> Adopted:
    return adopt(captions, images, root, report=lambda _: None, **settings)


def tables(root: Path) -> tuple[CaptionTable, CaptionTable]:
    """What training reads, with all its checks."""
    train, val = (read_captions(root, split) for split in ("train2017", "val2017"))
    check_files(train)
    check_files(val)
    assert overlap(train, val) == 0
    assert not train.notes
    assert not val.notes
    return train, val


def by_file(root: Path) -> dict[str, list[str]]:
    found = {}
    for rows in tables(root):
        for i, file in enumerate(rows.files):
            found[file.split("/")[1]] = rows.captions[rows.offsets[i] : rows.offsets[i + 1]]
    return found


def refusal(captions: Path, images: Path, root: Path, **settings: Any) -> str:
    before = list(root.rglob("*"))
    with pytest.raises(DataError) as caught:
        take(captions, images, root, **settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert list(root.rglob("*")) == before
    return message


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- published forms -------------------------------------------------------------------------------------

EXPECTED = {name: [caption(i, number) for number in range(5)] for i, name in enumerate(NAMES)}


def flickr_token() -> str:  # Flickr8k.token.txt, results_20130124.token
    return "".join(f"{name}#{number}\t{text}\n" for name, number, text in PAIRS)


def kaggle_flickr8k() -> str:
    return table([("image", "caption"), *((name, text) for name, _, text in PAIRS)])


def kaggle_flickr30k() -> str:
    return "image_name| comment_number| comment\n" + "".join(f"{n}| {i}| {text}\n" for n, i, text in PAIRS)


def hugging_face_flickr30k() -> str:
    rows: list[tuple[object, ...]] = [("raw", "sentids", "split", "filename", "img_id")]
    for i, name in enumerate(NAMES):
        raw = json.dumps([caption(i, number) for number in range(5)])
        rows.append((raw, json.dumps([5 * i + n for n in range(5)]), ("train", "val", "test")[i % 3], name, i))
    return table(rows, end="\r\n")


def json_lines(image: str, captions: str) -> str:
    return "".join(json.dumps({image: name, captions: text, "more": 1}) + "\n" for name, _, text in PAIRS)


FORMS: dict[str, Callable[[], str]] = {
    "Flickr8k.token.txt": flickr_token,
    "token with CRLF": lambda: flickr_token().replace("\n", "\r\n"),
    "captions.txt": kaggle_flickr8k,
    "captions.txt with CRLF": lambda: kaggle_flickr8k().replace("\n", "\r\n"),
    "all quoted": lambda: "".join(
        ",".join('"' + field.replace('"', '""') + '"' for field in row) + "\n"
        for row in [("image", "caption"), *((name, text) for name, _, text in PAIRS)]
    ),
    "commas without quotes": lambda: "image,caption\n" + "".join(
        f"{name},{text}\n" for name, _, text in PAIRS if not text.startswith('"')
    ) + f'{NAMES[1]},"""Quoted"" words begin and end with ""marks"""\n',
    "results.csv": kaggle_flickr30k,
    "filepath and title": lambda: "filepath\ttitle\n" + "".join(f"{name}\t{text}\n" for name, _, text in PAIRS),
    "tabs, quoted": lambda: table([("Image ", " Caption"), *((n, text) for n, _, text in PAIRS)], "\t"),
    "semicolons": lambda: table([("caption", "image"), *((text, n) for n, _, text in PAIRS)], ";"),
    "json lines": lambda: json_lines("file_name", "text"),
    "json lines of lists": lambda: "".join(
        json.dumps({"path": f"./{name}", "captions": texts}, ensure_ascii=False) + "\n\n"
        for name, texts in EXPECTED.items()
    ),
    "byte order mark": lambda: "\ufeff" + kaggle_flickr8k(),
    "old line ends": lambda: flickr_token().replace("\n", "\r"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_read_as_they_are(tmp_path: Path, images: Path, form: str) -> None:
    captions, root = write(tmp_path, FORMS[form]()), tmp_path / "root"
    adopted = take(captions, images, root)
    found = by_file(root)
    if form == "commas without quotes":  # there the special one comes last
        found[NAMES[1]].insert(1, found[NAMES[1]].pop())
    assert found == EXPECTED
    assert (adopted.train_images, adopted.train_captions) == (18, 90)
    assert (adopted.val_images, adopted.val_captions) == (2, 10)
    assert not any("left out" in note for note in adopted.notes)
    for name in NAMES:
        (link,) = root.glob(f"*2017/{name}")
        assert os.path.samefile(link, images / name)
        assert not link.is_symlink()


def test_the_column_of_splits_decides(tmp_path: Path, images: Path) -> None:
    captions, root = write(tmp_path, hugging_face_flickr30k(), "flickr_annotations_30k.csv"), tmp_path / "root"
    adopted = take(captions, images, root)
    train, val = tables(root)
    assert [file.split("/")[1] for file in train.files] == NAMES[0::3]
    assert [file.split("/")[1] for file in val.files] == NAMES[1::3]
    assert by_file(root) == {name: texts for i, (name, texts) in enumerate(EXPECTED.items()) if i % 3 < 2}
    assert adopted.val_images == 7
    assert any("6 test images are left out" in note for note in adopted.notes)


def test_without_val_the_test_split_validates(tmp_path: Path, images: Path) -> None:
    text = hugging_face_flickr30k().replace(",val,", ",restval,")
    root = tmp_path / "root"
    adopted = take(write(tmp_path, text), images, root)
    assert (adopted.train_images, adopted.val_images) == (14, 6)
    assert [file.split("/")[1] for file in tables(root)[1].files] == NAMES[2::3]
    assert any("14 train and 6 test images" in note for note in adopted.notes)


def test_a_split_of_another_name_is_refused(tmp_path: Path, images: Path) -> None:
    message = refusal(
        write(tmp_path, hugging_face_flickr30k().replace(",val,", ",fold\x1b3,")), images, tmp_path / "root"
    )
    assert "line 3" in message


def test_only_training_rows_are_divided_by_seed(tmp_path: Path, images: Path) -> None:
    text = hugging_face_flickr30k().replace(",val,", ",train,").replace(",test,", ",TRAIN,")
    assert take(write(tmp_path, text), images, tmp_path / "root").val_images == 2


def test_the_known_row_without_a_caption_is_counted(tmp_path: Path, images: Path) -> None:
    text = kaggle_flickr30k().replace(f"{NAMES[4]}| 4| ", f"{NAMES[4]}| 4   ")
    root = tmp_path / "root"
    adopted = take(write(tmp_path, text, "results.csv"), images, root)
    assert by_file(root)[NAMES[4]] == EXPECTED[NAMES[4]][:4]
    assert any("1 of 100 rows lack an image or a caption" in note and "line 26" in note for note in adopted.notes)


def test_captions_are_cleaned(tmp_path: Path, images: Path) -> None:
    rows = [
        ("image", "caption"),
        (NAMES[0], " a\tdog \n on\u2028a \x07 rug "),
        (NAMES[1], "e\u0301"),
        (NAMES[2], " \x00 "),
    ]
    root = tmp_path / "root"
    adopted = take(write(tmp_path, table(rows)), images, root)
    assert by_file(root) == {NAMES[0]: ["a dog on a rug"], NAMES[1]: ["é"]}
    assert any("1 of 3 rows" in note for note in adopted.notes)


def test_a_lost_quotation_mark_costs_the_rows_that_it_swallows(tmp_path: Path, images: Path) -> None:
    lines = [f"{name},text of {name}" for name in NAMES]
    lines[3] = f'{NAMES[3]},"lost'
    lines[6] = f'{NAMES[6]},"quoted"'
    root = tmp_path / "root"
    adopted = take(write(tmp_path, "\n".join(["image,caption", *lines])), images, root)
    assert set(by_file(root)) == set(NAMES) - set(NAMES[3:7])
    assert any("4 of 20 rows" in note and "line 5" in note for note in adopted.notes)


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "no columns"),
        (b"picture,words\na.jpg,b\n", "'picture, words'"),
        (b"image,words\na.jpg,b\n", "caption|captions|text|comment|raw"),
        (b"a.jpg a dog\n", "image|file_name|filename|image_name|path"),
        (b"a.jpg,a dog\n", "no columns"),
        (b'{"images": [], "annotations": []}', "'images, annotations'"),
        (b'{\n "image": "a.jpg",\n "caption": "b"\n}\n', "rows lack an image"),
        (b"[" * 100_000, "no columns"),
        (b'{"image": ' + b"[" * 100_000, "rows lack"),
        (b"image,caption\n", "no captions in"),
        (b"image,caption\na.jpg,caf\xe9\n", "line 2"),
        ("image,caption\n".encode("utf-16"), "not UTF-8"),
        (b"image,caption\n" + b"a.jpg\n" * 10, "rows lack an image or a caption"),
        (b"image,caption\na.jpg,\"" + b"x" * 200_000, "rows lack an image or a caption"),
        ("\x1b[31m\x00,\x85\n".encode(), "no columns"),
        (bytes(range(128)) * 100, ""),
        (b"image,caption\n../a.jpg,b\n", "lie outside"),
    ],
)  # fmt: skip
def test_a_file_in_no_known_form_is_one_line(tmp_path: Path, images: Path, content: bytes, needle: str) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_bytes(content)
    assert needle in refusal(captions, images, tmp_path / "root")


def test_missing_inputs_are_one_line(tmp_path: Path, images: Path) -> None:
    captions = write(tmp_path, simple(NAMES))
    assert "no captions file" in refusal(tmp_path / "none.csv", images, tmp_path / "root")
    assert "no captions file" in refusal(images, images, tmp_path / "root")
    assert "no folder of pictures" in refusal(captions, captions, tmp_path / "root")
    with pytest.raises(ConfigError, match="val_fraction"):
        take(captions, images, tmp_path / "root", val_fraction=1.0)


# --- pictures --------------------------------------------------------------------------------------------


def test_nothing_outside_of_the_folder_is_opened_or_linked(tmp_path: Path, images: Path) -> None:
    outside = tmp_path / "secret.jpg"
    draw(outside)
    (images / "leak.jpg").symlink_to(outside)
    (images / "folder").symlink_to(tmp_path)
    (images / "inside.jpg").symlink_to(images / NAMES[0])
    bad = [
        str(outside),
        "../secret.jpg",
        "x/../../secret.jpg",
        "leak.jpg",
        "folder/secret.jpg",
        "..",
        "/etc/passwd",
        f"../Images/{NAMES[1]}",
    ]
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    adopted = take(write(tmp_path, simple([*NAMES, *bad, "inside.jpg"])), images, tmp_path / "root")
    watching = False
    assert not any("secret" in path or "leak" in path or "passwd" in path for path in opened)
    assert any(f"{len(bad)} of 29 images lie outside" in note and "secret.jpg'" in note for note in adopted.notes)
    files = by_file(tmp_path / "root")
    assert set(files) == set(NAMES)
    assert files[NAMES[0]] == [f"text of {NAMES[0]}", "text of inside.jpg"]  # one picture, on one side
    for path in (tmp_path / "root").glob("*2017/*"):
        assert not os.path.samefile(path, outside)


def test_odd_names_are_counted_as_missing(tmp_path: Path, images: Path) -> None:
    odd = [
        "nul\0.jpg",
        "x" * 5000 + ".jpg",
        "\ud800.jpg",
        ".",
        "back\\slash.jpg",
        "\x1b[31mred.jpg",
        NAMES[0] + "/x.jpg",
    ]
    lines = "".join(json.dumps({"image": name, "caption": "text"}) + "\n" for name in [*NAMES, *odd])
    adopted = take(write(tmp_path, lines), images, tmp_path / "root")
    (note,) = (note for note in adopted.notes if "left out" in note)
    assert note.startswith(f"{len(odd)} of {len(NAMES) + len(odd)} images are missing in {images}, first ")
    assert note.isprintable()
    assert len(note) < 500
    tables(tmp_path / "root")


def test_missing_pictures_are_dropped_until_they_are_most(tmp_path: Path, images: Path) -> None:
    captions, root = write(tmp_path, simple(NAMES)), tmp_path / "root"
    for name in NAMES[:10]:
        (images / name).unlink()
    adopted = take(captions, images, root)
    assert any("10 of 20 images are missing" in note and NAMES[0] in note for note in adopted.notes)
    assert set(by_file(root)) == set(NAMES[10:])
    (images / NAMES[10]).unlink()
    message = refusal(captions, images, tmp_path / "other")
    assert "11 of 20 images are missing" in message
    assert all(name in message for name in NAMES[:3])


def test_what_is_no_jpeg_or_png_is_dropped_and_named(tmp_path: Path, images: Path) -> None:
    (images / NAMES[0]).write_bytes(b"")
    (images / NAMES[1]).write_bytes(b"<html>not found</html>")
    draw(images / NAMES[2], kind="GIF")
    (images / NAMES[3]).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (images / NAMES[4]).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    header = b"\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    (images / NAMES[5]).write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"\0\0\0\0")
    (images / NAMES[6]).unlink()
    os.mkfifo(images / NAMES[6])
    draw(images / NAMES[7], size=(31, 17), kind="PNG")  # a PNG that is called .jpg, as COCO has one
    root = tmp_path / "root"
    adopted = take(write(tmp_path, simple(NAMES)), images, root)
    assert any("6 of 19 files" in note and NAMES[0] in note for note in adopted.notes)
    assert any("1 of 20 images are missing" in note for note in adopted.notes)
    assert set(by_file(root)) == set(NAMES[7:])
    rows = [json.loads(path.read_text())["images"] for path in (root / "annotations").iterdir()]
    sizes = {row["file_name"]: (row["width"], row["height"]) for split in rows for row in split}
    assert sizes == dict.fromkeys(NAMES[8:], (12, 8)) | {NAMES[7]: (31, 17)}


def test_names_that_annotations_cannot_hold_give_way_to_ids(tmp_path: Path) -> None:
    images, root = tmp_path / "Bilder", tmp_path / "root"
    kinds = {
        "a/same.jpg": "JPEG",
        "b/same.jpg": "PNG",
        "b/Same.JPG": "JPEG",
        "ein Bild mit Leerzeichen.jpg": "JPEG",
        "bär.png": "PNG",
        "no_suffix": "JPEG",
        "plain.jpeg": "JPEG",
        "c/Plain-2.PNG": "PNG",
    }
    for name, kind in kinds.items():
        draw(images / name, kind=kind)
    take(write(tmp_path, simple(list(kinds))), images, root)
    paths = sorted(kinds)
    expected = {}
    for number, path in enumerate(paths, start=1):
        kept = path.split("/")[-1] if "lain" in path else f"{number:012d}{'.png' if kinds[path] == 'PNG' else '.jpg'}"
        expected[kept] = [f"text of {path}"]
    assert by_file(root) == expected
    images_rows = [row for path in (root / "annotations").iterdir() for row in json.loads(path.read_text())["images"]]
    assert {row["id"]: row["original"] for row in images_rows} == dict(enumerate(paths, start=1))


def test_a_file_that_is_called_like_anothers_id(tmp_path: Path) -> None:
    images, names = tmp_path / "images", ["000000000002.jpg", "with space.jpg", "x.jpg"]
    draw(images / names[0])
    draw(images / names[1])
    draw(images / names[2])
    root = tmp_path / "root"
    take(write(tmp_path, simple(names)), images, root)
    assert by_file(root) == {f"{i:012d}.jpg": [f"text of {name}"] for i, name in enumerate(sorted(names), start=1)}


def test_names_are_found_without_suffix_or_in_another_case_if_it_is_plain_which(tmp_path: Path, images: Path) -> None:
    draw(images / "Twice.jpg")
    draw(images / "TWICE.jpg")
    draw(images / "one.jpg")
    draw(images / "one.png", kind="PNG")
    draw(images / "Cafe\u0301.jpg")
    asked = [NAMES[0].removesuffix(".jpg"), NAMES[1].upper(), "twice.jpg", "one", "caf\u00e9.jpg", *NAMES[2:]]
    adopted = take(write(tmp_path, simple(asked)), images, tmp_path / "root")
    assert any("2 of 23 images are missing" in note and "'twice.jpg', 'one'" in note for note in adopted.notes)
    found = by_file(tmp_path / "root")
    assert found[NAMES[0]] == [f"text of {asked[0]}"]
    assert found[NAMES[1]] == [f"text of {asked[1]}"]
    assert ["text of caf\u00e9.jpg"] in found.values()


# --- the split, and calling again ------------------------------------------------------------------------


def test_the_split_depends_on_names_and_seed_only(tmp_path: Path, images: Path) -> None:
    lines = [f"{name},text {number} of {name}" for name in NAMES for number in range(2)]
    vals = []
    for trial, seed in enumerate((0, 0, 0, 1)):
        random.Random(trial).shuffle(lines)
        root = tmp_path / f"root{trial}"
        adopted = take(
            write(tmp_path, "\n".join(["image,caption", *lines])), images, root, val_fraction=0.25, seed=seed
        )
        assert (adopted.val_images, adopted.val_captions) == (5, 10)
        train, val = tables(root)
        ids = dict(zip([*train.files, *val.files], [*train.image_ids, *val.image_ids], strict=True))
        assert sorted(ids.values()) == list(range(1, 21))
        assert [file.split("/")[1] for file in sorted(ids, key=lambda file: ids[file])] == NAMES
        vals.append(val.files)
    assert vals[0] == vals[1] == vals[2] != vals[3]
    expected = sorted(NAMES, key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())[:5]
    assert vals[0] == [f"val2017/{name}" for name in sorted(expected)]


def test_two_pictures_are_the_least(tmp_path: Path, images: Path) -> None:
    captions = write(tmp_path, simple(NAMES[:2]))
    adopted = take(captions, images, tmp_path / "root", val_fraction=0.001)
    assert (adopted.train_images, adopted.val_images) == (1, 1)
    assert "0 train and 1 val" in refusal(write(tmp_path, simple(NAMES[:1]), "one"), images, tmp_path / "other")


def test_the_same_call_does_nothing_until_something_changes(tmp_path: Path, images: Path) -> None:
    captions, root = write(tmp_path, simple(NAMES)), tmp_path / "root"
    first = take(captions, images, root)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    told: list[TaskProgress] = []
    again = adopt(captions, images, root, report=told.append)
    assert again.notes[-1].startswith("nothing to do")
    assert again.notes[:-1] == first.notes
    assert (again.root, again.train_images, again.val_captions) == (root, first.train_images, first.val_captions)
    assert not told
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps

    def changed(**settings: Any) -> dict[str, list[str]]:
        assert "nothing to do" not in take(captions, images, root, **settings).notes[-1]
        assert "nothing to do" in take(captions, images, root, **settings).notes[-1]
        return by_file(root)

    next(root.glob("train2017/*")).unlink()
    assert len(changed()) == 20
    next(root.glob("annotations/*")).unlink()
    assert len(changed()) == 20
    (images / NAMES[0]).unlink()
    draw(images / NAMES[0], size=(5, 5))
    assert len(changed()) == 20
    assert os.path.samefile(next(root.glob(f"*/{NAMES[0]}")), images / NAMES[0])
    write(tmp_path, simple(NAMES[5:]))
    assert set(changed()) == set(NAMES[5:])
    assert len(list(root.glob("*2017/*"))) == 15  # nothing stale
    changed(seed=5)
    changed(val_fraction=0.5)
    assert len(list(root.glob("val2017/*"))) == 8


def test_the_last_name_of_a_picture_is_not_removed(tmp_path: Path, images: Path) -> None:
    captions, root = write(tmp_path, simple(NAMES)), tmp_path / "root"
    take(captions, images, root)
    (link,) = root.glob(f"*2017/{NAMES[0]}")
    (images / NAMES[0]).unlink()  # the user thinks of the adopted ones as copies
    take(captions, images, root)
    assert link.exists()
    assert NAMES[0] not in by_file(root)


def test_another_data_set_is_never_written_over(tmp_path: Path, images: Path, scenes: Path) -> None:
    captions = write(tmp_path, simple(NAMES))
    assert "other data are in the way" in refusal(captions, images, scenes)
    root = tmp_path / "root"
    (root / "train2017").mkdir(parents=True)
    assert "other data are in the way" in refusal(captions, images, root)
    (root / "train2017").rmdir()
    take(captions, images, root)
    before = tree(root)
    assert "holds the pictures of" in refusal(write(tmp_path, simple(NAMES), "other.csv"), images, root)
    assert tree(root) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from clipcoco.prepare.own import adopt

left = int(sys.argv[4])

def hook(event, arguments):
    global left
    if event in ("os.link", "os.rename", "os.mkdir", "os.remove"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
adopt(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), report=lambda _: None)
print(left)
assert not {"torch", "torchvision", "matplotlib"} & set(sys.modules)
"""


def test_killed_anywhere_the_same_call_completes(tmp_path: Path, images: Path) -> None:
    captions, calm = write(tmp_path, simple(NAMES)), tmp_path / "calm"

    def run(root: Path, after: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, captions, images, root, str(after)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(calm, 10_000)
    assert done.returncode == 0, done.stderr
    steps = 10_000 - int(done.stdout)
    root = tmp_path / "root"
    for after in (1, 5, 20, steps - 3, steps - 2, steps - 1, steps):
        assert run(root, after).returncode == -signal.SIGKILL
        whole = [(root / "annotations" / f"captions_{split}2017.json").exists() for split in ("train", "val")]
        if all(whole):
            tables(root)
        else:
            assert after < steps  # the last one says that all is there
        if after > 20:  # from the beginning; the others go on in one folder
            take(captions, images, root)
            assert tree(root) == tree(calm)
            subprocess.run(["rm", "-r", root], check=True)
    take(captions, images, root)
    assert tree(root) == tree(calm)
    write(tmp_path, simple(NAMES[5:]))  # redone, never with the captions of before
    assert run(root, 12).returncode == -signal.SIGKILL
    assert not list((root / "annotations").iterdir())
    take(captions, images, root)
    assert set(by_file(root)) == set(NAMES[5:])


def test_links_to_another_file_system_are_symbolic_and_training_follows_them(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    images = elsewhere / f"clipcoco-test-{os.getpid()}"
    try:
        for name in NAMES:
            draw(images / name)
        root = tmp_path / "root"
        adopted = take(write(tmp_path, simple(NAMES)), images, root)
        assert any("symbolic links" in note for note in adopted.notes)
        assert may_lead(root) == [str(root), str(images)]
        forgotten = Path(os.environ["XDG_CONFIG_HOME"], "clipcoco", "links.json")
        forgotten.unlink()
        with pytest.raises(DataError, match=f"--allow-links {images}"):
            tables(root)
        take(tmp_path / "captions.txt", images, root)  # the same call again allows it again
        assert set(by_file(root)) == set(NAMES)
        assert all(path.is_symlink() for path in root.glob("*2017/*"))
        (images / NAMES[0]).unlink()
        (tmp_path / "secret.jpg").write_bytes(b"")
        (images / NAMES[0]).symlink_to(tmp_path / "secret.jpg")
        take(tmp_path / "captions.txt", images, root)
        assert set(by_file(root)) == set(NAMES[1:])
    finally:
        subprocess.run(["rm", "-r", images], check=True)


def test_a_root_that_cannot_be_made_is_one_line(tmp_path: Path, images: Path) -> None:
    captions = write(tmp_path, simple(NAMES))
    with pytest.raises(EnvironmentProblem) as caught:
        take(captions, images, captions / "root")
    assert len(str(caught.value).splitlines()) == 1


def test_real_flickr_captions(tmp_path: Path, shared: Path) -> None:
    """Flickr8k's real captions and pictures, written back in the form in which they were published."""
    source = shared / "flickr8k"
    content = json.loads((source / "annotations" / "captions_val2017.json").read_text())
    names = {row["id"]: row["file_name"] for row in content["images"]}
    lines = [(names[row["image_id"]], row["caption"]) for row in content["annotations"]]
    token = "".join(f"{name}#{number % 5}\t{text}\n" for number, (name, text) in enumerate(lines))
    kaggle = table([("image", "caption"), *lines])
    roots = []
    for form, text in (("token", token), ("kaggle", kaggle)):
        roots.append(tmp_path / form)
        adopted = take(write(tmp_path, text, f"{form}.txt"), source / "val2017", roots[-1])
        assert (adopted.train_images, adopted.val_images) == (900, 100)
        assert adopted.train_captions + adopted.val_captions == 5000
        tables(roots[-1])
    assert by_file(roots[0]) == by_file(roots[1])

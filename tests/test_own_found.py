"""A folder of one's own pictures, in each layout in which people have them, through the real command."""

import csv
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from clipcoco.cli.own import _expected
from clipcoco.config.derive import fitting
from clipcoco.config.load import load_config
from clipcoco.report.settings import read_settings
from clipcoco.runs.directory import RunDir
from conftest import LIGHT
from fork_server import ForkServer
from harness import Page, tree

COUNT = 24
SAID = {f"IMG_{k:04d}": [f"A bicycle store number {k}.", f"shop {k}, seen from the street"] for k in range(COUNT)}
ONE = {stem: texts[:1] for stem, texts in SAID.items()}
VAL = [*SAID][20:]  # where a layout has a split of its own
TOY = (*(word for word in LIGHT if "epochs" not in word and "batch_size" not in word), "model.vision.weights=none")


def picture(stem: str) -> bytes:
    image = Image.new("RGB", (40, 30), tuple(hashlib.sha256(stem.encode()).digest()[:3]))
    ImageDraw.Draw(image).text((2, 2), stem[-2:])
    image.save(data := io.BytesIO(), "JPEG")
    return data.getvalue()


def put(folder: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def pictures(below: str = "", stems: list[str] | None = None) -> dict[str, bytes | str]:
    return {f"{below}{stem}.jpg": picture(stem) for stem in stems or SAID}


def rows(header: list[str], said: dict[str, list[str]], delimiter: str = ",") -> str:
    writer = csv.writer(text := io.StringIO(), delimiter=delimiter, lineterminator="\n")
    writer.writerows([header, *((f"{stem}.jpg", one) for stem, texts in said.items() for one in texts)])
    return text.getvalue()


def json_lines(stems: list[str]) -> str:
    return "".join(json.dumps({"file_name": f"{stem}.jpg", "text": SAID[stem]}) + "\n" for stem in stems)


def coco(stems: list[str], **more: Any) -> str:
    images = [{"id": k, "file_name": f"{stem}.jpg"} for k, stem in enumerate(stems)]
    texts = [{"image_id": k, "id": 9 * k + n, "caption": t} for k, s in enumerate(stems) for n, t in enumerate(SAID[s])]
    return json.dumps({"images": images, "annotations": texts, **more})


def tar(members: dict[str, bytes | str]) -> bytes:
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def parquet(stems: list[str]) -> bytes:
    arrow = pytest.importorskip("pyarrow", reason="installed by make test-all")
    from pyarrow import parquet as files

    cells = [{"bytes": picture(stem), "path": f"{stem}.jpg"} for stem in stems]
    files.write_table(arrow.table({"image": cells, "text": [SAID[stem] for stem in stems]}), data := io.BytesIO())
    return data.getvalue()


def sidecars(below: str, stems: list[str]) -> dict[str, bytes | str]:
    return pictures(below, stems) | {f"{below}{stem}.txt": "\n".join(SAID[stem]) + "\n" for stem in stems}


def img2dataset(stems: list[str], below: str = "") -> dict[str, bytes | str]:
    """Its folders; of every second picture the caption stands in the JSON alone."""
    files = pictures(below, stems)
    for k, stem in enumerate(stems):
        said = {"caption": SAID[stem][0], "url": f"http://x/{stem}", "title": "page", "status": "success"}
        files[f"{below}{stem}.json"] = json.dumps(said)
        files |= {f"{below}{stem}.txt": SAID[stem][0]} if k % 2 else {}
    return files


def karpathy() -> str:
    images = [
        {"filename": f"{stem}.jpg", "filepath": "val2014", "split": "val" if stem in VAL else "restval"}
        | {"sentences": [{"raw": text, "tokens": text.split()} for text in SAID[stem]]}
        for stem in SAID
    ]
    return json.dumps({"images": images, "dataset": "coco"})


TRAIN = [stem for stem in SAID if stem not in VAL]
LAVIS = {
    "annotations/coco_karpathy_train.json": json.dumps(
        [{"image": f"val2014/{s}.jpg", "caption": text, "image_id": f"coco_{s}"} for s in TRAIN for text in SAID[s]]
    ),
    "annotations/coco_karpathy_val.json": json.dumps([{"image": f"val2014/{s}.jpg", "caption": SAID[s]} for s in VAL]),
}
# By name: what is in the folder, what is said of each picture, whether the layout has its own split, and what is said.
LAYOUTS: dict[str, tuple[Callable[[], dict[str, bytes | str]], dict[str, list[str]], bool, str]] = {
    ".txt": (lambda: sidecars("", [*SAID]), SAID, False, "24 of 24 pictures have a text beside them, as IMG_0000.txt"),
    ".txt, split": (
        lambda: sidecars("train/", TRAIN) | sidecars("val/", VAL),
        SAID,
        True,
        "24 of 24 pictures have a text",
    ),
    "metadata.csv": (
        lambda: pictures() | {"metadata.csv": rows(["file_name", "text"], SAID), "README.txt": "My pictures\n"},
        SAID,
        False,
        "metadata.csv:",
    ),
    "metadata.jsonl": (
        lambda: {
            **pictures("train/", TRAIN),
            **pictures("validation/", VAL),
            "train/metadata.jsonl": json_lines(TRAIN),
            "validation/metadata.jsonl": json_lines(VAL),
        },
        SAID,
        True,
        "train/metadata.jsonl and validation/metadata.jsonl:",
    ),
    "Flickr8k": (
        lambda: pictures("Images/") | {"captions.txt": rows(["image", "caption"], SAID)},
        SAID,
        False,
        "captions.txt:",
    ),
    "img2dataset": (
        lambda: img2dataset(TRAIN, "00000/") | img2dataset(VAL, "00001/") | {"00000_stats.json": '{"count": 20}'},
        ONE,
        False,
        "24 of 24 pictures have a text beside them, as 00000/IMG_0001.txt",
    ),
    "tar shards": (
        lambda: {
            "00000.tar": tar(img2dataset(TRAIN)),
            "00001.tar": tar(img2dataset(VAL, "./")),
            "00000.parquet": b"PAR1 of addresses",
        },
        ONE,
        False,
        "00000.tar and 00001.tar:",
    ),
    "COCO": (
        lambda: {
            **pictures("train2017/", TRAIN),
            **pictures("val2017/", VAL),
            "annotations/captions_train2017.json": coco(TRAIN),
            "annotations/captions_val2017.json": coco(VAL),
            "annotations/instances_val2017.json": '{"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}',
        },
        SAID,
        True,
        "annotations/captions_train2017.json and annotations/captions_val2017.json:",
    ),
    "Karpathy": (lambda: pictures("val2014/") | {"dataset_coco.json": karpathy()}, SAID, True, "dataset_coco.json:"),
    "LAVIS": (lambda: pictures("val2014/") | LAVIS, SAID, True, "annotations/coco_karpathy_train.json and "),
    "JSON array": (
        lambda: pictures()
        | {"all.json": json.dumps([{"image": f"{stem}.jpg", "caption": texts} for stem, texts in SAID.items()])},
        SAID,
        False,
        "all.json:",
    ),
    "Parquet": (
        lambda: {
            "data/train-00000-of-00001.parquet": parquet(TRAIN),
            "data/validation-00000-of-00001.parquet": parquet(VAL),
        },
        SAID,
        True,
        "data/train-00000-of-00001.parquet and ",
    ),
}  # fmt: skip


def adopted(root: Path) -> tuple[dict[bytes, list[str]], set[bytes]]:
    """Captions by the content of the picture, and which are for validation."""
    found: dict[bytes, list[str]] = {}
    val = set()
    for split in ("train2017", "val2017"):
        content = json.loads((root / "annotations" / f"captions_{split}.json").read_text())
        for image in content["images"]:
            data = (root / split / image["file_name"]).read_bytes()
            found[data] = [one["caption"] for one in content["annotations"] if one["image_id"] == image["id"]]
            val |= {data} if split == "val2017" else set()
    return found, val


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_alone_is_enough(clipcoco: ForkServer, tmp_path: Path, layout: str) -> None:
    make, said, split, understood = LAYOUTS[layout]
    put(tmp_path / "photos", make())
    before = tree(tmp_path)

    # A rehearsal says what was understood, and how many would be where; it writes nothing.
    done = clipcoco("prepare-data", "--images", "photos", "--dry-run", cwd=tmp_path).ok()
    assert done.stderr.startswith(understood)
    examples = [line for line in done.stderr.splitlines() if line.startswith("  ") and ".jpg: '" in line]
    assert len(examples) == 3
    assert all(any(f"'{text}'" in line for texts in said.values() for text in texts) for line in examples)
    captions = sum(map(len, said.values()))
    counts = f"{len(TRAIN) if split else 22} train and {len(VAL) if split else 2} val images, {captions} captions"
    assert done.stdout == f"{counts} would be in data/photos. Nothing was written: leave out --dry-run.\n"
    assert tree(tmp_path) == before

    # The command itself, after which the next one that it prints runs.
    done = clipcoco("prepare-data", "--images", "photos", cwd=tmp_path).ok()
    assert done.stderr.startswith(understood)
    assert f"Ready: {counts} in data/photos." in done.stdout
    found, val = adopted(tmp_path / "data/photos")
    assert found == {picture(stem): texts for stem, texts in said.items()}
    assert not split or val == {picture(stem) for stem in VAL}
    assert {name: data for name, data in tree(tmp_path).items() if name.startswith("photos")} == before
    *_, line = done.stdout.splitlines()
    assert line == "Next: clipcoco train --preset own data.root=data/photos"
    words = [*line.removeprefix("Next: clipcoco ").split(), *TOY, "--device", "cpu", "--dry-run"]
    assert (
        f"data/photos: {counts.split()[0]} + {counts.split()[3]} images" in clipcoco(*words, cwd=tmp_path).ok().stdout
    )

    # Nothing more where nothing has changed.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "data/photos").rglob("*.jp*g")}
    again = clipcoco("prepare-data", "--images", "photos", cwd=tmp_path).ok()
    assert "nothing to do: nothing has changed" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data/photos").rglob("*.jp*g")} == stamps


def refused(clipcoco: ForkServer, folder: Path, *words: object, code: int = 3, **more: Any) -> str:
    """The one line of an error; nothing was written."""
    before = tree(folder)
    done = clipcoco("prepare-data", "--images", "photos", *words, cwd=folder, **more)
    assert (done.code, done.stdout) == (code, ""), done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert tree(folder) == before
    return line


JSON_OF_QUESTIONS = [{"image": "IMG_0000.jpg", "conversations": [{"from": "human", "value": "<image> What?"}]}]
REFUSED: dict[str, tuple[dict[str, bytes | str], list[str]]] = {
    "empty": ({}, ["there is no picture in"]),
    "no captions": (pictures(), ["24 pictures", "What is read: a .txt", "clipcoco search", "--model"]),
    "other files": (
        pictures() | {"a.xml": "<a/>", "b.xlsx": b"PK\x03\x04", "c.npy": b"\x93NUMPY"},
        ["'a.xml': a web page or XML", "'b.xlsx': a zip archive, as workbooks", "'c.npy': a NumPy array", "--model"],
    ),
    "boxes": (
        pictures() | {f"{stem}.txt": "0 0.5 0.5 0.1 0.2\n" for stem in SAID},
        ["beside the pictures, first 'IMG_0000.txt', hold no words, as YOLO's boxes", "--model"],
    ),
    "questions": (pictures() | {"llava.json": json.dumps(JSON_OF_QUESTIONS)}, ["conversations as LLaVA has them"]),
    "instances": (
        pictures() | {"instances.json": coco([*SAID]).replace('"caption":', '"bbox":')},
        ["boxes as COCO's instances have them"],
    ),
    "other columns": (
        pictures() | {"Liste.csv": rows(["Bild", "Text auf Deutsch"], SAID, ";")},
        ["no columns of images and captions, but 'Bild, Text auf Deutsch'", "--image-column NAME --caption-column"],
    ),
    "other pictures": (
        pictures() | {"captions.csv": rows(["image", "caption"], {f"other/{stem}-x": ["a shop"] for stem in SAID})},
        ["captions.csv has 24 pictures with a caption, first 'other/IMG_0000-x.jpg', of which none is here"],
    ),
    "half": (
        pictures() | {f"{stem}.txt": "a shop" for stem in [*SAID][::2]},
        ["12 of 24 pictures have no caption beside them", "'IMG_0001.jpg'", "--allow-missing"],
    ),
    "not UTF-8": (
        pictures() | {f"{stem}.txt": "Café".encode("cp1252") for stem in [*SAID][:4]} | dict.fromkeys(
            [f"{stem}.txt" for stem in [*SAID][4:]], "a shop"
        ),
        ["4 of 24 pictures have no caption beside them", "'IMG_0000.txt' (not UTF-8)"],
    ),
    "a table that is not UTF-8": (
        pictures() | {"captions.csv": rows(["image", "caption"], SAID).replace("bicycle", "Café").encode("cp1252")},
        ["captions.csv, line 2", "not UTF-8", "iconv -f CP1252"],
    ),
    "a tar cut short": ({"00000.tar": tar(img2dataset(TRAIN))[:9000]}, ["00000.tar is a damaged tar archive"]),
    "Parquet that is none": ({"a.parquet": b"PAR1 and no more"}, ["a.parquet is a damaged Parquet file"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_named_as_what_it_is(clipcoco: ForkServer, tmp_path: Path, case: str) -> None:
    if "Parquet" in case:
        pytest.importorskip("pyarrow", reason="installed by make test-all")
    files, parts = REFUSED[case]
    (tmp_path / "photos").mkdir()
    put(tmp_path / "photos", files)
    line = refused(clipcoco, tmp_path)
    assert all(part in line for part in parts), line


def test_half_of_the_pictures_is_taken_when_that_is_asked_for(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "photos", REFUSED["half"][0])
    done = clipcoco("prepare-data", "--images", "photos", "--allow-missing", cwd=tmp_path).ok()
    assert "Ready: 11 train and 1 val images, 12 captions" in done.stdout
    assert "12 of 24 pictures have no caption beside them" in done.stderr


def test_a_table_of_other_columns_is_read_by_the_names_that_one_gives(clipcoco: ForkServer, tmp_path: Path) -> None:
    more = "Bild;Text auf Deutsch;caption\n" + "".join(f"{s}.jpg;{t[0]};not this\n" for s, t in SAID.items())
    put(tmp_path / "photos", pictures() | {"Liste.csv": more})
    words = ["--image-column", "bild", "--caption-column", "Text auf Deutsch"]
    done = clipcoco("prepare-data", "--images", "photos", *words, "--json", cwd=tmp_path).ok()
    assert adopted(tmp_path / "data/photos")[0] == {picture(stem): texts for stem, texts in ONE.items()}
    assert "1 column is not read: 'caption'" in done.stderr
    assert done.json["understood"][1] == "  IMG_0000.jpg: 'A bicycle store number 0.'"
    line = refused(clipcoco, tmp_path, "--image-column", "Foto", "--caption-column", "Text auf Deutsch", "--root", "x")
    assert "no columns called 'foto' and 'text_auf_deutsch', but 'Bild, Text auf Deutsch, caption'" in line
    (tmp_path / "photos/Liste.csv").unlink()
    entries = [{"bild": {"path": f"{s}.jpg"}, "kurz": t[0], "caption": "not this"} for s, t in SAID.items()]
    put(tmp_path / "photos", {"all.json": json.dumps(entries)})
    words = ["--image-column", "bild", "--caption-column", "kurz", "--root", "of-json"]
    clipcoco("prepare-data", "--images", "photos", *words, cwd=tmp_path).ok()
    assert adopted(tmp_path / "of-json")[0] == {picture(stem): texts for stem, texts in ONE.items()}
    assert "called 'lang'" in refused(clipcoco, tmp_path, "--caption-column", "lang", "--root", "x")


def test_names_relative_to_the_captions_file_are_the_second_try(clipcoco: ForkServer, tmp_path: Path) -> None:
    files = pictures("a/b/", TRAIN) | pictures("c/b/", TRAIN)  # by the file's name alone it can't be told which
    put(
        tmp_path / "photos", files | {"a/metadata.csv": rows(["file_name", "text"], {f"b/{s}": SAID[s] for s in TRAIN})}
    )
    words = ["--captions", "photos/a/metadata.csv", "--images", "photos", "--root", "mine"]
    clipcoco("prepare-data", *words, cwd=tmp_path).ok()
    content = [json.loads(file.read_text()) for file in (tmp_path / "mine/annotations").iterdir()]
    assert {image["original"] for one in content for image in one["images"]} == {f"a/b/{stem}.jpg" for stem in TRAIN}


def test_of_two_files_on_the_same_pictures_one_is_read_and_the_other_named(
    clipcoco: ForkServer, tmp_path: Path
) -> None:
    lemmas = {stem: [text.lower() for text in texts] for stem, texts in SAID.items()}
    tokens = {"Flickr8k.token.txt": SAID, "Flickr8k.lemma.token.txt": lemmas}
    lines = {
        name: "".join(f"{stem}.jpg#{n}\t{text}\n" for stem, texts in said.items() for n, text in enumerate(texts))
        for name, said in tokens.items()
    }
    put(tmp_path / "photos", pictures() | lines | {"Flickr_8k.trainImages.txt": "\n".join(pictures())})
    done = clipcoco("prepare-data", "--images", "photos", cwd=tmp_path).ok()
    assert done.stderr.startswith("Flickr8k.token.txt: 48 captions of 24 pictures")
    assert "Flickr8k.lemma.token.txt: captions of the same pictures, not read" in done.stderr
    assert adopted(tmp_path / "data/photos")[0] == {picture(stem): texts for stem, texts in SAID.items()}


def test_a_tar_writes_below_its_own_folder_alone(clipcoco: ForkServer, tmp_path: Path) -> None:
    bad = [
        "../evil.jpg",
        "/tmp/clipcoco-evil.jpg",
        "a/../../evil.jpg",
        "back\\slash.jpg",
        "\x1b[31mred.jpg",
        "c:evil.jpg",
    ]
    good = {**img2dataset(TRAIN), "deep/er/x.jpg": picture("x"), "deep/er/x.txt": "deeper"}
    hostile = {name: picture(name) for name in bad} | {name.replace(".jpg", ".txt"): "evil" for name in bad}
    data = io.BytesIO(tar(good | hostile))
    with tarfile.open(fileobj=data, mode="a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.FIFOTYPE, "pipe.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    put(tmp_path / "in" / "photos", {"00000.tar": data.getvalue()})
    line = refused_in_packs(clipcoco, tmp_path / "in")
    assert "2 of 26 images are outside of" in line
    assert "3 of 26 images are missing" in line
    assert line.endswith(
        "Only files with plain names are unpacked, or leave them out: the same command with --allow-missing"
    )
    done = clipcoco("prepare-data", "--images", "photos", "--allow-missing", cwd=tmp_path / "in").ok()
    assert "Ready: 19 train and 2 val images" in done.stdout
    assert set(adopted(tmp_path / "in/data/photos")[0]) == {picture(stem) for stem in (*TRAIN, "x")}
    written = {path.relative_to(tmp_path / "in").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    outside = {name for name in written if not name.startswith("data/photos/")}
    assert outside == {"photos/00000.tar"}
    assert not Path("/tmp/clipcoco-evil.jpg").exists()
    assert not [name for name in written if re.search(r"evil|red\.jpg|slash|link|hard|pipe", name)]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def refused_in_packs(clipcoco: ForkServer, folder: Path) -> str:
    """The line of an error after which pictures may lie unpacked, but no captions."""
    done = clipcoco("prepare-data", "--images", "photos", cwd=folder)
    assert done.code == 3, done.stderr
    assert not list(folder.glob("data/photos/annotations/*"))
    return done.stderr.splitlines()[-1]


def test_a_link_where_a_tar_is_unpacked_is_not_followed(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "photos", {"00000.tar": tar(img2dataset(TRAIN))})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data/photos").mkdir(parents=True)
    (tmp_path / "data/photos/unpacked").symlink_to(tmp_path / "elsewhere")
    assert "unpacked is a link" in refused_in_packs(clipcoco, tmp_path)
    (tmp_path / "data/photos/unpacked").unlink()
    (tmp_path / "data/photos/unpacked").mkdir()
    (tmp_path / "data/photos/unpacked/00000").symlink_to(tmp_path / "elsewhere")
    assert "is a link to" in refused_in_packs(clipcoco, tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_text_that_a_link_leads_out_to_is_not_read(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "photos", sidecars("", [*SAID]))
    (tmp_path / "secret.txt").write_text("a secret\n")
    (tmp_path / "photos/IMG_0003.txt").unlink()
    (tmp_path / "photos/IMG_0003.txt").symlink_to(tmp_path / "secret.txt")
    done = clipcoco("prepare-data", "--images", "photos", cwd=tmp_path).ok()
    assert "1 of 24 pictures have no caption beside them" in done.stderr
    assert "secret" not in (tmp_path / "data/photos/annotations/captions_train2017.json").read_text()


def test_without_pyarrow_the_line_that_gets_it_is_told(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "photos", {"a.parquet": b"PAR1"})
    line = refused(clipcoco, tmp_path, code=5, prelude="import sys\nsys.modules['pyarrow'] = None\n")
    assert line.endswith("not installed here. pip install 'clipcoco[parquet]'")
    put(tmp_path / "photos", sidecars("", [*SAID]))  # where other captions are, nobody needs it
    clipcoco(
        "prepare-data", "--images", "photos", cwd=tmp_path, prelude="import sys\nsys.modules['pyarrow'] = None\n"
    ).ok()


def test_a_folder_that_lies_in_data_gets_another_name(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "data/mine", sidecars("", [*SAID]))
    done = clipcoco("prepare-data", "--images", "data/mine", cwd=tmp_path).ok()
    assert "data.root=data/mine-prepared" in done.stdout
    assert "--images DIR" in clipcoco("prepare-data", "--preset", "own", cwd=tmp_path).stderr
    done = clipcoco("train", "--preset", "own", cwd=tmp_path)
    assert done.code == 3
    assert "no captions at data/own/" in done.stderr
    assert "clipcoco prepare-data --images DIR --root data/own" in done.stderr


def test_batches_and_epochs_follow_from_the_number_of_pictures() -> None:
    cached = load_config("own").config.train.cached
    found = {n: (fitting(cached, n).batch_size, fitting(cached, n).epochs) for n in (5, 22, 100, 387, 750, 3000, 10**5)}
    assert found == {
        5: (5, 220),
        22: (16, 220),
        100: (16, 37),
        387: (32, 20),
        750: (64, 20),
        3000: (256, 20),
        10**5: (256, 20),
    }
    given = load_config("own", overrides=["train.cached.batch_size=8"]).config.train.cached
    assert (fitting(given, 100).batch_size, fitting(given, 100).epochs) == (8, 20)


def test_a_run_of_own_pictures_from_the_folder_to_the_search(clipcoco: ForkServer, tmp_path: Path) -> None:
    put(tmp_path / "photos", sidecars("", [*SAID]))
    words = clipcoco("prepare-data", "--images", "photos", cwd=tmp_path).ok().stdout.split("Next: clipcoco ")[1].split()
    words = [*words, *TOY, "train.cached.epochs=2", "--name", "shops", "--device", "cpu"]
    done = clipcoco(*words, cwd=tmp_path).ok()
    run = RunDir(tmp_path / "runs/shops")

    # They are called what the folder is called, wherever a table or a page names them.
    assert "photos val" in done.stdout
    assert "val2017" not in done.stdout
    page = Page(run.report)
    assert "photos val" in page.words
    assert "val2017" not in page.words
    measured = clipcoco("eval", "shops", "--split", "train", cwd=tmp_path).ok()
    assert "photos train" in measured.stdout
    assert "note: 22 of 22 images were trained on" in measured.stderr
    assert "of photos val" in clipcoco("search", "a shop", cwd=tmp_path).ok().stderr

    # What auto came to is the preset's own: nothing of it differs, and the same command finds its run.
    changed = [at.name for at in read_settings(run).differing]
    assert "train.cached.epochs" in changed
    assert not {"train.batch_size", "train.epochs", "train.cached.batch_size", "train.frozen_epochs"} & set(changed)
    assert "batch_size: 16" in run.config.read_text()
    again = clipcoco(*words, "--or-resume", cwd=tmp_path)
    assert (again.code, "is finished" in again.stderr) == (0, True), again.stderr
    longer = clipcoco("resume", "shops", "train.epochs=3", cwd=tmp_path).ok()
    assert "3 epochs" in longer.stderr or "epoch 3" in longer.stdout + longer.stderr


@pytest.mark.parametrize("make", [False, True])
def test_a_mistyped_root_is_no_place_for_the_demos_scenes(clipcoco: ForkServer, tmp_path: Path, make: bool) -> None:
    root = tmp_path / "data/mien"
    if make:
        put(root, {"a.txt": "a file of mine"})
    before = sorted(os.walk(tmp_path))
    done = clipcoco("train", "--preset", "demo", "data.root=data/mien", *LIGHT, cwd=tmp_path)
    assert (done.code, "no captions at data/mien/" in done.stderr) == (3, True)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize(
    ("many", "said"), [(387, "below 8 %"), (750, "about 8 %"), (6000, "about 21 %"), (9000, "21 % or more")]
)
def test_what_to_expect_of_so_many_pictures_is_the_learning_curve(many: int, said: str) -> None:
    line = _expected(many)
    assert f"Expect a mean R@1 {'of ' * (many > 500)}{said} among 1,000 pictures" in line
    assert "(docs/study.md)" in line
    assert ("clipcoco search" in line) == (many < 500)

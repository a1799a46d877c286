"""Published captions files in miniature, with drawn pictures: what is adopted, what is left out, what is refused."""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcoco.config.load import load_config
from clipcoco.data.captions import CaptionTable, overlap, read_captions
from clipcoco.data.split import check_files, open_splits
from clipcoco.disk.links import may_lead
from clipcoco.errors import ConfigError, DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.prepare.own_data import Adopted, adopt
from harness import killable, one_line, tree

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
    Image.new("RGB", size, tuple(hashlib.sha256(path.name.encode()).digest()[:3])).save(path, kind)


class Own:
    """Pictures in a folder, what is said of them in a file beside it, and the data set that is made of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.root = folder, folder / "Images", folder / "root"
        self.captions = folder / "captions.txt"

    def take(self, text: str | None = None, **settings: Any) -> Adopted:
        """Adopt what the captions file says, which holds `text` from now on where there is one."""
        if text is not None:
            self.captions.write_text(text, encoding="utf-8", newline="")
        return adopt(self.captions, self.images, self.root, **{"report": lambda _: None, **settings})

    def refusal(self, text: str | None = None, **settings: Any) -> str:
        before = list(self.root.rglob("*"))
        with pytest.raises(DataError) as caught:
            self.take(text, **settings)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.isprintable()
        assert list(self.root.rglob("*")) == before
        return message

    def tables(self) -> tuple[CaptionTable, CaptionTable]:
        """What training reads, with all its checks."""
        train, val = (read_captions(self.root, split) for split in ("train2017", "val2017"))
        check_files(train)
        check_files(val)
        assert overlap(train, val) == 0
        assert not train.notes
        assert not val.notes
        return train, val

    def by_file(self) -> dict[str, list[str]]:
        found = {}
        for rows in self.tables():
            for i, file in enumerate(rows.files):
                found[file.split("/")[1]] = rows.captions[rows.offsets[i] : rows.offsets[i + 1]]
        return found

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Of the images, in the annotation file."""
        return json.loads((self.root / "annotations" / f"captions_{split}2017.json").read_text())["images"]

    def sides(self) -> tuple[dict[str, int], set[str]]:
        """Ids by original name, and what is for validation."""
        val = self.rows("val")
        return {row["original"]: row["id"] for row in self.rows("train") + val}, {row["original"] for row in val}


@pytest.fixture
def own(tmp_path: Path) -> Own:
    for name in NAMES:
        draw(tmp_path / "Images" / name)
    return Own(tmp_path)


def table(rows: Iterable[Iterable[object]], delimiter: str = ",", end: str = "\n") -> str:
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter, lineterminator=end).writerows(rows)
    return target.getvalue()


def simple(names: list[str]) -> str:
    return table([("image", "caption"), *((name, f"text of {name}") for name in names)])


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
def test_published_forms_are_read_as_they_are(own: Own, form: str) -> None:
    adopted = own.take(FORMS[form]())
    found = own.by_file()
    if form == "commas without quotes":  # there the special one comes last
        found[NAMES[1]].insert(1, found[NAMES[1]].pop())
    assert found == EXPECTED
    assert (adopted.train_images, adopted.train_captions) == (18, 90)
    assert (adopted.val_images, adopted.val_captions) == (2, 10)
    assert not any("left out" in note for note in adopted.notes)
    for name in NAMES:
        (link,) = own.root.glob(f"*2017/{name}")
        assert os.path.samefile(link, own.images / name)
        assert not link.is_symlink()


def test_the_column_of_splits_decides(own: Own) -> None:
    adopted = own.take(hugging_face_flickr30k())
    train, val = own.tables()
    assert sorted(file.split("/")[1] for file in train.files) == NAMES[0::3]
    assert sorted(file.split("/")[1] for file in val.files) == NAMES[1::3]
    assert own.by_file() == {name: texts for i, (name, texts) in enumerate(EXPECTED.items()) if i % 3 < 2}
    assert adopted.val_images == 7
    assert any("6 test images are left out" in note for note in adopted.notes)


def test_a_test_split_is_kept_for_eval(own: Own) -> None:
    assert own.take(hugging_face_flickr30k()).test_images == 6
    assert own.take().notes[-1] == "nothing to do: nothing has changed"
    data = load_config("own", overrides=[f"data.root={own.root}", "data.val_fraction=0.5"]).config.data
    [test] = open_splits(data, "test")
    assert sorted(file.removeprefix("test2017/") for file in test.table.files) == NAMES[2::3]  # all, no fraction
    assert test.table.captions == [caption for name in test.table.files for caption in EXPECTED[name.split("/")[1]]]
    assert (test.table.name, test.table.order) == ("root test", "hashed ids")
    ids = dict(zip(test.table.files, test.table.image_ids.tolist(), strict=True))
    (own.root / "annotations/captions_test2017.json").unlink()
    own.take()  # what is lost is made again
    [again] = open_splits(data, "test")
    assert dict(zip(again.table.files, again.table.image_ids.tolist(), strict=True)) == ids
    own.take(hugging_face_flickr30k().replace(",test,", ",train,"))
    with pytest.raises(DataError, match=r"root has no test split \(--split\)"):
        open_splits(data, "test")
    assert not list((own.root / "test2017").iterdir())


def test_without_val_the_test_split_validates(own: Own) -> None:
    text = hugging_face_flickr30k().replace(",val,", ",restval,")
    adopted = own.take(text)
    assert (adopted.train_images, adopted.val_images) == (14, 6)
    assert sorted(file.split("/")[1] for file in own.tables()[1].files) == NAMES[2::3]
    assert any("14 train and 6 test images" in note for note in adopted.notes)


def test_a_split_of_another_name_is_refused(own: Own) -> None:
    message = own.refusal(hugging_face_flickr30k().replace(",val,", ",fold\x1b3,"))
    assert "line 3" in message


def test_only_training_rows_are_divided_by_seed(own: Own) -> None:
    text = hugging_face_flickr30k().replace(",val,", ",train,").replace(",test,", ",TRAIN,")
    assert own.take(text).val_images == 2


def test_the_known_row_without_a_caption_is_counted(own: Own) -> None:
    text = kaggle_flickr30k().replace(f"{NAMES[4]}| 4| ", f"{NAMES[4]}| 4   ")
    adopted = own.take(text)
    assert own.by_file()[NAMES[4]] == EXPECTED[NAMES[4]][:4]
    assert any("1 of 100 rows lack an image or a caption" in note and "line 26" in note for note in adopted.notes)


def test_captions_are_cleaned(own: Own) -> None:
    rows = [
        ("image", "caption"),
        (NAMES[0], " a\tdog \n on\u2028a \x07 rug "),
        (NAMES[1], "e\u0301"),
        (NAMES[2], " \x00 "),
    ]
    adopted = own.take(table(rows), allow_missing=True)
    assert own.by_file() == {NAMES[0]: ["a dog on a rug"], NAMES[1]: ["é"]}
    assert any("1 of 3 rows" in note for note in adopted.notes)


def test_a_lost_quotation_mark_swallows_no_rows(own: Own) -> None:
    lines = [f"{name},text of {name}" for name in NAMES]
    lines[3] = f'{NAMES[3]},"lost'
    lines[6] = f'{NAMES[6]},"quoted"'
    lines[9] = f'{NAMES[9]},"lost, too'
    lines[10] = f'{NAMES[10]},ends so"'
    adopted = own.take("\n".join(["image,caption", *lines]))
    found = own.by_file()
    assert set(found) == set(NAMES)
    assert [found[NAMES[k]] for k in (3, 6, 9, 10)] == [['"lost'], ["quoted"], ['"lost, too'], ['ends so"']]
    assert any("1 of 20 rows have more cells than the header, first line 11" in note for note in adopted.notes)


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "no columns"),
        (b"picture,words\na.jpg,b\n", "'picture, words'"),
        (b"image,words\na.jpg,b\n", "caption|captions|text|comment|raw"),
        (b"a.jpg a dog\n", "image|file_name|filename|image_name|path"),
        (b"a.jpg,a dog\n", "no columns"),
        (b'{"images": [], "annotations": []}', "no captions in"),
        (b'{\n "image": "a.jpg",\n "caption": "b"\n}\n', "1 of 1 images are missing"),
        (b'{"info": 1, "people": {"a": 2}}', "JSON of this form, an object with 'info', 'people'"),
        (b'{"images": ["a.jpg", "b.jpg"], "captions": ["c"]}', "different lengths"),
        (b'{"image": ["a.jpg", "b.jpg"], "caption": "c"}', "'caption' no list"),
        (b'{"images": ["a.jpg"], "annotations": ["c"]}', "JSON of this form, an object with 'image"),
        (b'[["a.jpg", "b"]]', "JSON of this form, an array"),
        (b'[{"picture": "a.jpg", "caption": "b"}]', "an array, first {'picture'"),
        (b'[{"image": "a.jpg", "caption": "b"},\n{"image"', "not whole JSON"),
        (b"[" * 100_000, "nesting"),
        (b'{"image": ' + b"[" * 100_000, "nesting"),
        (b'{"image": ' + b"9" * 5000 + b"}", "absurd numbers"),
        (b"image,caption\n", "no captions in"),
        (b"image,caption\na.jpg,caf\xe9\n", "line 2"),
        ("image,caption\n".encode("utf-16"), "no captions in"),
        ("image,caption\n".encode("utf-16")[:-1], "not whole UTF-16"),
        (b"PK\x03\x04\x14\x00\x06\x00\xff", "a zip archive, as workbooks (.xlsx"),
        (b"PAR1\x15\x04\xff", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (b"\xff\xd8\xff\xe0", "a picture"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"image" + b"x" * 200_000 + b",caption\n", "no columns"),
        (b"image,caption\n" + b"a.jpg\n" * 10, "rows lack an image or a caption"),
        (b"image,caption\na.jpg,\"" + b"x" * 200_000, "1 of 1 images are missing"),
        ("\x1b[31m\x00,\x85\n".encode(), "no columns"),
        (bytes(range(128)) * 100, ""),
        (b"image,caption\n../a.jpg,b\n", "are outside"),
    ],
)  # fmt: skip
def test_a_file_in_no_known_form_is_one_line(own: Own, content: bytes, needle: str) -> None:
    own.captions.write_bytes(content)
    assert needle in own.refusal()


def test_missing_inputs_are_one_line(own: Own) -> None:
    assert "no captions file" in own.refusal()
    with pytest.raises(ConfigError, match="val_fraction"):
        own.take(simple(NAMES), val_fraction=1.0)
    own.captions, captions = own.images, own.captions
    assert "no captions file" in (message := own.refusal())
    assert "NAME.txt, are found by --images DIR alone" in message
    own.captions = own.images = captions
    assert "no folder of pictures" in own.refusal()


def json_forms() -> dict[str, Any]:
    """The JSON in which captions are published, whole files."""
    coco = {
        "images": [{"id": float(i), "file_name": name} for i, name in enumerate(NAMES)],  # as pandas writes ids
        "annotations": [{"image_id": i, "caption": text} for i, name in enumerate(NAMES) for text in EXPECTED[name]],
    }
    sentences = {name: [{"raw": text, "tokens": ["a"]} for text in texts] for name, texts in EXPECTED.items()}
    karpathy = [{"filename": n, "filepath": "val2014", "sentences": s, "split": "train"} for n, s in sentences.items()]
    return {
        "array": [{"image": name, "caption": texts} for name, texts in EXPECTED.items()],
        "coco": coco,
        "karpathy": {"images": karpathy, "dataset": "mine"},
        "hugging face": [{"image": {"path": name, "bytes": None}, "text": texts} for name, texts in EXPECTED.items()],
        "names": EXPECTED,
        "columns": {"image": list(EXPECTED), "caption": list(EXPECTED.values())},
        "pandas": {"image": dict(enumerate(EXPECTED)), "caption": dict(enumerate(EXPECTED.values()))},
        "coco, ids as texts": {
            "images": [{"id": f"{i:04d}", "file_name": name} for i, name in enumerate(NAMES)],
            "annotations": [{"image_id": i, "captions": EXPECTED[name]} for i, name in enumerate(NAMES)],
        },
        "coco, text": {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
            "annotations": [{"image_id": f"{i:02d}", "text": t} for i, n in enumerate(NAMES) for t in EXPECTED[n]],
        },
        "an object each": {name: {"captions": texts} for name, texts in EXPECTED.items()},
        "sentences each": {name: [{"raw": text} for text in texts] for name, texts in EXPECTED.items()},
        "pandas by row": {str(i): {"image": n, "caption": texts} for i, (n, texts) in enumerate(EXPECTED.items())},
        "lists": {"images": list(EXPECTED), "captions": list(EXPECTED.values())},
        "nested": {"info": {"year": 2017}, "data": [{"image": n, "text": texts} for n, texts in EXPECTED.items()]},
    }


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", json_forms())
def test_json_is_read_in_its_published_forms(own: Own, form: str, indent: int | None) -> None:
    own.take(json.dumps(json_forms()[form], indent=indent))
    assert own.by_file() == EXPECTED


ENTRIES = {  # what one picture has in JSON, entries in "[]", "{}" or lines -> its captions, and a note
    "a name twice": ("{}", '"NAME": ["a"], "NAME": ["b"]', ["a", "b"], ""),
    "a key twice": ("", '{"image": "NAME", "caption": "a", "caption": "b"}', ["a", "b"], ""),
    "keys twice": ("[]", '{"image": "NAME", "image": "NAME", "caption": "a"}', ["a"], ""),
    "a key in two cases": ("[]", '{"image": "NAME", "caption": "a", "Caption": ["b", "c"]}', ["a", "b", "c"], ""),
    "a key in two spellings": ("", '{"image": "NAME", "caption 1": "a", "caption_1": "b"}', ["a", "b"], ""),
    "lists in a list": ("[]", '{"image": "NAME", "captions": ["a", ["b", ["c"]]]}', ["a", "b", "c"], ""),
    "numbers": ("[]", '{"image": "NAME", "captions": ["a", 5, NaN, null]}', ["a", "5"], ""),
    "a raw of nothing": ("[]", '{"image": "NAME", "sentences": [{"raw": "", "text": "a"}]}', ["a"], ""),
    "several names": ("{}", '"NAME": [{"text": "b", "caption": "c", "caption2": "b"}]', ["b", "c"], "20 of 60"),
    "no texts": ("{}", '"NAME": ["a", true, {"x": 1}]', ["a"], "40 values among the captions are not texts"),
    "objects": ("{}", '"NAME": {"caption": "a", "caption2": "b", "lang": "en"}', ["a", "b"], "1 column is not read"),
    "many brackets": ("{}", f'"NAME": ["a", {"[" * 500}"b"{"]" * 500}]', ["a", "b"], ""),
}  # fmt: skip


@pytest.mark.parametrize("case", ENTRIES)
def test_no_caption_of_an_entry_is_lost_in_silence(own: Own, case: str) -> None:
    brackets, entry, expected, told = ENTRIES[case]
    text = (", " if brackets else "\n").join(entry.replace("NAME", name) for name in NAMES)
    adopted = own.take(f"{brackets[:1]}{text}{brackets[1:]}")
    assert own.by_file() == dict.fromkeys(NAMES, expected)
    assert told in " ".join(adopted.notes)


def split_forms() -> dict[str, Any]:
    """JSON that has the fourth picture for validation."""
    parts = {name: "val" if name == NAMES[3] else "train" for name in NAMES}
    rows = [{"image": name, "caption": f"text of {name}"} for name in NAMES]
    return {
        "a list of one": [{**row, "split": [parts[row["image"]]]} for row in rows],
        "an object each": {row["image"]: {"caption": row["caption"], "Split": parts[row["image"]]} for row in rows},
        "objects each": {row["image"]: [{"raw": row["caption"], "split": parts[row["image"]]}] for row in rows},
        "coco": {
            "images": [{"id": name, "file_name": name} for name in NAMES],
            "annotations": [{"image_id": n, "caption": f"text of {n}", "split": part} for n, part in parts.items()],
        },
        "sections": {"train": rows[:3] + rows[4:], "val": rows[3:4], "test": {}, "info": {"year": 2017}},
        "sections of names": {
            "train": {row["image"]: row["caption"] for row in rows if row["image"] != NAMES[3]},
            "Validation": {NAMES[3]: f"text of {NAMES[3]}"},
        },
    }


@pytest.mark.parametrize("form", split_forms())
def test_a_split_in_json_decides_wherever_it_stands(own: Own, form: str) -> None:
    own.take(json.dumps(split_forms()[form]))
    assert own.by_file() == {name: [f"text of {name}"] for name in NAMES}
    assert [file.split("/")[1] for file in own.tables()[1].files] == [NAMES[3]]


@pytest.mark.parametrize(("split", "shown"), [(1, "1"), (True, "true"), (["train", "val"], "['train', 'val']")])
def test_a_split_in_json_that_is_none_is_refused_by_name(own: Own, split: object, shown: str) -> None:
    text = json.dumps([{"image": name, "caption": "a", "split": split} for name in NAMES])
    assert f"split is {shown!r} (" in own.refusal(text)


@pytest.mark.parametrize("empty", [[], None, "", {}])
def test_an_empty_entry_in_json_is_one_row_of_no_use(own: Own, empty: object) -> None:
    adopted = own.take(json.dumps(EXPECTED | {NAMES[5]: empty}))
    assert own.by_file().keys() == set(NAMES) - {NAMES[5]}
    assert any("1 of 20 rows lack an image or a caption" in note and "entry 6" in note for note in adopted.notes)


@pytest.mark.parametrize("odd", [10**400, -1, 1e308, float("inf"), 0.5])
def test_a_number_that_names_no_picture_is_a_row_of_no_use(own: Own, odd: float) -> None:
    entries = [{"image": name, "caption": "a"} for name in NAMES]
    adopted = own.take(json.dumps([*entries, {"image": odd, "caption": "a"}]))
    assert own.by_file().keys() == set(NAMES)
    assert any(note.startswith("1 of 21 ") for note in adopted.notes)


def test_karpathys_files_name_folders_too_and_splits(own: Own) -> None:
    own.images.rename(own.folder / "val2014")
    own.images = own.folder
    entries = [
        {"filename": name, "filepath": "val2014", "split": "val" if name == NAMES[3] else "restval", "sentences": texts}
        for name, texts in EXPECTED.items()
    ]
    own.take(json.dumps({"images": entries}))
    assert own.by_file() == EXPECTED
    assert [file.split("/")[1] for file in own.tables()[1].files] == [NAMES[3]]


CELLS = {  # the rows of a table below its header "image,caption" -> the caption that a spreadsheet shows
    "doubled marks": (',"a ""big"" dog"', 'a "big" dog'),
    "a separator": (',"a dog, running"', "a dog, running"),
    "a line end": (',"a dog\nruns"', "a dog runs"),
    "a mark opened in the middle": (',a "big" dog', 'a "big" dog'),
    "a part in marks": (',"a big" dog', "a big dog"),
    "tab, doubled marks": ('\t"a ""big"" dog"', 'a "big" dog'),
    "tab, a line end": ('\t"a dog\nruns"', "a dog runs"),
    "tab, a separator": ('\t"a\tdog"', "a dog"),
    "bar, a separator": ('| "a | dog"', "a | dog"),
    "semicolon": (';"a dog; runs"', "a dog; runs"),
    "html": (",a dog &amp; a cat&#39;s<br/>tail &c; AT&T", "a dog & a cat's tail &c; AT&T"),
    "invisible": (",a\u00ad do\u200bg", "a dog"),
    "control characters": (",a\x00dog\x07runs", "a dog runs"),
    "empty cells": (",a dog,,", "a dog"),
    "a picture's name on a second line": (',"a dog\nas in p.jpg"', "a dog as in p.jpg"),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_cell_is_what_a_spreadsheet_shows(own: Own, case: str) -> None:
    cell, expected = CELLS[case]
    text = f"image{cell[0]}caption\n" + "".join(f"{name}{cell}\n" for name in NAMES)
    own.take(text)
    assert own.by_file() == {name: [expected] for name in NAMES}


TOKENS = {  # what stands in a line without a header, its captions, and a note
    "two captions": ("NAME\ta dog\ta cat", ["a dog", "a cat"], "20 rows have several captions, a cell each"),
    "a number": ("NAME\t0\ta dog", ["a dog"], "20 rows have a number in the second cell, first line 1"),
    "a number, captions": ("NAME\t0\ta dog\ta cat", ["a dog", "a cat"], "20 rows have several captions"),
    "a number, none": ("NAME\t0\ta dog\nNAME\t1\t", ["a dog"], "20 of 40 rows lack"),
    "a caption of digits": ("NAME#0\t5\t\t", ["5"], ""),
    "digits and none": ("NAME\t5\ta dog\nNAME\ta cat\ta", ["5", "a dog", "a cat", "a"], "40 rows have several"),
    "quotes": ('NAME\t"a ""big"" dog"', ['a "big" dog'], ""),
    "all quoted": ('"NAME#1"\t"a\tdog"\t"a\ncat"', ["a dog", "a cat"], "several captions"),
    "a part in quotes": ('NAME\t"a" dog', ['"a" dog'], ""),
    "a lost quotation mark": ('NAME\t"a dog', ['"a dog'], ""),
}


@pytest.mark.parametrize("case", TOKENS)
def test_cells_of_lines_without_a_header_are_captions(own: Own, case: str) -> None:
    line, expected, told = TOKENS[case]
    adopted = own.take("\n".join(line.replace("NAME", name) for name in NAMES), allow_missing=True)
    assert own.by_file() == dict.fromkeys(NAMES, expected)
    assert told in " ".join(adopted.notes)
    assert told or not any("rows have" in note for note in adopted.notes)


def test_separators_of_a_caption_without_quotes_are_its_own_wherever_it_stands(own: Own) -> None:
    text = "caption,image\n" + "".join(f"a dog, running,{name}\n" for name in NAMES)
    adopted = own.take(text)
    assert own.by_file() == {name: ["a dog, running"] for name in NAMES}
    assert any("20 of 20 rows have more cells than the header" in note for note in adopted.notes)


@pytest.mark.parametrize(
    ("above", "separator", "told"),
    [
        ("", ",", False),
        ("\n\n# made by hand\n", ",", False),
        ("sep=;\n", ";", False),
        ('"sep=\t"\n', "\t", False),
        ("sep=^\n", "^", False),
        ("#", ",", False),
        ("My pictures;;\n", ";", True),
    ],
)
def test_the_header_is_found_below_what_stands_above_it(own: Own, above: str, separator: str, told: bool) -> None:
    rows = "".join(f"{name}{separator}text of {name}\n" for name in NAMES)
    adopted = own.take(f"{above}Image Name{separator}Caption\n{rows}")
    assert set(own.by_file()) == set(NAMES)
    assert any("above the header" in note and "'My pictures" in note for note in adopted.notes) == told


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_of_a_spreadsheet_is_read_in_unicode(own: Own, encoding: str) -> None:
    own.captions.write_bytes(table([("image", "caption"), *((n, "été 北京") for n in NAMES)], "\t").encode(encoding))
    own.take()
    assert own.by_file() == {name: ["été 北京"] for name in NAMES}


@pytest.mark.parametrize(
    ("header", "used"),
    [
        ("image,caption,caption2,caption_3", [0, 1, 2]),
        ("image,caption,captions,text", [0, 1, 2]),
        ("image,title,description,comment", [0, 1, 2]),
        ("image,caption,caption,caption.1", [0, 1, 2]),
        ("image,caption,language,caption_number", [0]),
    ],
)
def test_all_columns_of_captions_count_and_the_others_are_told(own: Own, header: str, used: list[int]) -> None:
    text = header + "\n" + "".join(f"{name},a {name},b {name},c {name}\n" for name in NAMES)
    adopted = own.take(text)
    assert own.by_file() == {name: [f"{'abc'[k]} {name}" for k in used] for name in NAMES}
    columns = header.split(",")[1:]
    told = " ".join(adopted.notes)
    assert f"{len(used)} columns: {', '.join(columns[k] for k in used)}" in told or len(used) == 1
    assert all(f"'{name}'" in told for k, name in enumerate(columns) if k not in used)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("{images}/", False),
        ("../Images/", False),
        ("x/../", False),
        ("/elsewhere/Images/", True),
        ("file:///elsewhere/Images/", True),
        ("C:\\data\\Images\\", True),
        ("data/set/Images/", True),
        ("/Images/old/Images/", True),
    ],
)
def test_paths_of_before_that_lie_in_the_folder_are_found(own: Own, before: str, told: bool) -> None:
    rows = [(before.format(images=own.images) + name, f"text of {name}") for name in NAMES]
    adopted = own.take(table([("image", "caption"), *rows]))
    assert own.by_file() == {name: [f"text of {name}"] for name in NAMES}
    assert any("20 images are found by nearly the same name" in note for note in adopted.notes) == told


@pytest.mark.parametrize("value", ["7", "https://example.org/7.jpg", "", "../x.jpg"])
def test_the_column_that_names_the_pictures_is_the_one_whose_values_are_found(own: Own, value: str) -> None:
    text = "image,caption,file_name\n" + "".join(f"{value},text of {name},{name}\n" for name in NAMES)
    adopted = own.take(text)
    assert set(own.by_file()) == set(NAMES)
    assert not value or any("the column file_name names the pictures" in note for note in adopted.notes)


def test_a_list_in_a_cell_is_several_captions(own: Own) -> None:
    listed = {"['a', \"it's b\"]": ["a", "it's b"], '["a", "b"]': ["a", "b"], "['a' 'b']": ["['a' 'b']"]}
    rows = [(name, [*listed][k % 3]) for k, name in enumerate(NAMES)]
    own.take(table([("image", "caption"), *rows]))
    assert own.by_file() == {name: listed[cell] for name, cell in rows}


def test_repeated_captions_are_kept_once_and_shared_ones_counted(own: Own) -> None:
    rows = [(name, text) for name in NAMES for text in ("a dog", f"only {name}", "a dog")]
    adopted = own.take(table([("image", "caption"), *rows]))
    assert own.by_file() == {name: ["a dog", f"only {name}"] for name in NAMES}
    told = " ".join(adopted.notes)
    assert "20 of 60 captions repeat another of the same picture" in told
    assert "20 of 40 captions stand word for word with several pictures" in told
    assert "2 of 4 captions for validation stand in training too" in told


# --- pictures --------------------------------------------------------------------------------------------


def test_nothing_outside_of_the_folder_is_opened_or_linked(own: Own) -> None:
    outside = own.folder / "secret.jpg"
    draw(outside)
    (own.images / "leak.jpg").symlink_to(outside)
    (own.images / "folder").symlink_to(own.folder)
    (own.images / "inside.jpg").symlink_to(own.images / NAMES[0])
    bad = [
        str(outside),
        "../secret.jpg",
        "x/../../secret.jpg",
        "leak.jpg",
        "folder/secret.jpg",
        "..",
        "/etc/passwd",
        "/etc/Images/../passwd",
        f"../Images/../Images2/{NAMES[1]}",
    ]
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    adopted = own.take(simple([*NAMES, *bad, "inside.jpg"]), allow_missing=True)
    watching = False
    assert not any("secret" in path or "leak" in path or "passwd" in path for path in opened)
    assert any(f"{len(bad)} of 30 images are outside" in note and "secret.jpg'" in note for note in adopted.notes)
    files = own.by_file()
    assert set(files) == set(NAMES)
    assert files[NAMES[0]] == [f"text of {NAMES[0]}", "text of inside.jpg"]  # one picture, on one side
    for path in own.root.glob("*2017/*"):
        assert not os.path.samefile(path, outside)


def test_odd_names_are_counted_as_missing(own: Own) -> None:
    odd = ["nul\0.jpg", "x" * 5000 + ".jpg", "\ud800.jpg", ".", "a\\b.jpg", "\x1b[31mred.jpg", NAMES[0] + "/x.jpg"]
    lines = "".join(json.dumps({"image": name, "caption": "text"}) + "\n" for name in [*NAMES, *odd])
    adopted = own.take(lines, allow_missing=True)
    (note,) = (note for note in adopted.notes if "left out" in note)
    assert note.startswith(f"{len(odd)} of {len(NAMES) + len(odd)} images are missing in {own.images}, first ")
    assert note.isprintable()
    assert len(note) < 500
    own.tables()


def test_more_than_one_row_in_twenty_is_left_out_only_when_that_is_asked_for(own: Own) -> None:
    (own.images / NAMES[0]).unlink()
    adopted = own.take(simple(NAMES))
    assert any("1 of 20 images are missing" in note and NAMES[0] in note for note in adopted.notes)
    assert set(own.by_file()) == set(NAMES[1:])
    (own.images / NAMES[1]).write_bytes(b"GIF89a")  # different reasons add up
    message = own.refusal()
    assert "1 of 20 images are missing" in message
    assert "1 of 20 files" in message
    assert message.endswith("the same command with --allow-missing")
    for name in NAMES[2:15]:
        (own.images / name).unlink()
    adopted = own.take(allow_missing=True)
    assert any("14 of 20 images are missing" in note for note in adopted.notes)
    assert set(own.by_file()) == set(NAMES[15:])
    own.images, own.root = own.root / "annotations", own.root.with_name("other")
    nothing = own.refusal(allow_missing=True)
    assert "20 of 20 images are missing" in nothing
    assert "allow-missing" not in nothing


def test_what_is_not_a_jpeg_or_png_is_dropped_and_named(own: Own) -> None:
    (own.images / NAMES[0]).write_bytes(b"")
    (own.images / NAMES[1]).write_bytes(b"<html>not found</html>")
    draw(own.images / NAMES[2], kind="GIF")
    (own.images / NAMES[3]).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (own.images / NAMES[4]).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    header = b"\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    (own.images / NAMES[5]).write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"\0\0\0\0")
    (own.images / NAMES[6]).unlink()
    os.mkfifo(own.images / NAMES[6])
    draw(own.images / NAMES[7], size=(31, 17), kind="PNG")  # a PNG that is called .jpg, as COCO has one
    adopted = own.take(simple(NAMES), allow_missing=True)
    assert any("6 of 20 files" in note and NAMES[0] in note for note in adopted.notes)
    assert any("1 of 20 images are missing" in note for note in adopted.notes)
    assert set(own.by_file()) == set(NAMES[7:])
    rows = own.rows("train") + own.rows("val")
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in rows}
    assert sizes == dict.fromkeys(NAMES[8:], (12, 8)) | {NAMES[7]: (31, 17)}


def test_names_that_annotations_cannot_hold_give_way_to_ids(tmp_path: Path) -> None:
    own = Own(tmp_path)
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
        draw(own.images / name, kind=kind)
    own.take(simple(list(kinds)))
    numbers, _ = own.sides()
    expected = {}
    for path in kinds:
        suffix = ".png" if kinds[path] == "PNG" else ".jpg"
        expected[path.split("/")[-1] if "lain" in path else f"{numbers[path]:012d}{suffix}"] = [f"text of {path}"]
    assert len(set(numbers.values())) == len(kinds)
    assert own.by_file() == expected


def test_a_file_that_is_called_like_anothers_id(tmp_path: Path) -> None:
    own = Own(tmp_path)
    names = ["with space.jpg", "x.jpg"]
    for name in names:
        draw(own.images / name)
    own.take(simple(names))
    (taken,) = set(own.by_file()) - {"x.jpg"}
    draw(own.images / taken)
    own.take(simple([*names, taken]))
    found = own.by_file()
    assert found[taken] == ["text of with space.jpg"]
    assert sorted(found.values()) == sorted([f"text of {name}"] for name in [*names, taken])


def test_names_are_found_without_suffix_or_in_another_case_if_it_is_plain_which(own: Own) -> None:
    draw(own.images / "Twice.jpg")
    draw(own.images / "TWICE.jpg")
    draw(own.images / "one.jpg")
    draw(own.images / "one.png", kind="PNG")
    draw(own.images / "Cafe\u0301.jpg")
    asked = [NAMES[0].removesuffix(".jpg"), NAMES[1].upper(), "twice.jpg", "one", "caf\u00e9.jpg", *NAMES[2:]]
    adopted = own.take(simple(asked), allow_missing=True)
    assert any("2 of 23 images are missing" in note and "'twice.jpg', 'one'" in note for note in adopted.notes)
    assert any("3 images are found by nearly the same name" in note for note in adopted.notes)
    found = own.by_file()
    assert found[NAMES[0]] == [f"text of {asked[0]}"]
    assert found[NAMES[1]] == [f"text of {asked[1]}"]
    assert ["text of caf\u00e9.jpg"] in found.values()


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("sub/p.jpg", "sub/P.JPG"),
        ("sub/p", "sub/p.jpg"),
        ("Sub/p.jpg", "sub/p.jpeg"),
        ("sub/p.jpeg", "sub/p.jpg"),
        ("caf\u00e9/p.jpg", "cafe\u0301/p.jpg"),
        ("sub\\p.jpg", "sub/p.jpg"),
        ("p.jpg", "Images/p.jpg"),
        ("Images/p.jpg", "p.jpg"),
        ("./sub/p.JPG", "x/sub/p.jpg"),
    ],
)
def test_a_name_is_found_below_the_folder_as_in_it(own: Own, asked: str, there: str) -> None:
    draw(own.images / there)
    draw(own.images / "@eaDir" / there)  # thumbnails of a NAS
    adopted = own.take(simple([*NAMES, asked]))
    assert [f"text of {asked}"] in own.by_file().values()
    assert any("1 images are found by nearly the same name" in note for note in adopted.notes)


# --- the split, and calling again ------------------------------------------------------------------------


def test_the_split_depends_on_names_and_seed_only(own: Own) -> None:
    lines = [f"{name},text {number} of {name}" for name in NAMES for number in range(2)]
    found = []
    for trial, seed in enumerate((0, 0, 0, 1)):
        random.Random(trial).shuffle(lines)
        own.root = own.folder / f"root{trial}"
        adopted = own.take("\n".join(["image,caption", *lines]), val_fraction=0.25, seed=seed)
        assert (adopted.val_images, adopted.val_captions) == (5, 10)
        own.tables()
        found.append(own.sides())
    numbers, vals = zip(*found, strict=True)
    assert vals[0] == vals[1] == vals[2] != vals[3]
    assert all(one == numbers[0] for one in numbers)
    assert vals[0] == set(sorted(NAMES, key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())[:5])


def test_old_pictures_keep_their_ids_and_sides_when_others_come_and_go(own: Own) -> None:
    own.take(simple(NAMES[:10]), val_fraction=0.2)
    old_ids, old_val = own.sides()
    adopted = own.take(simple(NAMES), val_fraction=0.2)
    ids, val = own.sides()
    assert {name: ids[name] for name in NAMES[:10]} == old_ids
    assert val & set(NAMES[:10]) == old_val
    assert len(val) == 4
    assert not any("move" in note for note in adopted.notes)
    own.take(simple(NAMES[5:]), val_fraction=0.2)
    assert own.sides()[1] <= val
    own.take(simple(NAMES), val_fraction=0.2)
    assert own.sides() == (ids, val)
    adopted = own.take(val_fraction=0.5)
    assert len(own.sides()[1]) == 10
    assert val < own.sides()[1]
    assert any("6 images move from training to validation" in note for note in adopted.notes)
    own.take(val_fraction=0.1)
    assert own.sides()[1] < val


def test_pictures_that_were_moved_keep_their_ids_and_sides(own: Own) -> None:
    (own.images / NAMES[1]).write_bytes((own.images / NAMES[0]).read_bytes())  # twins move, too
    (own.images / NAMES[2]).write_bytes((own.images / NAMES[2]).read_bytes() + bytes(200_000))
    own.take(simple(NAMES), val_fraction=0.3)
    old_ids, old_val = own.sides()
    moved = [f"sub/new{name}" for name in NAMES]
    (own.images / "sub").mkdir()
    for name in NAMES:
        (own.images / name).rename(own.images / f"sub/new{name}")
    draw(own.images / "more.jpg")
    adopted = own.take(simple([*moved, "more.jpg"]), val_fraction=0.3)
    ids, val = own.sides()
    assert {path.removeprefix("sub/new"): number for path, number in ids.items() if path in moved} == old_ids
    assert {path.removeprefix("sub/new") for path in val} - {"more.jpg"} == old_val
    assert any("20 images have moved, first" in note and f"as 'sub/new{NAMES[0]}'" in note for note in adopted.notes)
    assert not any("from training" in note for note in adopted.notes)
    (own.images / "copy.jpg").write_bytes((own.images / moved[5]).read_bytes())  # the old one is there still
    adopted = own.take(simple([name for name in [*moved, "copy.jpg"] if name != moved[5]]), val_fraction=0.3)
    assert own.sides()[0]["copy.jpg"] not in old_ids.values()
    assert not any("have moved" in note for note in adopted.notes)


def test_data_of_an_older_version_keep_their_ids_and_sides(own: Own) -> None:
    own.take(simple(NAMES[:10]), val_fraction=0.2)
    for file in (own.root / "annotations").iterdir():  # as it numbered them, and it wrote no more into own.json
        content = json.loads(file.read_text())
        for row in content["images"]:
            row["id"] = NAMES.index(row["original"]) + 1
        file.write_text(json.dumps(content))
    state = json.loads((own.root / ".clipcoco" / "own.json").read_text())
    (own.root / ".clipcoco" / "own.json").write_text(
        json.dumps({"captions": state["captions"], "images": state["images"]})
    )
    _, old_val = own.sides()
    own.take(simple(NAMES), val_fraction=0.2)
    ids, val = own.sides()
    assert [ids[name] for name in NAMES[:10]] == list(range(1, 11))
    assert val & set(NAMES[:10]) == old_val


@pytest.mark.parametrize("known", [[1], {"a": 1}, {name: [5, "val"] for name in NAMES}, {NAMES[0]: [-1, "x"]}])
def test_a_record_that_was_edited_is_not_believed(own: Own, known: object) -> None:
    own.take(simple(NAMES))
    calm = own.sides()
    state = json.loads((own.root / ".clipcoco" / "own.json").read_text())
    (own.root / ".clipcoco" / "own.json").write_text(
        json.dumps(state | {"pictures": known, "fingerprint": "", "draw": 3, "looks": known})
    )
    own.take()
    assert own.sides() == calm


def test_the_same_bytes_under_several_names_stay_on_one_side(own: Own) -> None:
    twins = [f"sub/{name}" for name in NAMES[:15]]
    (own.images / "sub").mkdir()
    for name in NAMES[:15]:
        (own.images / "sub" / name).write_bytes((own.images / name).read_bytes())
    adopted = own.take(simple([*NAMES, *twins]), val_fraction=0.3)
    _, val = own.sides()
    assert len(val) in (10, 11)
    assert all((name in val) == (f"sub/{name}" in val) for name in NAMES[:15])
    assert any("15 pictures are byte for byte the same" in note and "one side" in note for note in adopted.notes)
    rows = [("image", "caption", "split"), *((n, f"a {n}", "val" if "/" in n else "train") for n in NAMES + twins)]
    own.root = own.folder / "given"
    adopted = own.take(table(rows))
    assert any("15 pictures for validation are in training too, byte for byte" in note for note in adopted.notes)


def test_two_pictures_are_the_least(own: Own) -> None:
    adopted = own.take(simple(NAMES[:2]), val_fraction=0.001)
    assert (adopted.train_images, adopted.val_images) == (1, 1)
    own.root = own.folder / "other"
    assert "0 train and 1 val" in own.refusal(simple(NAMES[:1]))


def test_the_same_call_does_nothing_until_something_changes(own: Own) -> None:
    first = own.take(simple(NAMES))
    stamps = {path: path.stat().st_mtime_ns for path in own.root.rglob("*")}
    told: list[TaskProgress] = []
    again = own.take(report=told.append)
    assert again.notes[-1].startswith("nothing to do")
    assert again.notes[:-1] == first.notes
    assert (again.root, again.train_images, again.val_captions) == (own.root, first.train_images, first.val_captions)
    assert not told
    assert {path: path.stat().st_mtime_ns for path in own.root.rglob("*")} == stamps

    def changed(**settings: Any) -> dict[str, list[str]]:
        assert "nothing to do" not in own.take(**settings).notes[-1]
        assert "nothing to do" in own.take(**settings).notes[-1]
        return own.by_file()

    next(own.root.glob("train2017/*")).unlink()
    assert len(changed()) == 20
    next(own.root.glob("annotations/*")).unlink()
    assert len(changed()) == 20
    (own.images / NAMES[0]).unlink()
    draw(own.images / NAMES[0], size=(5, 5))
    assert len(changed()) == 20
    assert os.path.samefile(next(own.root.glob(f"*/{NAMES[0]}")), own.images / NAMES[0])
    own.captions.write_text(simple(NAMES[5:]))
    assert set(changed()) == set(NAMES[5:])
    assert len(list(own.root.glob("*2017/*"))) == 15  # nothing stale
    changed(seed=5)
    changed(val_fraction=0.5)
    assert len(list(own.root.glob("val2017/*"))) == 8


def test_the_last_name_of_a_picture_is_not_removed(own: Own) -> None:
    own.take(simple(NAMES))
    (link,) = own.root.glob(f"*2017/{NAMES[0]}")
    (own.images / NAMES[0]).unlink()  # the user thinks of the adopted ones as copies
    own.take()
    assert link.exists()
    assert NAMES[0] not in own.by_file()


def test_another_data_set_is_never_written_over(own: Own, scenes: Path) -> None:
    own.root, root = scenes, own.root
    assert "other data are in the way" in own.refusal(simple(NAMES))
    own.root = root
    (root / "train2017").mkdir(parents=True)
    assert "other data are in the way" in own.refusal()
    (root / "train2017").rmdir()
    own.take()
    before = tree(root)
    own.captions = own.folder / "other.csv"
    assert "holds the pictures of" in own.refusal(simple(NAMES))
    assert tree(root) == before


KILLED = """
from clipcoco.prepare.own_data import adopt
begin()
adopt(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), report=lambda _: None)
assert not {"torch", "torchvision", "matplotlib"} & set(sys.modules)
"""


def test_killed_anywhere_the_same_call_completes(own: Own) -> None:
    own.captions.write_text(simple(NAMES))
    root, calm = own.root, own.folder / "calm"
    with killable(KILLED) as killed:
        steps = killed(0, own.captions, own.images, calm)
        for after in (1, 5, 20, steps - 3, steps - 2, steps - 1, steps):
            killed(after, own.captions, own.images, root)
            whole = [(root / "annotations" / f"captions_{split}2017.json").exists() for split in ("train", "val")]
            if all(whole):
                own.tables()
            else:
                assert after < steps  # the last one says that all is there
            if after > 20:  # from the beginning; the others go on in one folder
                own.take()
                assert tree(root) == tree(calm)
                shutil.rmtree(root)
        own.take()
        assert tree(root) == tree(calm)
        own.captions.write_text(simple(NAMES[5:]))  # redone, never with the captions of before
        killed(12, own.captions, own.images, root)
    assert not list((root / "annotations").iterdir())
    own.take()
    assert set(own.by_file()) == set(NAMES[5:])


def test_links_to_another_file_system_are_symbolic_and_training_follows_them(
    tmp_path: Path, other_volume: Path
) -> None:
    own = Own(tmp_path)
    images = own.images = other_volume
    for name in NAMES:
        draw(images / name)
    adopted = own.take(simple(NAMES))
    assert any("symbolic links" in note for note in adopted.notes)
    assert may_lead(own.root) == [str(own.root), str(images)]
    forgotten = Path(os.environ["XDG_CONFIG_HOME"], "clipcoco", "links.json")
    forgotten.unlink()
    with pytest.raises(DataError, match=f"--allow-links {images}"):
        own.tables()
    own.take()  # the same call again allows it again
    assert set(own.by_file()) == set(NAMES)
    assert all(path.is_symlink() for path in own.root.glob("*2017/*"))
    (images / NAMES[0]).unlink()
    (tmp_path / "secret.jpg").write_bytes(b"")
    (images / NAMES[0]).symlink_to(tmp_path / "secret.jpg")
    own.take()
    assert set(own.by_file()) == set(NAMES[1:])


def test_a_root_that_cannot_be_made_is_one_line(own: Own) -> None:
    own.root = own.captions / "root"
    with pytest.raises(EnvironmentProblem) as caught:
        own.take(simple(NAMES))
    one_line(caught.value)


def test_real_flickr_captions(tmp_path: Path, shared: Path) -> None:
    """Flickr8k's real captions and pictures, written back in the form in which they were published."""
    source = shared / "flickr8k"
    content = json.loads((source / "annotations" / "captions_val2017.json").read_text())
    names = {row["id"]: row["file_name"] for row in content["images"]}
    lines = [(names[row["image_id"]], row["caption"]) for row in content["annotations"]]
    token = "".join(f"{name}#{number % 5}\t{text}\n" for number, (name, text) in enumerate(lines))
    kaggle = table([("image", "caption"), *lines])
    own, found = Own(tmp_path), []
    own.images = source / "val2017"
    for form, text in (("token", token), ("kaggle", kaggle)):
        own.root = tmp_path / form
        adopted = own.take(text)
        assert (adopted.train_images, adopted.val_images) == (900, 100)
        assert adopted.train_captions + adopted.val_captions == 5000
        found.append(own.by_file())
    assert found[0] == found[1]

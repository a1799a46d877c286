"""The page of retrievals, read as a browser would and from the real data where they are."""

import base64
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcoco.report.retrievals import CaptionHit, ImageHit, ImageQuery, TextQuery, write_retrievals

EVIL = "<script>alert('1')</script> & \"quoted\" $title ${x}"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cards: list[str] = []  # text of each <article>
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "article" in self.open:
            self.cards[-1] += data + " "

    @property
    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def result(*protocols: str) -> dict[str, Any]:
    recalls = {"r1": 31.4, "r5": 62.81, "r10": 78.5, "median_rank": 2.5}
    chance = {"r1": 0.2, "r5": 1.0, "r10": 2.0, "median_rank": 250.0}
    entry = {
        "i2t": recalls,
        "t2i": recalls,
        "chance": {"i2t": chance, "t2i": chance},
        "folds": 5,
        "dropped": 14,
    }
    return {
        "step": 3312,
        "split": "val2017",
        "images": 5014,
        "captions": 25082,
        "protocols": dict.fromkeys(protocols, entry),
    }


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'a "b" <c>.png'
    Image.new("RGBA", (500, 300), (200, 30, 30, 255)).save(path)
    return path


def test_the_page_shows_what_was_found_and_what_was_right(tmp_path: Path, image: Path) -> None:
    page_path = tmp_path / "retrievals.html"
    hits = (ImageHit(image, 0.4123, False), ImageHit(image, 0.3, True))
    texts = [TextQuery("a drawn caption", 2, True, hits), TextQuery("a hard one", 1234, False, hits[:1])]
    captions = (CaptionHit("right caption", 0.5, True), CaptionHit("wrong caption", 0.25, False))
    images = [ImageQuery(image, 1, True, captions), ImageQuery(image, 77, False, captions[1:])]
    write_retrievals(page_path, "small-1", result("own", "1k"), texts, images)
    page = Page(page_path)
    drawn, worst, first, second = page.cards
    assert "a drawn caption" in drawn
    assert "rank 2" in drawn
    assert drawn.index("0.412") < drawn.index("0.300") < drawn.index("right", drawn.index("0.300"))
    assert "rank 1,234" in worst
    assert "✓" not in worst
    assert first.index("right caption") < first.index("✓ right") < first.index("wrong caption")
    assert "✓" not in second
    headings = ("nearest images", "Drawn by the seed", "a drawn caption", "The worst failures", "a hard one")
    places = [page.text.index(words) for words in headings]
    assert places == sorted(places)
    for words in (
        "step 3,312 · val2017",
        "5,014 images, 25,082 captions",
        "31.40",
        "62.81",
        "0.20",
        "14 images left out",
    ):
        assert words in page.text
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "li"].count("right") == 2


def test_captions_and_names_are_text_not_markup(tmp_path: Path, image: Path) -> None:
    page_path = tmp_path / "retrievals.html"
    texts = [TextQuery(EVIL, 1, True, (ImageHit(image, 0.4, True),))]
    images = [ImageQuery(image, 1, True, (CaptionHit(EVIL, 0.4, True),))]
    write_retrievals(page_path, EVIL, result("own"), texts, images)
    page = Page(page_path)
    assert page.text.count(EVIL) == 4, "title, heading and twice in the cards, to the letter"
    assert "script" not in {tag for tag, _ in page.tags}
    assert {attributes["alt"] for attributes in page.pictures} == {image.name}


def test_an_image_that_is_gone_is_named(tmp_path: Path, image: Path) -> None:
    page_path = tmp_path / "retrievals.html"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no image")
    gone = (
        ImageHit(tmp_path / "gone.jpg", 0.4, False),
        ImageHit(broken, 0.3, False),
        ImageHit(image, 0.2, True),
    )
    write_retrievals(page_path, "a", result("own"), [TextQuery("c", 3, True, gone)], [])
    page = Page(page_path)
    assert "gone.jpg can't be read" in page.text
    assert "broken.jpg can't be read" in page.text
    assert len(page.pictures) == 1


def test_a_full_page_of_real_photographs_is_one_small_file(tmp_path: Path, shared: Path) -> None:
    root = shared / "coco-real"
    annotations = json.loads((root / "annotations" / "captions_val2017.json").read_text())
    files = [root / "val2017" / entry["file_name"] for entry in annotations["images"]]
    captions = [entry["caption"] for entry in annotations["annotations"]]
    draw = random.Random(0)
    texts, images = [], []
    for number in range(12):
        drawn = number < 6
        hits = tuple(ImageHit(path, 0.3, False) for path in draw.sample(files, 5))
        texts.append(TextQuery(draw.choice(captions), 9, drawn, hits))
        found = tuple(CaptionHit(caption, 0.3, False) for caption in draw.sample(captions, 5))
        images.append(ImageQuery(draw.choice(files), 9, drawn, found))
    page_path = tmp_path / "retrievals.html"
    write_retrievals(page_path, "small-1", result("own"), texts, images)
    assert page_path.stat().st_size < 3_000_000
    page = Page(page_path)
    assert len(page.pictures) == 72
    assert not {"link", "script", "iframe", "a"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|https?:", page.source)
    for attributes in page.pictures:
        source = attributes["src"]
        assert source is not None
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
            assert max(thumbnail.size) == 160
        assert attributes["alt"]

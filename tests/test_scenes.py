"""The drawn scenes, read by a reader who knows every scene: it parses captions and looks at pixels itself."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipcoco.errors import DataError
from clipcoco.prepare.composition import Scene, scenes
from clipcoco.prepare.drawing import COLOURS, PAPERS, SHAPES
from clipcoco.prepare.scenes import draw_scenes, is_drawn
from clipcoco.prepare.wording import KINDS, captions, false_captions, kinds_told
from harness import python, tree

TRAIN, VAL = 40, 60
SIZE_OF = {"big": "large", "large": "large", "small": "small", "little": "small", "tiny": "small"}
MENTION = re.compile(rf"(?:an? |the |^)(?:({'|'.join(SIZE_OF)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
USUAL = {"violet": "purple", "rose": "pink", "dark": "black", "crimson": "red"}
USUAL |= {"disc": "circle", "box": "square", "crescent": "moon", "plus": "cross", "hoop": "ring"}
# From wordings to one skeleton: digits are mentions, L R A B say left of, right of, above, below, N next to.
SKELETON = (
    (r"^(there are two shapes,|(a|an) (picture|drawing|image) of|we see|there is) ", ""),
    (r"(?<!there) (is|sits) ", " "),
    (r"\b(to the |on the )?left of", "L"),
    (r"\b(to the |on the )?right of", "R"),
    (r"(\d) on the left( and|,) (\d) on the right", r"\1 L \3"),
    (r"(\d) on the right( and|,) (\d) on the left", r"\1 R \3"),
    (r"(\d) at the top and (\d) at the bottom", r"\1 A \2"),
    (r"(\d) at the bottom and (\d) at the top", r"\1 B \2"),
    (r"\b(above|over)\b", "A"),
    (r"\b(below|under|beneath|underneath)\b", "B"),
    (r"\b(next to|beside)\b", "N"),
    (r"^([LRAB]) (\d) there is (.+)$", r"\3 \1 \2"),
    (r"( and|,| with) (?=\d)", " & "),
    (r" +", " "),
)

Kind = tuple[str, str]
Fact = tuple[Kind, str, Kind | str]
PLACE = re.compile(r"\b(?:at|in|on) the ((?:top|bottom)(?: left| right)?|left|right|middle)\b")
PAPER = re.compile(rf"\bon ({'|'.join(PAPERS)}) paper\b")


def read(caption: str) -> tuple[dict[Kind, str | None], set[Fact]]:
    """What a caption says: the size of each (colour, shape) or None, and how they stand."""
    text = re.sub("|".join(USUAL), lambda word: USUAL[word[0]], caption.removesuffix(".").lower())
    mentions = [((colour, shape), SIZE_OF.get(size)) for size, colour, shape in MENTION.findall(text)]
    numbers = iter(range(len(mentions)))
    text = MENTION.sub(lambda _: str(next(numbers)), text)
    places, papers = (pattern.findall(text) if len(mentions) == 1 else [] for pattern in (PLACE, PAPER))
    if places or papers:
        text = re.sub(r"^there is |(?<=\d) (is|sits)$", "", " ".join(PLACE.sub("", PAPER.sub("", text)).split()))
    for pattern, replacement in SKELETON:
        text = re.sub(pattern, replacement, text)
    assert re.fullmatch(r"\d( [LRABN&] \d)*", text), f"not understood: {caption} ({text})"
    kinds = [kind for kind, _ in mentions]
    facts: set[Fact] = {(kinds[0], "at", place) for place in places} | {(kinds[0], "on", paper) for paper in papers}
    for first, relation, second in re.findall(r"(\d) (?=([LRN]) (\d))", text):
        one, other = kinds[int(first)], kinds[int(second)]
        facts.add({"L": (one, "left", other), "R": (other, "left", one), "N": (one, "beside", other)}[relation])
    if vertical := re.fullmatch(r"(.+) ([AB]) (.+)", text):
        before, after = (re.findall(r"\d", vertical[side]) for side in (1, 3))
        upper, lower = (before, after) if vertical[2] == "A" else (after, before)
        facts |= {(kinds[int(high)], "above", kinds[int(low)]) for high in upper for low in lower}
    return dict(mentions), facts


def known(scene: Scene) -> tuple[dict[Kind, str], frozenset[Fact]]:
    """All that is true of a scene."""
    if scene.place:
        (thing,) = scene.things
        kind = thing.colour, thing.shape
        return {kind: thing.size}, frozenset({(kind, "at", scene.place), (kind, "on", scene.paper)})
    sizes = {(thing.colour, thing.shape): thing.size for thing in scene.things}
    rows = [[(thing.colour, thing.shape) for thing in row] for row in scene.rows]
    facts: set[Fact] = {(high, "above", low) for low in rows[-1] for high in rows[0] if len(rows) == 2}
    for left, right in (row for row in rows if len(row) == 2):
        facts |= {(left, "left", right), (left, "beside", right), (right, "beside", left)}
    return sizes, frozenset(facts)


def is_true(caption: tuple[dict[Kind, str | None], set[Fact]], scene: tuple[dict[Kind, str], frozenset[Fact]]) -> bool:
    (said, said_facts), (sizes, facts) = caption, scene
    return all(kind in sizes and size in (None, sizes[kind]) for kind, size in said.items()) and said_facts <= facts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "drawn"
    draw_scenes(folder, TRAIN, VAL)
    return folder


def test_layout_is_the_official_one(root: Path) -> None:
    seen: set[int] = set()
    for split, count in (("train", TRAIN), ("val", VAL)):
        coco = COCO(str(root / "annotations" / f"captions_{split}2017.json"))
        assert len(coco.imgs) == count
        assert set(coco.dataset) == {"info", "licenses", "images", "annotations"}
        assert "CC0" in coco.dataset["licenses"][0]["name"]
        assert seen.isdisjoint(coco.imgs)
        seen |= set(coco.imgs)
        assert {f"{split}2017/{image['file_name']}" for image in coco.imgs.values()} == {
            f"{split}2017/{file.name}" for file in (root / f"{split}2017").iterdir()
        }
        for image_id, image in coco.imgs.items():
            assert image["file_name"] == f"{image_id:012d}.jpg"
            with Image.open(root / f"{split}2017" / image["file_name"]) as picture:
                assert (picture.mode, picture.size) == ("RGB", (image["width"], image["height"]))
            texts = [annotation["caption"] for annotation in coco.imgToAnns[image_id]]
            assert len(set(texts)) == len(texts) == 5
    assert "CC0" in (root / "README.txt").read_text(encoding="utf-8")


def test_another_process_draws_the_same_bytes(root: Path, tmp_path: Path) -> None:
    code = f"import pathlib, clipcoco.prepare.scenes as s; s.draw_scenes(pathlib.Path('again'), {TRAIN}, {VAL})"
    python(code, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert tree(tmp_path / "again") == tree(root)


def test_fewer_scenes_are_the_first_of_more(root: Path, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "few", 3, 2)
    few, more = tree(tmp_path / "few"), tree(root)
    assert [name for name in few if few[name] != more[name] and not name.startswith("annotations")] == []


def test_interrupted_drawing_is_incomplete_and_can_be_completed(root: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 50:
            raise KeyboardInterrupt

    folder = tmp_path / "drawn"
    assert not is_drawn(folder)
    for _ in range(2):  # the second time over a complete drawing
        with pytest.raises(KeyboardInterrupt):
            draw_scenes(folder, TRAIN, VAL, progress=interrupt)
        assert not is_drawn(folder)
        draw_scenes(folder, TRAIN, VAL)
        assert is_drawn(folder)
        assert tree(folder) == tree(root)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    draw_scenes(tmp_path, 3, 2, size=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_other_data_are_left_alone(tmp_path: Path) -> None:
    captions_file = tmp_path / "annotations" / "captions_val2017.json"
    captions_file.parent.mkdir()
    captions_file.write_text("{}")
    (captions_file.parent / "captions_train2017.json").write_text("{}")
    assert not is_drawn(tmp_path)
    with pytest.raises(DataError, match="other data"):
        draw_scenes(tmp_path, 1, 1)
    assert sorted(tree(tmp_path)) == ["annotations/captions_train2017.json", "annotations/captions_val2017.json"]


def test_no_composition_of_validation_occurs_in_training() -> None:
    train, val = ([known(scene) for scene in scenes(count, split)] for count, split in ((6000, "train"), (500, "val")))
    compositions = [{(frozenset(sizes.items()), facts) for sizes, facts in split} for split in (train, val)]
    assert [len(split) for split in compositions] == [6000, 500]
    assert compositions[0].isdisjoint(compositions[1])


def test_captions_are_short_true_and_worded_in_many_ways() -> None:
    vocabulary: set[str] = set()
    openings: set[str] = set()
    for scene in scenes(500, "val"):
        texts = captions(scene)
        assert len(set(texts)) == 5
        for text in texts:
            assert is_true(read(text), known(scene)), (text, scene)
            words = re.findall("[a-z]+", text.lower())
            assert len(words) <= 20, text
            vocabulary |= set(words)
            openings.add(MENTION.sub("_", text[0].lower() + text[1:]))
    assert 50 <= len(vocabulary) <= 100
    assert len(openings) >= 60


def test_training_captions_are_also_as_people_search() -> None:
    plain, single = 0, 0
    for scene in scenes(500, "train"):
        texts = captions(scene)
        assert len(set(texts)) == 5
        said = [read(text) for text in texts]
        assert all(is_true(one, known(scene)) for one in said), (texts, scene)
        single += any(len(kinds) == 1 for kinds, _ in said)
        plain += any(
            len(facts) > 0 and set(kinds.values()) == {None} and text.islower()
            for text, (kinds, facts) in zip(texts, said, strict=True)
        )
        whole = [
            kinds
            for kinds, facts in said
            if len(kinds) == len(scene.things) and None not in kinds.values() and len(facts) == 1 + bool(scene.place)
        ]
        assert whole, texts  # and one at least says all
    assert (plain, single) == (500, 500)


def test_the_first_query_of_the_readme_has_an_answer_in_the_gallery() -> None:
    found = re.search(r'clipcoco search "(.+?)"', (Path(__file__).parents[1] / "README.md").read_text())
    assert found
    asked = read(found[1])
    assert any(is_true(asked, known(scene)) for scene in scenes(500, "val")), found[1]


def words(caption: str) -> list[str]:
    return sorted(set(re.findall("[a-z]+", caption.lower())) - {"a", "an"})


def test_false_captions_are_false_whatever_their_true_ones_leave_open() -> None:
    counts: dict[str, int] = {}
    for scene in [*scenes(500, "val"), *scenes(500, "train")]:
        for caption in captions(scene):
            found = list(false_captions(scene, caption))
            assert found == list(false_captions(scene, caption))
            assert len({kind for kind, _ in found}) == len(found) >= 2
            for kind, false in found:
                assert not is_true(read(false), known(scene)), (kind, false, scene)
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", false.lower()), false
                assert false[0].isupper() == caption[0].isupper()
                named = len(read(caption)[0])
                if named == 1 and kind.endswith("swapped"):  # with a thing that is not named
                    (there,) = kinds_told(false)
                    assert any(there[0] == thing.colour for thing in scene.things)
                    assert any(there[1] == thing.shape for thing in scene.things)
                elif kind != "relation reversed":
                    assert (words(caption) == words(false)) == kind.endswith("swapped"), (kind, caption, false)
                counts[kind] = counts.get(kind, 0) + 1
    assert counts.keys() == set(KINDS)
    assert min(counts.values()) > 1000  # of 5,000 captions, of which a third are of two things


def test_a_reader_who_knows_every_scene_finds_nearly_all() -> None:
    """R@1 of a caption matching every scene that it is true of, with ties against: the ceiling of a model."""
    gallery = scenes(500, "val")
    drawn = [known(scene) for scene in gallery]
    texts = [[read(text) for text in captions(scene)] for scene in gallery]
    true_of = [[{j for j in range(500) if is_true(text, drawn[j])} for text in own] for own in texts]
    text_to_image = np.mean([found == {i} for i, own in enumerate(true_of) for found in own])
    foreign = {j for i, own in enumerate(true_of) for found in own for j in found - {i}}
    image_to_text = 1 - len(foreign) / 500
    print(f"ceiling: i2t {image_to_text:.2%}, t2i {text_to_image:.2%}")
    assert image_to_text >= 0.95
    assert text_to_image >= 0.95


def where(spot: np.ndarray) -> str:
    """In which ninth of a picture of 96 x 96 pixels the middle of a spot is."""
    down, right = (spot.min(0) + spot.max(0)) / 2
    row, column = (int(at > 36) + int(at > 60) for at in (down, right))
    return f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "middle"


def test_the_picture_shows_what_its_captions_say(root: Path) -> None:
    palette, names = np.array(list(COLOURS.values())), list(COLOURS)
    document = json.loads((root / "annotations" / "captions_val2017.json").read_text())
    checked = 0
    for image in document["images"]:
        said = [read(a["caption"]) for a in document["annotations"] if a["image_id"] == image["id"]]
        sizes = {colour: size for kinds, _ in said for (colour, _), size in kinds.items() if size}
        moons = {colour for kinds, _ in said for colour, shape in kinds if shape == "moon"}
        if len(sizes) < max(len(mentioned) for mentioned, _ in said):
            continue  # two things of one colour: pixels alone do not tell them apart
        with Image.open(root / "val2017" / image["file_name"]) as picture:
            pixels = np.asarray(picture)
        distances = np.linalg.norm(pixels[:, :, None] - palette.astype(float), axis=-1)
        sheet = min(PAPERS, key=lambda name: np.linalg.norm(pixels[:2].mean((0, 1)) - PAPERS[name][0]))
        nearest = np.where(distances.min(-1) < 40, distances.argmin(-1), -1)
        inside = np.logical_and.reduce([nearest == np.roll(nearest, d, axis) for d in (-1, 1) for axis in (0, 1)])
        nearest = np.where(inside, nearest, -1)  # an edge blends into other colours
        spots = {name: np.argwhere(nearest == index) for index, name in enumerate(names)}
        spots = {name: spot for name, spot in spots.items() if len(spot) > 20}
        assert set(spots) == set(sizes), image
        for colour in set(sizes) - moons:  # whose tips are too thin to measure
            extent = np.ptp(spots[colour], axis=0).max()
            assert ("large" if extent > 28 else "small") == sizes[colour], (image, colour, extent)
        for (one, *_), relation, told in {fact for _, facts in said for fact in facts}:
            if relation in ("at", "on"):
                assert told == (where(spots[one]) if relation == "at" else sheet), (image, relation)
                continue
            (other, _) = told
            down, right = spots[other].mean(0) - spots[one].mean(0)
            apart, aside = (down, right) if relation == "above" else (right, down)
            assert (abs(apart) if relation == "beside" else apart) > abs(aside) + 8, (image, relation)
        checked += 1
    assert checked > VAL // 2

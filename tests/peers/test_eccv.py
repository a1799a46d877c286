"""CxC and ECCV Caption by the package that has their data: random and perfect embeddings, and its own 5K and 1K."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipcoco.data.karpathy import coco_ids
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.evaluate import in_order
from clipcoco.engine.extended import extended
from clipcoco.engine.nearest import nearest
from clipcoco.engine.recall import folds_table, recall_table

eccv_caption = pytest.importorskip("eccv_caption", reason="installed by make test-all")


@pytest.fixture(scope="module")
def package():
    return eccv_caption.Metrics()


def split(package, images: torch.Tensor, texts) -> Embeddings:
    """Rows of images in the order of their ids; `texts` makes those of the captions from the rows of their images."""
    ids = np.sort(coco_ids()["test"])
    place = {image: row for row, image in enumerate(ids.tolist())}
    pairs = sorted((place[images[0]], caption) for caption, images in package.coco_gts["t2i"].items())
    owners = torch.tensor([row for row, _ in pairs])
    return Embeddings(images, texts(owners), ids, np.array([caption for _, caption in pairs]), owners)


def points(count: int, width: int = 32) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(count)))


def test_the_ids_in_this_package_are_those_of_that_one(package) -> None:
    known = coco_ids()
    assert sorted(package.coco_ids.tolist()) == known["test_captions"].tolist()
    assert [package.coco_gts["t2i"][int(c)][0] for c in package.coco_ids[::5]] == known["test"].tolist()


@pytest.mark.slow
def test_random_embeddings_are_at_chance(package) -> None:
    found = extended(split(package, points(5000), lambda owners: points(len(owners))))
    for part in found.values():
        for way in ("i2t", "t2i"):
            for key, expected in part["chance"][way].items():
                error = 100 * np.sqrt(expected / 100 / part["queries"][way])
                assert abs(part[way][key] - expected) < 4 * error, (way, key)


@pytest.mark.slow
def test_own_captions_in_the_place_of_their_image_are_found_and_a_collapsed_model_finds_nothing(package) -> None:
    images = points(5000)
    found = extended(split(package, images, lambda owners: images[owners]))
    truth, own = package.cxc_gts["i2t"], package.coco_gts["i2t"]
    clean = np.mean([set(own[image]) <= set(truth[image]) for image in own])  # else a caption that is no match ties
    assert found["cxc"]["i2t"] == {"r1": pytest.approx(100 * clean), "r5": 100, "r10": 100}
    assert clean > 0.99
    assert found["cxc"]["t2i"]["r1"] == pytest.approx(100 * 24_971 / 24_972)  # of one its own image is no match there
    truth = package.eccv_gts["i2t"]
    clean = np.mean([set(own[image]) <= set(truth[image]) for image in truth])
    assert (found["eccv"]["i2t"]["r1"], found["eccv"]["t2i"]["r1"]) == (pytest.approx(100 * clean), 100)
    found = extended(split(package, torch.ones(5000, 4), lambda owners: torch.ones(len(owners), 4)))
    assert all(value == 0 for part in found.values() for way in ("i2t", "t2i") for value in part[way].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cxc", "eccv"])
def test_a_model_that_knows_every_match_has_100(package, name) -> None:
    """An image is a random direction, a caption the sum of those of all images that people matched with it."""
    directions, ids = points(5000, 1200), np.sort(coco_ids()["test"])
    place, matched = {image: row for row, image in enumerate(ids.tolist())}, {}
    truth = getattr(package, f"{name}_gts")
    for caption, images in truth["t2i"].items():
        matched.setdefault(caption, set()).update(place[image] for image in images)
    for image, captions in truth["i2t"].items():
        for caption in captions:
            matched.setdefault(caption, set()).add(place[image])
    order = sorted((place[images[0]], caption) for caption, images in package.coco_gts["t2i"].items())
    texts = torch.stack([directions[sorted(matched.get(caption, {row}))].sum(0) for row, caption in order])
    found = extended(split(package, directions, lambda owners: texts))[name]
    for way in ("i2t", "t2i"):
        for key, value in found[way].items():
            assert value == pytest.approx(100, abs=0.5), (way, key)


@pytest.mark.slow
def test_its_own_5k_and_1k_are_ours_when_its_lists_are_long_enough(package) -> None:
    images = points(5000)
    given = split(package, images, lambda owners: F.normalize(images[owners] + 1.6 * points(len(owners))))

    def lists(depth: int) -> dict[str, dict[int, list[int]]]:
        sides = (given.images, given.image_ids), (given.texts, given.caption_ids)
        return {
            way: dict(
                zip(
                    ids.tolist(),
                    others[
                        nearest(queries, gallery, depth, lambda start: torch.zeros(1, dtype=torch.int64)).numpy()
                    ].tolist(),
                    strict=True,
                )
            )
            for way, ((queries, ids), (gallery, others)) in (("i2t", sides), ("t2i", sides[::-1]))
        }

    long, ordered = lists(400), in_order(given, "published")
    own = recall_table(given.images, given.texts, given.owners)
    folds = folds_table(ordered.images, ordered.texts, ordered.owners)
    for k in (1, 5, 10):
        for table, theirs in (
            (own, package.coco_5k_recalls(long, "all", K=k)),
            (folds, package.coco_1k_recalls(long, "all", K=k)),
        ):
            for way in ("i2t", "t2i"):
                assert 100 * theirs[way] == pytest.approx(getattr(table, way)[f"r{k}"], abs=1e-6), (k, way)
    short = package.coco_1k_recalls(
        {way: {q: found[:15] for q, found in some.items()} for way, some in long.items()}, "all", K=10
    )
    assert 100 * short["i2t"] < folds.i2t["r10"] - 1  # why the depth is checked

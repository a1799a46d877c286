"""Where retrieval fails, of galleries whose failures are made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipcoco.data.captions import CaptionTable
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.recall import ranks
from clipcoco.runs.failures import failures, nearest_captions
from clipcoco.runs.record import Failures


def gallery(captions: list[list[str]]) -> CaptionTable:
    """A table of images with these captions, `0.jpg` and so on."""
    counts = [len(own) for own in captions]
    return CaptionTable(
        folder=Path(),
        image_ids=np.arange(len(captions)),
        files=[f"{number}.jpg" for number in range(len(captions))],
        sizes=np.zeros((len(captions), 2), dtype=np.int64),
        caption_ids=np.arange(sum(counts)),
        captions=[caption for own in captions for caption in own],
        offsets=np.cumsum([0, *counts]),
        order="ids",
        notes=(),
    )


def found_by(table: CaptionTable, goes_to: list[int]):
    """Embeddings in which each caption lies beside the image that `goes_to` says, and near its own."""
    images = torch.eye(len(table.files))
    owners = torch.from_numpy(table.owners)
    texts = images[torch.tensor(goes_to)] + 0.5 * images[owners]
    texts = texts / texts.norm(dim=1, keepdim=True)
    embeddings = Embeddings(images, texts, table.image_ids, table.caption_ids, owners)
    found = failures(embeddings, ranks(images, texts, owners), table)
    Failures.model_validate(found)
    return embeddings, found


def test_nothing_fails_where_all_is_found():
    table = gallery([["a dog"], ["a cat"]])
    embeddings, found = found_by(table, [0, 1])
    assert found == {
        **dict.fromkeys(("captions", "images", "equal_captions", "equal_images", "all_words"), 0),
        "words": [],
        "confusions": [],
    }
    assert nearest_captions(embeddings, table) == [
        {"file": "0.jpg", "caption": "a dog"},
        {"file": "1.jpg", "caption": "a cat"},
    ]


def test_what_is_no_failure_and_what_only_order_tells_apart():
    table = gallery(
        [
            ["A dog left of a cat.", "two pets"],  # the first is taken for the next image, which has all its words
            ["a cat left of a dog", "Two  PETS"],  # the last is a caption of the image before, too
            ["a boat", "a ship"],
        ]
    )
    embeddings, found = found_by(table, [1, 0, 1, 0, 2, 2])
    assert (found["captions"], found["equal_captions"], found["all_words"]) == (2, 1, 1)
    assert nearest_captions(embeddings, table)[2] == {"file": "2.jpg", "caption": "a boat"}
    assert (found["images"], found["equal_images"]) == (0, 0)


def shapes(count: int) -> list[list[str]]:
    """Half of the images show a star, half a cross; each is one of two colours, and said to be small and little."""
    return [
        [f"a small {colour} {shape}", f"one little {colour} {shape}"]
        for number in range(count)
        for shape, colour in [(("star", "cross")[number % 2], ("red", "blue")[number // 2 % 2])]
    ]


def test_words_that_miss_and_what_they_are_taken_for():
    table = gallery(shapes(40))
    # Every star is taken for the cross of its colour behind it; the crosses are found.
    goes_to = [image + 1 - image % 2 for image in table.owners.tolist()]
    _, found = found_by(table, goes_to)
    assert (found["captions"], found["all_words"], found["equal_captions"]) == (40, 0, 0)
    assert found["words"] == [{"word": "star", "missed": 40, "captions": 40}]  # colours and sizes miss like the rest
    assert found["confusions"] == [{"word": "star", "taken_for": "cross", "count": 40}]


@pytest.mark.parametrize("seed", range(3))
def test_failures_that_fall_anywhere_name_no_word(seed):
    table = gallery(shapes(200))
    generator = np.random.default_rng(seed)
    goes_to = [int(generator.integers(200)) if generator.random() < 0.3 else own for own in table.owners.tolist()]
    _, found = found_by(table, goes_to)
    assert found["captions"] > 50
    assert found["words"] == []


def test_a_word_of_few_images_proves_nothing():
    table = gallery([["a zebra"] * 5, ["a horse"] * 5, *[[f"thing {'abcdefgh'[n % 8]}"] for n in range(30)]])
    _, found = found_by(table, [1] * 5 + [1] * 5 + list(range(2, 32)))
    assert found["captions"] == 5
    assert found["words"] == []

"""Which definition printed a number: each definition against a literal one, and the right one is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcoco.cli import run
from clipcoco.data.karpathy import coco_ids
from clipcoco.engine.audit import ALL, FIGURES, Definition, definitions, matches
from clipcoco.engine.embeddings import Embeddings, write_embeddings
from clipcoco.engine.recall import recall_table

FOLD, CASES, KS = 9, 100, (1, 5, 10)
TEST = coco_ids()["test"]
IDS = np.r_[TEST[:9], np.setdiff1d(coco_ids()["val2017"], TEST)[:30]]
Lists = Callable[[np.ndarray], np.ndarray]


def case(seed: int) -> tuple[Embeddings, Embeddings | None]:
    """13 to 20 images of COCO with 1 to 7 captions; every other case has small integers, so that scores tie, and
    every third was not brought to unit length."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, rng.integers(13, 21))
    owners = np.repeat(np.arange(len(counts)), counts)
    images = rng.normal(size=(len(counts), 6))
    texts = images[owners] + 0.8 * rng.normal(size=(len(owners), 6))
    if seed % 2:
        images, texts = np.sign(images.round()), np.sign(texts.round())
    ids = rng.permutation(IDS)
    scaled = [part * rng.integers(1, 4, (len(part), 1)) for part in (images, texts)]

    def embeddings(*sides: np.ndarray) -> Embeddings:
        rows = (torch.tensor(side).float() for side in sides)
        return Embeddings(*rows, ids[: len(counts)], np.arange(len(owners)), torch.tensor(owners))

    return embeddings(images, texts), embeddings(*scaled) if seed % 3 == 0 else None


def against_us(own: np.ndarray) -> Lists:
    return lambda scores: np.lexsort((own, -scores))


def first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


def last(scores: np.ndarray) -> np.ndarray:
    return np.argsort(scores, kind="stable")[::-1]


def any_own(scores: np.ndarray, owners: np.ndarray, order: Lists | None = None) -> np.ndarray:
    """The six recalls of an (images, captions) matrix, query by query."""
    hits = [[], []]
    for way, matrix in enumerate((scores, scores.T)):
        for query, row in enumerate(matrix):
            own = owners == query if way == 0 else np.arange(len(row)) == owners[query]
            listed = (order or against_us(own))(row)
            hits[way].append([own[listed[:k]].any() for k in KS])
    return 100 * np.concatenate([np.mean(part, axis=0) for part in hits])


def part(scores: np.ndarray, owners: np.ndarray, images: list[int], most: int = 99) -> np.ndarray:
    kept = [np.flatnonzero(owners == image)[:most] for image in images]
    return any_own(
        scores[np.ix_(images, np.concatenate(kept))], np.repeat(np.arange(len(images)), [len(k) for k in kept])
    )


def literal(embeddings: Embeddings, dots: Embeddings | None) -> dict[str, np.ndarray]:
    owners, everything = embeddings.owners.numpy(), list(range(len(embeddings.images)))
    scores, raw = ((e.images @ e.texts.T).numpy() for e in (embeddings, dots or embeddings))
    lists = [first(row) for row in scores]
    share = [[(owners[listed[:k]] == i).sum() / (owners == i).sum() for k in KS] for i, listed in enumerate(lists)]
    square = scores[owners]  # a row of its image for each caption
    places = [[first(row).tolist().index(j) for j, row in enumerate(matrix)] for matrix in (square, square.T)]
    pairs = [[np.mean([place < k for place in side]) for k in KS] for side in places]
    by_id = np.argsort(embeddings.image_ids).tolist()
    folds = [by_id[start : start + FOLD] for start in range(0, len(by_id) - FOLD + 1, FOLD)]
    test = [i for i in everything if embeddings.image_ids[i] in TEST[:9]]
    return {
        ALL: any_own(scores, owners),
        "not normalised": any_own(raw, owners),
        "share of own captions": np.r_[100 * np.mean(share, 0), any_own(scores, owners, first)[3:]],
        "pairs": 100 * np.concatenate(pairs),
        "ties by index, first wins": any_own(scores, owners, first),
        "ties by index, last wins": any_own(scores, owners, last),
        "first caption": part(scores, owners, everything, 1),
        "first five captions": part(scores, owners, everything, 5),
        "1k": np.mean([part(scores, owners, fold) for fold in folds], 0),
        "first fold alone": part(scores, owners, folds[0]),
        "Karpathy's test images": part(scores, owners, test, 5),
    }


def printed(six: np.ndarray, seed: int) -> list[str]:
    """Two or six figures, every fifth time with the directions swapped, rounded to two digits."""
    six = np.r_[six[3:], six[:3]] if seed % 5 == 0 else six
    return [f"{figure:.2f}" for figure in (six if seed % 4 else six[[0, 3]])]


def test_each_definition_is_named_or_those_that_print_the_same() -> None:
    named, unlike = dict.fromkeys(literal(*case(0)), 0), 0
    for seed in range(CASES):
        given = case(seed)
        expected = literal(*given)
        found, same, _ = definitions(*given, "ids", lambda event: None, FOLD)
        there = {one.name: one for one in found}
        for name, six in expected.items():
            if name in there:
                np.testing.assert_allclose(list(there[name].figures.values())[:6], six, atol=1e-9, err_msg=name)
            else:
                np.testing.assert_allclose(six, expected[ALL], atol=1e-9, err_msg=name)
            numbers = printed(six, seed)
            read = matches(found, numbers)
            assert (name if name in there else ALL) in [match.definition.name for match in read]
            for match in read:
                assert match.exact
                assert [f"{match.definition.figures[figure]:.2f}" for figure in match.reading] == numbers
            named[name] += len(read) == 1
            unlike += name in there and read[0].swapped
        assert not set(same) & set(there)
    assert min(named.values()) >= 20, named  # so that the above says something
    assert unlike > 50


@pytest.mark.parametrize(
    ("given", "reading", "swapped", "exact"),
    [
        (["61.0", "37.66"], ("i2t r1", "t2i r1"), False, True),
        (["37.7", "61"], ("t2i r1", "i2t r1"), True, True),
        (["0.61", "0.377"], ("i2t r1", "t2i r1"), False, True),
        (["61.1", "37.66"], ("i2t r1", "t2i r1"), False, False),
        (["37.66"], ("t2i r1",), False, True),
    ],
)
def test_numbers_are_read_as_they_are_rounded(given, reading, swapped, exact) -> None:
    plain = dict.fromkeys(FIGURES, 50.0) | {"i2t r1": 61.04, "t2i r1": 37.66}
    [match] = matches([Definition("one", "", plain)], given)
    assert (match.reading, match.swapped, match.exact) == (reading, swapped, exact)


def test_the_command_says_which_it_is_and_what_it_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: object) -> str:
        assert run(["eval", "--from-embeddings", str(tmp_path / "e.npz"), *map(str, words)]) == 0
        return capsys.readouterr().out

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8))
    owners = np.arange(40).repeat(5)
    texts = rows[owners] + rng.normal(size=(200, 8))
    ids = np.setdiff1d(TEST, coco_ids()["val2017"])[:40]
    given = Embeddings(
        torch.tensor(rows).float(), torch.tensor(texts).float(), ids, np.arange(200), torch.tensor(owners)
    )
    write_embeddings(tmp_path / "e.npz", given)
    found = json.loads(told("--audit", "--json"))
    own, share = (found["definitions"][n]["figures"] for n in (0, 1))
    assert found["source"] == "rows scaled to unit length"
    whole = json.loads(told("--json"))["protocols"]["own"]
    assert own["i2t r1"] == whole["i2t"]["r1"] == pytest.approx(5 * share["i2t r1"])
    said = " ".join(told("--audit", f"{share['i2t r1']:.1f}", f"{own['t2i r1']:.1f}%").split())
    assert f"is share of own captions: image to text R@1 {share['i2t r1']:.2f}" in said
    assert f"Counted as all captions it is image to text R@1 {own['i2t r1']:.2f}, text to image R@1" in said
    assert "40 of Karpathy's test. Whoever trained on train2017 has seen 40 of them." in said
    assert "95 % interval over images; 0 queries tie" in said
    dots = next(one for one in found["definitions"] if one["name"] == "not normalised")
    assert dots["figures"]["i2t r1"] == recall_table(given.images, given.texts, given.owners).i2t["r1"]


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (
            ["--from-embeddings", "e.npz", "--audit", "61,0"],
            "'61,0' is not a recall (--audit). Give figures in percent",
        ),
        (["--from-embeddings", "e.npz", "--audit", "9999"], "'9999' is not a recall"),
        (["--from-embeddings", "e.npz", "--audit", "1", "2", "3", "4"], "nobody reports 4 figures (--audit)"),
        (["--audit", "61"], "--audit judges a file of embeddings (command line). Give --from-embeddings"),
        (["first", "--audit"], "--audit judges a file of embeddings"),
    ],
)
def test_what_cannot_be_audited_is_refused(words, needle, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.npz").write_bytes(b"")
    assert run(["eval", *words]) == 2
    assert needle in capsys.readouterr().err

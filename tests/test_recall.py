"""Recall against literal loops, against two other evaluators' definitions, and against its own traps."""

import doctest
import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from clipcoco.engine import recall
from clipcoco.engine.recall import chance_levels, folds_table, ranks, recall_table
from clipcoco.engine.results import RecallTable
from clipcoco.errors import ExitCode, NumericError
from clipcoco.events import Event, Progress


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more, and wait for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_case(seed: int, images: int, sizes: tuple[int, ...], dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors; captions lie near their image; image i has one of `sizes` captions."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(sizes)[torch.randint(len(sizes), (images,), generator=generator)]
    owners = torch.repeat_interleave(torch.arange(images), counts)
    image = torch.nn.functional.normalize(torch.randn(images, dim, generator=generator), dim=1)
    noise = torch.randn(len(owners), dim, generator=generator)
    text = torch.nn.functional.normalize(image[owners] + 0.4 * noise, dim=1)
    return image, text, owners


def tied_case(seed: int, images: int, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Small integers: products are exact, many scores are equal and many embeddings too."""
    generator = torch.Generator().manual_seed(seed)
    image, text, owners = random_case(seed, images, sizes)
    image = torch.randint(-1, 2, (len(image), 3), generator=generator).float()
    text = torch.randint(-1, 2, (len(text), 3), generator=generator).float()
    return image, text, owners


def literal_ranks(scores: list[list[float]], owners: list[int]) -> tuple[list[int], list[int], int]:
    """The definition, query by query, from a (images, captions) matrix."""
    i2t, t2i, ties = [], [], 0
    for image, row in enumerate(scores):
        best = max(score for score, owner in zip(row, owners, strict=True) if owner == image)
        foreign = [score for score, owner in zip(row, owners, strict=True) if owner != image]
        i2t.append(1 + sum(score >= best for score in foreign))
        ties += best in foreign
    for caption, owner in enumerate(owners):
        foreign = [row[caption] for image, row in enumerate(scores) if image != owner]
        t2i.append(1 + sum(score >= scores[owner][caption] for score in foreign))
        ties += scores[owner][caption] in foreign
    return i2t, t2i, ties


def clip_benchmark_recall(image: Tensor, text: Tensor, owners: Tensor, k: int) -> tuple[float, float]:
    """CLIP_benchmark's convention: a query is a hit when any positive is in topk of a dense positive mask."""
    scores = image @ text.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[owners, torch.arange(len(owners))] = True
    hits = [
        torch.gather(mask, 1, matrix.topk(min(k, matrix.shape[1]), dim=1).indices).any(1).double().mean()
        for matrix, mask in ((scores, positive), (scores.T, positive.T))
    ]
    return 100 * float(hits[0]), 100 * float(hits[1])


def vsepp_ranks(image: np.ndarray, text: np.ndarray) -> tuple[list[int], list[int]]:
    """VSE++'s convention: exactly five captions an image, positions in a descending argsort, from 0."""
    i2t, t2i = [], []
    for index in range(len(image)):
        order = np.argsort(image[index] @ text.T)[::-1]
        i2t.append(min(int(np.where(order == 5 * index + caption)[0][0]) for caption in range(5)))
    for caption in range(len(text)):
        order = np.argsort(text[caption] @ image.T)[::-1]
        t2i.append(int(np.where(order == caption // 5)[0][0]))
    return i2t, t2i


def from_scores(scores: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Embeddings whose product is exactly `scores`: one axis for each image."""
    matrix = torch.tensor(scores, dtype=torch.float32)
    return torch.eye(len(matrix)), matrix.T.contiguous()


def test_hand_written_2x4() -> None:
    image, text = from_scores([[0.1, 0.2, 0.9, 0.0], [0.5, 0.1, 0.8, 0.3]])
    found = ranks(image, text, torch.tensor([0, 0, 1, 1]))
    # Image 0: best own caption 0.2, and 0.9 is foreign. Image 1: 0.8 beats 0.5 and 0.1.
    assert found.i2t.tolist() == [2, 1]
    assert found.t2i.tolist() == [2, 1, 2, 1]
    assert found.ties == 0


def test_hand_written_4x8_with_ties() -> None:
    image, text = from_scores(
        [
            [9, 1, 2, 3, 4, 5, 6, 7],  # own best 9: rank 1
            [5, 5, 5, 1, 0, 0, 0, 0],  # own best 5, equalled twice: rank 3
            [8, 7, 6, 5, 4, 3, 2, 1],  # own best 4, below four foreign ones: rank 5
            [0, 0, 0, 0, 0, 0, 0, 0],  # all equal: rank 7 of the six foreign ones
        ]
    )
    found = ranks(image, text, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert found.i2t.tolist() == [1, 3, 5, 7]
    assert found.t2i.tolist() == [1, 3, 2, 3, 2, 2, 4, 4]
    assert found.ties == 5  # images 1 and 3, captions 4, 6 and 7
    table = recall_table(image, text, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert (table.i2t["r1"], table.i2t["r5"], table.i2t["r10"], table.i2t["median_rank"]) == (25, 75, 100, 4)
    assert (table.t2i["r1"], table.t2i["r5"], table.t2i["r10"], table.t2i["median_rank"]) == (12.5, 100, 100, 2.5)
    assert (table.r1, table.rsum) == (18.75, 412.5)


def test_the_docstring_is_true() -> None:
    assert doctest.testmod(recall).attempted > 0
    assert doctest.testmod(recall).failed == 0


@pytest.mark.parametrize("sizes", [(1,), (5,), (1, 2, 5, 6, 7)])
@pytest.mark.parametrize("tile", [None, (8, 16)])
@pytest.mark.parametrize("make", [random_case, tied_case])
def test_equals_the_literal_definition(make, tile, sizes, monkeypatch) -> None:
    if tile:
        monkeypatch.setattr(recall, "TILE", tile)
    for images in (1, 2, 7, 40):
        image, text, owners = make(images, images, sizes)
        # In float64 the literal scores are free of rounding; no two float32 scores here are that close.
        expected = literal_ranks((image.double() @ text.double().T).tolist(), owners.tolist())
        found = ranks(image, text, owners)
        assert (found.i2t.tolist(), found.t2i.tolist(), found.ties) == expected


def test_equals_clip_benchmark_without_ties() -> None:
    image, text, owners = random_case(3, 300, (5, 6, 7))
    table = recall_table(image, text, owners)
    for k in (1, 5, 10):
        i2t, t2i = clip_benchmark_recall(image, text, owners, k)
        assert table.i2t[f"r{k}"] == pytest.approx(i2t, abs=1e-9)
        assert table.t2i[f"r{k}"] == pytest.approx(t2i, abs=1e-9)
    assert 0 < table.i2t["r1"] < 100


def test_equals_vsepp_without_ties() -> None:
    image, text, owners = random_case(4, 200, (5,))
    found = ranks(image, text, owners)
    i2t, t2i = vsepp_ranks(image.double().numpy(), text.double().numpy())
    assert [rank - 1 for rank in found.i2t.tolist()] == i2t
    assert [rank - 1 for rank in found.t2i.tolist()] == t2i


@pytest.mark.parametrize("dim", [2, 255, 256])
def test_a_collapsed_model_finds_nothing(dim) -> None:
    # Kernels for the edges of a matrix round equal embeddings apart; sizes below and beyond a kernel's width.
    vector, other = random_case(0, 2, (1,), dim)[0]
    for images in [*range(2, 71, 3), 300]:
        for per_image in (1, 2, 5):
            owners = torch.arange(images).repeat_interleave(per_image)
            image, text = vector.repeat(images, 1), other.repeat(len(owners), 1)
            found = ranks(image, text, owners)
            assert found.i2t.tolist() == [len(owners) - per_image + 1] * images
            assert found.t2i.tolist() == [images] * len(owners)
            assert found.ties == images + len(owners)


@pytest.mark.parametrize("tile", [(1, 7), (3, 5)])
def test_a_collapsed_model_finds_nothing_even_where_kernels_round_apart(tile, monkeypatch) -> None:
    # Products as narrow as these give equal rows different last bits, on a CPU with MKL at least.
    monkeypatch.setattr(recall, "TILE", tile)
    image, text, owners = random_case(1, 30, (2,), 256)
    found = ranks(image[:1].repeat(30, 1), text[:1].repeat(60, 1), owners)
    assert set(found.i2t.tolist()) == {59}
    assert set(found.t2i.tolist()) == {30}
    assert found.ties == 90


def test_one_collapsed_side_finds_nothing() -> None:
    for images in (2, 11, 50):
        image, text, owners = random_case(1, images, (5,), 256)
        constant_text = ranks(image, text[:1].repeat(len(text), 1), owners)
        assert set(constant_text.i2t.tolist()) == {5 * (images - 1) + 1}
        constant_image = ranks(image[:1].repeat(images, 1), text, owners)
        assert set(constant_image.t2i.tolist()) == {images}
    table = recall_table(image[:1].repeat(images, 1), text[:1].repeat(len(text), 1), owners)
    assert (table.r1, table.rsum, table.interval.r1[0]) == (0, 0, 0)


def test_all_zero_embeddings_find_nothing() -> None:
    found = ranks(torch.zeros(3, 4), torch.zeros(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert (found.i2t.tolist(), found.t2i.tolist()) == ([5] * 3, [3] * 6)


@pytest.mark.parametrize("images", [2, 5, 9, 60])
def test_duplicated_captions_lose_the_tie(images) -> None:
    image, text, owners = random_case(2, images, (1,), 256)
    text = image.clone()  # perfect
    text[1] = text[0]  # but image 1's only caption repeats image 0's
    found = ranks(image, text, owners)
    assert found.i2t.tolist()[0] == 2
    assert found.i2t.tolist()[1] > 1
    assert found.i2t.tolist()[2:] == [1] * (images - 2)
    assert found.t2i.tolist() == [1, *found.t2i.tolist()[1:2], *[1] * (images - 2)]
    assert found.ties == 2  # both images; the captions prefer image 0 clearly


def test_a_caption_repeated_for_its_own_image_costs_nothing() -> None:
    image, text, owners = random_case(2, 30, (2,), 256)
    text = image[owners]
    found = ranks(image, text, owners)
    assert (set(found.i2t.tolist()), set(found.t2i.tolist()), found.ties) == ({1}, {1}, 0)


def test_negative_zero_equals_zero() -> None:
    image = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    found = ranks(image, image, torch.tensor([0, 1]))
    assert (found.i2t.tolist(), found.t2i.tolist(), found.ties) == ([2, 2], [2, 2], 4)


def test_tiles_and_threads_do_not_change_a_rank(monkeypatch) -> None:
    image, text, owners = random_case(5, 700, (5, 6), 256)
    text[100:200] = text[3000:3100]
    image[50] = image[600]
    expected = ranks(image, text, owners)
    for threads, tile in ((2, recall.TILE), (1, (64, 128)), (1, (2048, 4096)), (2, (512, 512))):
        monkeypatch.setattr(recall, "TILE", tile)
        torch.set_num_threads(threads)
        found = ranks(image, text, owners)
        assert torch.equal(found.i2t, expected.i2t)
        assert torch.equal(found.t2i, expected.t2i)
        assert found.ties == expected.ties > 0


def test_autocast_and_lower_precision_change_nothing() -> None:
    image, text, owners = random_case(6, 300, (5,), 256)
    image, text = image[0] + 0.003 * image, image[0] + 0.003 * text  # so alike that each bit counts
    expected = recall_table(image, text, owners)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall_table(image, text, owners) == expected
        assert (image[:2] @ text[:2].T).dtype == torch.bfloat16, "the caller's autocast returned"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert recall_table(image, text, owners) == expected
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_gradient_is_left_out() -> None:
    image, text, owners = random_case(6, 5, (2,))
    assert not ranks(image.requires_grad_(), text.requires_grad_(), owners).i2t.requires_grad
    assert recall_table(image, text, owners).captions == 10


def test_a_large_gallery_shows_how_far_the_ranking_is() -> None:
    image, text, owners = random_case(6, 1200, (5,))
    told: list[Event] = []
    ranks(image, text, owners, told.append)
    assert told == [Progress("rank", done, 9) for done in range(9)]  # tiles of 512 images and 2,560 captions


def test_embeddings_that_are_not_finite_are_refused() -> None:
    image, text, owners = random_case(7, 20, (5,))
    image[3, 2] = image[4, 0] = torch.nan
    text[50, 1] = -torch.inf
    for measure in (ranks, recall_table, folds_table):
        with pytest.raises(NumericError, match="2 of 20 image embeddings hold NaN") as caught:
            measure(image, text, owners)
        assert "1 of 100 text embeddings hold infinity" in str(caught.value)
        assert caught.value.exit_code == ExitCode.NUMERIC
    for value in (torch.nan, torch.inf):
        with pytest.raises(NumericError, match="1 of 2 text"):
            ranks(torch.zeros(2, 2), torch.tensor([[0, value], [1, 1]]), torch.tensor([0, 1]))
    with pytest.raises(NumericError, match="overflow"):
        ranks(torch.full((2, 4), 1e20), torch.full((2, 4), -1e20), torch.tensor([0, 1]))


def test_a_cutoff_beyond_the_gallery_is_reached() -> None:
    image, text, owners = random_case(8, 3, (1,))
    table = recall_table(-image, text, owners)
    assert (table.i2t["r5"], table.t2i["r10"]) == (100, 100)
    assert (table.chance["i2t"]["r5"], table.chance["t2i"]["r10"]) == (100, 100)
    assert recall_table(image[:1], text[:1], owners[:1]).rsum == 600


def test_folds_equal_a_loop_over_them() -> None:
    image, text, owners = random_case(9, 47, (1, 5, 7))
    table = folds_table(image, text, owners, fold=10)
    assert table is not None
    assert (table.folds, table.dropped, table.images) == (4, 7, 40)
    i2t, t2i, ties, captions = [], [], 0, 0
    for start in range(0, 40, 10):
        own = (owners >= start) & (owners < start + 10)
        scores = image[start : start + 10].double() @ text[own].double().T
        fold_i2t, fold_t2i, fold_ties = literal_ranks(scores.tolist(), (owners[own] - start).tolist())
        i2t.append(np.array(fold_i2t))
        t2i.append(np.array(fold_t2i))
        ties, captions = ties + fold_ties, captions + len(fold_t2i)
    for direction, found in ((table.i2t, i2t), (table.t2i, t2i)):
        for k in (1, 5, 10):
            expected = np.mean([100 * np.mean(fold <= k) for fold in found])
            assert direction[f"r{k}"] == pytest.approx(expected, abs=1e-9)
        assert direction["median_rank"] == np.mean([np.median(fold) for fold in found])
    assert (table.ties, table.captions) == (ties, captions)
    # The gallery of a fold is smaller, so a fold is easier than the whole split.
    assert table.r1 > recall_table(image, text, owners).r1


def test_folds_need_a_whole_one() -> None:
    image, text, owners = random_case(9, 12, (2,))
    assert folds_table(image, text, owners) is None
    whole, alone = folds_table(image, text, owners, fold=12), recall_table(image, text, owners)
    assert whole == alone
    assert (alone.folds, alone.dropped) == (1, 0)


def test_chance_equals_a_simulation() -> None:
    _, _, owners = random_case(10, 30, (1, 2, 7))
    image, text = torch.eye(30), torch.eye(30)[owners]
    chance = recall_table(image, text, owners).chance
    generator = np.random.default_rng(0)
    i2t, t2i = [], []
    for _ in range(2000):
        order = generator.permutation(len(owners))  # position of each caption, the same for all images
        i2t.append([order[owners.numpy() == image].min() + 1 for image in range(30)])
        t2i.append(generator.integers(1, 31, 30))
    for direction, found in (("i2t", np.array(i2t)), ("t2i", np.array(t2i))):
        for k in (1, 5, 10):
            assert chance[direction][f"r{k}"] == pytest.approx(100 * (found <= k).mean(), abs=1.0)
        assert chance[direction]["median_rank"] == pytest.approx(np.median(found), abs=1)


def test_chance_of_the_folds_is_that_of_a_fold() -> None:
    image, text, owners = random_case(13, 25, (5,))
    table = folds_table(image, text, owners, fold=10)
    assert table is not None
    assert table.chance == chance_levels(owners[owners < 10])


def test_chance_of_five_captions_by_hand() -> None:
    owners = torch.arange(4).repeat_interleave(5)
    chance = recall_table(torch.eye(4), torch.eye(4)[owners], owners).chance
    assert (chance["i2t"]["r1"], chance["t2i"]["r1"], chance["t2i"]["r5"]) == (25, 25, 100)
    # None of five own ones among five of twenty: 15/20 x 14/19 x 13/18 x 12/17 x 11/16.
    assert chance["i2t"]["r5"] == pytest.approx(100 * (1 - 360360 / 1860480), abs=1e-12)
    assert chance["t2i"]["median_rank"] == 2.5
    # P(rank <= 2) = 1 - 15/20 x 14/19 = 0.447, P(rank <= 3) = 0.601.
    assert chance["i2t"]["median_rank"] == 3


def hits_table(hits: int, images: int) -> RecallTable:
    """A model with one caption an image that ranks `hits` of the images first, in both directions."""
    image = torch.eye(images)
    text = image.clone()
    text[hits:] = -text[hits:]
    return recall_table(image, text, torch.arange(images))


def test_interval_of_a_coin() -> None:
    table = hits_table(60, 200)
    assert table.i2t["r1"] == table.t2i["r1"] == 30
    deviation = 100 * (0.3 * 0.7 / 200) ** 0.5
    for low, high in (table.interval.i2t["r1"], table.interval.t2i["r1"], table.interval.r1):
        # 1,000 resamples place a 2.5 % quantile to about a seventh of a standard deviation, twice over.
        assert low == pytest.approx(30 - 1.96 * deviation, abs=0.35 * deviation)
        assert high == pytest.approx(30 + 1.96 * deviation, abs=0.35 * deviation)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = random.Random(0)
    covered = 0
    for _ in range(100):
        low, high = hits_table(sum(generator.random() < 0.4 for _ in range(60)), 60).interval.i2t["r1"]
        covered += low <= 40 <= high
    assert 88 <= covered <= 99


def test_interval_draws_captions_with_their_image() -> None:
    # Five captions share the fate of their image: as uncertain as one caption, not more certain.
    image = torch.eye(200)
    text = image.clone()
    text[100:] = -text[100:]
    five = recall_table(image, text.repeat_interleave(5, 0), torch.arange(200).repeat_interleave(5))
    one = recall_table(image, text, torch.arange(200))
    assert five.t2i["r1"] == one.t2i["r1"] == 50
    assert five.interval.t2i["r1"] == pytest.approx(one.interval.t2i["r1"], abs=1e-9)


def test_the_interval_repeats_and_leaves_random_states_alone() -> None:
    image, text, owners = random_case(11, 60, (5, 6))
    first = recall_table(image, text, owners)
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert recall_table(image, text, owners) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == str(states[2])
    low, high = first.interval.r1
    assert low < first.r1 < high


def test_to_plain_is_what_eval_shows() -> None:
    image, text, owners = random_case(12, 30, (5, 6))
    table = recall_table(image, text, owners)
    plain = json.loads(json.dumps(table.to_plain()))
    recalls, direction = {"r1", "r5", "r10"}, {"r1", "r5", "r10", "median_rank"}
    single = ["r1", "rsum", "chance", "interval", "ties", "images", "captions", "folds", "dropped"]
    assert list(plain) == ["i2t", "t2i", *single]
    assert set(plain["i2t"]) == set(plain["t2i"]) == set(plain["chance"]["i2t"]) == direction
    assert set(plain["chance"]) == {"i2t", "t2i"}
    assert set(plain["interval"]) == {"i2t", "t2i", "r1"}
    assert set(plain["interval"]["i2t"]) == set(plain["interval"]["t2i"]) == recalls
    assert plain["r1"] == (plain["i2t"]["r1"] + plain["t2i"]["r1"]) / 2
    assert (plain["images"], plain["captions"]) == (30, len(owners))

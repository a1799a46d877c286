"""Intervals against published figures and plain loops, and at the ends, where a bootstrap sees nothing."""

import numpy as np
import pytest

from clipcoco.engine.interval import RESAMPLES, confidence_intervals, difference_intervals, wilson

I2T, T2I, MEAN = 0, 3, 6  # R@1, as `difference_intervals` has them


def hits(i2t: list[int], t2i: list[int] | None = None, captions: int = 1) -> np.ndarray:
    """The same at each K; of `captions` an image all or none are found unless `t2i` says how many."""
    image, text = np.array(i2t), np.array(t2i if t2i is not None else i2t) * (captions if t2i is None else 1)
    return np.stack([image] * 3 + [text] * 3 + [np.full(len(image), captions)], 1)


def missing(count: int, n: int = 500) -> list[int]:
    return [0] * count + [1] * (n - count)


@pytest.mark.parametrize(  # Newcombe 1998, Two-sided confidence intervals for the single proportion, method 3
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(count, n, low, high):
    assert wilson(np.array([count]), n)[:, 0] == pytest.approx([low, high], abs=5e-5)


def test_nothing_and_all_are_not_certain():
    for n, low in ((20, 83.89), (2500, 99.847), (1, 20.65)):
        everything = confidence_intervals([hits(missing(0, n), captions=5)])
        nothing = confidence_intervals([hits(missing(n, n), captions=5)])
        for of_all, of_none in (
            (everything.r1, nothing.r1),
            *(
                (getattr(everything, way)[key], getattr(nothing, way)[key])
                for way in ("i2t", "t2i")
                for key in ("r1", "r10")
            ),
        ):
            assert of_all == pytest.approx([low, 100], abs=5e-3)
            assert of_none == pytest.approx([0, 100 - low], abs=5e-3)
            assert (of_all[1], of_none[0]) == (100, 0)


def test_a_few_misses_widen_the_interval_step_by_step_into_the_bootstrap():
    found = [confidence_intervals([hits(missing(count))]).i2t["r1"] for count in range(9)]
    widths = [high - low for low, high in found]
    assert widths == pytest.approx(sorted(widths), rel=0.15)
    assert all(low < 100 - count / 5 <= high + 1e-9 for count, (low, high) in enumerate(found))


def test_an_image_that_misses_one_of_five_captions_weighs_a_fifth():
    images, captions = missing(2), [4, 4] + [5] * 498
    low, high = confidence_intervals([hits([1] * 500, captions, 5)]).t2i["r1"]
    whole = confidence_intervals([hits(images)]).i2t["r1"]
    assert [100 - low, 100 - high] == pytest.approx([(100 - whole[0]) / 5, (100 - whole[1]) / 5])


def test_images_that_all_fare_alike_are_not_certain_either():
    low, high = confidence_intervals([hits([1] * 40, [2] * 40, 5)]).t2i["r1"]
    assert high - low > 1
    assert low <= 40 + 1e-9
    assert high >= 40 - 1e-9


def test_folds_at_the_end_are_as_certain_as_all_their_images():
    apart = confidence_intervals([hits(missing(0, 1000))] * 5)
    assert apart == confidence_intervals([hits(missing(0, 5000))])


def random_pair(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """A, and a B that is a little better, on the same images of 5 to 7 captions."""
    generator = np.random.default_rng(7)
    captions = generator.integers(5, 8, n)
    hard = generator.random(n)
    one, other = (
        np.stack(
            [*(hard < share + more for share in (0.3, 0.5, 0.7))]
            + [generator.binomial(captions, np.clip(1 - hard + more, 0, 1) * share) for share in (0.5, 0.6, 0.7)]
            + [captions],
            1,
        ).astype(np.int64)
        for more in (0.0, 0.06)
    )
    return one, other


def test_paired_bootstrap_equals_a_plain_loop():
    a, b = random_pair()
    found = difference_intervals(a, b)
    generator, differences = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(a), size=len(a))
        recalls = [
            [100 * one[drawn, k].mean() for k in range(3)]
            + [100 * one[drawn, k].sum() / one[drawn, 6].sum() for k in range(3, 6)]
            for one in (a, b)
        ]
        row = [recalls[1][k] - recalls[0][k] for k in range(6)]
        differences.append([*row, (row[0] + row[3]) / 2])
    assert found == pytest.approx(np.quantile(differences, (0.025, 0.975), axis=0).T, abs=1e-9)
    assert difference_intervals(b, a) == pytest.approx(-found[:, ::-1], abs=1e-9)


def test_a_difference_may_be_sure_though_the_intervals_overlap_and_unsure_though_runs_differ_a_lot():
    a, sure = hits(missing(450, 1000)), hits(missing(430, 1000))  # B finds 20 images more, and loses none
    unsure = hits([1] * 280 + [0] * 430 + [1] * 290)  # as many more, but other ones
    for b, is_sure in ((sure, True), (unsure, False)):
        of_a, of_b = (confidence_intervals([one]).i2t["r1"] for one in (a, b))
        assert of_b[0] < of_a[1]
        low, high = difference_intervals(a, b)[I2T]
        assert low < 2 < high
        assert (low > 0) == is_sure


def test_of_equal_runs_not_even_the_difference_is_certain():
    a, b = hits(missing(250)), hits(missing(250))
    assert difference_intervals(a, b)[MEAN] == pytest.approx([-0.763, 0.763], abs=5e-3)


def test_a_handful_of_images_makes_no_difference_sure():
    a = hits(missing(100))
    for more, is_sure in ((1, False), (4, False), (8, True), (9, True), (12, True)):  # sign test: 4 to 0 is p = 0.125
        low, high = difference_intervals(a, hits(missing(100 - more)))[T2I]
        assert low < more / 5 < high
        assert (low > 0) == is_sure

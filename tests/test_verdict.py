"""What the page makes of a run: is it good, why, what next. Of records made by hand, whose verdict a reader knows."""

import numpy as np
import pytest

import test_scenes
from clipcoco.config.load import dump, load_config
from clipcoco.events import Evaluated, StepDone
from clipcoco.report import verdict
from clipcoco.report.expected import CEILING, Expected
from clipcoco.report.settings import read_settings
from clipcoco.report.verdict import Verdict, judge_run
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import History

CHANCE = {way: {"r1": 0.1, "r5": 0.5, "r10": 1.0, "median_rank": 500.0} for way in ("i2t", "t2i")}


def history(r1s: list[float], vals: list[float], trains: list[float], r10: float = 80.0) -> History:
    """An evaluation an epoch of 10 steps, each with a logged training loss."""
    recalls = [{"r1": r1, "r5": r1, "r10": r10, "median_rank": 2.0} for r1 in r1s]
    evaluations = [
        Evaluated(10 * n, n, val, one, one, one["r1"], best=one["r1"] == max(r1s[:n]))
        for n, (one, val) in enumerate(zip(recalls, vals, strict=True), 1)
    ]
    steps = [StepDone(10 * n, n, loss, 1e-4, 0.07, 1.0) for n, loss in enumerate(trains, 1)]
    return History(tuple(steps), tuple(evaluations), None, (), 0, 10 * len(r1s))


@pytest.fixture
def judged(tmp_path):
    """The verdict on a run of `preset` with this history."""

    def judge(preset: str, past: History, expected: Expected | None = None, finished: bool = True) -> Verdict:
        run = RunDir(tmp_path / "runs" / "one")
        run.path.mkdir(parents=True, exist_ok=True)
        run.config.write_text(dump(load_config(preset)))
        return judge_run(run, read_settings(run), past, None, CHANCE, expected, finished)

    return judge


def commands(found: Verdict) -> list[str]:
    return [step.command for step in found.steps]


def test_a_run_that_learnt_nothing_is_said_to_guess(judged):
    found = judged("small", history([0.1, 0.08], [5.5, 5.5], [5.5, 5.5]))
    assert found.title.startswith("No better than guessing")
    assert "clipcoco eval one --split train" in commands(found)


@pytest.mark.parametrize(("r1", "title"), [(8.0, "Less than"), (20.0, "As good as"), (40.0, "More than")])
@pytest.mark.parametrize(("by_hand", "whose"), [(False, "this preset"), (True, "its settings")])
def test_the_band_of_the_preset_decides_where_there_is_one(judged, r1, title, by_hand, whose):
    expected = Expected(12, 25, r1, "own", 1000, False, "", by_hand)
    found = judged("small", history([r1], [2.0], [1.9]), expected)
    assert found.title.startswith(f"{title} {whose}")
    again = "clipcoco train --config runs/one/config.yaml seed=1"
    assert (again in commands(found)) == (r1 == 8.0)
    assert ("clipcoco prepare-data --preset medium" in commands(found)) == (r1 != 8.0)


@pytest.mark.parametrize(("r1", "near"), [(95.6, False), (97.6, True)])
def test_the_ceiling_is_near_where_the_interval_nearly_reaches_it(r1, near):
    known = verdict._Known(r1, r1 - 1.3, 1.3, 500, 0.2)
    title = verdict._title(known, Expected(88, 98, r1, "own", 500, False, "", False), "it is known")
    assert title == "As good as this preset promises" + (", and close to all that can be known." if near else ".")


def test_of_a_changed_run_no_band_is_asked(judged):
    expected = Expected(12, 25, 8.0, "own", 1000, False, "changed settings: train.lr", False)
    assert judged("small", history([8.0], [2.0], [1.9]), expected).title.startswith("80 times as good as guessing")


def test_little_above_chance_is_said_in_tenths(judged):
    assert judged("small", history([0.29], [2.0], [1.9])).title.startswith("2.9 times as good as guessing")


def test_overfitting_is_seen_in_the_losses(judged):
    found = judged("full", history([10, 20, 21, 20], [3.0, 2.0, 2.4, 3.0], [2.5, 1.5, 0.7, 0.2]))
    assert "It overfits since epoch 2" in " ".join(found.reasons)
    assert "training loss 0.200, validation loss 3.000 in epoch 4" in " ".join(found.reasons)
    assert "the best epoch by R@1 is 3" in " ".join(found.reasons)
    assert any("train.early_stop_epochs=2" in line for line in commands(found))  # there is no larger preset


def test_a_run_that_still_rises_is_to_go_on(judged):
    found = judged("small", history([5, 10, 15, 20], [3.0, 2.5, 2.2, 2.0], [3.0, 2.5, 2.2, 2.0]))
    assert "the last 1 of 4 epochs added 5.0 points" in " ".join(found.reasons)
    epochs = 2 * load_config("small").config.train.epochs
    assert f"clipcoco train --config runs/one/config.yaml train.epochs={epochs}" in commands(found)


def test_a_model_that_knows_its_own_captions_better_needs_more_images(judged):
    level = [20.0, 20.1, 20.0, 20.1]
    assert "more images help most" in " ".join(judged("small", history(level, [2.0] * 4, [0.5] * 4)).reasons)
    assert "It does not overfit" in " ".join(judged("small", history(level, [2.0] * 4, [1.95] * 4)).reasons)


def test_a_gallery_that_has_no_room_is_named(judged):
    assert "since epoch 1." in " ".join(judged("demo", history([90.0, 91.0], [0.1, 0.1], [0.1, 0.1], r10=99.9)).reasons)
    assert "too easy" not in " ".join(judged("demo", history([90.0], [0.1], [0.1], r10=98.0)).reasons)


def test_before_the_end_nothing_is_advised(judged):
    found = judged("small", history([20.0], [2.0], [1.9]), finished=False)
    assert found.title.startswith("So far: 200 times")
    assert found.steps == ()
    assert judged("small", history([], [], [])).title == ""


def test_the_ceiling_of_the_drawn_scenes_is_what_the_scenes_give():
    """By a reader who matches every caption to all scenes that it is true of; ties are misses."""
    gallery = test_scenes.scenes(500, "val")
    drawn = [test_scenes.known(scene) for scene in gallery]
    texts = [[test_scenes.read(text) for text in test_scenes.captions(scene)] for scene in gallery]
    true_of = [[{j for j in range(500) if test_scenes.is_true(text, drawn[j])} for text in own] for own in texts]
    foreign = {j for i, own in enumerate(true_of) for found in own for j in found - {i}}
    assert 100 * (1 - len(foreign) / 500) == pytest.approx(CEILING["i2t"], abs=0.1)
    assert 100 * np.mean([found == {i} for i, own in enumerate(true_of) for found in own]) == pytest.approx(
        CEILING["t2i"], abs=0.1
    )

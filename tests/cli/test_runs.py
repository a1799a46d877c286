"""`clipcoco runs` and `clipcoco env`: what they say of real, killed, damaged and hostile run folders and machines."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.cells import cell_len

from clipcoco.config.backbones import BACKBONES
from clipcoco.config.load import dump, load_config
from clipcoco.disk.seal import unsealed
from clipcoco.runs.directory import RunDir
from conftest import LIGHT
from harness import EXTREMES, Page, at_the_limits, python

H100 = "NVIDIA H100 80GB HBM3, 81559 MiB"
RECALLS = {"r1": 10.0, "r5": 20.0, "r10": 30.0, "median_rank": 40.0}


@pytest.fixture(scope="module")
def trained(clipcoco, scenes, tmp_path_factory) -> Path:
    """A working directory in which run `real` was trained for an epoch and measured."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("--preset", "demo", "--name", "real", *LIGHT, f"data.root={scenes}", "train.epochs=1")
    clipcoco("train", *words, cwd=folder).ok()
    return folder


def make(
    folder: Path, name: str, r1s: tuple[float, ...] = (), config: str = "extends: small\n", hours: float = 0, **status
) -> RunDir:
    """A run folder as its process would have left it `hours` ago, after an evaluation for each of `r1s`."""
    run = RunDir(folder / "runs" / name)
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(config)
    rows = []
    for epoch, r1 in enumerate(r1s, 1):
        row = {"step": 100 * epoch, "epoch": epoch, "val_loss": 1.0, "i2t": RECALLS, "t2i": RECALLS, "r1": r1}
        rows.append({**row, "event": "evaluation"})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = {"r1": max(r1s), "epoch": r1s.index(max(r1s)) + 1} if r1s else None
    known = {"state": "finished", "step": 100 * len(r1s), "total_steps": 1000, "epochs": 10, "best": best}
    known |= {"device": "cuda:0", "val_images": 5000, "seconds": 1860.0, "exit_code": 0, "started": 1e9 - hours}
    (run.path / "status.json").write_text(json.dumps({**known, **status}))
    then = time.time() - hours * 3600
    os.utime(run.path / "status.json", (then, then))
    return run


def lines_of(clipcoco, folder: Path, *words: str, columns: int = 80) -> list[str]:
    done = clipcoco("runs", *words, cwd=folder, env={"COLUMNS": str(columns)}).ok()
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(cell_len(line) <= columns for line in lines if not line.startswith("    clipcoco ")), (
        "commands are whole"
    )
    return lines


def words_of(line: str) -> list[str]:
    return [word.strip() for word in line.split("  ") if word.strip()]


# ---- the list


def test_the_list_has_the_best_first_and_fits_80_columns(clipcoco, tmp_path):
    make(tmp_path, "small-20261123-180155", (0.31,), state="failed", exit_code=6, hours=30, seconds=245)
    make(tmp_path, "small-20261123-190211", (1.0, 1.69, 1.2), hours=0.25)
    make(tmp_path, "medium-20261124-021502", (3.41, 3.2), state="stopped", seconds=6720, hours=3000)
    make(tmp_path, "tiny-20261120-000000", (), state="failed", exit_code=3, seconds=None, device="cpu", hours=48)
    lines = lines_of(clipcoco, tmp_path)
    assert lines[0] == "  run                     state     epochs   R@1  device    took  when"
    assert words_of(lines[1])[:-1] == ["medium-20261124-021502", "stopped", "2/10", "3.41", "cuda", "1h52m"]
    assert lines[2] == "  small-20261123-190211   finished    3/10  1.69  cuda    31m00s  15 min ago"
    assert words_of(lines[3])[:-1] == ["small-20261123-180155", "diverged", "1/10", "0.31", "cuda", "4m05s"]
    assert lines[4] == "  tiny-20261120-000000    failed      0/10     -  cpu          -  2 days ago"
    assert lines[6] == "  R@1: mean of both directions in percent, 5,000 images to search"
    listed = clipcoco("runs", "--json", cwd=tmp_path).json
    assert listed["schema"] == 1
    assert [run["r1"] for run in listed["runs"]] == [3.41, 1.69, 0.31, None]
    second = {"run": "small-20261123-190211", "best_epoch": 2, "epochs_done": 3, "seconds": 1860.0, "images": 5000}
    assert second.items() <= listed["runs"][1].items()


def test_a_narrow_terminal_sees_fewer_columns_and_the_names_whole(clipcoco, tmp_path):
    make(tmp_path, "medium-20261124-021502", (3.41,), hours=1)
    make(tmp_path, "a-name-that-is-longer-than-any-terminal-would-like-it-to-be", (3.0,))
    make(tmp_path, "名" * 30, (2.0,))
    lines = lines_of(clipcoco, tmp_path, columns=50)
    assert lines[0].split() == ["run", "state", "epochs", "R@1"]
    assert words_of(lines[1])[0] == "medium-20261124-021502"
    assert words_of(lines[2])[0].startswith("a-name-that-is-longer")
    assert words_of(lines[2])[0].endswith("…")
    assert lines_of(clipcoco, tmp_path, columns=30)[0].split() == ["run", "state", "R@1"]
    wide = lines_of(clipcoco, tmp_path, columns=140)
    assert "a-name-that-is-longer-than-any-terminal-would-like-it-to-be" in wide[2]


def test_equal_recalls_stand_newest_first_and_galleries_that_differ_are_shown(clipcoco, tmp_path):
    make(tmp_path, "old", (2.0,), started=1.0)
    make(tmp_path, "new", (2.0,), started=2.0)
    make(tmp_path, "easy", (9.0,), val_images=250)
    lines = lines_of(clipcoco, tmp_path)
    assert [words_of(line)[0] for line in lines[1:4]] == ["easy", "new", "old"]
    assert [words_of(line)[4] for line in lines[:3]] == ["images", "250", "5,000"]
    assert "compare rows of equal images" in " ".join(lines[-2:]).replace("   ", " ")


def test_a_run_is_running_while_its_process_lives_and_killed_when_that_was(clipcoco, scenes, tmp_path):
    words = ("--preset", "demo", "--name", "doomed", *LIGHT, f"data.root={scenes}", "train.epochs=1000")
    process = clipcoco.start("train", *words, "checkpoint.every_steps=2", cwd=tmp_path)
    process.wait_for("saved checkpoints/last.pt")
    (run,) = clipcoco("runs", "--json", cwd=tmp_path).json["runs"]
    assert (run["state"], run["device"], run["images"], run["epochs"]) == ("running", "cpu", 24, 1000)
    assert 0 < run["step"] < run["total_steps"] == 6000
    (line,) = lines_of(clipcoco, tmp_path)[1:2]
    assert "running 0 %" in line
    assert line.endswith("now")
    assert process.poll() is None  # being looked at did it no harm
    process.signal_group(signal.SIGKILL)
    process.wait()
    (run,) = clipcoco("runs", "--json", cwd=tmp_path).json["runs"]
    assert run["state"] == "killed"
    assert "killed" in lines_of(clipcoco, tmp_path)[1]


def test_a_real_run_tells_all(clipcoco, trained):
    (run,) = clipcoco("runs", "--json", cwd=trained).json["runs"]
    evaluation = json.loads((trained / "runs/real/evaluation.json").read_text())["result"]
    assert (run["r1"], run["images"]) == (evaluation["r1"], evaluation["images"])
    assert (run["state"], run["epochs_done"], run["epochs"], run["device"]) == ("finished", 1, 1, "cpu")
    assert 0 < run["seconds"] < time.time() - run["started"] + 1


def test_no_run_is_one_friendly_line(clipcoco, tmp_path):
    for words in ((), ("--runs-dir", "elsewhere")):
        (line,) = lines_of(clipcoco, tmp_path, *words)
        assert "no run" in line
        assert line.endswith("clipcoco train --preset demo")
    assert clipcoco("runs", "--json", cwd=tmp_path).json == {"schema": 1, "runs_dir": "runs", "runs": []}


def test_what_is_damaged_half_made_or_hostile_is_shown_as_such(clipcoco, tmp_path):
    make(tmp_path, "good", (1.0,))
    (tmp_path / "runs" / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "not-a-run").mkdir()
    (tmp_path / "runs" / "a-file").write_text("")
    begun = make(tmp_path, "begun")
    (begun.path / "status.json").write_text('{"started": 1}')
    make(tmp_path, "no-config", (1.0,)).config.unlink()
    make(tmp_path, "odd-config", (1.0,), config="train: {lr: [}", epochs=None)
    make(tmp_path, "odd-state", (1.0,), state="\x1b[31mred")
    make(tmp_path, "long-device", (1.0,), device="\x1b]0;title\x07" * 20)
    for n, status in enumerate(("{", "[]", "[" * 100_000, '{"step": -1}', '{"step": 1e999}', '{"seconds": "x"}', "")):
        (make(tmp_path, f"damaged-{n}", (1.0,)).path / "status.json").write_text(status)
    torn = make(tmp_path, "torn", (1.0,), state="running")
    torn.metrics.write_bytes(torn.metrics.read_bytes() + b'{"step": 7, "event": "evaluation"\n\xff\xfe{{{"evaluation"')
    make(tmp_path, "evil\x1b[2J\nname", (1.0,))
    lines = lines_of(clipcoco, tmp_path)
    assert not any("\x1b" in line for line in lines)
    found = {run["run"]: run["state"] for run in clipcoco("runs", "--json", cwd=tmp_path).json["runs"]}
    assert found == {
        "good": "finished",
        "half": "half-made",
        "begun": "half-made",
        "no-config": "damaged",
        "odd-config": "finished",
        "odd-state": "damaged",
        "long-device": "finished",
        "torn": "killed",
        "evil\x1b[2J\nname": "finished",
        **{f"damaged-{number}": "damaged" for number in range(7)},
    }
    assert any("evil\\x1b[2J\\nname" in line for line in lines)


# ---- two runs


def measured(trained: Path, run: RunDir, **result) -> None:
    """Give `run` the evaluation of the real run, with another `result`: dotted names to values."""
    record = unsealed(json.loads((trained / "runs/real/evaluation.json").read_text()))
    record["result"]["step"] = 100
    for name, value in result.items():
        *path, leaf = name.split("__")
        node = record
        for part in path:
            node = node[part]
        node[leaf] = value
    run.evaluation.write_text(json.dumps(record))


def with_recalls(r1: float, spread: float, found: tuple[int, int] | None = None) -> dict[str, object]:
    """Image to text as given, text to image one better, both within +-spread.

    Hits by image, of 200 images with a caption each: those from `found[0]` up to `found[1]`; or none are known.
    """
    own = "result__protocols__own__"
    i2t, t2i = ({"r1": r1 + more, "r5": 50.0, "r10": 60.0, "median_rank": 5.0} for more in (0, 1))
    interval = {
        "i2t": {key: [i2t[key] - spread, i2t[key] + spread] for key in ("r1", "r5", "r10")},
        "t2i": {key: [t2i[key] - spread, t2i[key] + spread] for key in ("r1", "r5", "r10")},
        "r1": [r1 + 0.5 - spread / 2, r1 + 0.5 + spread / 2],
    }
    counts = [[int(found[0] <= image < found[1])] * 6 + [1] for image in range(200)] if found else None
    return {
        own + "i2t": i2t,
        own + "t2i": t2i,
        own + "r1": r1 + 0.5,
        own + "interval": interval,
        "hits": counts and {"image_ids": list(range(200)), "counts": counts},
        "result__composition": None,
    }


def test_two_runs_differ_in_settings_and_beyond_the_noise(clipcoco, trained, tmp_path):
    one = make(tmp_path, "one", (1.0,), dump(load_config("small", overrides=["train.lr=5e-4"])))
    other = make(tmp_path, "other", (1.0,), dump(load_config("small", overrides=["train.lr=1e-3", "seed=4"])))
    measured(trained, one, **with_recalls(20.0, 5.0, (0, 40)))
    measured(trained, other, **with_recalls(30.0, 5.0, (0, 60)))  # finds what the other one does, and more
    lines = lines_of(clipcoco, tmp_path, "one", "other")
    assert lines[:2] == ["  A  one · finished, 1/10 epochs", "  B  other · finished, 1/10 epochs"]
    assert [words_of(line) for line in lines[3:5]] == [["setting", "A", "B"], ["seed", "0", "4"]]
    assert words_of(lines[5]) == ["train.lr", "0.0005", "0.001"]
    assert "                           A       B   B - A  95 % interval" in lines
    (line,) = (line for line in lines if "mean R@1" in line)
    assert words_of(line)[:4] == ["mean R@1", "20.50", "30.50", "+10.00"]
    assert words_of(line)[-1] == "beyond the noise"
    low, high = map(float, line.split("[")[1].split("]")[0].split(", "))
    assert 4 < low < 10 < high < 16
    assert "Another seed moves recall too" in lines[-1]
    narrow = lines_of(clipcoco, tmp_path, "one", "other", columns=50)
    assert "  mean R@1   20.50   30.50  +10.00  beyond" in narrow
    found = clipcoco("runs", "one", "other", "--json", cwd=tmp_path).json
    assert found["settings"] == {"seed": {"a": 0, "b": 4}, "train.lr": {"a": 0.0005, "b": 0.001}}
    assert (found["schema"], found["comparable"], found["obstacles"]) == (1, True, [])
    rows = {(row["direction"], row["metric"]): row for row in found["recalls"]}
    assert len(rows) == 7
    row = rows["i2t", "r1"]
    assert (row["difference"], row["beyond"], row["overlap"]) == (10.0, True, True)
    assert row["difference_interval"] == pytest.approx([low, high], abs=0.01)
    assert (row["a_interval"], row["b_interval"]) == ([15.0, 25.0], [25.0, 35.0])


def test_as_large_a_difference_on_other_images_is_within_the_noise(clipcoco, trained, tmp_path):
    one, other = make(tmp_path, "one", (1.0,)), make(tmp_path, "other", (1.0,))
    measured(trained, one, **with_recalls(20.0, 5.0, (0, 40)))
    measured(trained, other, **with_recalls(25.0, 5.0, (150, 200)))
    lines = lines_of(clipcoco, tmp_path, "one", "other")
    assert sum(line.endswith("within the noise") for line in lines) == 7
    assert "holds 0" in " ".join(lines[-3:])


def test_runs_of_older_versions_have_intervals_that_overlap_or_do_not(clipcoco, trained, tmp_path):
    one, other = make(tmp_path, "one", (1.0,)), make(tmp_path, "other", (1.0,))
    measured(trained, one, **with_recalls(10.0, 1.0, (0, 20)))
    measured(trained, other, **with_recalls(11.5, 1.0))
    lines = lines_of(clipcoco, tmp_path, "one", "other")
    assert "  i2t R@1    10.00 ±  1.0   11.50 ±  1.0   +1.50  intervals overlap" in lines
    assert "  mean R@1   10.50 ±  0.5   12.00 ±  0.5   +1.50  intervals do not overlap" in lines
    assert "B has no hits by image, which pair the runs. Measure it again:" in lines[-2]
    assert lines[-1] == "  clipcoco report other"
    assert not any("noise" in line for line in lines)
    narrow = lines_of(clipcoco, tmp_path, "one", "other", columns=50)
    assert "  mean R@1   10.50   12.00   +1.50  apart" in narrow
    rows = clipcoco("runs", "one", "other", "--json", cwd=tmp_path).json["recalls"]
    assert [row["overlap"] for row in rows] == [True] * 6 + [False]
    assert {(row["beyond"], row["difference_interval"]) for row in rows} == {(None, None)}


@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES)
def test_numbers_at_their_limits_are_listed_and_compared(clipcoco, trained, tmp_path, extreme):
    run = make(tmp_path, "run", (1.0,), state="running")
    measured(trained, run)
    at_the_limits(run.path, *extreme)
    with run.lock():
        assert words_of(lines_of(clipcoco, tmp_path)[1])[0] == "run"
        assert clipcoco("runs", "--json", cwd=tmp_path).ok().json["runs"][0]["state"] == "running"
        assert any("mean R@1" in line for line in lines_of(clipcoco, tmp_path, "run", "run"))


def test_pairs_are_matched_by_id(clipcoco, trained, tmp_path):
    one, other = make(tmp_path, "one", (1.0,)), make(tmp_path, "other", (1.0,))
    measured(trained, one, **with_recalls(10.0, 1.0, (0, 20)))
    for key, value in (("image_ids", list(range(1, 201))), ("counts", [[0] * 6 + [2]] * 200)):
        of_others = with_recalls(40.0, 1.0, (0, 80))
        of_others["hits"][key] = value
        measured(trained, other, **of_others)
        lines = lines_of(clipcoco, tmp_path, "one", "other")
        assert "  the validation sets are of one size, but not the same." in lines
        assert not any("noise" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"result__images": 5000}, "the gallery differs: A has 24 images, B 5,000 images."),
        ({"result__split": "train2017"}, "the split differs: A has val2017, B train2017."),
        ({"result__source": "prepared-256"}, "the images' source differs: A has originals, B prepared-256."),
        ({"provenance__data": {"val": "0" * 64}}, "the validation sets are of one size, but not the same."),
    ],
)
def test_recalls_that_do_not_compare_are_not_judged(clipcoco, trained, tmp_path, change, says):
    one, other = make(tmp_path, "one", (1.0,)), make(tmp_path, "other", (1.0,))
    measured(trained, one, **with_recalls(10.0, 1.0))
    measured(trained, other, **with_recalls(40.0, 1.0), **change)
    lines = lines_of(clipcoco, tmp_path, "one", "other")
    assert lines[-2:] == [f"  {says}", "  So these recalls do not compare."]
    assert "  No setting differs." in lines
    assert not any("beyond" in line or "noise" in line for line in lines)
    assert clipcoco("runs", "one", "other", "--json", cwd=tmp_path).json["comparable"] is False


def test_runs_that_were_not_measured_compare_by_what_training_saw(clipcoco, trained, tmp_path):
    one, other, never = (make(tmp_path, *run) for run in (("one", (1.0, 4.0)), ("other", (2.0,)), ("never", ())))
    measured(trained, one, **with_recalls(10.0, 1.0))  # of step 100: before the run went on to its best
    wide = {"COLUMNS": "140"}
    done = clipcoco("runs", "one", "other", cwd=tmp_path, env=wide)
    assert "  mean R@1              4.00    2.00   -2.00\n" in done.stdout
    assert "A has no intervals: it was measured at another step. Measure it: clipcoco report one\n" in done.stdout
    assert "B has no intervals: evaluation.json is not there." in done.stdout
    assert "beyond" not in done.stdout
    never.config.write_text("train:\n  lr: 1\n  rl: \x1b[31m\n")
    other.evaluation.write_text('{"schema": 1')
    done = clipcoco("runs", "other", "never", cwd=tmp_path, env=wide)
    assert done.code == 0
    assert "the settings of B can't be read" in done.stdout
    assert "B was never evaluated" in done.stdout
    assert "\x1b" not in done.stdout
    assert "evaluation.json is damaged" in clipcoco("runs", "other", "one", cwd=tmp_path, env=wide).stdout


def test_hostile_settings_are_shown_on_one_line_and_cut(clipcoco, tmp_path):
    make(tmp_path, "one", (1.0,), config=f'extends: small\ndata: {{root: "{"x" * 3000}"}}\n')
    make(tmp_path, "other", (1.0,), config='extends: small\ndata: {root: "[bold]名前[/bold]"}\n')
    lines = [line for line in clipcoco("runs", "one", "other", cwd=tmp_path).stdout.splitlines() if "data.root" in line]
    assert len(lines) == 1
    assert cell_len(lines[0]) <= 80
    assert "[bold]名前[/bold]" in lines[0]


def test_wrong_words_are_one_line_errors(clipcoco, trained):
    for words, code, says in (
        (("real", "real", "real"), 2, "two runs are compared, not 3"),
        (("--page",), 2, "a page compares 2 to 6 runs, not 0 (--page)"),
        (("real", "--page"), 2, "a page compares 2 to 6 runs, not 1 (--page)"),
        (("real", "nobody", "--page"), 4, "no run 'nobody'"),
        (("real", "nobody"), 4, "no run 'nobody'"),
        (("real", "real/last"), 2, "whole runs are compared"),
    ):
        done = clipcoco("runs", *words, cwd=trained)
        assert (done.code, done.stdout) == (code, "")
        assert done.stderr.startswith("error: ")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    clipcoco("runs", "real", "rea", cwd=trained).ok()


# ---- one run


def test_one_run_is_shown_with_what_to_do_next(clipcoco, trained):
    lines = lines_of(clipcoco, trained, "real")
    assert lines[0] == "  real · finished, 1/1 epochs"
    own = clipcoco("eval", "real", "--json", cwd=trained).json["protocols"]["own"]
    (line,) = (line for line in lines if line.startswith("  text -> image"))
    assert words_of(line)[1].startswith(f"{own['t2i']['r1']:.2f} ±")
    assert any(words_of(line)[:3] == ["data.image_size", "32", "64"] for line in lines)
    assert any("runs/real/report.html, " in line for line in lines)
    assert any("checkpoints/best.pt" in line for line in lines)
    found = clipcoco("runs", "real", "--json", cwd=trained).json
    assert (found["schema"], found["run"], found["state"], found["r1"]) == (1, "real", "finished", own["r1"])
    assert found["settings"]["data.image_size"] == {"value": "32", "preset": "64"}
    assert found["files"]["report.html"] == (trained / "runs/real/report.html").stat().st_size
    assert found["next"]
    assert all(f"    {command}" in clipcoco("runs", "real", cwd=trained).stdout for command in found["next"])


def test_a_run_that_did_not_finish_goes_on_and_one_of_nothing_is_shown(clipcoco, tmp_path):
    stopped = make(tmp_path, "stopped", (1.0, 4.0), state="stopped", reason="Ctrl-C")
    (stopped.checkpoints / "last.pt").write_bytes(b"0")
    lines = lines_of(clipcoco, tmp_path, "stopped")
    assert lines[0] == "  stopped · stopped (Ctrl-C), 2/10 epochs"
    assert "R@1 4.00 as the training saw it in epoch 2; not measured" in " ".join(lines)
    assert lines[-2:] == ["  Go on:", "    clipcoco resume stopped"]
    make(tmp_path, "never", config="train:\n  rl: \x1b[31m\n")
    lines = lines_of(clipcoco, tmp_path, "never")
    assert "  It was never evaluated." in lines
    assert "\x1b" not in "".join(lines)


# ---- a page of several


def compared(clipcoco, folder: Path, *words: str) -> Page:
    done = clipcoco("runs", *words, "--page", cwd=folder).ok()
    assert done.stdout.split() == ["page", "runs/compare.html"]
    page = Page(folder / "runs/compare.html")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    assert "None" not in page.words
    return page


@pytest.fixture(scope="module")
def three(clipcoco, trained, tmp_path_factory) -> Path:
    """A folder with the real run, the same from another seed, and a copy."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copytree(trained / "runs", folder / "runs")
    shutil.copytree(folder / "runs/real", folder / "runs/copy")
    root = load_config(file=trained / "runs/real/config.yaml").config.data.root
    words = ("--preset", "demo", "--name", "other", *LIGHT, f"data.root={root}", "train.epochs=2", "seed=5")
    clipcoco("train", *words, cwd=folder).ok()
    return folder


def test_a_page_of_three_runs_says_where_they_differ_and_disagree(clipcoco, three):
    page = compared(clipcoco, three, "real", "other", "copy")
    runs = [RunDir(three / "runs" / name) for name in ("real", "other", "copy")]
    records = [json.loads(run.evaluation.read_text()) for run in runs]
    (row,) = (cells for cells in page.cells if cells[0].strip() == "mean R@1")
    r1s = [record["result"]["protocols"]["own"]["r1"] for record in records]
    assert [cell.split()[0] for cell in row[1:4]] == [f"{r1:.2f}" for r1 in r1s]
    assert [cell.split()[0] for cell in row[4:]] == [f"{r1 - r1s[0]:+.2f}" for r1 in r1s[1:]]
    lines = {line[0]: line[1:] for line in page.cells}
    assert lines["seed"] == ["0", "5", "0"]
    assert lines["train.epochs"] == ["1", "2", "1"]
    assert len(page.all("svg")) == 3
    # ---- what is nearest to an image is what the retrievals say, and right when an own caption is
    right = [[bool(row[0]) for row in record["hits"]["counts"]] for record in records]
    by_file = [{one["file"]: one["caption"] for one in record["nearest"]} for record in records]
    for record, nearest in zip(records, by_file, strict=True):
        for query in record["retrievals"]["images"]:
            assert nearest[query["file"]] == max(query["hits"], key=lambda hit: hit["score"])["caption"]
    patterns = [
        " ".join(name for name, one in zip("ABC", of_all, strict=True) if one) or "none"
        for of_all in zip(*right, strict=True)
    ]
    counted = {pattern: int(lines[pattern][0]) for pattern in set(patterns)}
    assert counted == {pattern: patterns.count(pattern) for pattern in set(patterns)}
    assert not {"A", "C"} & set(patterns)  # a run and its copy agree
    differ = [0 < len(pattern.split()) < 3 and pattern != "none" for pattern in patterns]
    assert page.source.count("image-query") - page.source.count(".image-query") == min(12, sum(differ))
    shown = [one["title"] for one in page.all("img")]
    files = [one["file"] for one in records[0]["nearest"]]
    assert set(shown) <= {file for file, one in zip(files, differ, strict=True) if one}


def test_a_page_of_runs_that_do_not_compare_says_so_and_draws_their_curves(clipcoco, three, trained, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(three / "runs", folder / "runs")
    record = unsealed(json.loads((folder / "runs/copy/evaluation.json").read_text()))
    record["result"]["images"] = 5000
    (folder / "runs/copy/evaluation.json").write_text(json.dumps(record))
    page = compared(clipcoco, folder, "real", "copy")
    assert "the gallery differs: A has 24 images, B 5,000 images" in page.words
    assert "So these recalls do not compare." in page.words
    assert "These runs were not measured on the same images." in page.words
    del record["nearest"], record["failures"]  # of an older version
    record["result"]["images"] = 24
    (folder / "runs/copy/evaluation.json").write_text(json.dumps(record))
    assert "Not every run has kept what it takes each image for" in compared(clipcoco, folder, "real", "copy").words
    make(folder, "<b>never", config="train:\n  rl: <i>\n")
    page = compared(clipcoco, folder, "real", "<b>never")
    assert "<b>never" in page.text
    assert "B was never evaluated" in page.words


def test_a_strangers_record_opens_no_file_outside_of_the_data(clipcoco, three, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(three / "runs", folder / "runs")
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    for name in ("real", "copy"):
        path = folder / "runs" / name / "evaluation.json"
        record = unsealed(json.loads(path.read_text()))
        record["thumbnails"] = {}
        for row, (one, counts) in enumerate(zip(record["nearest"], record["hits"]["counts"], strict=True)):
            one["file"] = ("../secret.jpg", str(tmp_path / "secret.jpg"))[row % 2]
            counts[0] = counts[1] = counts[2] = int(name == "real")
        path.write_text(json.dumps(record))
        config = folder / "runs" / name / "config.yaml"
        config.write_text(re.sub("root: .*", f"root: {data}", config.read_text()))
    page = compared(clipcoco, folder, "real", "copy")
    assert page.words.count("secret.jpg can’t be shown") == 12  # noqa: RUF001
    assert not page.all("img")


# ---- env


@pytest.mark.parametrize(
    "words", [["runs"], ["runs", "--json"], ["runs", "real", "real"], ["runs", "real"], ["env"], ["env", "--json"]]
)
def test_neither_command_imports_torch(words, trained):
    code = (
        "import sys; from clipcoco.cli import run; code = run(sys.argv[1:])\n"
        "assert not {'torch', 'torchvision', 'matplotlib'} & sys.modules.keys(); sys.exit(code)"
    )
    assert python(code, *words, cwd=trained).stderr == ""


def test_env_tells_of_the_machine_and_no_secret(clipcoco, tmp_path):
    home = tmp_path / "home" / "ann"
    (home / "work").mkdir(parents=True)
    secrets = {
        "HOME": str(home),
        "HTTPS_PROXY": "http://ann:hunter2@proxy.example:8080",
        "no_proxy": "intern.example",
        "HF_TOKEN": "hf_hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "NO_COLOR": "1",
        "TERM": "xterm-\x1b[31m",
    }
    text = clipcoco("env", cwd=home / "work", env=secrets)
    found = clipcoco("env", "--json", cwd=home / "work", env=secrets)
    assert text.code == found.code == 0, text.stderr + found.stderr
    for said in (text.stdout, found.stdout):
        for secret in ("hunter2", "example", "/ann", "\x1b", os.uname().nodename):
            assert secret not in said, said
    facts = found.json
    assert facts["schema"] == 1
    assert facts["proxies"] == ["https_proxy", "no_proxy"]
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert facts["torch_build"] == {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    assert facts["disk"]["folder"] == "~/work"
    assert facts["disk"]["free"] > 0
    assert facts["memory"]["total"] > facts["memory"]["available"] > 0
    assert facts["cpu"]["usable"] >= 1
    assert facts["threads"] == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    assert facts["terminal"]["is_a_terminal"] == {"stdin": False, "stdout": False, "stderr": False}
    assert "proxies      https_proxy, no_proxy" in text.stdout
    assert "NO_COLOR=1" in text.stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_wait_without_their_core_but_where_the_user_says_how(given, told):
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    plain = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-m", "clipcoco", "env", "--json"]
    said = subprocess.run(command, env=plain | given, check=True, stdout=subprocess.PIPE).stdout
    assert {name: value for name, value in json.loads(said)["threads"].items() if name in names} == told


def test_env_looks_for_weights_where_torch_does(clipcoco, tmp_path, monkeypatch):
    import torchvision

    published = {Path(w.url).name for name in BACKBONES for w in torchvision.models.get_model_weights(name)}
    for variable, folder in (("TORCH_HOME", tmp_path / "torch"), ("XDG_CACHE_HOME", tmp_path / "cache")):
        monkeypatch.setenv(variable, str(folder))
        monkeypatch.delenv("TORCH_HOME" if variable != "TORCH_HOME" else "XDG_CACHE_HOME", raising=False)
        there = Path(torch.hub.get_dir()) / "checkpoints"
        there.mkdir(parents=True)
        (there / "resnet50-0676ba61.pth").touch()
        found = clipcoco("env", "--json", cwd=tmp_path, env={variable: str(folder)}).json["weights"]
        assert found["folder"] == str(there)
        assert found["files"] == {name: name == "resnet50-0676ba61.pth" for name in published}


@pytest.mark.parametrize(
    ("script", "gpus", "driver", "says"),
    [
        (f"echo '{H100}, 570.86.15'", [H100], "570.86.15", "H100"),
        ("echo 'it has failed: no driver' >&2; exit 9", [], None, "nvidia-smi: it has failed: no driver"),
    ],
)
def test_env_asks_the_driver_for_the_gpus(clipcoco, tmp_path, script, gpus, driver, says):
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver of its own")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = clipcoco("env", "--json", cwd=tmp_path, env=path).json["nvidia"]
    assert (found["gpus"], found["driver"]) == (gpus, driver)
    assert says in clipcoco("env", cwd=tmp_path, env=path).stdout

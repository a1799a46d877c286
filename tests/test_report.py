"""The page in which a run ends: read as a browser would, from real runs, damaged ones and hostile ones."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipcoco.disk.seal import unsealed
from clipcoco.engine import analysis
from clipcoco.engine.embeddings import Embeddings
from clipcoco.report.page import is_measured, write_report
from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import read_record
from conftest import LIGHT, TOY
from harness import EXTREMES, Page, at_the_limits, rows, until

EVIL = "</style><script>alert(1)</script> & \"quoted\" '{{ 7 * 7 }}'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def checked(path: Path) -> Page:
    """The page, after all that must hold of every page."""
    assert path.stat().st_size < 3_000_000
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        targets = (attributes.get("aria-labelledby") or "").split()
        if (attributes.get("href") or "").startswith("#"):
            targets.append(attributes["href"][1:])
        assert set(targets) <= set(ids)
    for attributes in page.all("img"):
        assert attributes["alt"]
        kind, _, data = attributes["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
            assert max(thumbnail.size) <= 160
    drawings = page.all("svg")
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in drawings)
    assert len(page.all("title")) == len(drawings) + 1  # and the page's own
    assert page.source.count("<desc ") == page.source.count("</desc>") == len(drawings)
    assert "<desc></desc>" not in page.source
    assert "None" not in page.words.replace("RunNone", "")
    return page


def recalls(page: Page) -> dict[str, list[str]]:
    """The first table of recalls: R@1, R@5, R@10, median rank by row."""
    rows = page.cells[1:6]
    return {" ".join(row[0].split()): [cell.split("±")[0].strip() for cell in row[1:]] for row in rows}


@pytest.fixture(scope="module", autouse=True)
def _every_figure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERY_FIGURE", "1")
        yield


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    """A finished run, and its data beside it."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(scenes, folder / "data" / "demo")
    done = clipcoco("train", "--preset", "demo", "--name", "first", *TOY, "train.epochs=2", cwd=folder).ok()
    assert "runs/first/report.html" in done.stdout
    return folder


@pytest.fixture
def run(folder, tmp_path) -> RunDir:
    """A copy of the finished run, to be mistreated."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".pt") else shutil.copy2)(source, target)

    shutil.copytree(folder / "runs", tmp_path / "runs", copy_function=copy)
    return RunDir(tmp_path / "runs" / "first")


def test_a_finished_run_ends_in_its_page(clipcoco, folder):
    page = checked(folder / "runs/first/report.html")
    own = clipcoco("eval", "first", "--json", cwd=folder).json["protocols"]["own"]
    table = recalls(page)
    for label, direction in (("image → text", "i2t"), ("text → image", "t2i")):
        assert table[label][:3] == [f"{own[direction][key]:.2f}" for key in ("r1", "r5", "r10")]
        assert table[label][3] == f"{own[direction]['median_rank']:,g}"
    assert table["mean"][0] == f"{own['r1']:.2f}"
    low, high = own["interval"]["i2t"]["r5"]
    assert f"{own['i2t']['r5']:.2f} ± {(high - low) / 2:.1f}" in page.text.replace("\xa0", " ")
    for words in (
        "resnet18 at 32 pixels, from scratch",
        "48 images of train2017 in data/demo (originals), 2 epochs of 6 steps × 8 images",  # noqa: RUF001
        "24 images and 120 captions",
        "chance 2.079",
        "clipcoco train --config runs/first/config.yaml",
        "clipcoco train --preset demo --set data.image_size=32",
        "settings differ from the preset demo",
        "checkpoints/best.pt",
        "half are the worst failures: nothing is picked by hand",
    ):
        assert words in page.words
    assert "Stopped." not in page.words
    assert page.source.count('<article class="card text-query">') == 12
    assert page.source.count('<article class="card image-query">') == 12
    assert len(page.all("svg")) == 12
    record, _ = read_record(RunDir(folder / "runs/first"))
    for kind, found in record.result.composition.kinds.items():
        shown = next(row for row in page.cells if row[0] == kind)
        assert (shown[1].split()[0], shown[2:]) == (f"{found.accuracy:.2f}", [str(found.pairs), str(found.ties)])
    assert {path.stem for path in (folder / "runs/first/figures").glob("*.svg")} >= {"loss", "ranks-t2i"}
    for path in (folder / "runs/first/figures").glob("*.svg"):
        assert path.read_text().startswith("<svg xmlns=")
        assert not re.search("#0[1-4]0[1-4]0[1-4]|var\\(", path.read_text())


def test_pictures_are_named_and_lead_to_their_files(folder):
    page = Page(folder / "runs/first/report.html")
    links = [one["href"] for one in page.all("a") if one["href"].endswith(".jpg")]
    assert len(links) >= 2 * len(page.all("img")) > 0  # the picture, and its name
    assert all((folder / "runs/first" / link).resolve().is_file() for link in links)
    for one in page.all("img"):
        assert f">{Path(one['title']).name.lstrip('0')}</a>" in page.source


def test_the_first_screen_has_captions_that_are_right_and_captions_that_miss(folder):
    record = json.loads((folder / "runs/first/evaluation.json").read_text())
    page = Page(folder / "runs/first/report.html")
    first = page.source[: page.source.index("What next")]
    shown = [query for query in record["retrievals"]["texts"] if escape(query["caption"][:40]) in first]
    right = [query for query in record["retrievals"]["texts"] if query["rank"] == 1]
    assert first.count('<article class="glance">') == min(2, len(right)) + 2  # of 24 images and a toy
    assert {query["rank"] == 1 for query in shown} == ({True, False} if right else {False})
    counts = [list(map(int, row[1:])) for row in page.cells if row[0].strip() in ("of 24 images", "of 120 captions")]
    assert list(map(sum, counts)) == [24, 120]
    own = record["result"]["protocols"]["own"]
    assert [row[0] for row in counts] == [round(own["i2t"]["r1"] * 0.24), round(own["t2i"]["r1"] * 1.2)]


@pytest.mark.parametrize(("more", "verdict"), [(1.25, "1.25 points more."), (-0.5, "0.50 points less: it was not.")])
def test_whether_training_was_worth_it(run, more, verdict):
    r1 = float(recalls(Page(run.report))["mean"][0])
    ways = {way: {"r1": r1 - more, "r5": 44.0, "r10": 55.5, "median_rank": 7.0} for way in ("i2t", "t2i")}
    row = {"step": 0, "epoch": 1, **ways, "r1": r1 - more, "rsum": 0.0, "clock": {}, "event": "closed form"}
    run.metrics.write_text(json.dumps(row) + "\n" + run.metrics.read_text())
    page = checked(write_report(run))
    assert f"reaches {r1 - more:.2f} % R@1; training reaches {r1:.2f} %, {verdict}" in page.words
    assert "The difference lies within ± " in page.words  # of 24 images
    assert [cells[:4] for cells in page.cells if cells[:1] == ["closed form"]] == [
        ["closed form", f"{r1 - more:.2f}", "44.00", "55.50"]
    ] * 2
    run.metrics.write_text(run.metrics.read_text().replace('"r5": 44.0', '"r5": 144.0'))
    assert "Was training worth it?" not in checked(write_report(run)).words


def test_what_is_marked_right_is_right(folder):
    record = json.loads((folder / "runs/first/evaluation.json").read_text())
    annotations = json.loads((folder / "data/demo/annotations/captions_val2017.json").read_text())
    names = {image["id"]: f"val2017/{image['file_name']}" for image in annotations["images"]}
    pairs = {(names[row["image_id"]], row["caption"]) for row in annotations["annotations"]}
    for query in record["retrievals"]["texts"]:
        for hit in query["hits"]:
            assert hit["right"] == ((hit["file"], query["caption"]) in pairs)
        assert any(hit["right"] for hit in query["hits"])
    for query in record["retrievals"]["images"]:
        for hit in query["hits"]:
            assert hit["right"] == ((query["file"], hit["caption"]) in pairs)
    page = Page(folder / "runs/first/report.html")
    marked = sum("right" in (attributes.get("class") or "") for attributes in page.all("li"))
    both = record["retrievals"]["texts"] + record["retrievals"]["images"]
    assert marked == page.text.count("✓ right") == sum(hit["right"] for query in both for hit in query["hits"])


def test_the_record_is_what_eval_prints(clipcoco, folder):
    record = json.loads((folder / "runs/first/evaluation.json").read_text())
    printed = clipcoco("eval", "first", "--json", cwd=folder).json
    for result in (record["result"], printed):
        del result["seconds"]
    assert record["result"] == printed
    assert sum(record["similarities"]["matched"]) == 120
    assert sum(record["similarities"]["unmatched"]) == 120 * 23
    assert sum(record["ranks"]["t2i"]["counts"]) == 120


def test_the_same_records_give_the_same_bytes_without_the_data(clipcoco, run):
    before = run.report.read_bytes()
    svgs = {path.name: path.read_bytes() for path in run.figures.iterdir()}
    shutil.rmtree(run.figures)
    run.report.unlink()
    done = clipcoco("report", "first", "--json", cwd=run.path.parents[1]).ok()
    assert done.json == {"schema": 1, "run": "first", "report": "runs/first/report.html", "measured": False}
    assert run.report.read_bytes() == before
    assert {path.name: path.read_bytes() for path in run.figures.iterdir()} == svgs


def test_a_record_of_other_weights_is_measured_again_when_the_data_are_there(clipcoco, folder, run):
    record = unsealed(json.loads(run.evaluation.read_text()))
    record["provenance"]["weights_sha256"] = "0" * 64
    record["result"]["step"] = 1
    run.evaluation.write_text(json.dumps(record))
    assert not is_measured(run)
    without = clipcoco("report", cwd=run.path.parents[1]).ok()
    assert without.stderr.count("\n") == 1
    assert without.stderr.startswith("note: first is not measured: no captions")
    page = checked(run.report)
    assert "Since the last measurement (step 1) training found a better checkpoint" in page.words
    assert "as measured in training after epoch" in page.words
    (run.path.parents[1] / "data").symlink_to(folder / "data")
    again = clipcoco("report", cwd=run.path.parents[1]).ok()
    assert "runs/first/report.html" in again.stdout
    assert is_measured(run)
    assert recalls(checked(run.report)) == recalls(Page(folder / "runs/first/report.html"))


@pytest.mark.parametrize(("dropped", "times"), [(0, 1), (500, 2)])
def test_a_gallery_of_a_thousand_is_shown_once(run, dropped, times):
    record = unsealed(json.loads(run.evaluation.read_text()))
    protocols = record["result"]["protocols"]
    protocols["1k"] = {**protocols["own"], "folds": 1, "dropped": dropped}
    run.evaluation.write_text(json.dumps(record))
    assert checked(write_report(run)).words.count("ties count against the model") == times


def test_a_run_that_was_never_measured_shows_what_training_saw(run):
    run.evaluation.unlink()
    page = checked(write_report(run))
    best = max(map(json.loads, run.metrics.read_text().splitlines()), key=lambda row: row.get("r1", -1.0))
    assert f"{best['i2t']['r5']:.2f}" in page.words
    assert page.words.count("evaluation.json is not there") == 4
    assert "clipcoco report first" in page.words
    assert len(page.all("svg")) == 9
    assert not page.all("img")
    assert recalls(page)["by chance"] == ["4.17", "20.83", "41.67", "12.5"]
    assert "By chance 4.17, 20.83 and 41.67 %." in page.words


def started(clipcoco, folder: Path, tmp_path: Path, prelude: str = ""):
    """A run that has evaluated once and would go on for long."""
    (tmp_path / "data").symlink_to(folder / "data")
    words = ["train", "--preset", "demo", "--name", "run", *LIGHT, "train.epochs=500"]
    process = clipcoco.start(*words, cwd=tmp_path, prelude=prelude)
    process.wait_for("eval epoch 1 ")
    process.wait_for("saved")
    return process, RunDir(tmp_path / "runs" / "run")


def test_an_interrupted_run_has_a_page_and_report_completes_it(clipcoco, folder, tmp_path):
    process, run = started(clipcoco, folder, tmp_path)
    process.signal(signal.SIGINT)
    assert process.wait().code == 75
    page = checked(run.report)
    assert re.search(r"Stopped\. By Ctrl-C at step \d+ of 3,000\. Go on from there:\s*clipcoco resume run", page.words)
    assert "evaluation.json is not there" in page.words
    clipcoco("report", "run", cwd=tmp_path).ok()
    page = checked(run.report)
    assert "Stopped. By Ctrl-C" in page.words
    assert "24 images and 120 captions" in page.words
    assert len(page.all("svg")) == 12


LONG = """
import pathlib, time
import clipcoco.report.live as live
import clipcoco.report.page as page
def write_report(run):
    if run.status().state == "running":
        return
    for rounds in range(10**9):
        pathlib.Path("rounds.tmp").write_text(str(rounds))
        pathlib.Path("rounds.tmp").replace("rounds")
        time.sleep(0.01)
page.write_report = live.write_report = write_report
"""


def test_a_second_ctrl_c_leaves_the_old_page_and_other_signals_wait_for_the_new_one(clipcoco, folder, tmp_path):
    process, run = started(clipcoco, folder, tmp_path, prelude=LONG)

    def rounds() -> int:
        return int((tmp_path / "rounds").read_text()) if (tmp_path / "rounds").exists() else -1

    run.report.write_text("the old page")
    process.signal(signal.SIGINT)
    until(lambda: rounds() >= 0, process)
    process.signal(signal.SIGTERM)
    heard = rounds() + 2
    until(lambda: rounds() >= heard, process)
    assert process.poll() is None
    process.signal(signal.SIGINT)
    assert process.wait().code == 130
    assert run.report.read_text() == "the old page"
    assert run.status().state == "stopped"
    assert not list(run.path.glob(".*.tmp"))


def test_a_page_that_cannot_be_written_does_not_make_a_stop_a_failure(clipcoco, folder, tmp_path):
    process, run = started(clipcoco, folder, tmp_path)
    process.wait_for("page runs/run/report.html")
    run.report.unlink()
    run.report.mkdir()
    process.signal(signal.SIGTERM)
    done = process.wait()
    assert done.code == 75
    assert "warning: no report: Is a directory" in done.stderr


def test_a_run_at_work_shows_a_page_that_reloads_itself_until_it_stops(clipcoco, folder, tmp_path):
    process, run = started(clipcoco, folder, tmp_path)
    process.wait_for("page runs/run/report.html")
    page = checked(run.report)
    assert [one["content"] for one in page.all("meta") if one.get("http-equiv") == "refresh"] == ["15"]
    assert re.search(r"Still running\. This page shows the run at step \d+ of 3,000\. It is written anew", page.words)
    assert recalls(page)["mean"][0]
    process.signal(signal.SIGTERM)
    assert process.wait().code == 75
    page = checked(run.report)
    assert "refresh" not in [one.get("http-equiv") for one in page.all("meta")]
    assert "Stopped. By SIGTERM" in page.words


WITHOUT = """
import clipcoco.report.live as live
import clipcoco.report.page as page
made = page.write_report
def write_report(run):
    if run.status().state == "running":
        raise RuntimeError("a fault of ours")
    return made(run)
page.write_report = live.write_report = write_report
"""


def test_a_fault_of_the_page_costs_no_run_and_the_page_no_bit(clipcoco, folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    words = ("train", "--preset", "demo", "--name", "run", *TOY, "train.epochs=2")
    done = clipcoco(*words, cwd=tmp_path, prelude=WITHOUT).ok()
    assert done.stderr.count("warning: no page while it runs: a fault of ours") == 1
    assert "page runs/first/report.html" in (folder / "runs/first/log.txt").read_text()
    assert rows(tmp_path / "runs/run") == rows(folder / "runs/first")  # the sums of the weights are among them
    assert "refresh" not in [one.get("http-equiv") for one in checked(tmp_path / "runs/run/report.html").all("meta")]


def test_a_failed_run_says_so(clipcoco, folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    process = clipcoco.start("train", "--preset", "demo", "--name", "run", *LIGHT, "train.epochs=500", cwd=tmp_path)
    process.wait_for("eval epoch 1 ")
    process.wait_for("saved")
    shutil.rmtree(tmp_path / "data/demo/val2017")
    failed = process.wait()
    assert failed.code == 3, failed.stderr
    page = checked(tmp_path / "runs/run/report.html")  # that was there while it ran
    assert "Failed." in page.words
    assert "refresh" not in [one.get("http-equiv") for one in page.all("meta")]
    done = clipcoco("report", "run", cwd=tmp_path).ok()
    assert done.stderr.startswith("note: run is not measured:")
    page = checked(tmp_path / "runs/run/report.html")
    assert re.search(r"Failed\. At step \d+ of 3,000 \(exit code 3\): ", page.words)
    assert "clipcoco resume run" in page.words


def test_a_run_at_work_has_a_page(run):
    run.write_status(state="running", step=6, total_steps=180)
    page = checked(write_report(run))
    assert "Still running. This page shows the run at step 12 of 180." in page.words


DAMAGE = [
    {
        "metrics.jsonl": (b'{"event": "step", "st\n\xff\xfe\n[]\n{"event": "step", "step": 1e999}\n', "4 rows of"),
        "status.json": (b"[1, 2", "State unknown"),
        "evaluation.json": (b'{"schema": 1, "result": {', "evaluation.json is damaged"),
        "config.yaml": (b"train: [\n", "can't use config.yaml"),
    },
    {
        "metrics.jsonl": (None, "No step is recorded yet"),
        "status.json": (b'{"state": 7, "step": "x"}', "State unknown"),
        "evaluation.json": (b'{"schema": 2}', "evaluation.json was written by a newer clipcoco"),
        "config.yaml": (b"extends: demo\nmagic: {wand: 3}\n", "can't use config.yaml"),
    },
    {
        "status.json": (None, "State unknown"),
        "evaluation.json": (b'{"schema": 1, "result": []}', "evaluation.json is damaged"),
        "config.yaml": (None, "config.yaml can't be read"),
    },
    {"evaluation.json": (b"[" * 100_000, "evaluation.json is damaged")},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=["cut", "of another version", "of another kind", "deep"])
def test_damaged_records_are_named_and_the_rest_is_shown(run, damage):
    for file, (content, _) in damage.items():
        (run.path / file).unlink()
        if content is not None:
            (run.path / file).write_bytes(content)
    page = checked(write_report(run))
    assert all(words in page.words for _, words in damage.values())
    assert "6 Reproduce" in page.words


def test_a_run_directory_of_nothing_has_a_page(tmp_path):
    page = checked(write_report(RunDir(tmp_path)))
    for words in ("State unknown", "Nothing is measured yet", "No step is recorded yet"):
        assert words in page.words


def test_numbers_that_are_not_finite_leave_gaps(run):
    step = {"epoch": 1, "loss": None, "lr": 0.0, "temperature": 0.07, "grad_norm": None, "clock": {}, "event": "step"}
    lines = [json.dumps({**step, "step": number}) for number in range(1, 4)]
    lines += [json.dumps({"step": 2, "epoch": 1, "reason": "loss <nan>", "event": "skipped"})]
    run.metrics.write_text("\n".join(lines))
    page = checked(write_report(run))
    assert "Step 2 was skipped, the weights stayed: loss <nan>" in page.words
    assert len(page.all("svg")) == 2 + 3  # learning rate and temperature; what was measured


def test_huge_numbers_are_drawn(run):
    step = {"epoch": 1, "lr": 1e-30, "temperature": 1.0, "event": "step"}
    rows = [{**step, "step": 10**number, "loss": 3e38, "grad_norm": 10.0 ** (3 * number)} for number in range(12)]
    run.metrics.write_text("\n".join(map(json.dumps, rows)))
    assert len(checked(write_report(run)).all("svg")) == 4 + 3


@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES)
def test_numbers_at_their_limits_make_a_page(clipcoco, run, extreme):
    at_the_limits(run.path, *extreme)
    clipcoco("report", "first", cwd=run.path.parents[1]).ok()
    assert "6 Reproduce" in checked(run.report).words


def test_a_long_run_stays_small(run):
    step = {"epoch": 1, "lr": 1e-4, "temperature": 0.07, "event": "step"}
    clock = {"seconds": 1.0, "images_per_second": 100.0, "data_wait": 0.01}
    with open(run.metrics, "w") as file:
        for number in range(1, 20_001):
            row = {"step": number, "loss": 4 / number, "grad_norm": 1000 / number, "clock": clock}
            file.write(json.dumps({**step, **row}) + "\n")
    page = checked(write_report(run))
    assert "5 h 33 min" in page.words
    assert (run.figures / "loss.svg").stat().st_size < 50_000


def test_whatever_a_stranger_wrote_is_text(clipcoco, scenes, tmp_path):
    root = tmp_path / 'a "b" <i>'
    shutil.copytree(scenes, root)
    file = root / "annotations" / "captions_val2017.json"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["caption"] = EVIL
    file.write_text(json.dumps(content))
    words = ["train", "--preset", "demo", "--name", "run", *TOY, f'data.root="{root}"'.replace('"b"', '\\"b\\"')]
    clipcoco(*words, "train.epochs=1", cwd=tmp_path).ok()
    run = RunDir((tmp_path / "runs" / "run").rename(tmp_path / "runs" / "<b>run"))
    run.write_status(state="failed", reason=EVIL)
    with open(run.metrics, "a") as metrics:
        metrics.write(json.dumps({"step": 6, "epoch": 1, "message": f"{EVIL}\u202e\x1b", "event": "warning"}) + "\n")
    record = unsealed(json.loads(run.evaluation.read_text()))
    old = record["retrievals"]["images"][0]["file"]
    new = f"val2017/{EVIL.replace('/', '')}.jpg"
    record = json.loads(json.dumps(record).replace(json.dumps(old), json.dumps(new)))
    run.evaluation.write_text(json.dumps(record))
    page = checked(write_report(run))
    assert page.text.count(EVIL) >= 12 + 12 + 2
    assert not set("\u202e\x1b") & set(page.text)  # what would turn the rest of a line around
    assert "<b>run" in page.text
    assert 'a "b" <i>' in page.text
    assert any(attributes["title"] == new for attributes in page.all("img"))


def test_a_thumbnail_that_is_none_is_refused(run):
    record = unsealed(json.loads(run.evaluation.read_text()))
    file = next(iter(record["thumbnails"]))
    record["thumbnails"][file] = 'AAAA" onerror="alert(1)'
    run.evaluation.write_text(json.dumps(record))
    assert "evaluation.json is damaged" in checked(write_report(run)).words


def test_an_image_without_a_thumbnail_is_named(run):
    record = unsealed(json.loads(run.evaluation.read_text()))
    file = record["retrievals"]["images"][0]["file"]
    del record["thumbnails"][file]
    run.evaluation.write_text(json.dumps(record))
    assert f"{Path(file).name} can’t be shown" in checked(write_report(run)).words  # noqa: RUF001


def test_it_needs_no_torch_no_backend_and_no_home(run, tmp_path):
    program = (
        "import sys, pathlib\n"
        "from clipcoco.report.page import write_report\n"
        "from clipcoco.runs.directory import RunDir\n"
        f"write_report(RunDir(pathlib.Path({str(run.path)!r})))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "import matplotlib, os\n"
        "assert matplotlib.rcParams['svg.fonttype'] == 'path'\n"
        "assert os.environ['MPLBACKEND'] == 'qtagg'\n"
        "assert 'MPLCONFIGDIR' not in os.environ\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    before = run.report.read_bytes()
    for backend in ("qtagg", "nosuch"):  # which matplotlib refuses as it is imported
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "MPLBACKEND": backend}
        words = [sys.executable, "-c", program.replace("qtagg", backend)]
        done = subprocess.run(words, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert not list(home.iterdir())
        assert run.report.read_bytes() == before


def chromium(*words: str) -> str:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    done = subprocess.run([CHROMIUM, *flags, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("name", ["not measured", "long words"])
def test_a_phone_scrolls_down_only(run, tmp_path, name):
    if name == "not measured":
        run.evaluation.unlink()
    if name == "long words":
        long = "x" * 300
        run.write_status(state="failed", reason=long)
        record = unsealed(json.loads(run.evaluation.read_text()))
        for query in record["retrievals"]["texts"]:
            query["caption"] = long
        for query in record["retrievals"]["images"]:
            query["hits"][0]["caption"] = long
        run.evaluation.write_text(json.dumps(record))
        run = RunDir(run.path.rename(run.path.with_name("y" * 200)))
    page = re.sub("<meta http-equiv[^>]*>", "", write_report(run).read_text()).replace("<details>", "<details open>")
    # A window may not be this narrow; a frame may.
    frame = f'<iframe width="360" height="800" style="border: 0" srcdoc="{escape(page)}"></iframe>'
    script = (
        "onload = () => { const inside = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${inside.clientWidth} ${inside.scrollWidth} ${inside.scrollHeight > 2000}` }"
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{frame}<script>{script}</script>")
    shown = chromium("--window-size=800,900", "--dump-dom", f"file://{tmp_path}/frame.html")
    assert re.search("<title>(.*?)</title>", shown)[1] == "360 360 true"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_it_prints(run, tmp_path):
    chromium(f"--print-to-pdf={tmp_path}/page.pdf", "--no-pdf-header-footer", f"file://{run.report}")
    pages = re.findall(rb"/Type\s*/Page\b(?!s)", (tmp_path / "page.pdf").read_bytes())
    assert 4 <= len(pages) <= 20


def embeddings(images: int, captions: int) -> Embeddings:
    generator = torch.Generator().manual_seed(3)
    sides = [torch.randn(rows, 8, generator=generator) for rows in (images, images * captions)]
    owners = torch.arange(images).repeat_interleave(captions)
    unit = [side / side.norm(dim=1, keepdim=True) for side in sides]
    return Embeddings(unit[0], unit[1], owners.numpy(), owners.numpy(), owners)


def test_similarities_count_every_pair_in_chunks(monkeypatch):
    monkeypatch.setattr(analysis, "CHUNK", 50)
    some = embeddings(7, 3)
    found = analysis.similarities(some)
    scores = some.texts.double() @ some.images.double().T
    own = torch.zeros_like(scores, dtype=torch.bool)
    own[torch.arange(21), some.owners] = True
    for counts, values in ((found.matched, scores[own]), (found.unmatched, scores[~own])):
        assert sum(counts) == len(values)
        for (low, high), count in zip(pairwise(found.edges), counts, strict=True):
            assert count == int(((values >= low) & (values < high)).sum())
    assert found.matched_mean == pytest.approx(float(scores[own].mean()), abs=1e-6)
    assert found.unmatched_mean == pytest.approx(float(scores[~own].mean()), abs=1e-6)


def test_equal_vectors_are_counted_at_the_end_of_the_range():
    ones = torch.nn.functional.normalize(torch.full((3, 8), 0.3), dim=1) * (1 + 1e-7)
    some = Embeddings(ones, ones, torch.arange(3).numpy(), torch.arange(3).numpy(), torch.arange(3))
    found = analysis.similarities(some)
    assert (found.matched[-1], found.unmatched[-1]) == (3, 6)
    assert analysis.geometry(some).image_uniformity == pytest.approx(0, abs=1e-5)


def test_one_image_has_no_foreign_pairs():
    some = embeddings(1, 5)
    found = analysis.similarities(some)
    assert found.unmatched_mean is None
    assert sum(found.unmatched) == 0
    assert analysis.geometry(some).image_uniformity is None
    assert analysis.hubs(some.texts, some.images).counts == [5]


def test_ranks_are_grouped_by_doubling():
    found = analysis.rank_counts(torch.tensor([1, 2, 3, 4, 5, 8, 9, 20]), 20)
    assert found.upper == [1, 2, 4, 8, 16, 32]
    assert found.counts == [1, 1, 2, 2, 1, 1]
    assert analysis.rank_counts(torch.tensor([1]), 1).upper == [1]


def test_hubs_are_who_is_near_too_often(monkeypatch):
    monkeypatch.setattr(analysis, "CHUNK", 40)
    some = embeddings(9, 4)
    found = analysis.hubs(some.texts, some.images, count=4, nearest=3)
    counts = torch.zeros(9, dtype=torch.int64)
    for row in (some.texts @ some.images.T).argsort(1, descending=True)[:, :3].flatten().tolist():
        counts[row] += 1
    assert found.counts == sorted(counts.tolist(), reverse=True)[:4]
    assert [int(counts[row]) for row in found.rows] == found.counts
    assert found.expected == pytest.approx(3 * 36 / 9)
    assert found.never == int((counts == 0).sum())


def test_geometry_is_what_the_papers_define(monkeypatch):
    monkeypatch.setattr(analysis, "CHUNK", 20)
    some = embeddings(6, 2)
    found = analysis.geometry(some)
    distances = torch.pdist(some.images.double()).square()
    assert found.image_uniformity == pytest.approx(float((-2 * distances).exp().mean().log()), abs=1e-5)
    firsts = torch.pdist(some.texts[::2].double()).square()
    assert found.text_uniformity == pytest.approx(float((-2 * firsts).exp().mean().log()), abs=1e-5)
    aligned = (some.images[some.owners] - some.texts).square().sum(1).mean()
    assert found.alignment == pytest.approx(float(aligned))

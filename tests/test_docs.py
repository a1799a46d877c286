"""What the docs show is run as it stands there; what is generated is up to date."""

import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipcoco.engine.checkpoint import load, weights_sha256
from conftest import LIGHT
from harness import rows

ROOT = Path(__file__).parents[1]


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_reference_is_what_the_program_says():
    done = subprocess.run([sys.executable, ROOT / "docs/reference.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_reference_notices_a_change(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs/reference.md"
    page.write_text(page.read_text().replace("--or-resume", "--and-resume"))
    done = subprocess.run([sys.executable, tmp_path / "docs/reference.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "make docs" in done.stderr


def test_the_worked_examples_of_recall_hold():
    assert doctest.testfile(str(ROOT / "docs/recall.md"), module_relative=False) == (0, 6)


def test_the_loss_is_changed_in_ten_lines(clipcoco, scenes, tmp_path):
    code = block("walkthroughs.md", "python")
    body = code[code.index("def ") :].strip().splitlines()
    assert len(body) <= 10
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    loss = tmp_path / "src/clipcoco/engine/loss.py"
    loss.write_text(loss.read_text() + "\n\n" + code)
    words = ["train", "--preset", "demo", f"data.root={scenes}", *LIGHT, "--name"]
    clipcoco(*words, "ours", "train.epochs=1", cwd=tmp_path).ok()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "clipcoco", *words, "theirs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = {}
    for name in ("ours", "theirs"):
        losses[name] = [row["loss"] for row in rows(tmp_path / "runs" / name) if row["event"] == "step"]
    assert losses["ours"][0] != losses["theirs"][0]
    assert min(losses["theirs"]) < losses["theirs"][0]  # it learns
    status = json.loads((tmp_path / "runs/theirs/status.json").read_text())
    assert status["chance_loss"] == pytest.approx(3.02, abs=0.005)  # of a batch of 8: ln 9 + 7 ln 1.125


def test_the_flat_loop_gives_the_bits_of_train_through_a_kill(clipcoco, scenes, tmp_path):
    settings = [f"data.root={scenes}", *LIGHT]
    clipcoco("train", "--preset", "demo", *settings, "--name", "run", cwd=tmp_path).ok()
    recorded = rows(tmp_path / "runs/run")
    command = [sys.executable, ROOT / "docs/loop.py", "loop", *settings]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as killed:
        first = ""
        for line in killed.stdout:
            first += line
            if line.startswith("step 8 "):
                killed.kill()
    assert killed.returncode == -signal.SIGKILL
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[1].startswith("step 7 ")  # after the last whole epoch
    printed = set(re.findall(r"^step (\d+)  loss (\S+)$", first + second.stdout, re.MULTILINE))
    # Nine digits tell any two float32 apart.
    assert printed == {(str(row["step"]), f"{row['loss']:.9g}") for row in recorded if row["event"] == "step"}
    evaluations = [row for row in recorded if row["event"] == "evaluation"]
    best = max(evaluations, key=lambda row: row["r1"])
    for name, row in (("best.pt", best), ("last.pt", evaluations[-1])):
        assert weights_sha256(load(tmp_path / "loop" / name)["model"]) == row["weights_sha256"]
    measured = clipcoco("eval", "--checkpoint", "loop/best.pt", "--json", cwd=tmp_path).json["protocols"]["own"]
    assert (measured["i2t"], measured["t2i"]) == (best["i2t"], best["t2i"])


@pytest.mark.parametrize("words", ["search.py --images 500 --rounds 1", "downloads.py --images 8 --rounds 1"])
def test_the_benchmarks_of_what_is_kept_and_fetched_run(words):
    name, *options = words.split()
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *options], capture_output=True, text=True)
    assert (done.returncode, "ratio" in done.stdout or "x product" in done.stdout) == (0, True), done.stderr


def test_ones_own_pictures(clipcoco, scenes, tmp_path):
    """The commands of the page, on drawn pictures in the place of photographs."""
    shutil.copytree(scenes / "train2017", tmp_path / "photos")
    content = json.loads((scenes / "annotations/captions_train2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    header = block("walkthroughs.md", "csv").splitlines()[0]
    rows = [f'{names[row["image_id"]]},"{row["caption"]}"' for row in content["annotations"]]
    (tmp_path / "photos/captions.csv").write_text("\n".join([header, *rows]) + "\n")
    toy = [*LIGHT, "model.vision.weights=none", "train.epochs=1"]
    for line in block("walkthroughs.md", "sh").splitlines():
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        assert words.pop(0) == "clipcoco"
        done = clipcoco(*words, *(toy if words[0] == "train" else []), cwd=tmp_path)
        assert done.code == 0, (line, done.stderr)
    assert (tmp_path / "data/mine/val2017").is_dir()
    assert len([line for line in done.stdout.splitlines() if re.match(r"\s+\d+\s+-?0\.\d{3}", line)]) >= 4

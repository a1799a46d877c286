"""What the docs show is run as it stands there; what is generated is up to date."""

import doctest
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipcoco.engine.checkpoint import load, weights_sha256
from conftest import LIGHT
from fork_server import Process
from harness import rows, until

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
    assert doctest.testfile(str(ROOT / "docs/recall.md"), module_relative=False) == (0, 12)


def test_the_loss_is_changed_in_ten_lines(clipcoco, scenes, tmp_path):
    code = block("walkthroughs.md", "python")
    body = code[code.index("def ") :].strip().splitlines()
    assert len(body) <= 10
    there = f"import clipcoco.engine.loss as loss\nexec({code!r}, vars(loss))"  # as if it stood at the module's end
    words = ["train", "--preset", "demo", f"data.root={scenes}", *LIGHT, "train.epochs=1", "--name"]
    clipcoco(*words, "ours", cwd=tmp_path).ok()
    clipcoco(*words, "theirs", cwd=tmp_path, prelude=there).ok()
    losses = {}
    for name in ("ours", "theirs"):
        losses[name] = [row["loss"] for row in rows(tmp_path / "runs" / name) if row["event"] == "step"]
    assert losses["ours"][0] != losses["theirs"][0]
    assert min(losses["theirs"]) < losses["theirs"][0]  # it learns
    status = json.loads((tmp_path / "runs/theirs/status.json").read_text())
    assert status["chance_loss"] == pytest.approx(1.946, abs=0.001)  # of a batch of 8: ln 7


def test_the_flat_loop_gives_the_bits_of_train_through_a_kill(clipcoco, scenes, tmp_path):
    settings = [f"data.root={scenes}", *LIGHT, "train.epochs=2"]
    clipcoco("train", "--preset", "demo", *settings, "--name", "run", cwd=tmp_path).ok()
    recorded = rows(tmp_path / "runs/run")

    def loop() -> Process:
        words = ["loop.py", "loop", *settings]
        code = f"import runpy, sys\nsys.argv = {words}\nrunpy.run_path({str(ROOT / 'docs/loop.py')!r})"
        return clipcoco.start(cwd=tmp_path, prelude=code)

    first = loop()
    until(lambda: "\nstep 8 " in first.stdout, first)
    first.signal(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    second = loop().wait().ok()
    assert second.stdout.splitlines()[1].startswith("step 7 ")  # after the last whole epoch
    printed = set(re.findall(r"^step (\d+)  loss (\S+)$", first.stdout + second.stdout, re.MULTILINE))
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


def test_the_cells_of_the_notebook_run_in_their_order(tmp_path, monkeypatch, capsys):
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    cells[0] = re.sub(r"2000, 250\b", "24, 12", cells[0])
    toy = dict(one.split("=") for one in (*LIGHT, "train.epochs=1"))
    tiny = {name: value if value.isidentifier() else json.loads(value) for name, value in toy.items()}
    cells[0] += f"\nSETTINGS |= {tiny}"
    monkeypatch.chdir(tmp_path)
    shown: list = []
    names = {"display": shown.append}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"epoch 1: R@1 \d+\.\d %\nfinished at step 3 in demo-", said)
    assert f"{names['own']['i2t']['r1']:5.1f} %" in said
    assert [getattr(one, "size", None) for one in shown] == [(520, 96), None, (520, 96), (520, 96), (520, 96)]
    assert names["likeness"][0] == pytest.approx(names["likeness"].max(), abs=1e-6)  # itself; a toy sees others alike
    assert "'model.safetensors'" in said


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

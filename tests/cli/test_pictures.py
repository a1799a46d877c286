"""The README's pictures of the terminal are what the commands say."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TOY

DOCS = Path(__file__).parents[2] / "docs"
spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)


def check(docs):
    return subprocess.run([sys.executable, docs / "pictures.py", "--check"], capture_output=True, text=True)


def test_the_pictures_are_what_the_recordings_give():
    assert check(DOCS).returncode == 0


@pytest.mark.parametrize("ending", ["txt", "svg"])
def test_a_change_is_noticed(tmp_path, ending):
    shutil.copytree(DOCS, tmp_path / "docs")
    file = tmp_path / f"docs/pictures/train.{ending}"
    file.write_text(file.read_text().replace("chance", "guess"))
    done = check(tmp_path / "docs")
    assert done.returncode == 1
    assert "make docs" in done.stderr


def test_the_commands_still_say_what_was_recorded(clipcoco, scenes, tmp_path):
    """On a toy, and apart from numbers, names and spacing."""
    said = {}
    toy = [*TOY, f"data.root={scenes}", "model.text.context_length=32"]  # which cuts no caption
    for name in ("train", "search", "search", "runs"):
        words = [*shlex.split(pictures.COMMANDS[name])[1:], *(toy if name == "train" else [])]
        done = clipcoco(*words, cwd=tmp_path, env=pictures.TERMINAL).ok()
        said[name] = done.stderr + done.stdout
    for name, text in said.items():
        recorded = pictures.shape((DOCS / f"pictures/{name}.txt").read_text())
        # What is expected is said of the demo as it is, not of a toy; the query at the end is a caption of its own.
        ours, theirs = (
            {line for line in lines if not line.startswith(("expected", "search", "next"))}
            for lines in (pictures.shape(text), recorded)
        )
        assert ours == theirs


@pytest.mark.parametrize("name", pictures.COMMANDS)
def test_a_picture_is_small_and_asks_nobody(name):
    picture = (DOCS / f"pictures/{name}.svg").read_text()
    assert len(picture.encode()) < 60_000
    assert set(re.findall(r"https?://[^\"' ]+", picture)) <= {"http://www.w3.org/2000/svg"}
    recorded = (DOCS / f"pictures/{name}.txt").read_text()
    assert not re.search(r"/home|/root|/tmp|/work|/Users", picture + recorded)

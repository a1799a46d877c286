"""What a command finds around it: streams, folders, a home, packages. None of it may end in a traceback or exit 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipcoco.errors import EnvironmentProblem, broken_package
from conftest import LIGHT
from fork_server import Process

COMMAND = f"{sys.executable} -m clipcoco"


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80", **env}
    )


@pytest.fixture
def without_torch(tmp_path: Path) -> str:
    """A folder for PYTHONPATH in which torch is one that can't be imported."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open', name='torch')")
    return str(tmp_path / "broken")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("eval nobody 2> /dev/full", 4),
        ("trian 2> /dev/full", 2),
        ("eval nobody <&- >&- 2>&-", 4),
        ("inspect-config demo <&- >&- 2>&-", 0),
        ("inspect-config demo > /dev/full 2>&1", 5),
        ("env --json > /dev/full", 5),
    ],
)
def test_streams_that_are_closed_or_full_leave_the_exit_code_as_it_is(tmp_path, words, code):
    done = shell(f"{COMMAND} {words}", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def test_a_run_goes_on_without_anybody_to_tell(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "train.epochs=1", "--name", "run"]
    full = {"stdout": "/dev/full", "stderr": "/dev/full"}
    pid = clipcoco.ask({"arguments": words, "cwd": str(tmp_path), "env": {}, **full})
    nothing = Path(os.devnull)
    assert Process(clipcoco, pid, nothing, nothing).wait().code == 5  # the table could not be shown
    assert "Finished: 6 steps" in (tmp_path / "runs" / "run" / "log.txt").read_text()
    assert clipcoco("runs", cwd=tmp_path).stdout.count("finished") == 1


def test_a_working_directory_that_is_gone(tmp_path, without_torch):
    (tmp_path / "gone").mkdir()
    done = shell(f"rmdir ../gone; {COMMAND} train --preset demo", tmp_path / "gone", PYTHONPATH=without_torch)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert done.stderr.startswith("error: the working directory is gone")
    assert shell(f"{COMMAND} --help", tmp_path).returncode == 0


def test_torch_that_can_not_be_imported_is_named(tmp_path, scenes, without_torch):
    words = f"train --preset demo data.root={scenes}"
    done = shell(f"{COMMAND} {words}", tmp_path, PYTHONPATH=without_torch)
    assert (done.returncode, done.stderr.count("error: ")) == (5, 1)
    assert "torch can't be imported: libcudart.so.13" in done.stderr
    assert "pip install --force-reinstall torch torchvision" in done.stderr
    assert shell(f"{COMMAND} env", tmp_path, PYTHONPATH=without_torch).returncode == 0


def test_a_package_that_does_not_fit_is_told_from_a_bug_of_ours(tmp_path, monkeypatch):
    package = Path(sys.modules["clipcoco"].__file__).parent
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "misfit.py").write_text("raise RuntimeError('operator misfit::nms\\ndoes not exist')")

    def said_of(text: str) -> EnvironmentProblem | None:
        try:
            exec(compile(text, str(package / "some.py"), "exec"), {})
        except Exception as error:
            return broken_package(error)
        raise AssertionError("it raised nothing")

    assert str(said_of("import misfit.ops")).startswith("misfit can't be imported: operator misfit::nms does not exist")
    assert "pip install --force-reinstall pillow" in str(said_of("from PIL import no_such_name"))
    for bug in ("[][0]", "from clipcoco.errors import no_such_name", "raise RuntimeError('import')"):
        assert said_of(bug) is None

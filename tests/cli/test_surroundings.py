"""What a command finds around it: streams, folders, a home, packages. None of it may end in a traceback or exit 1."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipcoco.errors import EnvironmentProblem, broken_package
from conftest import LIGHT

COMMAND = f"{sys.executable} -m clipcoco"


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "COLUMNS": "80", **env}
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, env=env)


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
    full = (os.devnull, "/dev/full", "/dev/full")
    assert clipcoco(*words, cwd=tmp_path, streams=full).code == 5  # the table could not be shown
    assert "Finished: 6 steps" in (tmp_path / "runs" / "run" / "log.txt").read_text()
    assert clipcoco("runs", cwd=tmp_path).stdout.count("finished") == 1


def test_a_file_system_without_locks_is_told_of_wherever_the_run_is_read(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "train.epochs=1", "--name", "run"]
    unlocked = "import errno, fcntl, harness; fcntl.flock = harness.raising(OSError(errno.ENOLCK, 'no locks'))"
    said = [clipcoco(*words, cwd=tmp_path, prelude=unlocked).ok().stderr]
    said += [(tmp_path / "runs" / "run" / name).read_text() for name in ("metrics.jsonl", "log.txt")]
    assert ["can't be locked (no locks)" in text for text in said] == [True, True, True]


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


EARLY = [
    ("train --preset demo --device gpu", 2, "no device 'gpu' (--device). Did you mean cuda?"),
    ("train --preset demo --device cuda0", 2, "Did you mean cuda:0?"),
    ("eval --device CPU", 2, "Did you mean cpu?"),
    ("search dog --device cuda:x", 2, "no device 'cuda:x'"),
    ("train --preset demo --name a/b", 2, "can't name a run"),
    ("train --preset demo --name taken", 2, "run taken exists"),
    ("train --preset tiny", 3, "no captions at data/coco/annotations"),
    ("train --preset demo data.root=data/mien", 3, "prepare-data --preset demo --root data/mien"),
    ("train --preset demo 'data.root=$HOME/mine'", 2, "$ is taken literally"),
    ("train --preset demo 'data.root=~nobody_here/mine'", 2, "no home folder is known for ~nobody_here/mine"),
    ("train --preset demo --runs-dir '~nobody_here'", 2, "no home folder is known"),
    ("train --preset demo --init nobody", 4, "no run 'nobody'"),
    ("resume ~nobody_here/run", 2, "no home folder is known"),
    ("resume --set train.foo=1", 2, "train.foo is not a setting"),
    ("eval --config configs/clip_coco_small.yaml", 2, "no configuration file"),
    ("eval model.text.width=64", 2, "Only data.* can be set"),
    ("eval data.root=", 2, "NAME=VALUE"),
    ("eval --from-embeddings none.npz", 3, "no file at none.npz"),
    ("train --preset demo.yaml", 2, "no preset demo.yaml. Did you mean --preset demo?"),
    ("train --preset presets/demo.yaml", 2, "Did you mean --preset demo?"),
    ("prepare-data --preset presets/small.yml", 2, "Did you mean --preset small?"),
    ("train --preset mine.yaml", 2, "A file goes with --config."),
    ("search ''", 2, "the query is empty"),
    ("search", 2, "nothing to look for"),
    ("search dog --images nope", 3, "nope does not exist (--images)"),
    ("search dog --run nope", 4, "no run 'nope'"),
    ("search dog", 4, "there is no run in runs"),
    ("eval nope", 4, "no run 'nope'"),
    ("search --image nope.jpg", 3, "nope.jpg is not a file (--image)"),
    ("export --format onnx --output x", 5, "format onnx needs onnx"),
    ("export --format onnx --output x/y/z", 2, "is not a folder (--output)"),
]


def test_mistakes_that_need_no_torch_are_told_without_it(tmp_path):
    """All lines in one process in which neither torch, torchvision nor onnx can be imported."""
    program = """
import json, shlex, sys
sys.modules |= dict.fromkeys(("torch", "torchvision", "onnx"))
from clipcoco.cli import run
for line in json.load(sys.stdin):
    code = run(shlex.split(line))
    print("exit", int(code), file=sys.stderr)
"""
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    lines = json.dumps([line for line, _, _ in EARLY])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, input=lines, capture_output=True, text=True, timeout=120
    )
    told = re.findall(r"^(error: .*)\nexit (\d+)$", done.stderr, re.MULTILINE)
    assert len(told) == done.stderr.count("error: ") == len(EARLY), done.stderr
    for (line, code, part), (said, ended) in zip(EARLY, told, strict=True):
        assert (part in said, int(ended)) == (True, code), f"{line}: {said}, exit {ended}"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

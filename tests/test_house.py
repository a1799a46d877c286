"""The house rules that a reader's comfort depends on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "clipcoco"
EVENING = [
    "config/schema",
    "data/captions",
    "data/images",
    "data/loader",
    "engine/model",
    "engine/loss",
    "engine/step",
    "engine/train",
    "engine/recall",
    "engine/evaluate",
]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_longer_than_300_lines_and_no_function_than_60():
    assert all(lines(path) <= 300 for path in PACKAGE.rglob("*.js"))
    for path in PACKAGE.rglob("*.py"):
        assert lines(path) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_the_evening_path_is_an_evening():
    assert sum(lines(PACKAGE / f"{name}.py") for name in EVENING) <= 1994


# Lines of Python. A change raises one of them by what it adds less what it deletes, in a commit that says both.
WINGS = {
    "core": (("engine", "data", "config", "disk", "runs", ""), 12_447),
    "prepare": (("prepare",), 4_155),
    "faces": (("cli", "console"), 3_884),
    "uses": (("report", "search", "share", "export", "api"), 4_539),
}


@pytest.mark.parametrize("wing", WINGS)
def test_no_wing_grows_unseen(wing):
    rooms, most = WINGS[wing]
    files = [path for room in rooms for path in (PACKAGE.glob("*.py") if not room else (PACKAGE / room).rglob("*.py"))]
    assert sum(map(lines, files)) <= most


def test_importing_the_package_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, clipcoco, clipcoco.console; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_print_is_left_to_the_console():
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "docs/architecture.md", "CONTRIBUTING.md", "docs/recall.md", "docs/walkthroughs.md"),
        "docs/from_open_clip.md",
    ],
)
def test_every_file_that_the_docs_name_exists(name):
    import re

    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text()):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_every_command_and_preset_is_in_the_readme():
    from clipcoco.config.load import preset_names

    readme = (ROOT / "README.md").read_text()
    for command in ("train", "resume", "eval", "prepare-data", "inspect-config"):
        assert f"clipcoco {command}" in readme
    for preset in preset_names():
        assert f"`{preset}`" in readme

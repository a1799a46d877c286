"""What pip installs is whole, and leaves an environment that has torch as it was."""

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def pip(*words: object) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_presets_and_template(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"clipcoco/presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")}
    assert len(presets) == 7
    assert presets | {"clipcoco/report/page.html.j2", "clipcoco/data/karpathy.npz", "clipcoco/py.typed"} <= names
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_it_installs_beside_a_torch_that_is_there_and_works_from_any_folder(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    # An environment that has what this one has, but clipcoco.
    (packages / "there.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    said = pip("--python", python, "install", "--no-index", "--ignore-installed", "--no-deps", wheel)
    assert "Successfully installed clipcoco" in said
    assert [path.name for path in packages.glob("*.dist-info")] == [wheel.name.rsplit("-py3", 1)[0] + ".dist-info"]
    # Without an index nothing could be fetched: every requirement is met by what is there.
    assert "Would install" not in pip("--python", python, "install", "--no-index", "--dry-run", wheel)
    (tmp_path / "empty").mkdir()
    for words, says in (
        ("--help", "prepare-data"),
        ("inspect-config", f"in {packages}/clipcoco/presets\n"),
        ("inspect-config demo", "backbone: resnet18"),
    ):
        command = [tmp_path / "venv" / "bin" / "clipcoco", *words.split()]
        done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    assert not list((tmp_path / "empty").iterdir())


def test_the_dockerfile_copies_what_is_there_and_all_that_a_wheel_is_made_of():
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {path.split("/")[0] for path in (*wheel["packages"], *wheel["force-include"])} <= names


def test_it_runs_from_a_checkout_without_installing(tmp_path):
    code = PATHS + "from clipcoco.config.load import load_config; load_config('small')"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Third-party packages without the editable install's own path hook.
PATHS = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {sysconfig.get_paths()['purelib']!r}]; "

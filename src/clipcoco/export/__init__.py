"""A run's model in the formats of other software. No torch in here: what is missing is told at once."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from clipcoco.errors import ConfigError, EnvironmentProblem


class Needs(NamedTuple):
    modules: tuple[str, ...]  # that must be installed
    package: str  # which brings them, as pip takes it


NEEDS = {
    "open_clip": Needs(("open_clip", "timm", "transformers"), "'clipcoco[export]'"),
    "safetensors": Needs((), "safetensors"),
    "onnx": Needs(("onnx", "onnxscript", "onnxruntime"), "'clipcoco[onnx]'"),
}


def check_request(name: str, folder: Path) -> None:
    """Refuse what can't be done before anything is read; `name` is of NEEDS, or "onnx int8".

    Raises ConfigError for a folder that can't become one, EnvironmentProblem for packages that are not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already and is not empty (--output). Give a new folder")
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"{folder.absolute().parent} is not a folder (--output). Make it first")
    chosen = NEEDS[name.split()[0]]
    missing = [module for module in chosen.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(
            f"format {name} needs {', '.join(missing)}, not installed here (--format). pip install {chosen.package}"
        )

"""A checkpoint -> a folder that other software loads: whole and compared with the checkpoint, or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipcoco.config.schema import DataConfig
from clipcoco.disk.files import need_room, sync_folder, temporary_name
from clipcoco.engine.model_file import ModelFile
from clipcoco.errors import ConfigError, EnvironmentProblem
from clipcoco.events import Report
from clipcoco.export import NEEDS, check_request
from clipcoco.export.card import write_card
from clipcoco.export.formats import FORMATS, IN_TIMM, Exported
from clipcoco.export.parity import Parity, compare
from clipcoco.runs.directory import RunDir


@dataclass(frozen=True)
class Export:
    folder: Path
    files: dict[str, int]  # bytes by name
    parity: Parity

    def to_plain(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "files": self.files, "parity": asdict(self.parity)}


def export_model(
    model_file: ModelFile, run: RunDir | None, name: str, folder: Path, data: DataConfig, report: Report
) -> Export:
    """Write `model_file` to `folder` in format `name`, a key of FORMATS.

    Everything is written beside it, read back by the library that it is for and compared with the checkpoint,
    on random inputs and on validation images below `data.root` where they are; only then it gets its name.
    Raises as `check_request`, ConfigError for a tower that the format can't hold, and EnvironmentProblem for a
    full disk and for an export that fails or gives other embeddings than the checkpoint; of 8 bits, another recall, and
    DataError where there are no images to tell.
    """
    vision, text = model_file.config.model.vision, model_file.config.model.text
    if name == "open_clip" and (vision.backbone not in IN_TIMM or vision.earlier or text.weights != "none"):
        lacking = f"{vision.backbone} that is built like torchvision's"
        if vision.earlier:
            lacking = "image tower that looks at earlier stages (model.vision.stages)"
        if text.weights != "none":
            lacking = "text tower that is a sentence encoder with a head of ours (model.text.weights)"
        raise ConfigError(f"open_clip has no {lacking} (--format). Use --format onnx or --format safetensors")
    check_request(name, folder)
    _check_disk(model_file, folder)
    with _whole_or_absent(folder) as beside:
        parity = compare(model_file, name, _written(model_file, name, beside), data, report)
        write_card(beside, name, model_file, run, parity)
    return Export(folder, {path.name: path.stat().st_size for path in sorted(folder.iterdir())}, parity)


def _written(model_file: ModelFile, name: str, folder: Path) -> Exported:
    try:
        FORMATS[name].write(model_file, folder)
        return FORMATS[name].read(folder)
    except OSError:
        raise
    except Exception as error:  # packages of others, in any version, raise anything
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentProblem(
            f"the export failed in the packages of {name}: {what} (--format). "
            f"pip install --upgrade {NEEDS[name.split()[0]].package}, or take another format"
        ) from error


@contextmanager
def _whole_or_absent(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`; it becomes `folder`, on disk, when the block ends without an error."""
    folder = folder.absolute()
    beside = temporary_name(folder)
    try:
        beside.mkdir()
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} can't be made: {error.strerror} (--output). Give a folder that you may write to"
        ) from error
    try:
        yield beside
        for path in beside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(beside)
        os.rename(beside, folder)  # an empty folder of that name is replaced, anything else is an error
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _check_disk(model_file: ModelFile, folder: Path) -> None:
    # The graphs of ONNX, the tokenizer and the card are small beside float32 weights.
    needed = 20_000_000 + sum(4 * value.numel() for value in model_file.model.state_dict().values())
    need_room(folder.absolute().parent, needed, "the export needs", "--output", "give another folder")

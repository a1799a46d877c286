"""`clipcoco prepare-data --images`: a person's own pictures."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcoco.cli.options import print_json
from clipcoco.cli.verify import working
from clipcoco.config.backbones import BACKBONES, WEIGHTS_HOST, hub_folder
from clipcoco.config.load import load_config
from clipcoco.config.schema import Config
from clipcoco.config.text import expanded, written
from clipcoco.console import Terminal, show
from clipcoco.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from clipcoco.events import ReportTask

PRESET = "own"
SEARCH = 'To search without training: clipcoco search "a dog on a sofa" --images DIR --model MODEL'


@dataclass(frozen=True)
class OwnPictures:
    """What a person said of them."""

    captions: Path | None
    images: Path | None
    root: Path | None
    columns: tuple[str, str]  # of pictures and of captions; "" for none
    val_fraction: float | None
    allow_missing: bool
    dry_run: bool


def prepare_own(terminal: Terminal, own: OwnPictures, preset: str | None, changes: list[str], json_: bool) -> int:
    from clipcoco.prepare.own_data import adopt

    if own.images is None:
        where = "--captions FILE --images DIR --root DIR (where to)"
        raise ConfigError(
            f"in which folder are your own pictures? {where}; captions in that folder are found without FILE"
        )
    images = expanded(own.images)
    root = expanded(own.root) if own.root else _root_for(images)
    config = load_config(preset=preset or PRESET, overrides=changes).config
    with working(terminal) as report, _locked(root, own.dry_run) as unlocked:
        adopted = adopt(
            expanded(own.captions) if own.captions else None,
            images,
            root,
            val_fraction=0.1 if own.val_fraction is None else own.val_fraction,
            allow_missing=own.allow_missing,
            image_column=own.columns[0],
            caption_column=own.columns[1],
            dry_run=own.dry_run,
            tell=lambda lines: show(terminal.err, *lines, ""),
            report=report,
        )
        made = 0 if own.dry_run else _copies(root, config.data.prepared_size, report)
    for note in filter(None, (unlocked, *adopted.notes)):
        show(terminal.err, f"note: {note}")
    if json_:
        print_json({"schema": 1, **asdict(adopted), "root": str(root), "copies_made": made, "dry_run": own.dry_run})
        return ExitCode.OK
    counts = (
        f"{adopted.train_images:,} train and {adopted.val_images:,} val images, "
        f"{adopted.train_captions + adopted.val_captions:,} captions"
        + (f" (and {adopted.test_images:,} test images)" if adopted.test_images else "")
    )
    if own.dry_run:
        show(terminal.out, f"{counts} would be in {root}. Nothing was written: leave out --dry-run.")
        return ExitCode.OK
    absent = _weights_to_get(config)
    show(terminal.err, *([f"note: {absent}"] if absent else []))
    again = _again(preset, changes, root, config, adopted.train_images)
    show(terminal.out, f"Ready: {counts} in {root}.", _expected(adopted.train_images), f"Next: {shlex.join(again)}")
    return ExitCode.OK


def _root_for(images: Path) -> Path:
    """Named after the pictures, which stay where they are."""
    real = Path(os.path.realpath(images))
    root = Path("data", real.name or PRESET)
    inside = Path(os.path.realpath(root)).is_relative_to(real)
    return root.with_name(f"{root.name}-prepared") if inside else root


@contextmanager
def _locked(root: Path, dry_run: bool) -> Iterator[str]:
    from clipcoco.prepare.lock import lock

    if dry_run:
        yield ""
        return
    with lock(root) as unlocked:
        yield unlocked


def _copies(root: Path, size: int, report: "ReportTask") -> int:
    """Smaller copies to train from, of pictures that are all there; how many were made."""
    from clipcoco.data.annotations import FOLDERS, annotation_file
    from clipcoco.data.captions import read_captions
    from clipcoco.data.split import check_files
    from clipcoco.prepare.resize import make_copies

    made = 0
    for split in FOLDERS.values() if size else ():
        if not annotation_file(root, split).is_file():
            continue  # no test split
        table = read_captions(root, split)
        check_files(table)
        made += make_copies(root, table.files, size, report).made
    return made


def _again(preset: str | None, changes: list[str], root: Path, config: Config, images: int) -> list[str]:
    """The command that trains on them; of another preset than `own`, with what makes it take all of them."""
    again = ["clipcoco", "train", "--preset", preset or PRESET, *changes, f"data.root={written(str(root))}"]
    if preset in (None, PRESET):
        return again
    again += ["data.train_fraction=1", "data.val_fraction=1"]
    if images < config.train.batch_size:  # as printed, it must run
        return [*again, f"train.batch_size={images}"]
    return [*again, *(["train.cached.batch_size=auto"] if config.model.vision.weights != "none" else [])]


def _weights_to_get(config: Config) -> str:
    """What the first training fetches, and where to put it where there is no network."""
    vision = config.model.vision
    file = BACKBONES[vision.backbone].published.get(vision.weights)
    if file is None or (path := hub_folder() / file).is_file():
        return ""
    return f"the first training fetches {WEIGHTS_HOST}/{file}, once. Without network put that file at {path}"


def _expected(images: int) -> str:
    """From the learning curve of docs/study.md: 7.6 % at 750 images, 21.2 % at 6,000, 4.5 points a doubling between."""
    among, of = "among 1,000 pictures (among fewer more)", "photographs of Flickr8k gave (docs/study.md)"
    if images < 500:
        return f"Expect a mean R@1 below 8 % {among}, which 750 {of}: few teach little. {SEARCH}"
    if images > 6_000:
        return f"Expect a mean R@1 of 21 % or more {among}, which 6,000 {of}"
    about = 7.6 + 4.5 * math.log2(images / 750)
    return f"Expect a mean R@1 of about {about:.0f} % {among}, as {of}; twice as many give about 4.5 points more"

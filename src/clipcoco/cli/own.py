"""`clipcoco prepare-data --captions`: a person's own pictures."""

import shlex
from dataclasses import asdict
from pathlib import Path

from clipcoco.cli.options import print_json
from clipcoco.cli.verify import working
from clipcoco.config.load import load_config
from clipcoco.config.text import expanded, written
from clipcoco.console import Terminal, show
from clipcoco.errors import ConfigError, ExitCode

_STEPS = 12  # an epoch from cached features, at least


def prepare_own(
    terminal: Terminal,
    captions: Path | None,
    images: Path | None,
    root: Path | None,
    val_fraction: float | None,
    allow_missing: bool,
    preset: str | None,
    changes: list[str],
    json_: bool,
) -> int:
    from clipcoco.data.annotations import SPLITS
    from clipcoco.data.captions import read_captions
    from clipcoco.data.split import check_files
    from clipcoco.prepare.lock import lock
    from clipcoco.prepare.own_data import adopt
    from clipcoco.prepare.resize import make_copies

    if captions is None or images is None or root is None:
        raise ConfigError("your own pictures need all three: --captions FILE --images DIR --root DIR (where to)")
    captions, images, root = map(expanded, (captions, images, root))
    config = load_config(preset=preset or "small", overrides=changes).config
    size = config.data.prepared_size
    share = 0.1 if val_fraction is None else val_fraction
    with working(terminal) as report, lock(root) as unlocked:
        adopted = adopt(captions, images, root, val_fraction=share, allow_missing=allow_missing, report=report)
        made = 0
        if size:
            for split in SPLITS.values():
                table = read_captions(root, split)
                check_files(table)
                made += make_copies(root, table.files, size, report).made
    for note in filter(None, (unlocked, *adopted.notes)):
        show(terminal.err, f"note: {note}")
    if json_:
        print_json({"schema": 1, **asdict(adopted), "root": str(root), "copies_made": made})
        return ExitCode.OK
    again = ["clipcoco", "train", "--preset", preset or "small", *changes, f"data.root={written(str(root))}"]
    again += ["data.train_fraction=1", "data.val_fraction=1"]
    many = adopted.train_images
    if many < config.train.batch_size:  # as printed, it must run
        again.append(f"train.batch_size={many}")
    elif (
        config.model.vision.weights != "none" and many < _STEPS * config.train.cached.batch_size
    ):  # and learn: few pictures in large batches make few steps
        fitting = max(16, 2 ** (many // _STEPS).bit_length() // 2)
        again.append(f"train.cached.batch_size={fitting}")
    show(
        terminal.out,
        f"Ready: {adopted.train_images:,} train and {adopted.val_images:,} val images, "
        f"{adopted.train_captions + adopted.val_captions:,} captions in {root}.",
        f"Next: {shlex.join(again)}",
    )
    return ExitCode.OK

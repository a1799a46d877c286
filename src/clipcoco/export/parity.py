"""Is an export the same model as its checkpoint: the same tokens, the same embeddings, the same recall?

Letters: B, N images, M captions, L tokens, D dimensions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipcoco.config.schema import DataConfig
from clipcoco.data.annotations import SPLITS
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.loader import EVALUATION_BATCH, evaluation_images
from clipcoco.data.split import open_splits
from clipcoco.data.tokenizer import END
from clipcoco.data.workers import choose_workers
from clipcoco.engine.model_file import ModelFile
from clipcoco.engine.recall import recall_table
from clipcoco.engine.results import RecallTable
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import Progress, Report
from clipcoco.export.formats import FORMATS, Exported

IMAGES = 500  # at most, so that encoding them three times takes about a minute
BATCH = 32
POINTS = 0.2  # of recall, or one query where that is more
LOST = 1.0  # of mean R@1 by 8 bits, likewise
COSINE = 0.99  # mean, between an image in our view and in the library's own
TEXTS = ["A dog, isn't it?", "", "caf\u00e9 CAFE\u0301 \u732b <end> 7", "two dogs " * 600]


@dataclass(frozen=True)
class OwnView:
    """Images as the library itself resizes them, against the checkpoint's embeddings of ours."""

    cosine_mean: float
    cosine_min: float
    table: RecallTable


@dataclass(frozen=True)
class Compared:
    """On validation images."""

    source: str  # "originals", or the copies that the images were read from
    checkpoint: RecallTable
    export: RecallTable
    own_view: OwnView | None  # where the library has a view of its own


@dataclass(frozen=True)
class Parity:
    tolerance: float | None
    difference: float  # the largest of any component of an embedding
    texts: int  # whose token ids were compared
    texts_cleaned: int  # of these, so many that the library changes before its tokenizer, to other ids
    recall: Compared | None
    note: str | None  # why there is no recall


def compare(model_file: ModelFile, name: str, exported: Exported, data: DataConfig, report: Report) -> Parity:
    """Hold an export in format `name`, read back as `exported`, against its checkpoint in float32 on the CPU.

    Raises EnvironmentProblem with the figure when they differ, and DataError where only recall could tell.
    """
    model_file.model.eval()
    difference = _on_random_inputs(model_file, exported)
    _refuse_above(FORMATS[name].tolerance, difference, name)
    captions, recall, note = list(TEXTS), None, None
    try:
        captions += read_captions(data.folder, SPLITS["val"]).subset(data.val_fraction, data.subset_seed).captions
        [some] = open_splits(data, "val", most=IMAGES, like=model_file.content.get("data", {}).get("source"))
        on_images, recall = _on_images(model_file, name, exported, data, some.table, some.source.name, report)
        difference = max(difference, on_images)
    except DataError as error:
        if FORMATS[name].tolerance is None:
            raise
        note = str(error)
    cleaned = _on_texts(model_file, name, exported, captions)
    return Parity(FORMATS[name].tolerance, difference, len(captions), cleaned, recall, note)


@torch.inference_mode()
def _on_random_inputs(model_file: ModelFile, exported: Exported) -> float:
    generator = torch.Generator().manual_seed(0)
    size, length = model_file.config.data.image_size, model_file.config.model.text.context_length
    differences = []
    for batch in (1, 3):  # more than one size: none may be built in
        images = torch.randint(256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
        tokens = torch.randint(END + 1, model_file.tokenizer.vocab_size, (batch, length), generator=generator)
        tokens[torch.arange(batch), torch.randint(1, length, (batch,), generator=generator)] = END
        differences.append(exported.encode_images(images) - model_file.model.encode_images(images))
        differences.append(exported.encode_texts(tokens) - model_file.model.encode_texts(tokens))
    return float(torch.cat(differences).abs().max())


def _on_texts(model_file: ModelFile, name: str, exported: Exported, texts: list[str]) -> int:
    """How many texts the library cleans to other ids than the checkpoint's; refuses any other difference."""
    length = model_file.config.model.text.context_length
    ours = model_file.tokenizer.encode([exported.clean(text) for text in texts], length)
    theirs = np.concatenate([exported.tokenize(texts[start : start + 1000]) for start in range(0, len(texts), 1000)])
    if differing := int((ours != theirs).any(axis=1).sum()):
        raise _mismatch(name, f"token ids differ for {differing:,} of {len(texts):,} captions")
    return int((ours != model_file.tokenizer.encode(texts, length)).any(axis=1).sum())


def _on_images(
    model_file: ModelFile,
    name: str,
    exported: Exported,
    data: DataConfig,
    table: CaptionTable,
    source: str,
    report: Report,
) -> tuple[float, Compared]:
    """The largest difference of an embedding, and the recall tables."""
    tokens = model_file.tokenizer.encode(table.captions, model_file.config.model.text.context_length)
    distinct, inverse = np.unique(tokens.astype(np.int64), axis=0, return_inverse=True)
    total = len(table.files) + len(distinct)
    rows, own = list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        for done, pixels in _views(data, table):
            rows.append(torch.stack([model_file.model.encode_images(pixels), exported.encode_images(pixels)]))
            if exported.encode_files is not None:
                own.append(exported.encode_files([table.folder / file for file in table.files[done:][: len(pixels)]]))
            report(Progress("evaluate", done + len(pixels), total))
        images, rows = torch.cat(rows, 1), []
        for part in torch.from_numpy(distinct).split(4 * BATCH):
            rows.append(torch.stack([model_file.model.encode_texts(part), exported.encode_texts(part)]))
        texts = torch.cat(rows, 1)[:, torch.from_numpy(inverse.reshape(-1))]
        report(Progress("evaluate", total, total))
    difference = float(torch.cat([images, texts], 1).diff(dim=0).abs().max())
    _refuse_above(FORMATS[name].tolerance, difference, name)
    owners = torch.from_numpy(table.owners)
    checkpoint, export = (recall_table(images[side], texts[side], owners) for side in (0, 1))
    _refuse_other_recall(name, checkpoint, export)
    view = None
    if own:
        cosines = (torch.cat(own) * images[0]).sum(1)
        if not cosines.mean() >= COSINE:
            raise _mismatch(name, f"its own view of an image has a mean cosine of {cosines.mean():.4f} with ours")
        view = OwnView(float(cosines.mean()), float(cosines.min()), recall_table(torch.cat(own), texts[1], owners))
    return difference, Compared(source, checkpoint, export, view)


def _views(data: DataConfig, table: CaptionTable) -> Iterator[tuple[int, Tensor]]:
    """(rows before, uint8 (B,3,S,S)) in the order of the table, B at most BATCH."""
    workers, _ = choose_workers(data.workers, "cpu", data.image_size, EVALUATION_BATCH)
    done = 0
    for batch in evaluation_images(data, table, workers, pin_memory=False):
        for pixels in batch.split(BATCH):
            yield done, pixels
            done += len(pixels)


def _refuse_above(tolerance: float | None, difference: float, name: str) -> None:
    most = math.inf if tolerance is None else tolerance
    if not difference <= most:  # so that NaN is refused too
        raise _mismatch(name, f"embeddings differ by {difference:.1e}, {most:.0e} is allowed")


def _refuse_other_recall(name: str, checkpoint: RecallTable, export: RecallTable) -> None:
    if FORMATS[name].tolerance is None:
        if checkpoint.r1 - export.r1 > max(LOST, 50 / export.images) + 1e-9:
            what = f"8 bits lose {checkpoint.r1 - export.r1:.2f} points of mean R@1, {LOST:g} is allowed"
            raise EnvironmentProblem(f"{what}, on {export.images:,} images (--int8). Export without it")
        return
    # In a collapsed model nearly all scores are one, and the last bits make ties or break them.
    broken_ties = abs(checkpoint.ties - export.ties)
    for direction, queries in (("i2t", checkpoint.images), ("t2i", checkpoint.captions)):
        for key in ("r1", "r5", "r10"):
            before, after = (getattr(table, direction)[key] for table in (checkpoint, export))
            if abs(after - before) > max(POINTS, 100 * (1 + broken_ties) / queries) + 1e-9:
                what = f"{direction} R@{key[1:]} is {after:.2f}, of the checkpoint {before:.2f}"
                raise _mismatch(name, f"{what}, on {checkpoint.images:,} images")


def _mismatch(name: str, what: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the export to {name} is not the checkpoint's model: {what} (--format). "
        f"Nothing was left; try other versions of its packages, or another format"
    )

"""`eval`: a checkpoint or a file of embeddings -> the recall tables as one plain object; the page of retrievals."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable, check_files, read_captions
from clipcoco.data.loader import choose_workers
from clipcoco.engine.device import choose_for_evaluation, make_deterministic
from clipcoco.engine.embeddings import Embeddings, read_embeddings
from clipcoco.engine.evaluate import Retrieval, Split, embed, retrievals_worth_showing
from clipcoco.engine.recall import folds_table, ranks, recall_table
from clipcoco.errors import ConfigError
from clipcoco.events import Report
from clipcoco.model_file import ModelFile
from clipcoco.report.retrievals import CaptionHit, ImageHit, ImageQuery, TextQuery, write_retrievals

FOLD = 1000  # images, of protocol 1k


@dataclass(frozen=True)
class Evaluation:
    result: dict[str, Any]  # what `eval --json` prints
    embeddings: Embeddings
    table: CaptionTable | None  # None: the embeddings came from a file
    root: Path | None


def evaluate_checkpoint(
    model_file: ModelFile,
    run: str | None,
    data: DataConfig,
    split: str,
    fraction: float | None,
    protocols: tuple[str, ...],
    device_name: str | None,
    report: Report,
) -> Evaluation:
    """Measure a checkpoint on `split` ("val" or "train"); `fraction` None is the configuration's own."""
    start = time.monotonic()
    device = choose_for_evaluation(device_name, model_file.content["state"].get("precision", "float32"))
    make_deterministic(model_file.config.seed, device.device)  # as in training, for the same digits
    root = Path(data.root).expanduser()
    if fraction is None:
        fraction = data.val_fraction if split == "val" else data.train_fraction
    table = read_captions(root, f"{split}2017").subset(fraction, data.subset_seed)
    check_files(table, root)
    tokens = model_file.tokenizer.encode(table.captions, model_file.config.model.text.context_length)
    _check_protocols(protocols, len(table.files))
    workers, _ = choose_workers(data.workers, device.device.type)
    model = device.place(model_file.model)
    embeddings = embed(model, Split(data, table, tokens, workers), device, report, stop=lambda: None)
    assert embeddings is not None, "only a stop gives none"
    result = {
        "schema": 1,
        "run": run,
        "checkpoint": str(model_file.path),
        "step": model_file.content["state"].get("step", 0),
        "split": f"{split}2017",
        "source": "originals",
        **_tables(embeddings, protocols),
        "precision": device.precision,
        "seconds": time.monotonic() - start,
    }
    return Evaluation(result, embeddings, table, root)


def evaluate_embeddings(path: Path, protocols: tuple[str, ...]) -> Evaluation:
    """Measure any model's embeddings by the same rules."""
    start = time.monotonic()
    embeddings, note = read_embeddings(path)
    _check_protocols(protocols, len(embeddings.images))
    result = {
        "schema": 1,
        "run": None,
        "checkpoint": None,
        "step": None,
        "split": str(path),
        "source": note,
        **_tables(embeddings, protocols),
        "precision": None,
        "seconds": time.monotonic() - start,
    }
    return Evaluation(result, embeddings, None, None)


def _check_protocols(protocols: tuple[str, ...], images: int) -> None:
    if protocols == ("1k",) and images < FOLD:
        raise ConfigError(f"protocol 1k needs {FOLD:,} images, {images:,} are here (--protocol). Use own")


def _tables(embeddings: Embeddings, protocols: tuple[str, ...]) -> dict[str, Any]:
    own = recall_table(embeddings.images, embeddings.texts, embeddings.owners)
    tables = {"own": own.to_plain()} if "own" in protocols else {}
    if "1k" in protocols:
        folds = folds_table(embeddings.images, embeddings.texts, embeddings.owners, FOLD)
        if folds is not None:  # absent below 1,000 images
            tables["1k"] = folds.to_plain()
    return {"images": own.images, "captions": own.captions, "protocols": tables, "r1": own.r1}


def show_retrievals(evaluation: Evaluation, path: Path, title: str, seed: int) -> None:
    """Write retrievals.html for an evaluated checkpoint."""
    embeddings, table, root = evaluation.embeddings, evaluation.table, evaluation.root
    assert table is not None
    assert root is not None
    place = ranks(embeddings.images, embeddings.texts, embeddings.owners)
    texts, images = retrievals_worth_showing(embeddings, place, seed)
    owners = embeddings.owners.tolist()

    def text_query(query: Retrieval) -> TextQuery:
        hits = [
            ImageHit(root / table.files[row], score, row == owners[query.query])
            for row, score in zip(query.found, query.scores, strict=True)
        ]
        return TextQuery(table.captions[query.query], query.rank, query.drawn, tuple(hits))

    def image_query(query: Retrieval) -> ImageQuery:
        hits = [
            CaptionHit(table.captions[row], score, owners[row] == query.query)
            for row, score in zip(query.found, query.scores, strict=True)
        ]
        return ImageQuery(root / table.files[query.query], query.rank, query.drawn, tuple(hits))

    write_retrievals(
        path,
        title,
        evaluation.result,
        [text_query(query) for query in texts],
        [image_query(query) for query in images],
    )

"""`eval`: a checkpoint or a file of embeddings -> the recall tables as one plain object; the record for the report."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipcoco.config.schema import DataConfig
from clipcoco.data.annotations import KARPATHY_TEST
from clipcoco.data.captions import CaptionTable
from clipcoco.data.doubts import say_cut
from clipcoco.data.false_captions import FOLDER, SUGAR_CREPE, FalseCaptions, read_sugar_crepe
from clipcoco.data.karpathy import Ids, coco_ids, known_images
from clipcoco.data.kept import encode_captions
from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.data.split import open_splits
from clipcoco.data.viewer import thumbnail
from clipcoco.data.workers import choose_workers
from clipcoco.disk.seal import write_sealed
from clipcoco.engine.analysis import geometry, hubs, rank_counts, similarities
from clipcoco.engine.audit import definitions, matches
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.composition import Judged, judge
from clipcoco.engine.device import Device, choose_as_trained, choose_deterministic_kernels, encoding_in_memory
from clipcoco.engine.embeddings import SCALED, Embeddings, Seen, read_embeddings
from clipcoco.engine.evaluate import Inputs, Retrieval, embed, in_order, retrievals_worth_showing
from clipcoco.engine.extended import extended, installed, is_karpathys
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.engine.recall import Ranks, folds_table, hits_by_image, ranks, table_of
from clipcoco.engine.results import FoldsTable, Hubs
from clipcoco.engine.trained_on import learnt_from, recorded
from clipcoco.errors import ConfigError, DataError
from clipcoco.events import Report
from clipcoco.prepare.scenes import drawn_false_captions
from clipcoco.runs.directory import RunDir
from clipcoco.runs.failures import failures, nearest_captions
from clipcoco.runs.names import Found
from clipcoco.runs.record import SCHEMA

FOLD = 1000  # images, of protocol 1k
THUMBNAIL = 160  # pixels, the longer side
KEYS = (
    *("schema", "run", "checkpoint", "step", "split", "source", "trained_on", "trained_images", "captions_cut"),
    *("images", "captions", "protocols", "r1", "composition", "caution", "precision", "seconds"),
)  # of the result: None is what a file of embeddings does not tell


@dataclass(frozen=True)
class Evaluation:
    result: dict[str, Any]  # what `eval --json` prints
    embeddings: Embeddings
    ranks: Ranks
    table: CaptionTable | None  # None: the embeddings came from a file
    doubts: list[str]  # about the captions, a sentence each; whoever trained was told of them
    judged: Judged | None = None  # where there are false captions


def measure_run(
    run: RunDir, data: DataConfig | None, device_name: str | None, report: Report, seen: Seen | None = None
) -> Evaluation:
    """What `eval` says of the run's best checkpoint, kept as evaluation.json; `data` None: as it was trained."""
    model_file = open_model(Found(run, None).weights())
    data, both = data or model_file.config.data, ("own", "1k")
    evaluation = evaluate_checkpoint(model_file, run.name, data, "val", None, both, device_name, report, seen=seen)
    write_record(evaluation, model_file, run.evaluation)
    return evaluation


def evaluate_checkpoint(
    model_file: ModelFile,
    run: str | None,
    data: DataConfig,
    split: str,
    fraction: float | None,
    protocols: tuple[str, ...],
    device_name: str | None,
    report: Report,
    sugar_crepe: Path | None = None,
    seen: Seen | None = None,
) -> Evaluation:
    """Measure a checkpoint on `split`, one of MEASURED; `fraction` None is the configuration's own. `sugar_crepe` is
    the folder of SugarCrepe's files, None the one in data.root. What was `seen` by these weights is not seen again."""
    start = time.monotonic()
    device = choose_as_trained(device_name, model_file.content["state"].get("precision", "float32"))
    choose_deterministic_kernels(device.device)  # as in training, for the same digits
    trained_on = model_file.content.get("data", {}).get("source")
    [opened] = open_splits(data, split, fraction=fraction, like=trained_on)
    table, source = opened.table, opened.source
    context = model_file.config.model.text.context_length
    encoded = encode_captions(data.folder, model_file.tokenizer, table.captions, context)
    _check_protocols(protocols, len(table.files))
    false, note = false_captions_of(data.folder, table, sugar_crepe)
    false_tokens = model_file.tokenizer.encode(false.false, context) if false else None
    workers, _ = choose_workers(data.workers, device.device.type, data.image_size, EVALUATION_BATCH)
    inputs = Inputs(data, table, encoded.tokens, workers, false_tokens=false_tokens)
    kept = seen if seen and source.name == trained_on and _is_of(seen, model_file, inputs) else Seen()
    embeddings = kept.embeddings or _embedded(model_file, inputs, device, report)
    known = learnt_from(recorded(model_file.content), table, source, report)
    cautions = (
        model_file.config.model.text.caution,
        _contaminated(known, len(table.files)) if split == KARPATHY_TEST else "",
    )
    embeddings = replace(embeddings, caution="; ".join(filter(None, cautions)))
    found = kept.ranks or ranks(embeddings.images, embeddings.texts, embeddings.owners, report)
    judged = judge(embeddings, false, table) if false else None
    result = {
        "schema": SCHEMA,
        "run": run,
        "checkpoint": str(model_file.path),
        "step": model_file.content["state"].get("step", 0),
        "split": table.name,
        "source": source.name,
        "trained_on": trained_on,
        "trained_images": known,
        "captions_cut": encoded.cut,
        **_tables(embeddings, found, protocols, table.order),
        "composition": asdict(judged.composition()) if judged else None,
        "caution": embeddings.caution,
        "precision": device.precision,
        "seconds": time.monotonic() - start,
    }
    doubts = say_cut(encoded.cut, encoded.equal, len(table.captions), context) + ([note] if note else [])
    return Evaluation(result, embeddings, found, table, doubts, judged)


def _is_of(seen: Seen, model_file: ModelFile, inputs: Inputs) -> bool:
    """Whether these weights saw it, in these images, captions and false captions."""
    given, held = inputs.false_tokens, seen.embeddings.false if seen.embeddings else None
    return (
        seen.weights == weights_sha256(model_file.content["model"])
        and model_file.content["data"].get("val") == inputs.table.fingerprint()
        and (0 if given is None else len(given)) == (0 if held is None else len(held))
    )


def _embedded(model_file: ModelFile, inputs: Inputs, device: Device, report: Report) -> Embeddings:
    with encoding_in_memory("an evaluation", device), device.made_current():
        embeddings = embed(device.place(model_file.model), inputs, device, report, stop=lambda: None)
    assert embeddings is not None, "only a stop gives none"
    return embeddings


def false_captions_of(root: Path, table: CaptionTable, sugar_crepe: Path | None) -> tuple[FalseCaptions | None, str]:
    """Of drawn scenes what is known to be false, of COCO's val2017 SugarCrepe; and what there is to say where it should
    be there and is not. Raises DataError when `sugar_crepe`, which the user named, holds nothing for `table`."""
    drawn, note = drawn_false_captions(root, table)
    if drawn or (note and not sugar_crepe):
        return drawn, f"no accuracy on false captions: {note}" if note else ""
    found = read_sugar_crepe(sugar_crepe or root / FOLDER, table, links=sugar_crepe is not None)
    if sugar_crepe and not found:
        there = all((sugar_crepe / name).is_file() for name in SUGAR_CREPE)
        why = f"SugarCrepe is of COCO's val2017, and none of its captions is in {table.name}"
        why = why if there else f"not all of {', '.join(SUGAR_CREPE)} are in {sugar_crepe}"
        raise DataError(f"{why} (--sugar-crepe). Leave it out, or name the folder data of SugarCrepe's repository")
    return found, ""


def _contaminated(seen: int | None, images: int) -> str:
    """What stands beside a figure that is compared with published ones, in whatever table and file it goes on."""
    if seen is None:
        return "whether the model was trained on these images is not known"
    return f"contaminated: trained on {seen:,} of these {images:,} images" if seen else ""


def evaluate_embeddings(path: Path, protocols: tuple[str, ...], report: Report = lambda event: None) -> Evaluation:
    """Measure any model's embeddings by the same rules."""
    start = time.monotonic()
    embeddings, note = read_embeddings(path)
    _check_protocols(protocols, len(embeddings.images))
    found = ranks(embeddings.images, embeddings.texts, embeddings.owners, report)
    tables = _tables(embeddings, found, protocols, _order_of(embeddings.image_ids))
    known = {"schema": SCHEMA, "split": str(path), "source": note, **tables, "caution": embeddings.caution or None}
    seconds = {"seconds": time.monotonic() - start}
    return Evaluation(dict.fromkeys(KEYS) | known | seconds, embeddings, found, None, [])


def audit_embeddings(path: Path, numbers: list[str], report: Report) -> dict[str, Any]:
    """What each definition of recall prints of any model's embeddings, and which of them prints `numbers`."""
    embeddings, note = read_embeddings(path)
    dots = read_embeddings(path, unit=False)[0] if SCALED in note else None
    found, same, own = definitions(embeddings, dots, _order_of(embeddings.image_ids), report)
    return {
        "schema": SCHEMA,
        "file": str(path),
        "source": note,
        "images": len(embeddings.images),
        "captions": len(embeddings.texts),
        "definitions": [asdict(one) for one in found],
        "same": same,
        "own": table_of(own, embeddings.owners).to_plain(),
        "numbers": numbers,
        "matches": [
            {**asdict(one), "definition": one.definition.name} for one in (matches(found, numbers) if numbers else ())
        ],
        "coco": known_images(embeddings.image_ids),
        "caution": embeddings.caution or None,
    }


def _order_of(image_ids: Ids) -> str:
    """How folds of a file's images go. A stranger's rows may stand folder by folder, and neighbours look alike."""
    known = coco_ids()
    if np.array_equal(np.sort(image_ids), known["val2017"]):
        return "ids"
    return "published" if np.array_equal(np.sort(image_ids), np.sort(known["test"])) else "hashed ids"


def _check_protocols(protocols: tuple[str, ...], images: int) -> None:
    if protocols == ("1k",) and images < FOLD:
        raise ConfigError(f"protocol 1k needs {FOLD:,} images, {images:,} are here (--protocol). Use own")


def _tables(embeddings: Embeddings, found: Ranks, protocols: tuple[str, ...], order: str) -> dict[str, Any]:
    own = table_of(found, embeddings.owners)
    tables = {"own": own.to_plain()} if "own" in protocols else {}
    if "1k" in protocols:
        ordered = in_order(embeddings, order)
        folds = folds_table(ordered.images, ordered.texts, ordered.owners, FOLD)
        if folds is not None:  # absent below 1,000 images
            tables["1k"] = FoldsTable(**vars(folds), order=order).to_plain()
    result = {"images": own.images, "captions": own.captions, "protocols": tables, "r1": own.r1}
    if protocols == ("eccv",) or ("eccv" in protocols and installed() and is_karpathys(embeddings)):
        return result | {"extended": extended(embeddings)}
    return result


def write_record(evaluation: Evaluation, model_file: ModelFile, path: Path) -> None:
    """Write evaluation.json: all that the report shows of an evaluated checkpoint, without it or the data."""
    embeddings, place, table = evaluation.embeddings, evaluation.ranks, evaluation.table
    assert table is not None
    seed, content, files, captions = model_file.config.seed, model_file.content, table.files, table.captions
    texts, images = retrievals_worth_showing(embeddings, place, seed)
    by_captions = hubs(embeddings.texts, embeddings.images)
    by_images = hubs(embeddings.images, embeddings.texts)
    shown = {*by_captions.rows, *(query.query for query in images), *(row for query in texts for row in query.found)}
    small = {files[row]: thumbnail(table.folder / files[row], THUMBNAIL) for row in sorted(shown)}
    record = {
        "schema": SCHEMA,
        "result": evaluation.result,
        "retrievals": {
            "texts": [_query(table, query, "caption", "file") for query in texts],
            "images": [_query(table, query, "file", "caption") for query in images],
        },
        "similarities": asdict(similarities(embeddings)),
        "ranks": {
            "i2t": asdict(rank_counts(place.i2t, len(captions))),
            "t2i": asdict(rank_counts(place.t2i, len(files))),
        },
        "false_captions": evaluation.judged.counts() if evaluation.judged else {},
        "hits": {"image_ids": table.image_ids.tolist(), "counts": hits_by_image(place, embeddings.owners).tolist()},
        "failures": failures(embeddings, place, table),
        "nearest": nearest_captions(embeddings, table),
        "hubs": {
            "images": _hubs(by_captions, "file", files),
            "captions": _hubs(by_images, "caption", captions),
        },
        "geometry": asdict(geometry(embeddings)),
        "thumbnails": {file: data for file, data in small.items() if data},
        "seed": seed,
        "provenance": {
            "checkpoint": model_file.path.name,
            "weights_sha256": weights_sha256(content["model"]),
            "parameters": sum(parameter.numel() for parameter in model_file.model.parameters()),
            "vocabulary": model_file.tokenizer.vocab_size,
            "versions": content.get("versions", {}),
            "data": content.get("data", {}),
        },
    }
    write_sealed(path, record)


def _query(table: CaptionTable, query: Retrieval, asked: str, answer: str) -> dict[str, Any]:
    """By name: the query is a "file" or a "caption", and what it found is of the other kind."""
    names, own = {"file": table.files, "caption": table.captions}, table.owners
    hits = [
        {
            answer: names[answer][row],
            "score": score,
            "right": bool(own[query.query] == row if asked == "caption" else own[row] == query.query),
        }
        for row, score in zip(query.found, query.scores, strict=True)
    ]
    return {asked: names[asked][query.query], "rank": query.rank, "drawn": query.drawn, "hits": hits}


def _hubs(found: Hubs, kind: str, names: Sequence[str]) -> dict[str, Any]:
    named = [{kind: names[row], "count": count} for row, count in zip(found.rows, found.counts, strict=True)]
    return {**asdict(found), "found": named}

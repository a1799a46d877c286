"""A checkpoint and a gallery -> the page: measured, then written whole."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from clipcoco.config.schema import DataConfig
from clipcoco.disk.files import write_atomically
from clipcoco.engine.device import choose_device
from clipcoco.engine.model import TextEncoder
from clipcoco.engine.model_file import ModelFile
from clipcoco.engine.quantize import rounded
from clipcoco.errors import ConfigError, DataError
from clipcoco.events import Report
from clipcoco.report.template import template
from clipcoco.runs.measure import evaluate_checkpoint
from clipcoco.share.bundle import Pictures, examples, model_texts, of_split, thumbnails_text
from clipcoco.share.cost import Cost, cost_of
from clipcoco.version import __version__

MOST = 10_000  # pictures, some 100 MB: what a browser opens
SCRIPTS = ("unpack.js", "tokenizer.js", "text_tower.js", "page.js")


@dataclass(frozen=True)
class Page:
    path: Path
    size: int  # bytes
    images: int
    bits: int
    cost: Cost | None  # None: it could not be measured
    unmeasured: str  # why

    def to_plain(self) -> dict[str, Any]:
        cost = {"recall": self.cost.to_plain() if self.cost else None, "note": self.unmeasured or None}
        return {"file": str(self.path), "size": self.size, "images": self.images, "bits": self.bits, **cost}


def share_page(
    file: ModelFile,
    run: str,
    data: DataConfig,
    split: str,
    gallery: Callable[[], Pictures] | None,
    bits: int,
    device_name: str | None,
    path: Path,
    report: Report,
) -> Page:
    """Write the page of the pictures of `split`, or of those of `gallery`, then measured on `split` where it is there.

    Raises ConfigError for a text tower that no page can run and for too many pictures, NumericError where `bits` cost
    too much, and as `evaluate_checkpoint`.
    """
    tower, context = file.text, file.config.model.text.context_length
    if not isinstance(tower, TextEncoder):
        what = "a page runs the text towers that are trained here, not MiniLM's (model.text.weights)"
        raise ConfigError(f"{what}. Use clipcoco search, or clipcoco export --format onnx")
    # ---- the pictures, and what the bits cost
    pictures, queries, cost, unmeasured = gallery() if gallery else None, list[str](), None, ""
    try:
        evaluation = evaluate_checkpoint(file, run, data, split, None, ("own",), device_name, report)
        assert evaluation.table is not None, "of a checkpoint"
        tokens = file.tokenizer.encode(evaluation.table.captions, context)
        cost = cost_of(evaluation, rounded(tower, bits), tokens, bits, choose_device(device_name, "float32"))
        if pictures is None:
            pictures = of_split(evaluation.table, evaluation.embeddings.images)
            queries = examples(evaluation.table, cost.ranks, file.config.seed)
    except DataError as error:
        if pictures is None:
            raise
        unmeasured = str(error)
    if len(pictures.names) > MOST:
        raise ConfigError(f"a page takes {MOST:,} pictures at most, here are {len(pictures.names):,}. Give fewer")
    # ---- the page
    html = _html(file, tower, pictures, run, queries, bits, cost)
    write_atomically(path, html)
    return Page(path, len(html), len(pictures.names), bits, cost, unmeasured)


def _html(
    file: ModelFile,
    tower: TextEncoder,
    pictures: Pictures,
    run: str,
    queries: list[str],
    bits: int,
    cost: Cost | None,
) -> bytes:
    """No script or style runs but these, whose sums the policy names; no address but the page's own data is asked."""
    script = '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)
    style = _part("style.css")
    policy = (
        f"default-src 'none'; script-src {_sum(script)}; style-src {_sum(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    header, arrays = model_texts(file, tower, pictures, run, queries, bits)
    page: str = template("clipcoco.share").render(
        policy=policy,
        style=style,
        script=script,
        images=len(pictures.names),
        small=pictures.small,
        placeholder=queries[0] if queries else "say it in a sentence",
        dimensions=file.config.model.projection_dim,
        tower=file.config.model.text.tower,
        parameters=sum(weight.numel() for weight in tower.parameters()),
        bits=bits,
        recall=cost,
        version=__version__,
        header=header,
        arrays=arrays,
        thumbnails=thumbnails_text(pictures),
    )
    return page.encode("utf-8", "replace")


def _part(name: str) -> str:
    return resources.files("clipcoco.share").joinpath(name).read_text("utf-8")


def _sum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""retrievals.html: what a model finds for captions and images, one self-contained page without scripts."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from PIL import Image

from clipcoco.files import write_atomically

NEAREST = 5
THUMBNAIL = 160  # pixels, the longer side


@dataclass(frozen=True)
class ImageHit:
    path: Path
    score: float  # cosine similarity
    right: bool


@dataclass(frozen=True)
class CaptionHit:
    caption: str
    score: float
    right: bool


@dataclass(frozen=True)
class TextQuery:
    caption: str
    rank: int  # of its image, from 1
    drawn: bool  # by the seed; otherwise one of the worst
    images: tuple[ImageHit, ...]  # the nearest, best first


@dataclass(frozen=True)
class ImageQuery:
    path: Path
    rank: int  # of the best of its own captions, from 1
    drawn: bool
    captions: tuple[CaptionHit, ...]


Query = TypeVar("Query", bound=TextQuery | ImageQuery)


def write_retrievals(
    path: Path,
    title: str,
    result: dict[str, Any],
    texts: Sequence[TextQuery],
    images: Sequence[ImageQuery],
) -> None:
    """Write the page to `path`. `title` is the run's name; `result` what `eval --json` says of it.

    An image that can't be read any more is shown by its name.
    """
    template = Template(resources.files("clipcoco.report").joinpath("retrievals.html").read_text("utf-8"))
    page = template.substitute(
        title=escape(title),
        about=escape(_about(result)),
        recalls="\n".join(_recalls(name, entry) for name, entry in result["protocols"].items()),
        captions=_halves(texts, _text_query),
        images=_halves(images, _image_query),
    )
    write_atomically(path, page)


def _about(result: dict[str, Any]) -> str:
    step = f"step {result['step']:,} · " if result["step"] is not None else ""
    return f"{step}{result['split']} · {result['images']:,} images, {result['captions']:,} captions"


def _recalls(protocol: str, entry: dict[str, Any]) -> str:
    """The recall table of one protocol, in percent."""
    rows = [
        ("image to text", entry["i2t"]),
        ("text to image", entry["t2i"]),
        ("chance, image to text", entry["chance"]["i2t"]),
        ("chance, text to image", entry["chance"]["t2i"]),
    ]
    body = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{recalls[key]:.2f}</td>" for key in ("r1", "r5", "r10"))
        + f"<td>{recalls['median_rank']:,g}</td></tr>"
        for name, recalls in rows
    )
    gallery = "all images as one gallery"
    if protocol == "1k":
        gallery = f"mean of {entry['folds']} galleries of 1,000 images, {entry['dropped']:,} images left out"
    return (
        f"<table><caption>Protocol {escape(protocol)}: {gallery}; percent, ties against the model</caption>"
        "<tr><th></th><th>R@1</th><th>R@5</th><th>R@10</th><th>median rank</th></tr>"
        f"{body}</table>"
    )


def _halves(queries: Sequence[Query], draw: Callable[[Query], str]) -> str:
    parts: list[str] = []
    for heading, drawn in (("Drawn by the seed", True), ("The worst failures", False)):
        cards = [draw(query) for query in queries if query.drawn is drawn]
        if cards:
            parts += [f"<h3>{heading}</h3>", *cards]
    return "\n".join(parts)


def _text_query(query: TextQuery) -> str:
    hits = "\n".join(
        f"<li{_class(hit.right)}>{_picture(hit.path)}<span class=score>{hit.score:.3f}</span> "
        f"{_mark(hit.right, query.rank)}</li>"
        for hit in query.images
    )
    return (
        f"<article><h4>{escape(query.caption)}</h4><p class=rank>its image is at rank {query.rank:,}</p>"
        f"<ol class=pictures>{hits}</ol></article>"
    )


def _image_query(query: ImageQuery) -> str:
    hits = "\n".join(
        f"<li{_class(hit.right)}><span class=score>{hit.score:.3f}</span>"
        f"<span>{escape(hit.caption)}</span>{_mark(hit.right, query.rank)}</li>"
        for hit in query.captions
    )
    return (
        f"<article class=query>{_picture(query.path)}<div><h4>{escape(query.path.name)}</h4>"
        f"<p class=rank>its best own caption is at rank {query.rank:,}</p>"
        f"<ol class=captions>{hits}</ol></div></article>"
    )


def _class(right: bool) -> str:
    return " class=right" if right else ""


def _mark(right: bool, rank: int) -> str:
    """The right answer of a miss stands behind the nearest ones, and says where it really is."""
    where = f", rank {rank:,}" if rank > NEAREST else ""
    return f"<span class=mark>✓ right{where}</span>" if right else ""


def _picture(path: Path) -> str:
    name = escape(path.name)
    try:
        return f'<img class=picture src="{_thumbnail(path)}" alt="{name}" title="{name}">'
    except OSError:
        return f"<span class=picture>{name} can't be read</span>"


def _thumbnail(path: Path) -> str:
    """The image as a data URI: a JPEG of at most 160 pixels a side."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

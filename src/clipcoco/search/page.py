"""The hits of a search as one page without scripts: thumbnails inside it, links to the files."""

import hashlib
import re
import unicodedata
from pathlib import Path

from clipcoco.data.viewer import thumbnail
from clipcoco.disk.files import write_atomically
from clipcoco.report.template import template
from clipcoco.search.query import Answer

THUMBNAIL = 240  # pixels, the longer side
NEWEST = "index.html"
MOST = 100  # pictures on a page


def write_page(folder: Path, answer: Answer, about: str) -> Path:
    """Write the page of an answer into `folder`; gives its path. `about` says which model found it where.

    Raises OSError.
    """
    picture = answer.query.picture
    html = template("clipcoco.search", filters={"thumbnail": _data_uri}).render(
        words=f"like {picture.name}" if picture else answer.query.words,
        asked=_data_uri(picture) if picture else None,
        about=about,
        hits=answer.hits[:MOST],
        report=(folder.parent / "report.html").exists(),  # of a run, whose page leads to the newest search
        left_out=max(0, len(answer.hits) - MOST),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(f'like {picture.stem}' if picture else answer.query.words)}.html"
    write_atomically(path, html)
    write_atomically(folder / NEWEST, html)
    return path


def slug(words: str) -> str:
    """A file name for a query: letters a to z, digits and dashes, at most 70 characters, never empty.

    What these can't say is told apart by a sum at the end.
    """
    plain = unicodedata.normalize("NFKD", words.casefold())
    letters = "-".join(re.findall(r"[a-z0-9]+", "".join(c for c in plain if not unicodedata.combining(c))))
    lost = any(c.isalnum() and not c.isascii() for c in plain) or len(letters) > 60 or not letters
    if not lost:
        return letters
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{letters[:60].strip('-') or 'query'}-{digest}"


def _data_uri(path: Path) -> str | None:
    data = thumbnail(path, THUMBNAIL)
    return f"data:image/jpeg;base64,{data}" if data else None

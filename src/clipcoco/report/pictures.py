"""The pictures of a page: what they are called, where they lie, and which four stand on the first screen."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from clipcoco.config.schema import Config
from clipcoco.config.text import expanded
from clipcoco.data.manifest import copies_folder
from clipcoco.errors import ConfigError
from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import Query, Record

LONGEST = 14  # characters of a name below a small picture


def short_name(file: str) -> str:
    """ "val2017/000000500001.jpg" -> "500001.jpg"; of a long name both ends."""
    name = file.rpartition("/")[2]
    name = name.lstrip("0") if name[:1] == "0" and name.lstrip("0")[:1].isdigit() else name
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"


def linked_from(page: Path, run: RunDir, config: Config | None, source: str | None) -> Callable[[str], str]:
    """`file` of the run's data -> what a link to it in `page` says; "" where that is not known.

    A relative data.root is looked for from the run upwards, and its links are relative too: the whole may be moved.
    """
    with suppress(ConfigError):
        if config is not None:
            root = expanded(config.data.root)
            folder = copies_folder(root, config.data.prepared_size) if (source or "").startswith("prepared-") else root
            if folder.is_absolute():
                return lambda file: (folder / file).as_uri()
            above = run.path.absolute().parents
            home = next((parent for parent in above if (parent / root).is_dir()), above[min(1, len(above) - 1)])
            start = os.path.relpath(home / folder, page.absolute().parent)
            return lambda file: quote(f"{start}/{file}", errors="surrogateescape")
    return lambda file: ""


def first_four(record: Record) -> tuple[list[Query], list[Query]]:
    """Captions of different images: two that find theirs first, as the seed drew them; the two that miss by most."""
    texts = record.retrievals.texts
    right = [query for query in texts if query.rank == 1]
    wrong = sorted((query for query in texts if query.rank > 1), key=lambda query: -query.rank)
    chosen = []
    for queries in (right, wrong):
        by_image = {next((hit.file for hit in query.hits if hit.right), ""): query for query in reversed(queries)}
        chosen.append([query for query in queries if query in by_image.values()][:2])
    return chosen[0], chosen[1]

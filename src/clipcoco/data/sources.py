"""Where the images of a run are read from: the originals, or copies that were made smaller once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.manifest import copies_folder, copies_manifest, read_manifest
from clipcoco.data.viewer import VIEW

ORIGINALS = "originals"


@dataclass(frozen=True)
class Source:
    name: str  # "originals", or "prepared-256" for copies whose shorter side has 256 pixels
    sha256: str  # of the copies of all images in question, in hexadecimal; "" for originals
    why: str  # for a person; "" where nothing else was possible
    copies: dict[str, str] = field(default_factory=dict, repr=False)  # file -> SHA-256 of its copy
    originals: dict[str, str] = field(default_factory=dict, repr=False)  # of copies: file -> SHA-256 of what was copied


def choose_source(
    data: DataConfig, tables: Sequence[CaptionTable], like: str | None = None
) -> tuple[Source, list[CaptionTable]]:
    """The source, and the tables with their folder in it.

    Copies are taken when there is one of every image and they are no smaller than what the model sees. `like` is
    the source of an earlier run: one that was trained on originals goes on with originals.
    """
    size, name = data.prepared_size, f"prepared-{data.prepared_size}"
    if like not in (None, name):
        return Source(ORIGINALS, "", "as the run began"), list(tables)
    if size == 0:
        return Source(ORIGINALS, "", ""), list(tables)
    settings, entries = read_manifest(copies_manifest(tables[0].folder, size))
    files = [file for table in tables for file in table.files]
    lacking = sum(file not in entries for file in files)
    if lacking == len(files) or settings.get("size") != size:
        return Source(ORIGINALS, "", ""), list(tables)
    if like is None and settings.get("view") != VIEW:
        return Source(ORIGINALS, "", f"{name} is of an older version, prepare-data makes it anew"), list(tables)
    if data.image_size > size:
        return Source(ORIGINALS, "", f"{name} is smaller than {data.image_size} px"), list(tables)
    if lacking:
        return Source(ORIGINALS, "", f"{name} lacks {lacking:,} of {len(files):,} images"), list(tables)
    copies = {file: entries[file].sha256 for file in sorted(files)}
    digest = hashlib.sha256("\n".join(f"{file} {sha256}" for file, sha256 in copies.items()).encode())
    folder = copies_folder(tables[0].folder, size)
    originals = {file: entries[file].source for file in copies}
    source = Source(name, digest.hexdigest(), "smaller copies", copies, originals)
    return source, [replace(table, folder=folder) for table in tables]

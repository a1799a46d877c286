"""The door to a split, for all that encodes it: the part that is asked for, where its images are read from, and that
all of them are there."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clipcoco.config.schema import DataConfig
from clipcoco.data.annotations import FOLDERS, KARPATHY_TEST, PREPARE, SPLITS, annotation_file
from clipcoco.data.captions import CaptionTable
from clipcoco.data.karpathy import coco_ids
from clipcoco.data.kept import open_captions, open_copies
from clipcoco.data.manifest import copies_folder, copies_manifest
from clipcoco.data.viewer import VIEW
from clipcoco.disk.links import check_link, may_lead
from clipcoco.errors import DataError, EnvironmentProblem

ORIGINALS = "originals"


@dataclass(frozen=True)
class Source:
    """Originals, or copies that were made smaller once."""

    name: str  # "originals", or "prepared-256" for copies whose shorter side has 256 pixels
    sha256: str  # of the copies of all images in question, in hexadecimal; "" for originals
    why: str  # for a person; "" where nothing else was possible
    copies: dict[str, str] = field(default_factory=dict, repr=False)  # file -> SHA-256 of its copy
    originals: dict[str, str] = field(default_factory=dict, repr=False)  # of copies: file -> SHA-256 of what was copied


@dataclass(frozen=True)
class Split:
    whole: CaptionTable  # all that the annotations name, whether or not it is on the disk
    table: CaptionTable  # the part that is asked for; its folder is where the images are read
    source: Source


def open_splits(
    data: DataConfig,
    *names: str,
    fraction: float | None = None,
    most: int | None = None,
    like: str | None = None,
    get_them: str = PREPARE,
    keep: bool = True,
) -> list[Split]:
    """The splits `names` of MEASURED, with one source for all.

    `fraction` None is the configuration's own, all of a test split; `most` is a limit of images. `like` is the source
    of an earlier run, `get_them` the command that errors recommend. Without `keep` nothing is written. Raises
    DataError, or EnvironmentProblem without access.
    """
    wholes, tables = [], []
    for name in names:
        share = {"train": data.train_fraction, "val": data.val_fraction}.get(name, 1)
        get_them = f"{PREPARE} --all" if name == KARPATHY_TEST else get_them
        if name == "test" and not annotation_file(data.folder, FOLDERS[name]).is_file():
            own = f"Of COCO take {KARPATHY_TEST}; your own pictures have one where their captions say val and test"
            raise DataError(f"{data.folder} has no test split (--split). {own}")
        if name == KARPATHY_TEST:
            whole = _karpathy_test(data.folder, get_them, keep)
        else:
            whole = open_captions(data.folder, FOLDERS[name], get_them=get_them, keep=keep)
            whole = without(data.exclude, whole, FOLDERS[name])
        table = whole.subset(share if fraction is None else fraction, data.subset_seed)
        if name == KARPATHY_TEST and len(table.files) < len(coco_ids()["test"]):
            table = replace(table, name=f"a part of {KARPATHY_TEST}")
        if most is not None:
            table = table.subset(min(1, most / len(table.files)), data.subset_seed)
        wholes.append(whole)
        tables.append(table)
    source, tables = choose_source(data, tables, like, keep)
    for table in tables:
        check_files(table, get_them=get_them)
    return [Split(whole, table, source) for whole, table in zip(wholes, tables, strict=True)]


def without(exclude: str, table: CaptionTable, split: str) -> CaptionTable:
    """train2017 without what `data.exclude` names; another split whole. Raises DataError for other data than COCO."""
    if exclude == "none" or split != SPLITS["train"]:
        return table
    _refuse_other_data(table, "data.exclude")
    return table.only(np.flatnonzero(~np.isin(table.image_ids, coco_ids()["test"])).tolist())


def _refuse_other_data(table: CaptionTable, where: str) -> None:
    if not table.coco:
        raise DataError(f"{KARPATHY_TEST} is of COCO 2017, and {table.folder} holds other data ({where}). Leave it out")


def _karpathy_test(root: Path, get_them: str, keep: bool) -> CaptionTable:
    """From both folders, with the five captions that the literature counts of each image."""
    test, five = (set(coco_ids()[name].tolist()) for name in ("test", "test_captions"))
    found = {}
    for split in SPLITS.values():
        table = open_captions(root, split, get_them=get_them, keep=keep)
        _refuse_other_data(table, "--split")
        for row, image in enumerate(table.image_ids.tolist()):
            span = range(table.offsets[row], table.offsets[row + 1])
            if image in test and (rows := [at for at in span if int(table.caption_ids[at]) in five]):
                found[image] = table, row, rows
    if not found:
        raise DataError(f"no image of {KARPATHY_TEST} is in {root} (--split). Get them: {get_them}")
    entries = [found[image] for image in sorted(found)]
    return CaptionTable(
        folder=root,
        image_ids=np.array(sorted(found), dtype=np.int64),
        files=[table.files[row] for table, row, _ in entries],
        sizes=np.array([table.sizes[row] for table, row, _ in entries]),
        caption_ids=np.array([table.caption_ids[at] for table, _, rows in entries for at in rows]),
        captions=[table.captions[at] for table, _, rows in entries for at in rows],
        offsets=np.cumsum([0, *(len(rows) for *_, rows in entries)], dtype=np.int64),
        order="published",
        notes=(),
        name=KARPATHY_TEST,
        coco=True,
    )


def choose_source(
    data: DataConfig, tables: Sequence[CaptionTable], like: str | None = None, keep: bool = True
) -> tuple[Source, list[CaptionTable]]:
    """The source, and the tables with their folder in it.

    Copies are taken when there is one of every image and they are no smaller than what the model sees. `like` is
    the source of an earlier run: one that was trained on originals goes on with originals.
    """
    size, name = data.prepared_size, f"prepared-{data.prepared_size}"
    folder, files = tables[0].folder, [file for table in tables for file in table.files]
    settings, sums = open_copies(copies_manifest(folder, size), folder, keep) if size else ({}, {})
    lacking = sum(file not in sums for file in files)
    if like not in (None, name):
        why = "as the run began"
    elif lacking == len(files) or settings.get("size") != size:
        why = ""
    elif like is None and settings.get("view") != VIEW:
        why = f"{name} is of an older version, prepare-data makes it again"
    elif data.image_size > size:
        why = f"{name} is smaller than {data.image_size} px"
    elif lacking:
        why = f"{name} lacks {lacking:,} of {len(files):,} images"
    else:
        copies = {file: sums[file][0] for file in sorted(files)}
        digest = hashlib.sha256("\n".join(f"{file} {sha256}" for file, sha256 in copies.items()).encode())
        originals = {file: sums[file][1] for file in copies}
        source = Source(name, digest.hexdigest(), "smaller copies", copies, originals)
        return source, [replace(table, folder=copies_folder(folder, size)) for table in tables]
    return Source(ORIGINALS, "", why), list(tables)


def check_files(table: CaptionTable, *, get_them: str = PREPARE) -> None:
    """See that every image of the table is a file below its folder, without opening or asking after each.

    That folder itself may be a symbolic link; a link below it must not lead out of it, but into a folder that
    the user allowed. Raises DataError.
    """
    if missing := missing_files(table):
        some = f"{len(missing):,} of {len(table.files):,} images are missing in {table.folder} (data.root)"
        first = ", ".join(missing[:3])
        raise DataError(f"{some}, first {first}. Get them: {get_them}, or use yours: --set data.root=DIR")


def missing_files(table: CaptionTable) -> list[str]:
    """The images of the table whose files are missing below its folder, sorted."""
    wanted, found, inside = set(table.files), set(), may_lead(table.folder)
    for folder in sorted({file.split("/")[0] for file in wanted}):
        check_link(table.folder, folder, inside)
        found |= _present(table.folder, folder, wanted, inside)
    return sorted(wanted - found)


def _present(root: Path, folder: str, wanted: set[str], inside: list[str]) -> set[str]:
    found = set()
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if (file := f"{folder}/{entry.name}") in wanted:
                    if entry.is_symlink():
                        check_link(root, file, inside)
                    if entry.is_file():
                        found.add(file)
    except (FileNotFoundError, NotADirectoryError):
        pass  # all of it is missing
    except OSError as error:
        raise EnvironmentProblem(f"cannot list {root / folder} ({error.strerror}). Check its permissions") from None
    return found

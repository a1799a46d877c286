"""`prepare-data --verify`: every file read, decoded and compared with what was noted when it came."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clipcoco.data.captions import CaptionTable
from clipcoco.data.manifest import Entry, copies_folder, copies_manifest, read_manifest
from clipcoco.data.split import missing_files
from clipcoco.data.viewer import UnreadableImage, opened, size_shown
from clipcoco.events import ReportTask
from clipcoco.prepare.coco import originals_manifest
from clipcoco.prepare.threads import in_threads

_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class Finding:
    """What one file is."""

    file: str
    sha256: str  # "" when it is not there
    problem: str  # "missing", "altered", "unreadable" or ""
    greyscale: bool = False
    wrong_type: bool = False  # the name says another format than the content


@dataclass(frozen=True)
class Verified:
    """Of one split. Files by name, relative to data.root, are in order."""

    split: str
    images: int
    captions: int
    official: bool  # the whole split has the published counts
    missing: tuple[str, ...]
    altered: tuple[str, ...]  # other bytes than noted, or other dimensions than annotated
    unreadable: tuple[str, ...]
    greyscale: int
    wrong_type: tuple[str, ...]
    duplicates: int  # images whose bytes another image of the split has too
    equal_captions: int  # captions whose words another image has too
    hashes: frozenset[str]

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.altered) + len(self.unreadable)


def verify(
    whole: CaptionTable, table: CaptionTable, published: tuple[int, int], prepared_size: int, report: ReportTask
) -> Verified:
    """Check `table`, a part of the split `whole`. An original that was never kept, but copied, is not missing."""
    split = table.files[0].partition("/")[0]
    _, noted = read_manifest(originals_manifest(table.folder))
    _, copies = read_manifest(copies_manifest(table.folder, prepared_size))
    absent = set(missing_files(table))
    missing = {file for file in absent if file in noted or file not in copies}
    sizes = dict(zip(table.files, map(tuple, table.sizes.tolist()), strict=True))

    def look(file: str) -> Finding:
        return Finding(file, "", "missing") if file in missing else _look(table.folder, file, noted, sizes[file])

    findings = in_threads(look, [file for file in table.files if file in missing or file not in absent], split, report)
    with_problem = {
        kind: tuple(f.file for f in findings if f.problem == kind) for kind in ("missing", "altered", "unreadable")
    }
    times = Counter(finding.sha256 for finding in findings if finding.sha256)
    found = (len(whole.files), len(whole.captions))
    return Verified(
        split=split,
        images=len(table.files),
        captions=len(table.captions),
        official=found == published,
        greyscale=sum(finding.greyscale for finding in findings),
        wrong_type=tuple(finding.file for finding in findings if finding.wrong_type),
        duplicates=sum(count for count in times.values() if count > 1),
        equal_captions=_equal_captions(table),
        hashes=frozenset(times),
        **with_problem,
    )


def verify_copies(table: CaptionTable, size: int, report: ReportTask) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Smaller copies that are gone or have other bytes than when they were made, and those of another original."""
    folder = copies_folder(table.folder, size)
    _, noted = read_manifest(copies_manifest(table.folder, size))
    _, originals = read_manifest(originals_manifest(table.folder))
    ours = [file for file in table.files if file in noted]

    def look(file: str) -> Finding:
        try:
            same = hashlib.sha256((folder / file).read_bytes()).hexdigest() == noted[file].sha256
        except OSError:
            same = False
        stale = file in originals and originals[file].sha256 != noted[file].source
        return Finding(file, "", "" if same and not stale else "stale" if same else "altered")

    findings = in_threads(look, ours, f"{folder.name}/{table.files[0].partition('/')[0]}", report)
    altered, stale = (tuple(f.file for f in findings if f.problem == kind) for kind in ("altered", "stale"))
    return altered, stale


def _look(folder: Path, file: str, noted: Mapping[str, Entry], size: tuple[int, int]) -> Finding:
    try:
        data = (folder / file).read_bytes()
    except OSError:
        return Finding(file, "", "unreadable")
    sha256 = hashlib.sha256(data).hexdigest()
    altered = file in noted and noted[file].sha256 != sha256
    try:
        with opened(data) as picture:
            picture.load()
            # COCO's annotations have the size as stored, a person's own data that of the picture as it is shown.
            mode, kind, sizes = picture.mode, picture.format, (picture.size, size_shown(picture))
            kind = "JPEG" if kind == "MPO" else kind  # a JPEG with more pictures behind it, as phones make them
    except UnreadableImage:
        return Finding(file, sha256, "altered" if altered else "unreadable")
    if 0 not in size and size not in sizes:
        altered = True
    wrong_type = kind != _TYPES.get(Path(file).suffix.lower())
    return Finding(file, sha256, "altered" if altered else "", mode in ("L", "LA", "I;16", "1"), wrong_type)


def _equal_captions(table: CaptionTable) -> int:
    owners: dict[str, set[int]] = {}
    for caption, owner in zip(table.captions, table.owners.tolist(), strict=True):
        owners.setdefault(caption, set()).add(owner)
    return sum(len(owners[caption]) > 1 for caption in table.captions)

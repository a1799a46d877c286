"""What to fetch of COCO 2017: which archives or single images, how many bytes, how much room they need."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipcoco.config.derive import IN_TRAIN, OFFICIAL, subset_size
from clipcoco.data.annotations import LAYOUT, SPLITS, annotation_file
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.false_captions import FOLDER, SUGAR_CREPE
from clipcoco.data.manifest import copies_folder, copies_manifest, read_manifest, same_settings
from clipcoco.data.split import missing_files, without
from clipcoco.disk.files import free_bytes
from clipcoco.disk.links import check_link, check_root, may_lead
from clipcoco.prepare.download import Archive
from clipcoco.prepare.network import RETRIES, RetryPolicy
from clipcoco.prepare.own_found import STATE
from clipcoco.prepare.resize import copy_bytes, file_size, settings, whole_copies
from clipcoco.prepare.single_images import RemoteImage

FOLDERS = (SPLITS["val"], SPLITS["train"])  # the small one first: what is wrong shows early
WORK = ".clipcoco"  # in data.root: what is under way, and the manifests
_REQUEST = 1_000  # bytes of headers and handshakes that a single image costs beside itself


@dataclass(frozen=True)
class Coco:
    """A published data set: where it is and what it must be. Tests bring a miniature of their own."""

    hosts: tuple[str, ...]
    annotations: Archive
    images: Mapping[str, Archive]  # by split
    counts: Mapping[str, tuple[int, int]]  # images and captions by split
    captions_bytes: int  # of the two annotation files that are unpacked
    false_captions: tuple[Archive, ...] = ()  # single files, below a mirror or, by their names, of `false_host`
    false_host: str = ""


# COCO publishes no sums: these agree between TensorFlow Datasets (url_checksums/coco.txt) and many others.
# The certificate of images.cocodataset.org is that of s3.amazonaws.com, so the bucket is asked by that name.
COCO = Coco(
    hosts=("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org"),
    annotations=Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    images={
        "train2017": Archive(
            "zips/train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
        "val2017": Archive(
            "zips/val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
    },
    counts={folder: OFFICIAL[split] for split, folder in SPLITS.items()},
    captions_bytes=100_000_000,
    false_captions=tuple(Archive(f"{FOLDER}/{name}", *known) for name, known in SUGAR_CREPE.items()),
    false_host="https://raw.githubusercontent.com/RAIVNLab/sugar-crepe/0047054b243992f0fad63d6f64f7544862daf846/data",
)


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    root: Path
    fractions: Mapping[str, float]  # by split
    subset_seed: int
    prepared_size: int  # shorter side of the copies; 0: none
    only_prepared: bool = False  # the originals are dropped as they arrive
    mirror: str | None = None  # takes the hosts' place
    source: Path | None = None  # holds archives or unpacked folders that were carried here
    exclude: str = "none"  # as data.exclude
    coco: Coco = COCO
    retries: RetryPolicy = RETRIES

    def urls(self, path: str) -> tuple[str, ...]:
        """Where a file of the published layout is asked for, in this order."""
        return tuple(f"{host}/{path}" for host in ([self.mirror.rstrip("/")] if self.mirror else self.coco.hosts))

    def images(self, table: CaptionTable, files: list[str]) -> list[RemoteImage]:
        """Single images have no published sum: they come over verified https, or from where the user says."""
        sizes = dict(zip(table.files, table.sizes.tolist(), strict=True))
        trusted = "" if self.mirror else "https://"
        urls = {file: tuple(url for url in self.urls(file) if url.startswith(trusted)) for file in files}
        return [RemoteImage(file, urls[file], *sizes[file]) for file in files]

    def table(self, split: str, captions: Path | None = None) -> CaptionTable:
        """Exactly the images that training with these fractions reads; `captions` are in data.root or the source."""
        return replace(self.part_of(read_captions(captions or self.root, split), split), folder=self.root)

    def part_of(self, whole: CaptionTable, split: str) -> CaptionTable:
        return without(self.exclude, whole, split).subset(self.fractions[split], self.subset_seed)

    def in_source(self, files: Sequence[str]) -> list[str]:
        """Those of `files` that the source holds unpacked. Raises DataError for one that is a link out of it."""
        if not self.source:
            return []
        inside, there = may_lead(self.source), [file for file in files if (self.source / file).is_file()]
        for file in there:
            if (self.source / file).is_symlink():
                check_link(self.source, file, inside)
        return there

    def source_archive(self, archive: Archive) -> Path | None:
        """The archive in the source, if it is there."""
        path = self.source / archive.name if self.source else None
        return path if path and path.is_file() else None


@dataclass(frozen=True)
class Part:
    """What one row of the plan does: "there", "source", "archive" or "single", these after what the source holds."""

    name: str  # "captions", "val2017", "train2017", "false captions"
    way: str
    images: int  # of the split that are wanted
    missing: int  # of them, still to come
    fetched: int  # bytes over the network
    room: int  # bytes on the disk while it is done
    carried: int = 0  # of the missing ones, those that are unpacked in the source


@dataclass(frozen=True)
class Plan:
    parts: tuple[Part, ...]
    copies: int  # smaller copies still to be made
    room: int  # bytes that all of it needs at its highest
    free: int  # bytes on the volume of data.root


def has_captions(folder: Path) -> bool:
    return all(annotation_file(folder, split).is_file() for split in FOLDERS)


def still_missing(request: Request, table: CaptionTable, copied: Collection[str] | None = None) -> list[str]:
    """Images of the table that are not there yet, as originals or, where these are dropped, as copies.

    `copied` is what `_copied` gives, where that is known.
    """
    missing = missing_files(table)
    if request.only_prepared:
        copied = _copied(request) if copied is None else copied
        missing = [file for file in missing if file not in copied]
    return missing


def _copied(request: Request) -> set[str]:
    made_with, entries = read_manifest(copies_manifest(request.root, request.prepared_size))
    if not same_settings(made_with, settings(request.prepared_size)):
        return set()  # made in another way: they will be made again
    return whole_copies(copies_folder(request.root, request.prepared_size), entries)


def make_plan(request: Request) -> Plan:
    """Where captions are neither in data.root nor in the source, counts are estimates from the official ones."""
    check_root(request.root, LAYOUT)
    captions = next((folder for folder in (request.root, request.source) if folder and has_captions(folder)), None)
    parts = [_captions(request)]
    copied = _copied(request) if request.prepared_size else set()
    copies = 0
    for split in FOLDERS:
        if captions:
            table = request.table(split, captions)
            images, lacking = len(table.files), still_missing(request, table, copied)
            uncopied = sum(file not in copied for file in table.files)
            missing, carried = len(lacking), len(request.in_source(lacking))
        else:
            whole = request.coco.counts[split][0]
            left_out = IN_TRAIN[0] if request.exclude != "none" and split == SPLITS["train"] else 0
            images = uncopied = subset_size(whole - left_out, request.fractions[split])
            missing = images - (0 if request.only_prepared else _share(request.root / split, whole, images))
            carried = _share(request.source / split, whole, missing) if request.source else 0
        copies += uncopied if request.prepared_size else 0
        parts.append(choose_part(request, split, images, missing, carried))
    if request.coco.false_captions:
        left = sum(file.size for file in missing_false_captions(request))
        way = "there" if not left else "source" if request.source else "archive"
        parts.append(Part("false captions", way, 0, 0, left if way == "archive" else 0, left))
    # Archives are unpacked and removed one after the other: the highest is what remains and the largest one.
    archives = [part.fetched if part.way == "archive" else 0 for part in parts]
    kept = sum(part.room for part in parts) - sum(archives) + copies * copy_bytes(request.prepared_size)
    return Plan(tuple(parts), copies, kept + max(archives), free_bytes(request.root))


def missing_false_captions(request: Request) -> list[Archive]:
    """Those that have still to come; none among pictures of one's own, whose captions they are not of."""
    wanted = () if (request.root / STATE).is_file() else request.coco.false_captions
    return [file for file in wanted if not (request.root / file.path).is_file()]


def _share(folder: Path, whole: int, images: int) -> int:
    """Of so many images of a split, those in a folder that holds this share of the `whole` split."""
    count = len(os.listdir(folder)) if folder.is_dir() else 0
    return images * min(count, whole) // whole


def _captions(request: Request) -> Part:
    if has_captions(request.root):
        return Part("captions", "there", 0, 0, 0, 0)
    archive, unpacked = request.coco.annotations, request.coco.captions_bytes
    if request.source_archive(archive) or (request.source and has_captions(request.source)):
        return Part("captions", "source", 0, 0, 0, unpacked)
    left = _left(request.root, archive)
    return Part("captions", "archive", 0, 0, left, left + unpacked)


def choose_part(request: Request, split: str, images: int, missing: int, carried: int = 0) -> Part:
    """What is carried here first; for the rest the way that moves fewer bytes."""
    archive = request.coco.images[split]
    if not missing:
        return Part(split, "there", images, 0, 0, 0)
    rest = missing - carried
    if not rest or request.source_archive(archive):
        room = _to_unpack(request.root, archive, split) if rest and not request.only_prepared else 0
        return Part(split, "source", images, missing, 0, room, carried)
    single, left = archive.size // request.coco.counts[split][0], _left(request.root, archive)
    if rest * (single + _REQUEST) < left or request.only_prepared:
        room = 0 if request.only_prepared else rest * single
        return Part(split, "single", images, missing, rest * single, room, carried)
    return Part(split, "archive", images, missing, left, left + _to_unpack(request.root, archive, split), carried)


def _to_unpack(root: Path, archive: Archive, split: str) -> int:
    """Bytes that unpacking still writes: less than all after a kill, which must not count as a lack of room."""
    staging = root / WORK / f"unpacking-{Path(archive.name).stem}"
    done = 0
    for folder in (root / split, staging / split):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                done += sum(entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False))
    return max(0, archive.size - done)


def _left(root: Path, archive: Archive) -> int:
    """Bytes of an archive that have not arrived in earlier calls."""
    here = (max(0, file_size(root / WORK / name)) for name in (archive.name, f"{archive.name}.part"))
    return max(0, archive.size - next(filter(None, here), 0))

"""What to fetch of COCO 2017: which archives or single images, how many bytes, how much room they need."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clipcoco.config.derive import OFFICIAL, subset_size
from clipcoco.data.annotations import annotation_file
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.manifest import copies_manifest, read_manifest
from clipcoco.data.presence import missing_files
from clipcoco.prepare.download import RemoteFile
from clipcoco.prepare.resize import copy_bytes
from clipcoco.prepare.single_images import RemoteImage

SPLITS = ("val2017", "train2017")  # the small one first: what is wrong shows early
WORK = ".clipcoco"  # in data.root: what is under way, and the manifests
_REQUEST = 1_000  # bytes of headers and handshakes that a single image costs beside itself


@dataclass(frozen=True)
class Archive:
    path: str  # below the host: "zips/val2017.zip"
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Coco:
    """A published data set: where it lies and what it must be. Tests bring a miniature of their own."""

    hosts: tuple[str, ...]
    annotations: Archive
    images: Mapping[str, Archive]  # by split
    counts: Mapping[str, tuple[int, int]]  # images and captions by split
    captions_bytes: int  # of the two annotation files that are unpacked


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
    counts=OFFICIAL,
    captions_bytes=100_000_000,
)


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    root: Path
    fractions: Mapping[str, float]  # by split
    subset_seed: int
    prepared_size: int  # shorter side of the copies; 0: none
    only_prepared: bool = False  # the originals are dropped as they arrive
    mirror: str | None = None  # takes the hosts' place
    source: Path | None = None  # holds archives or unpacked folders that were carried here


@dataclass(frozen=True)
class Part:
    """What one row of the plan does: "there", "source", "archive" or "single"."""

    name: str  # "captions", "val2017", "train2017"
    way: str
    images: int  # of the split that are wanted
    missing: int  # of them, still to come
    fetched: int  # bytes over the network
    room: int  # bytes on the disk while it is done


@dataclass(frozen=True)
class Plan:
    parts: tuple[Part, ...]
    copies: int  # smaller copies still to be made
    room: int  # bytes that all of it needs at its highest
    free: int  # bytes on the volume of data.root


def remote_file(archive: Archive, coco: Coco, wish: Wish) -> RemoteFile:
    hosts = (wish.mirror.rstrip("/"),) if wish.mirror else coco.hosts
    urls = tuple(f"{host}/{archive.path}" for host in hosts)
    return RemoteFile(archive.name, urls, archive.size, archive.sha256)


def remote_images(table: CaptionTable, files: list[str], coco: Coco, wish: Wish) -> list[RemoteImage]:
    """Single images have no published sum: they come over verified https, or from where the user says."""
    hosts = (wish.mirror.rstrip("/"),) if wish.mirror else tuple(h for h in coco.hosts if h.startswith("https://"))
    sizes = dict(zip(table.files, table.sizes.tolist(), strict=True))
    return [RemoteImage(file, tuple(f"{host}/{file}" for host in hosts), *sizes[file]) for file in files]


def wanted(wish: Wish, split: str) -> CaptionTable:
    """Exactly the images that training with these fractions reads."""
    return read_captions(wish.root, split).subset(wish.fractions[split], wish.subset_seed)


def still_missing(wish: Wish, table: CaptionTable) -> list[str]:
    """Images of the table that are not there yet, as originals or, where these are dropped, as copies."""
    if not wish.only_prepared:
        return missing_files(table)
    return [file for file in missing_files(table) if file not in _copied(wish)]


def _copied(wish: Wish) -> set[str]:
    settings, entries = read_manifest(copies_manifest(wish.root, wish.prepared_size))
    return set(entries) if settings.get("size") == wish.prepared_size else set()


def make_plan(wish: Wish, coco: Coco = COCO) -> Plan:
    """Before the captions are there, counts are the official ones and nothing is taken to be there."""
    have_captions = all(annotation_file(wish.root, split).is_file() for split in SPLITS)
    parts = [_captions(wish, coco, have_captions)]
    copied = _copied(wish) if wish.prepared_size else set()
    copies = 0
    for split in SPLITS:
        if have_captions:
            table = wanted(wish, split)
            images, missing = len(table.files), len(still_missing(wish, table))
            copies += sum(file not in copied for file in table.files) if wish.prepared_size else 0
        else:
            images = missing = subset_size(coco.counts[split][0], wish.fractions[split])
            copies += images if wish.prepared_size else 0
        parts.append(choose_part(wish, coco, split, images, missing))
    # Archives are unpacked and removed one after the other: the highest is what remains and the largest one.
    kept = sum(part.room - _archive_room(part, coco) for part in parts) + (
        copies * copy_bytes(wish.prepared_size) if copies else 0
    )
    room = kept + max(_archive_room(part, coco) for part in parts)
    return Plan(tuple(parts), copies, room, free_bytes(wish.root))


def _captions(wish: Wish, coco: Coco, have_captions: bool) -> Part:
    if have_captions:
        return Part("captions", "there", 0, 0, 0, 0)
    archive = coco.annotations
    if wish.source and ((wish.source / archive.name).is_file() or annotation_file(wish.source, "val2017").is_file()):
        return Part("captions", "source", 0, 0, 0, coco.captions_bytes)
    left = archive.size - part_bytes(wish.root, archive)
    return Part("captions", "archive", 0, 0, left, left + coco.captions_bytes)


def choose_part(wish: Wish, coco: Coco, split: str, images: int, missing: int) -> Part:
    """What is carried here first; else the way that moves fewer bytes."""
    archive = coco.images[split]
    mean = archive.size // coco.counts[split][0]
    if not missing:
        return Part(split, "there", images, 0, 0, 0)
    if wish.source and ((wish.source / archive.name).is_file() or (wish.source / split).is_dir()):
        unpacked = archive.size if (wish.source / archive.name).is_file() and not wish.only_prepared else 0
        return Part(split, "source", images, missing, 0, unpacked)
    left = archive.size - part_bytes(wish.root, archive)
    single = missing * (mean + _REQUEST)
    if single < left or wish.only_prepared:
        return Part(split, "single", images, missing, missing * mean, 0 if wish.only_prepared else missing * mean)
    return Part(split, "archive", images, missing, left, left + archive.size)


def _archive_room(part: Part, coco: Coco) -> int:
    """Bytes that are free again once an archive is unpacked."""
    if part.way != "archive":
        return 0
    return part.fetched


def part_bytes(root: Path, archive: Archive) -> int:
    """What has arrived of an archive in earlier calls."""
    for name in (archive.name, f"{archive.name}.part"):
        try:
            return min(archive.size, (root / WORK / name).stat().st_size)
        except OSError:
            continue
    return 0


def free_bytes(folder: Path) -> int:
    """Of the volume that `folder` lies or will lie on."""
    folder = folder.absolute()
    while not os.path.isdir(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free

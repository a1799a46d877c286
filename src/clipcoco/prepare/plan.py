"""What to fetch of COCO 2017: which archives or single images, how many bytes, how much room they need."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipcoco.config.derive import OFFICIAL, subset_size
from clipcoco.data.annotations import SPLITS, annotation_file
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.manifest import copies_folder, copies_manifest, read_manifest, same_settings
from clipcoco.data.split import missing_files
from clipcoco.disk.files import free_bytes
from clipcoco.disk.links import check_link, check_root, may_lead
from clipcoco.prepare.download import RemoteFile
from clipcoco.prepare.resize import copy_bytes, settings
from clipcoco.prepare.single_images import RemoteImage

FOLDERS = (SPLITS["val"], SPLITS["train"])  # the small one first: what is wrong shows early
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
    counts={folder: OFFICIAL[split] for split, folder in SPLITS.items()},
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
    """What one row of the plan does: "there", "source", "archive" or "single", these after what the source holds."""

    name: str  # "captions", "val2017", "train2017"
    way: str
    images: int  # of the split that are wanted
    missing: int  # of them, still to come
    fetched: int  # bytes over the network
    room: int  # bytes on the disk while it is done
    carried: int = 0  # of the missing ones, those that lie unpacked in the source


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


def wanted(wish: Wish, split: str, captions: Path | None = None) -> CaptionTable:
    """Exactly the images that training with these fractions reads; `captions` lie in data.root, or in the source."""
    table = read_captions(captions or wish.root, split).subset(wish.fractions[split], wish.subset_seed)
    return replace(table, folder=wish.root)


def has_captions(folder: Path) -> bool:
    return all(annotation_file(folder, split).is_file() for split in FOLDERS)


def in_source(source: Path, files: Sequence[str]) -> list[str]:
    """Those of `files` that lie unpacked in the source. Raises DataError for one that is a link out of it."""
    inside, there = may_lead(source), [file for file in files if (source / file).is_file()]
    for file in there:
        if (source / file).is_symlink():
            check_link(source, file, inside)
    return there


def still_missing(wish: Wish, table: CaptionTable) -> list[str]:
    """Images of the table that are not there yet, as originals or, where these are dropped, as copies."""
    return _lacking(wish, table, _copied(wish) if wish.only_prepared else ())


def _lacking(wish: Wish, table: CaptionTable, copied: Collection[str]) -> list[str]:
    missing = missing_files(table)
    return [file for file in missing if file not in copied] if wish.only_prepared else missing


def _copied(wish: Wish) -> set[str]:
    """Images whose copy is there. Its line alone is not enough: a person may have removed what was altered."""
    made_with, entries = read_manifest(copies_manifest(wish.root, wish.prepared_size))
    if not same_settings(made_with, settings(wish.prepared_size)):
        return set()  # made in another way: they will be made again
    folder = copies_folder(wish.root, wish.prepared_size)
    return {file for file, entry in entries.items() if _file_bytes(folder / file) == entry.size}


def _file_bytes(path: Path) -> int:
    """-1 without a file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def make_plan(wish: Wish, coco: Coco = COCO) -> Plan:
    """Where captions are neither in data.root nor in the source, counts are estimates from the official ones."""
    check_root(wish.root)
    captions = next((folder for folder in (wish.root, wish.source) if folder and has_captions(folder)), None)
    parts = [_captions(wish, coco)]
    copied = _copied(wish) if wish.prepared_size else set()
    copies = 0
    for split in FOLDERS:
        if captions:
            table = wanted(wish, split, captions)
            images, lacking = len(table.files), _lacking(wish, table, copied)
            copies += sum(file not in copied for file in table.files) if wish.prepared_size else 0
            missing, carried = len(lacking), len(in_source(wish.source, lacking)) if wish.source else 0
        else:
            images = subset_size(coco.counts[split][0], wish.fractions[split])
            copies += images if wish.prepared_size else 0
            missing = images - (0 if wish.only_prepared else _share(wish.root / split, coco.counts[split][0], images))
            carried = _share(wish.source / split, coco.counts[split][0], missing) if wish.source else 0
        parts.append(choose_part(wish, coco, split, images, missing, carried))
    # Archives are unpacked and removed one after the other: the highest is what remains and the largest one.
    kept = sum(part.room - _archive_room(part, coco) for part in parts) + (
        copies * copy_bytes(wish.prepared_size) if copies else 0
    )
    room = kept + max(_archive_room(part, coco) for part in parts)
    return Plan(tuple(parts), copies, room, free_bytes(wish.root))


def _share(folder: Path, whole: int, images: int) -> int:
    """Of so many images of a split, those in a folder that holds this share of the `whole` split."""
    count = len(os.listdir(folder)) if folder.is_dir() else 0
    return images * min(count, whole) // whole


def _captions(wish: Wish, coco: Coco) -> Part:
    if has_captions(wish.root):
        return Part("captions", "there", 0, 0, 0, 0)
    archive = coco.annotations
    if wish.source and ((wish.source / archive.name).is_file() or has_captions(wish.source)):
        return Part("captions", "source", 0, 0, 0, coco.captions_bytes)
    left = archive.size - part_bytes(wish.root, archive)
    return Part("captions", "archive", 0, 0, left, left + coco.captions_bytes)


def choose_part(wish: Wish, coco: Coco, split: str, images: int, missing: int, carried: int = 0) -> Part:
    """What is carried here first; for the rest the way that moves fewer bytes."""
    archive = coco.images[split]
    mean = archive.size // coco.counts[split][0]
    if not missing:
        return Part(split, "there", images, 0, 0, 0)
    rest = missing - carried
    if not rest or (wish.source and (wish.source / archive.name).is_file()):
        room = _to_unpack(wish.root, archive, split) if rest and not wish.only_prepared else 0
        return Part(split, "source", images, missing, 0, room, carried)
    left = archive.size - part_bytes(wish.root, archive)
    if rest * (mean + _REQUEST) < left or wish.only_prepared:
        return Part(split, "single", images, missing, rest * mean, 0 if wish.only_prepared else rest * mean, carried)
    return Part(split, "archive", images, missing, left, left + _to_unpack(wish.root, archive, split), carried)


def _to_unpack(root: Path, archive: Archive, split: str) -> int:
    """Bytes that unpacking still writes: less than all after a kill, which must not count as a lack of room."""
    staging = root / WORK / f"unpacking-{Path(archive.name).stem}"
    done = 0
    for folder in (root / split, staging / split):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                done += sum(entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False))
    return max(0, archive.size - done)


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

"""What a frozen backbone sees in every image, and a frozen text encoder makes of every caption, computed once: from
then on training needs neither.

Letters: B images or captions, V views of each image, F features of a view, S width of a sentence vector.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel

from clipcoco.config.backbones import MINILM
from clipcoco.config.schema import Config
from clipcoco.data.captions import CaptionTable
from clipcoco.data.features import FeatureFile, FeatureKey, Features, Sentences, stamps_of
from clipcoco.data.images import evaluation_view, sample_rng, training_view
from clipcoco.data.loader import EVALUATION_BATCH, MAX_REPLACEMENTS, Crops, evaluation_views
from clipcoco.data.split import Source
from clipcoco.data.tokenizer import PAD, distinct_by_length
from clipcoco.disk.files import FULL, need_room
from clipcoco.disk.rows import RowFile, locked
from clipcoco.engine.device import Device
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import Progress, Report, Warned

Encode = Callable[[torch.Tensor], torch.Tensor]  # uint8 (B,3,H,W) -> (B,F), or int (B,L) -> (B,S)
Block = tuple[list[int], torch.Tensor, list[int]]  # numbers of rows, the rows, and which of them can't be read
Blocks = Iterator[Block]
File = TypeVar("File", bound=RowFile[Any])
_SAVE_SECONDS = 5.0
_UNSAVED_BYTES = 2**26  # that wait in memory at most, and are lost to a kill or a full disk


def feature_key(config: Config, weights: str, device: Device, source: Source, training: bool) -> FeatureKey:
    """`weights` is the SHA-256 of the backbone. Images of the validation split are seen once, as they are."""
    data, backbone = config.data, config.model.vision.backbone
    crops = data.cached_crops if training else 0
    crop_scale = data.crop_scale if crops else [1.0, 1.0]
    return FeatureKey(
        weights=weights,
        backbone=backbone,
        image_size=data.image_size,
        precision=device.precision,
        source=source.name,
        mirror=training and data.flip,
        crops=crops,
        crop_scale=crop_scale,
        views_sha256=_views_sha256(data.image_size, crop_scale),
        width=config.model.vision.width,  # which tells the stages, too
        device=device.kind,
    )


def _views_sha256(size: int, crop_scale: list[float]) -> str:
    """Of what the views make of a drawn image: new code there, or in the library below, means new features."""
    image = (torch.arange(61 * 83 * 3) ** 2 % 251).to(torch.uint8).view(61, 83, 3).permute(2, 0, 1)
    crop = training_view(image, size, (crop_scale[0], crop_scale[1]), False, sample_rng(0, 0, 0, "crop"))
    return hashlib.sha256(torch.stack([evaluation_view(image, size), crop]).numpy().tobytes()).hexdigest()


@torch.inference_mode()
def cache_features(
    encode: Encode,
    key: FeatureKey,
    table: CaptionTable,
    root: Path,
    source: Source,
    workers: int,
    device: Device,
    report: Report,
    stop: Callable[[], str | None],
    group: Group = ALONE,
) -> Features | None:
    """The features of the table's images, from `root`/.clipcoco or computed into it; of a root that is for reading
    only, from a folder below TORCH_HOME, where the backbone's weights lie too.

    None when stopped meanwhile: what is there by then is kept. Raises EnvironmentProblem without room or access,
    DataError when so many images can't be read that the folder must be broken.
    """
    split, stamps = table.files[0].partition("/")[0], list[str]()

    def missing(file: FeatureFile) -> list[int]:
        stamps[:] = stamps or stamps_of(table, source)
        return file.missing(table, stamps)

    def seen(rows: list[int]) -> Blocks:
        return _seen(key, encode, table, rows, workers, device, stop)

    def named(file: FeatureFile, rows: list[int], unreadable: list[int]) -> list[int]:
        # Rows last: without them the rest is not saved.
        file.about.stamps += [stamps[row] for row in rows]
        file.about.unreadable += table.image_ids[unreadable].tolist()
        ids: list[int] = table.image_ids[rows].tolist()
        return ids

    file = _completed(
        "features",
        "train from images: --set train.frozen_epochs=0",
        root,
        key.path(Path(), split).name,
        lambda path: FeatureFile(path, key),
        missing,
        seen,
        named,
        report,
        stop,
        group,
    )
    return file.features(table) if file else None


@torch.inference_mode()
def cache_sentences(
    encode: Encode,
    weights: str,
    tokens: Sequence[np.ndarray],
    root: Path,
    device: Device,
    report: Report,
    stop: Callable[[], str | None],
    group: Group = ALONE,
) -> list[Sentences] | None:
    """What a frozen text encoder, of the SHA-256 `weights`, makes of the captions of each split, int16 or int32
    (M,context); kept as `cache_features` keeps its rows, in one file. Equal captions pass it once.
    """
    key = {"weights": weights, "precision": device.precision, "device": device.kind}
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    distinct, places = distinct_by_length(np.concatenate(tokens))
    names = [hashlib.sha256(row[row != PAD].astype(np.int32).tobytes()).hexdigest()[:32] for row in distinct]

    def made(rows: list[int]) -> Blocks:
        """Always the same captions side by side, the shorter ones first: a kill leaves no trace."""
        for some in np.split(np.array(rows), range(EVALUATION_BATCH, len(rows), EVALUATION_BATCH)):
            longest = int((distinct[some[-1]] != PAD).sum())
            with device.autocast():
                vectors = encode(torch.from_numpy(distinct[some, :longest]).to(device.device))
            yield some.tolist(), vectors.to(torch.float16).cpu(), []

    file = _completed(
        "sentences",
        "train a text tower: --set model.text.weights=none",
        root,
        f"sentences-{digest[:12]}.f16",
        lambda path: RowFile(path, key, (MINILM.width,), _NoMore, names="captions"),
        lambda file: [row for row, name in enumerate(names) if name not in file.places],
        made,
        lambda file, rows, unreadable: [names[row] for row in rows],
        report,
        stop,
        group,
    )
    if file is None:
        return None
    rows, of_each = file.rows, np.array([file.places[name] for name in names], dtype=np.int64)[places]
    return [Sentences(rows, some) for some in np.split(of_each, np.cumsum([len(one) for one in tokens])[:-1])]


class _NoMore(BaseModel):
    """Of captions their names and rows are all that is kept."""


def _completed(
    phase: str,
    instead: str,
    root: Path,
    name: str,
    open_file: Callable[[Path], File],
    missing: Callable[[File], list[int]],
    compute: Callable[[list[int]], Blocks],
    named: Callable[[File, list[int], list[int]], list[Any]],
    report: Report,
    stop: Callable[[], str | None],
    group: Group,
) -> File | None:
    """The file with all rows, from where it is whole or with what `compute` gives of those that are missing, which
    `named` notes in it. All of `group` compute, and the first one writes. `phase` is what they are, and `instead` what
    helps where they can't be kept."""
    if group.rank:
        return _followed(open_file, missing, compute, stop, group)
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    path, own = (folder / name for folder in (root / ".clipcoco", Path(torch.hub.get_dir(), "clipcoco", digest[:12])))
    try:
        for kept in (path, own):  # before any lock: to read what is whole asks for no permission
            file = open_file(kept)
            if not missing(file):
                group.said(([], kept))
                return file
        if not _may_write(path):
            report(Warned(0, 1, f"{path.parent} can't be written: the {phase} are kept in {own.parent}"))
            path = own
        with locked(path, f"run is computing {phase} into", lambda line: report(Warned(0, 1, line)), stop) as alone:
            if alone is None:
                group.said(([], None))
                return None
            file = open_file(path)
            file.shared = not alone
            rows = missing(file)
            if file.note:
                report(Warned(0, 1, f"{file.note}: recomputing"))
            need_room(path.parent, len(rows) * file.row_bytes, f"the {phase} need", "data.root", instead)
            group.said((rows, path))
            whole = _fill(file, group.in_turn(compute, rows, EVALUATION_BATCH, stop), named, len(rows), phase, report)
            return file if not rows or group.said(whole) else None
    except OSError as error:
        mend = "Free space" if error.errno in FULL else "Make it writable"
        raise EnvironmentProblem(
            f"the {phase} can't be kept at {path}: {error.strerror} (data.root). {mend}, or {instead}"
        ) from error


def _followed(
    open_file: Callable[[Path], File],
    missing: Callable[[File], list[int]],
    compute: Callable[[list[int]], Blocks],
    stop: Callable[[], str | None],
    group: Group,
) -> File | None:
    """The file that the first process fills with what this one computes too."""
    rows, path = group.said((list[int](), Path()))
    if path is None:
        return None
    for _ in group.in_turn(compute, rows, EVALUATION_BATCH, stop):
        pass
    if rows and not group.said(True):
        return None
    file = open_file(path)
    if missing(file):
        raise EnvironmentProblem(f"{path} is not what the first process has there (data.root). Share that folder")
    return file


def _fill(
    file: File,
    blocks: Blocks,
    named: Callable[[File, list[int], list[int]], list[Any]],
    total: int,
    phase: str,
    report: Report,
) -> bool:
    done, saved = 0, time.monotonic()
    try:
        for numbers, rows, unreadable in blocks:
            file.append(named(file, numbers, unreadable), rows.numpy())
            done += len(numbers)
            report(Progress(phase, done, total))
            if time.monotonic() - saved > _SAVE_SECONDS or sum(block.nbytes for block in file.unsaved) > _UNSAVED_BYTES:
                file.save()
                saved = time.monotonic()
    except BaseException:
        if file.unsaved:
            with suppress(OSError):  # which would hide what ended it
                file.save()
        raise
    if file.unsaved:
        file.save()
    return done == total


def _seen(
    key: FeatureKey,
    encode: Encode,
    table: CaptionTable,
    missing: list[int],
    workers: int,
    device: Device,
    stop: Callable[[], str | None],
) -> Blocks:
    """Always the same images side by side, for a batch decides the last bits: a kill then leaves no trace."""
    done = 0
    crops = Crops(key.crops, (key.crop_scale[0], key.crop_scale[1]), key.mirror)
    batches = evaluation_views(table, missing, key.image_size, workers, device.device.type == "cuda", crops, stop)
    for images, unreadable in batches:
        with device.autocast():
            first, *others = images.to(device.device, non_blocking=True).unbind(dim=1)
            views = [first, first.flip(-1), *others] if key.mirror else [first, *others]
            seen = [encode(view) for view in views]
        rows = missing[done : done + len(images)]
        if len(unreadable) >= MAX_REPLACEMENTS:  # to note them as unreadable for good would be rash
            raise DataError(
                f"{len(unreadable)} of {len(rows)} images can't be read, first {table.files[unreadable[0]]} "
                f"(data.root). Is the disk there, and the folder whole?"
            )
        yield rows, torch.stack(seen, dim=1).to(torch.float16).cpu(), unreadable
        done += len(images)


def _may_write(path: Path) -> bool:
    """`path`, which may be there already, in a folder that may have to be made."""
    folder = path.parent if path.parent.exists() else path.parent.parent
    return os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))

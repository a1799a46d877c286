"""What a frozen backbone sees in every image, computed once: from then on training needs no image.

Letters: B images, V views of each, F features of a view.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from clipcoco.config.schema import Config
from clipcoco.data.captions import CaptionTable
from clipcoco.data.features import FeatureFile, FeatureKey, Features, stamps_of
from clipcoco.data.images import evaluation_view, sample_rng, training_view
from clipcoco.data.loader import MAX_REPLACEMENTS, Crops, evaluation_views
from clipcoco.data.split import Source
from clipcoco.disk.files import FULL, need_room
from clipcoco.disk.rows import locked
from clipcoco.engine.device import Device
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import Progress, Report, Warned

Encode = Callable[[torch.Tensor], torch.Tensor]  # uint8 (B,3,H,W) -> (B,F)
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
    stop: Callable[[], object],
) -> Features | None:
    """The features of the table's images, from `root`/.clipcoco or computed into it; of a root that is for reading
    only, from a folder below TORCH_HOME, where the backbone's weights lie too.

    None when stopped meanwhile: what is there by then is kept. Raises EnvironmentProblem without room or access,
    DataError when so many images can't be read that the folder must be broken.
    """
    split, digest = table.files[0].partition("/")[0], hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    folders = (root / ".clipcoco", Path(torch.hub.get_dir(), "clipcoco", digest[:12]))
    instead = "train from images: --set train.frozen_epochs=0"
    path, own = (key.path(folder, split) for folder in folders)
    try:
        stamps = stamps_of(table, source)
        for kept in (path, own):  # before any lock: to read what is whole asks for no permission
            file = FeatureFile(kept, key)
            if not file.missing(table, stamps):
                return file.features(table)
        if not _may_write(path):
            report(Warned(0, 1, f"{path.parent} can't be written: the features are kept in {own.parent}"))
            path = own
        with locked(path, "run is computing features into", lambda line: report(Warned(0, 1, line)), stop) as alone:
            if alone is None:
                return None
            file = FeatureFile(path, key)
            file.shared = not alone
            missing = file.missing(table, stamps)
            if file.note:
                report(Warned(0, 1, f"{file.note}: recomputing"))
            need_room(path.parent, len(missing) * file.row_bytes, "the features need", "data.root", instead)
            if missing and not _fill(file, key, encode, table, stamps, missing, workers, device, report, stop):
                return None
            return file.features(table)
    except OSError as error:
        mend = "Free space" if error.errno in FULL else "Make it writable"
        raise EnvironmentProblem(
            f"the features can't be kept at {path}: {error.strerror} (data.root). {mend}, or {instead}"
        ) from error


def _fill(
    file: FeatureFile,
    key: FeatureKey,
    encode: Encode,
    table: CaptionTable,
    stamps: list[str],
    missing: list[int],
    workers: int,
    device: Device,
    report: Report,
    stop: Callable[[], object],
) -> bool:
    """Always the same images side by side, for a batch decides the last bits: a kill then leaves no trace."""
    done, saved = 0, time.monotonic()
    crops = Crops(key.crops, (key.crop_scale[0], key.crop_scale[1]), key.mirror)
    batches = evaluation_views(table, missing, key.image_size, workers, device.device.type == "cuda", crops, stop)
    try:
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
            # Rows last: without them the rest is not saved.
            file.about.stamps += [stamps[row] for row in rows]
            file.about.unreadable += table.image_ids[unreadable].tolist()
            file.append(table.image_ids[rows].tolist(), torch.stack(seen, dim=1).to(torch.float16).cpu().numpy())
            done += len(images)
            report(Progress("features", done, len(missing)))
            if stop():
                break
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
    return done == len(missing)


def _may_write(path: Path) -> bool:
    """`path`, which may be there already, in a folder that may have to be made."""
    folder = path.parent if path.parent.exists() else path.parent.parent
    return os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))

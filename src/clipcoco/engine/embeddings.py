"""Embeddings of a split, and the file that carries them between evaluators.

Letters: N images, M captions, D dimensions.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.errors import DataError
from clipcoco.files import take_name, write_temporary


@dataclass(frozen=True)
class Embeddings:
    """Float32 unit vectors on the CPU; captions stand in the order of their images."""

    images: Tensor  # (N,D)
    texts: Tensor  # (M,D)
    image_ids: np.ndarray  # int64 (N,)
    caption_ids: np.ndarray  # int64 (M,)
    owners: Tensor  # int64 (M,): the row of each caption's image


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """The file that `read_embeddings` and every other evaluator reads."""
    arrays = {
        "image_embeddings": embeddings.images.numpy(),
        "text_embeddings": embeddings.texts.numpy(),
        "image_ids": embeddings.image_ids,
        "caption_ids": embeddings.caption_ids,
        "caption_image_ids": embeddings.image_ids[embeddings.owners.numpy()],
    }
    take_name(write_temporary(path, lambda file: np.savez(file, **arrays)), path)


def read_embeddings(path: Path) -> tuple[Embeddings, str]:
    """Any model's embeddings, and a note on what was done to them. Raises DataError for a file that is none.

    Rows that are no unit vectors are made so: recall here ranks by cosine similarity.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with loaded as file:
            arrays = {name: file[name] for name in ("image_embeddings", "text_embeddings", "image_ids")}
            owners_ids = file["caption_image_ids"]
            caption_ids = file["caption_ids"] if "caption_ids" in file else np.arange(len(owners_ids))
    except FileNotFoundError:
        raise DataError(f"no file at {path} (--from-embeddings)") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} holds no embeddings (--from-embeddings). It needs image_embeddings (N,D), "
            f"text_embeddings (M,D), image_ids (N) and caption_image_ids (M)"
        ) from error
    images, texts, image_ids = arrays.values()
    _check_shapes(path, images, texts, image_ids, owners_ids, caption_ids)
    place = {int(image): row for row, image in enumerate(image_ids)}
    if len(place) < len(image_ids):
        raise DataError(f"{path}: image_ids repeat (--from-embeddings). Give each image one row")
    try:
        owners = np.array([place[int(image)] for image in owners_ids], dtype=np.int64)
    except KeyError as error:
        raise DataError(
            f"{path}: a caption belongs to image {error}, which is not in image_ids (--from-embeddings)"
        ) from None
    if len(np.unique(owners)) < len(image_ids):
        raise DataError(f"{path}: some images have no caption (--from-embeddings). Leave them out")
    order = np.argsort(owners, kind="stable")
    image_rows, changed = _unit_rows(images)
    text_rows, also_changed = _unit_rows(texts[order])
    note = "rows scaled to unit length" if changed or also_changed else "unit vectors"
    embeddings = Embeddings(image_rows, text_rows, image_ids, caption_ids[order], torch.from_numpy(owners[order]))
    return embeddings, note


def _check_shapes(
    path: Path,
    images: np.ndarray,
    texts: np.ndarray,
    image_ids: np.ndarray,
    owners: np.ndarray,
    ids: np.ndarray,
) -> None:
    fits = (
        images.ndim == texts.ndim == 2
        and images.shape[1:] == texts.shape[1:]
        and image_ids.shape == (len(images),)
        and owners.shape == ids.shape == (len(texts),)
        and len(images) > 0
        and all(array.dtype.kind == "f" for array in (images, texts))
        and all(array.dtype.kind in "iu" for array in (image_ids, owners, ids))
    )
    if not fits:
        raise DataError(
            f"{path}: the arrays do not fit together: image_embeddings {images.shape} {images.dtype}, text_embeddings "
            f"{texts.shape} {texts.dtype}, image_ids {image_ids.shape}, caption_image_ids {owners.shape} "
            f"(--from-embeddings). Floats (N,D) and (M,D), whole numbers (N) and (M) are expected"
        )


def _unit_rows(rows: np.ndarray) -> tuple[Tensor, bool]:
    vectors = torch.from_numpy(rows.astype(np.float32))
    off = (vectors.norm(dim=1) - 1).abs().max() > 1e-3
    return (F.normalize(vectors, dim=1), True) if off else (vectors, False)

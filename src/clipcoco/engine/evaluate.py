"""A split -> embeddings -> recall tables, the validation loss, and the retrievals worth showing.

Letters: N images, M captions, D dimensions.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.loader import EVALUATION_BATCH, evaluation_images
from clipcoco.engine.device import Device
from clipcoco.engine.loss import contrastive_loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.recall import Ranks
from clipcoco.errors import DataError
from clipcoco.events import Progress, Report
from clipcoco.files import write_temporary


@dataclass(frozen=True)
class Embeddings:
    """Float32 unit vectors on the CPU; captions stand in the order of their images."""

    images: Tensor  # (N,D)
    texts: Tensor  # (M,D)
    image_ids: np.ndarray  # int64 (N,)
    caption_ids: np.ndarray  # int64 (M,)
    owners: Tensor  # int64 (M,): the row of each caption's image


@dataclass(frozen=True)
class Split:
    """All that evaluation needs to know of a split."""

    config: DataConfig
    table: CaptionTable
    tokens: np.ndarray  # int32 (M,context)
    workers: int


@torch.inference_mode()
def embed(
    model: DualEncoder, split: Split, device: Device, report: Report, stop: Callable[[], object]
) -> Embeddings | None:
    """Encode every image and every distinct caption once, in batches of a fixed size; None when stopped.

    Raises DataError for an image that can't be read.
    """
    was_training = model.training
    model.eval()
    try:
        images, texts = [], []
        distinct, inverse = np.unique(split.tokens, axis=0, return_inverse=True)
        total, done = len(split.table.files) + len(distinct), 0
        for batch in evaluation_images(
            split.config, split.table, split.workers, pin_memory=device.device.type == "cuda"
        ):
            with device.autocast():
                images.append(model.encode_images(batch.to(device.device, non_blocking=True)).cpu())
            report(Progress("evaluate", done := done + len(batch), total))
            if stop():
                return None
        for tokens in torch.from_numpy(distinct).split(EVALUATION_BATCH):
            with device.autocast():
                texts.append(model.encode_texts(tokens.to(device.device)).cpu())
            report(Progress("evaluate", done := done + len(tokens), total))
            if stop():
                return None
    finally:
        model.train(was_training)
    return Embeddings(
        torch.cat(images),
        torch.cat(texts)[torch.from_numpy(inverse.reshape(-1))],
        split.table.image_ids,
        split.table.caption_ids,
        torch.from_numpy(split.table.owners),
    )


def validation_loss(embeddings: Embeddings, batch_size: int, temperature: float) -> float:
    """The training loss over the split, in nats: consecutive batches of `batch_size` images in full batches.

    Each image comes with its first caption, then again with its second, and so on as long as all have one.
    """
    images = len(embeddings.images)
    counts = torch.bincount(embeddings.owners, minlength=images)
    first = counts.cumsum(0) - counts
    size = min(batch_size, images)
    losses = [
        contrastive_loss(
            embeddings.images[start : start + size],
            embeddings.texts[first[start : start + size] + slot],
            torch.tensor(temperature),
        )
        for slot in range(int(counts.min()))
        for start in range(0, images - size + 1, size)
    ]
    return float(torch.stack(losses).double().mean())


@dataclass(frozen=True)
class Retrieval:
    """A query and what it found: rows of the table, best first."""

    query: int
    rank: int  # of the right answer
    drawn: bool  # by the seed; otherwise one of the worst
    found: tuple[int, ...]
    scores: tuple[float, ...]


def retrievals_worth_showing(
    embeddings: Embeddings, ranks: Ranks, seed: int, count: int = 12, nearest: int = 5
) -> tuple[list[Retrieval], list[Retrieval]]:
    """`count` captions with their nearest images, and images with their nearest captions.

    Half of either are drawn by the seed, half are the worst failures: nothing is picked by hand.
    """

    def choose(rank: Tensor, queries: Tensor, gallery: Tensor, purpose: int) -> list[Retrieval]:
        order = np.random.Generator(np.random.PCG64([seed, purpose])).permutation(len(rank)).tolist()
        half = min(count // 2, len(rank) // 2)
        drawn = order[:half]
        worst = [row for row in rank.argsort(descending=True, stable=True).tolist() if row not in set(drawn)]
        rows = [(row, True) for row in drawn] + [(row, False) for row in worst[: count - half]]
        scores, found = (queries[[row for row, _ in rows]] @ gallery.T).topk(min(nearest, len(gallery)))
        return [
            Retrieval(row, int(rank[row]), is_drawn, tuple(places.tolist()), tuple(values.tolist()))
            for (row, is_drawn), places, values in zip(rows, found, scores, strict=True)
        ]

    return (
        choose(ranks.t2i, embeddings.texts, embeddings.images, 0),
        choose(ranks.i2t, embeddings.images, embeddings.texts, 1),
    )


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """The file that `read_embeddings` and every other evaluator reads."""
    arrays = {
        "image_embeddings": embeddings.images.numpy(),
        "text_embeddings": embeddings.texts.numpy(),
        "image_ids": embeddings.image_ids,
        "caption_ids": embeddings.caption_ids,
        "caption_image_ids": embeddings.image_ids[embeddings.owners.numpy()],
    }
    write_temporary(path, lambda file: np.savez(file, **arrays)).replace(path)


def read_embeddings(path: Path) -> tuple[Embeddings, str]:
    """Any model's embeddings, and a note on what was done to them. Raises DataError for a file that is none.

    Rows that are no unit vectors are made so: recall here ranks by cosine similarity.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image_embeddings", "text_embeddings", "image_ids")}
            owners_ids = file["caption_image_ids"]
            caption_ids = file["caption_ids"] if "caption_ids" in file else np.arange(len(owners_ids))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} holds no embeddings: {error} (--from-embeddings). It needs image_embeddings (N,D), "
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
    embeddings = Embeddings(
        image_rows, text_rows, image_ids, caption_ids[order], torch.from_numpy(owners[order])
    )
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

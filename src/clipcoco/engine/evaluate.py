"""A split -> embeddings -> recall tables, the validation loss, and the retrievals worth showing.

Letters: N images, M captions, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable, hashed_order
from clipcoco.data.features import Features, Sentences
from clipcoco.data.karpathy import published_order
from clipcoco.data.loader import EVALUATION_BATCH, evaluation_images
from clipcoco.data.tokenizer import PAD, distinct_by_length, new_rows
from clipcoco.engine.device import Device
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.loss import Loss, text_keys
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.recall import Ranks
from clipcoco.events import Progress, Report


@dataclass(frozen=True)
class Inputs:
    """What evaluation encodes of a split."""

    config: DataConfig
    table: CaptionTable
    tokens: np.ndarray  # int16 or int32 (M,context)
    workers: int
    features: Features | None = None  # of a frozen backbone: then no image is read
    sentences: Sentences | None = None  # of a frozen text encoder, which then makes nothing of the tokens
    false_tokens: np.ndarray | None = None  # int32 (P,context): of false captions beside the split's own

    def images(
        self, pin_memory: bool, stop: Callable[[], object] = lambda: None, rows: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """All images or those of `rows`, in batches of at most EVALUATION_BATCH, until a stop: uint8 (B,3,H,W)."""
        return evaluation_images(self.config, self.table, self.workers, pin_memory, stop, rows)

    def kept(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """The same images in the same batches, as a frozen backbone saw them: float16 (B,F)."""
        assert self.features is not None
        for some in torch.tensor(rows).split(EVALUATION_BATCH) if rows else ():
            yield torch.from_numpy(self.features.take(some.tolist(), [0] * len(some)))


@torch.inference_mode()
def embed(
    model: DualEncoder,
    inputs: Inputs,
    device: Device,
    report: Report,
    stop: Callable[[], str | None],
    group: Group = ALONE,
) -> Embeddings | None:
    """Encode every image and every distinct caption once, in batches of a fixed size; None when stopped.

    `group` shares the batches, and each has all embeddings. False captions come last, in batches of their own: of the
    split's they change no bit. Raises DataError for an image that can't be read.
    """
    was_training = model.training
    model.eval()
    try:
        distinct, inverse = distinct_by_length(inputs.tokens)
        more, of_false = new_rows(inputs.false_tokens, distinct)
        of_images = group.batches(len(inputs.table.files), EVALUATION_BATCH)
        first, every = len(distinct), np.concatenate([distinct, more])
        of_texts, of_more = (group.batches(len(one), EVALUATION_BATCH) for one in (distinct, more))
        of_texts += [range(first + some.start, first + some.stop) for some in of_more]
        images, texts = list[Tensor](), list[Tensor]()
        total, done = sum(map(len, of_images + of_texts)), 0
        encode: Callable[[Tensor], Tensor] = model.encode_images
        rows = [row for some in of_images for row in some]
        batches = inputs.images(device.device.type == "cuda", stop, rows)
        if inputs.features is not None and inputs.features.readable.all():  # else the images say which can't be read
            batches, encode = inputs.kept(rows), model.encode_features
        if stop():  # before any worker is started for it
            batches, of_texts = iter(()), []
        for batch in batches:
            with device.autocast():
                images.append(encode(batch.to(device.device, non_blocking=True)).cpu())
            report(Progress("evaluate", done := done + len(batch), total))
            if stop():
                break
        captions = np.unique(inverse, return_index=True)[1]  # the first that is equal to each of `distinct`
        for some in of_texts:
            if stop():
                break
            own = captions[some].tolist() if some.start < first else []
            with device.autocast():
                texts.append(_encode(model, every[some], inputs.sentences, own, device).cpu())
            report(Progress("evaluate", done := done + len(some), total))
    finally:
        model.train(was_training)
    if group.agreed(stop())[0]:
        return None
    encoded = group.put_together(texts, of_texts)
    return Embeddings(
        group.put_together(images, of_images),
        encoded[torch.from_numpy(inverse)],
        inputs.table.image_ids,
        inputs.table.caption_ids,
        torch.from_numpy(inputs.table.owners),
        false=None if inputs.false_tokens is None else encoded[torch.from_numpy(of_false)],
    )


def _encode(
    model: DualEncoder, tokens: np.ndarray, sentences: Sentences | None, kept: list[int], device: Device
) -> Tensor:
    """A batch of captions, the longest last, or what a frozen encoder made of them: those rows of `sentences`."""
    if sentences and kept:
        return model.encode_sentences(torch.from_numpy(sentences.take(kept)).to(device.device))
    longest = int((tokens[-1] != PAD).sum())
    return model.encode_texts(torch.from_numpy(tokens[:, :longest]).to(device.device))


def in_order(embeddings: Embeddings, order: str) -> Embeddings:
    """The images, each with its captions, in the order of their "ids", of their "hashed ids", or as Karpathy's test
    split is "published": for what takes neighbours together."""
    ids = embeddings.image_ids
    by_hash = {"hashed ids": hashed_order, "published": published_order}
    rows = torch.tensor(by_hash[order](ids) if order in by_hash else ids.argsort().tolist())
    if torch.equal(rows, torch.arange(len(rows))):
        return embeddings
    owners, captions = rows.argsort()[embeddings.owners].sort(stable=True)
    return Embeddings(
        embeddings.images[rows],
        embeddings.texts[captions],
        ids[rows.numpy()],
        embeddings.caption_ids[captions.numpy()],
        owners,
    )


def validation_loss(
    embeddings: Embeddings, loss: Loss, batch_size: int, temperature: float, bias: Tensor | None = None
) -> float:
    """The training's loss over the split, as after its warm-up: consecutive batches of `batch_size` images, all full.

    Each image comes with its first caption, then again with its second, and so on as long as all have one.
    """
    images = len(embeddings.images)
    counts = torch.bincount(embeddings.owners, minlength=images)
    first = counts.cumsum(0) - counts
    size, keys = min(batch_size, images), text_keys(embeddings.texts)
    losses = [
        loss.of(
            embeddings.images[start : start + size],
            embeddings.texts[first[start : start + size] + slot],
            torch.tensor(temperature),
            bias=bias,
            keys=keys[first[start : start + size] + slot],
        )
        for slot in range(int(counts.min()))
        for start in range(0, images - size + 1, size)
    ]
    return float(torch.stack(losses).double().mean())


@dataclass(frozen=True)
class Retrieval:
    """A query and what it found: rows of the table, best first, and last the right one if it is not among them."""

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

    owners = embeddings.owners

    def choose(rank: Tensor, queries: Tensor, gallery: Tensor, purpose: int) -> list[Retrieval]:
        order = np.random.Generator(np.random.PCG64([seed, purpose])).permutation(len(rank)).tolist()
        half = min(count // 2, len(rank) // 2)
        drawn = order[:half]
        worst = [row for row in rank.argsort(descending=True, stable=True).tolist() if row not in set(drawn)]
        rows = [(row, True) for row in drawn] + [(row, False) for row in worst[: count - half]]
        chosen = []
        for row, is_drawn in rows:
            scores = gallery @ queries[row]
            places = scores.topk(min(nearest, len(gallery))).indices.tolist()
            own = owners[row : row + 1] if purpose == 0 else (owners == row).nonzero().flatten()
            if not set(own.tolist()) & set(places):
                places.append(int(own[scores[own].argmax()]))
            chosen.append(Retrieval(row, int(rank[row]), is_drawn, tuple(places), tuple(scores[places].tolist())))
        return chosen

    return (
        choose(ranks.t2i, embeddings.texts, embeddings.images, 0),
        choose(ranks.i2t, embeddings.images, embeddings.texts, 1),
    )

"""The contrastive losses, each with what it comes to by chance.

Letters: B pairs of a batch, b of them in the rows that are looked at, K false captions of each image, D dimensions of
the shared space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities of queries to all that they may choose among, (b,B) or (b,B+K), -inf to what is no negative, and the own
# column of each (b,): the mean over the rows, a scalar.
Rows = Callable[[Tensor, Tensor], Tensor]
MARGIN = 0.2  # of cosines, as in VSE++


@dataclass(frozen=True)
class Loss:
    of_rows: Rows
    chance: Callable[[int], float]  # of B pairs whose similarities are all 0; nats, but for a triplet's margin
    at_first: Rows | None = None  # in the place of `of_rows` while the learning rate warms up
    scaled: bool = True  # similarities are cosines over the temperature, and not cosines
    bias: Callable[[int], float] | None = None  # where it learns one to add to them: its start, of B pairs

    def of(
        self,
        images: Tensor,
        texts: Tensor,
        temperature: Tensor,
        rows: slice = slice(None),
        bias: Tensor | None = None,
        warming: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The mean of both directions, a scalar.

        `images` and `texts` are unit vectors (B,D), row i of one belonging to row i of the other; every other row is a
        negative, but where `keys`, int64 (B,), say that both captions are the same text. Texts (B,1+K,D) have behind
        each caption false ones of the same image, further negatives of this image alone, and zeros in the place of one
        that there is not (NegCLIP's, Yuksekgonul et al., 2023, are negatives of all).
        With `rows` the part of these alone, against all others: equal parts have the whole as their mean.
        Of C captions of each image, keys (B,C), texts (B,C,...), it is the mean over them, each among the others' one.
        """
        if keys is not None and keys.dim() == 2:
            each = zip(texts.unbind(1), keys.unbind(1), strict=True)
            of_one = [self.of(images, one, temperature, rows, bias, warming, key) for one, key in each]
            return torch.stack(of_one).mean()
        scale = temperature if self.scaled else 1
        own = torch.arange(len(images), device=images.device)[rows]
        of_rows = self.at_first if warming and self.at_first else self.of_rows
        texts, false = (texts, None) if texts.dim() == 2 else (texts[:, 0], texts[rows, 1:])

        def similarities(queries: Tensor, gallery: Tensor) -> Tensor:
            scaled = queries @ gallery.mT / scale
            return scaled if bias is None else scaled + bias

        def negatives(found: Tensor) -> Tensor:
            if keys is None:
                return found
            alike = (keys[rows, None] == keys).scatter(1, own[:, None], False)
            return found.masked_fill(alike, -math.inf)

        forth = negatives(similarities(images[rows], texts))
        among = forth
        if false is not None:
            told = similarities(images[rows, None], false).squeeze(1)
            among = torch.cat([forth, told.masked_fill((false == 0).all(dim=2), -math.inf)], dim=1)
        of_images = of_rows(among, own)  # first: the order in which gradients meet decides their last bits
        back = forth.T if len(own) == len(images) else negatives(similarities(texts[rows], images))
        return (of_images + of_rows(back, own)) / 2


def infonce(logits: Tensor, own: Tensor) -> Tensor:
    """InfoNCE: choose the own one among all (van den Oord et al., 2018; symmetric in Radford et al., 2021)."""
    return F.cross_entropy(logits, own)


def sigmoid(logits: Tensor, own: Tensor) -> Tensor:
    """SigLIP (Zhai et al., 2023): each pair is a question of its own, yes for the own one and no for all others."""
    signs = 2 * F.one_hot(own, logits.shape[1]) - 1
    return -F.logsigmoid(signs * logits).sum() / len(own)


def triplet(cosines: Tensor, own: Tensor) -> Tensor:
    """VSE++ (Faghri et al., 2018): the own one above the hardest of the others, by a margin."""
    return _hinges(cosines, own).amax(dim=1).mean()


def every_triplet(cosines: Tensor, own: Tensor) -> Tensor:
    """VSE0, with which VSE++ warms up, as its hardest negatives collapse young encoders: above the others' mean."""
    others = (cosines > -math.inf).sum(dim=1) - 1
    return (_hinges(cosines, own).sum(dim=1) / others.clamp(min=1)).mean()


def _hinges(cosines: Tensor, own: Tensor) -> Tensor:
    right = cosines.gather(1, own[:, None])
    return (MARGIN + cosines - right).clamp(min=0).scatter(1, own[:, None], 0.0)


def text_keys(rows: Tensor) -> Tensor:
    """A number of each text, int64 (B,), from its tokens (B,L) or its vector (B,D) in float32: equal where these are
    and else, but once in 2^60 times, not. What is padded has the same as what is not. Of (B,C,L) they are (B,C)."""
    numbers = rows.view(torch.int32) if rows.is_floating_point() else rows
    weights = torch.randint(-(2**62), 2**62, numbers.shape[-1:], generator=torch.Generator().manual_seed(0))
    return (numbers.long() * weights.to(rows.device)).sum(dim=-1)  # modulo 2^64


LOSSES = {
    "infonce": Loss(infonce, chance=math.log),
    # Its bias starts where a pair is as probable as one in B: the paper's -10 is for its batch of 32,768.
    "sigmoid": Loss(
        sigmoid,
        chance=lambda pairs: math.log(pairs) + (pairs - 1) * math.log(pairs / (pairs - 1)),
        bias=lambda pairs: -math.log(pairs - 1),
    ),
    "triplet": Loss(triplet, chance=lambda pairs: MARGIN, at_first=every_triplet, scaled=False),
}

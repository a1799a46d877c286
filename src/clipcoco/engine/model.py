"""Both encoders with their projections into the shared space, and the temperature.

Letters: B images or captions, L tokens, W width of the text tower, D dimensions of the shared space.
Parameter names are those of open_clip's CustomTextCLIP around a timm ResNet, so that an export is a copy.
"""

import math
from collections import OrderedDict
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipcoco.config.schema import ModelConfig, TextConfig, VisionConfig
from clipcoco.data.loader import Batch
from clipcoco.data.tokenizer import END, PAD
from clipcoco.engine.sentence import SentenceEncoder
from clipcoco.engine.weights import classifier

# Statistics of ImageNet's pixels (0..255), which torchvision's weights expect; kept from scratch too.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
_GROUP = 32  # captions, enough to fill a few cores
MAX_SCALE = math.log(100)  # the clamp of Radford et al., 2021: a temperature of 1/100


class ImageEncoder(nn.Module):
    """A convolutional trunk of torchvision and a linear projection: uint8 (B,3,H,W) -> float32 (B,D).

    ResNet (He et al., 2015), MobileNetV3 (Howard et al., 2019) or EfficientNet (Tan and Le, 2019).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, projection_dim: int) -> None:
        super().__init__()
        from clipcoco.data.vision import torchvision  # which a search with words does without

        self.trunk = torchvision.models.get_model(config.backbone, weights=None)
        setattr(self.trunk, classifier(self.trunk), nn.Identity())
        self.earlier = tuple(config.earlier)
        self.dropout = nn.Dropout(config.feature_dropout)
        self.head = nn.Sequential(OrderedDict(proj=nn.Linear(config.width, projection_dim, bias=False)))
        self.pretrained = config.weights != "none"
        # Not in the state dict: they are a constant of the trunk's weights, not something learnt.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Training mode; BatchNorm of a pretrained trunk stays in eval, as in VSE++ and its heirs."""
        super().train(mode)
        if self.pretrained:
            self.trunk.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """uint8 (B,3,H,W) -> what the trunk sees in them, (B,F)."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        if next(self.trunk.parameters()).is_contiguous(memory_format=torch.channels_last):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return seen_by(self.trunk, self.earlier, pixels)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.features(images))

    def project(self, features: Tensor) -> Tensor:
        """What the trunk saw, now or earlier, (B,F) -> float32 (B,D)."""
        # In the weights' float32 even under autocast: its cost is nil, and rounding here would make ties.
        with torch.autocast(features.device.type, enabled=False):
            embeddings: Tensor = self.head(features.to(self.mean.dtype))
            return embeddings


def seen_by(trunk: nn.Module, earlier: Collection[str], pixels: Tensor) -> Tensor:
    """What a trunk sees, (B,F): the means over the image of what its parts `earlier` give, then its own output.

    The parts run one after another, as in every trunk of torchvision's table and in timm's of the same kinds.
    """
    if not earlier:
        features: Tensor = trunk(pixels)
        return features
    x, means = pixels, []
    for name, part in trunk.named_children():
        inner = part.named_children() if isinstance(part, nn.Sequential) and name in ("features", "blocks") else ()
        for path, step in [(f"{name}.{number}", one) for number, one in inner] or [(name, part)]:
            x = step(x)
            if path in earlier:
                means.append(x.mean(dim=(2, 3)))
    assert len(means) == len(earlier)
    return torch.cat([*means, x.flatten(1)], dim=1)


class Attention(nn.Module):
    """Causal self-attention with one product for queries, keys and values: (B,L,W) -> (B,L,W)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return F.linear(mixed, self.out_proj.weight, self.out_proj.bias)


class Block(nn.Module):
    """A pre-norm residual block: (B,L,W) -> (B,L,W)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        mixed: Tensor = self.dropout(self.mlp(self.ln_2(x)))
        return x + mixed


class TextEncoder(nn.Module):
    """A causal Transformer (Vaswani et al., 2017), read out at its end token: int (B,L) -> float32 (B,D).

    Whatever stands behind the end token is never seen by it, so a batch may be cut to its longest caption.
    With `pool: mean` the normalised outputs of all tokens up to it are averaged and added: what one more block
    gives at the end token, were its attention uniform, its values plain and its MLP zero (so an export writes it).
    Without layers that is a bag of words, which has no positions either.
    """

    def __init__(self, config: TextConfig, vocab_size: int, projection_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.has_positions = config.layers > 0
        # What the blocks read is as large as what they add (Vaswani et al., 2017), while the weights stay as small as
        # Adam's steps want them.
        self.embedding_scale = math.sqrt(config.width) if self.has_positions and config.pool == "mean" else 1.0
        if self.has_positions:
            self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        blocks = [Block(config.width, config.heads, config.dropout) for _ in range(config.layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.ln_mean = nn.LayerNorm(config.width) if config.pool == "mean" else None
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, projection_dim))
        self.dropout = nn.Dropout(config.dropout)
        self._initialise(config, blocks)

    @torch.no_grad()
    def _initialise(self, config: TextConfig, blocks: list[Block]) -> None:
        """The scheme of Radford et al. (2021): residual branches shrink with depth.

        Read out by the mean, a tower of any depth starts as its own bag of words: residual branches are 0, and so
        are the keys, by which attention begins as a plain mean.
        """
        width, layers = config.width, config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.has_positions:
            nn.init.normal_(self.positional_embedding, std=0.01)
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * width * layers) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_proj.weight"), std=(2 * width * layers) ** -0.5)
        for block in blocks if config.pool == "mean" else ():
            nn.init.zeros_(block.attn.in_proj_weight[width : 2 * width])
            for part in (block.attn.out_proj, block.mlp.get_submodule("c_proj")):
                for parameter in part.parameters():
                    nn.init.zeros_(parameter)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        x = self.token_embedding(tokens) * self.embedding_scale
        if self.has_positions:
            x = x + self.positional_embedding[: tokens.shape[1]]
        x = self.dropout(x)
        x = self.transformer["resblocks"](x)
        ends = (tokens == END).int().argmax(dim=1)
        read = x[torch.arange(x.shape[0], device=x.device), ends]
        dtype = self.text_projection.dtype
        with torch.autocast(tokens.device.type, enabled=False):
            if self.ln_mean is not None:
                till_end = torch.arange(x.shape[1], device=x.device) <= ends[:, None]
                weights = till_end.to(dtype) / (ends[:, None] + 1)
                read = read + (weights[:, None] @ self.ln_mean(x.to(dtype))).squeeze(1)
            embeddings: Tensor = self.ln_final(read.to(dtype)) @ self.text_projection
            return embeddings


class DualEncoder(nn.Module):
    """Images and captions -> unit vectors in one space (Radford et al., 2021)."""

    logit_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.visual = ImageEncoder(config.vision, config.projection_dim)
        self.text = text_tower(config, vocab_size)
        # log(1 / temperature), so that steps of the optimiser are relative ones
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.logit_scale.requires_grad = config.learn_temperature
        self.register_parameter("logit_bias", None)

    def learn_bias(self, start: float | None) -> None:
        """Of the logits, where the loss wants one and None where it does not; what is learnt already stays."""
        if start is None or self.logit_bias is None:
            self.logit_bias = None if start is None else nn.Parameter(torch.tensor(start))

    def encode_images(self, images: Tensor) -> Tensor:
        """uint8 (B,3,H,W) -> float32 unit vectors (B,D)."""
        return F.normalize(self.visual(images), dim=1)

    def encode_features(self, features: Tensor) -> Tensor:
        """What a frozen trunk saw in images, (B,F) -> float32 unit vectors (B,D)."""
        return F.normalize(self.visual.project(features), dim=1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """int (B,L), each row with an end token -> float32 unit vectors (B,D)."""
        return F.normalize(self.text(tokens), dim=1)

    def encode_sentences(self, sentences: Tensor) -> Tensor:
        """What a frozen text encoder made of captions, (B,S) -> float32 unit vectors (B,D)."""
        assert isinstance(self.text, SentenceEncoder)
        return F.normalize(self.text.project(sentences), dim=1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (B,D) of a batch's images and captions, and the temperature, a scalar.

        With C captions of each image their vectors are (B,C,D); with K false ones of each caption (B,1+K,D) or
        (B,C,1+K,D), zeros where there is none.
        """
        tokens = batch.tokens
        if batch.false is not None:
            tokens = torch.cat([tokens[..., None, :], batch.false], dim=-2)
        of_each, tokens = tokens.shape[:-1], tokens.flatten(0, -2)
        if batch.sentences is not None:
            texts = self.encode_sentences(batch.sentences.flatten(0, -2))
        elif tokens.device.type == "cpu":
            texts = self._texts_by_length(tokens)
        else:
            texts = self.encode_texts(tokens)
        if batch.false is not None:
            texts = texts.masked_fill((tokens == PAD).all(dim=1)[:, None], 0.0)
        texts = texts.unflatten(0, of_each)
        if batch.images is not None:
            images = self.encode_images(batch.images)
        else:
            assert batch.features is not None
            images = self.encode_features(self.visual.dropout(batch.features.to(self.visual.mean.dtype)))
        return images, texts, self.temperature()

    def temperature(self) -> Tensor:
        """What divides the similarities, a scalar."""
        return (-self.logit_scale).exp()

    def _texts_by_length(self, tokens: Tensor) -> Tensor:
        """`encode_texts` in groups of like length: to a CPU padding is as much work as words, half of a batch."""
        lengths = (tokens != PAD).sum(dim=1)
        order = lengths.argsort(stable=True)
        groups = [self.encode_texts(tokens[rows, : max(1, lengths[rows[-1]])]) for rows in order.split(_GROUP)]
        return torch.cat(groups)[order.argsort()]

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        self.logit_scale.clamp_(max=MAX_SCALE)


def text_tower(config: ModelConfig, vocab_size: int) -> TextEncoder | SentenceEncoder:
    tower: type[TextEncoder | SentenceEncoder] = TextEncoder if config.text.weights == "none" else SentenceEncoder
    return tower(config.text, vocab_size, config.projection_dim)


def build(config: ModelConfig, vocab_size: int) -> DualEncoder:
    """The one constructor of models: random weights from torch's global generator."""
    return DualEncoder(config, vocab_size)

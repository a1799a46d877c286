"""README.md of an exported folder: what the model is, how to load it, and what it was measured to reach."""

import math
import re
from pathlib import Path
from string import Template

from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.model_file import ModelFile
from clipcoco.engine.results import RecallTable
from clipcoco.export.parity import Parity
from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import read_record
from clipcoco.version import __version__

_CARD = Template("""\
---
library_name: $library
license: other
license_name: to-be-named-by-whoever-publishes
tags:
- clip
- image-text-retrieval
- coco
---

# $title

Images and captions become unit vectors of $dimensions dimensions in one space: the higher the cosine, the better they
belong together. It is a $backbone at $size pixels ($weights) and a $tower, trained with
the contrastive loss of CLIP (Radford et al., 2021) on $images, for $step steps of $batch images,
in $precision, by clipcoco $version; here its weights are $weights_are. $knows
Its temperature, which divides the cosines before a softmax, is $temperature.

## Use
$use
## Retrieval
$recall

## The same model
$parity

## License
Nobody has named one yet. The code that trained it is under Apache-2.0, COCO's captions are under CC BY 4.0, and the
photographs under the terms of those who took them: name the weights' license above before you publish them.
""")

_USE = {
    "open_clip": """\
`pip install 'open_clip_torch>=3.1' transformers`, then, in this folder:

```python
import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
model.eval()  # it comes in training mode
```

On a hub it is `hf-hub:NAME` instead, once `hf_tokenizer_name` in `open_clip_config.json` is that NAME.
""",
    "safetensors": """\
`model.safetensors` has the weights under clipcoco's names, `config.json` the settings of the training, and
`tokenizer.json` cuts and pads texts too. Images are resized to $size x $size from their largest centred square, and
ImageNet's mean and deviation are taken from their pixels. `pip install safetensors tokenizers torch`, then, in this
folder:

```python
import json, safetensors.torch, tokenizers
weights = safetensors.torch.load_file("model.safetensors")
config = json.load(open("config.json", encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
```
""",
    "onnx": """\
`pip install numpy onnxruntime pillow tokenizers`, then, in this folder:

```python
import numpy, onnxruntime, tokenizers
from PIL import Image, ImageOps
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
photo = ImageOps.fit(photo, ($size, $size), Image.Resampling.BILINEAR)  # the largest centred square
pixels = numpy.asarray(photo).transpose(2, 0, 1)[None]  # uint8 (1,3,$size,$size), any number at a time
encoding = tokenizers.Tokenizer.from_file("tokenizer.json").encode("a dog on a sofa")
tokens = numpy.array([encoding.ids], dtype=numpy.int64)  # (1,$length), any number at a time
image = onnxruntime.InferenceSession("image.onnx").run(None, {"images": pixels})[0]
text = onnxruntime.InferenceSession("text.onnx").run(None, {"tokens": tokens})[0]
print((image @ text.T).item())  # both are unit vectors: the cosine
```
""",
}


def write_card(folder: Path, name: str, model_file: ModelFile, run: RunDir | None, parity: Parity) -> None:
    """Write README.md for format `name`."""
    config, content = model_file.config, model_file.content
    text, vision = config.model.text, config.model.vision
    images = content.get("data", {}).get("train_images")
    values = {
        "library": name.split()[0],
        "weights_are": "whole numbers of 8 bits, with a scale for each output channel" if "int8" in name else "float32",
        "title": _plain(run.name if run else model_file.path.stem),
        "dimensions": config.model.projection_dim,
        "backbone": vision.backbone,
        "size": config.data.image_size,
        "length": text.context_length,
        "weights": "begun from scratch"
        if vision.weights == "none"
        else f"begun from {_plain(Path(vision.weights).name)} weights",
        "temperature": f"{math.exp(-model_file.model.logit_scale.item()):.4f}",
        "tower": text.tower.replace("MiniLM-L6-v2", "MiniLM-L6-v2 (Apache-2.0)"),
        "knows": "What its text encoder was taught elsewhere it brings along."
        if text.caution
        else "What is not in those captions and images it can't know.",
        "images": f"{images:,} images with captions" if images else "images with captions",
        "step": f"{content['state'].get('step', 0):,}",
        "precision": content["state"].get("precision", "float32"),
        "batch": config.train.batch_size,
        "version": __version__,
    }
    recall = "\n\n".join(_recalls(model_file, run, parity))
    use = Template(_USE[name.split()[0]]).substitute(values)
    card = _CARD.substitute(values, use=use, recall=recall, parity=_say_parity(name, parity))
    (folder / "README.md").write_text(card, "utf-8")


def _plain(text: str) -> str:
    """A name may be anything: here without what Markdown or HTML would make of it."""
    return re.sub(r"[^\w.,+/ -]", "-", text)


def _recalls(model_file: ModelFile, run: RunDir | None, parity: Parity) -> list[str]:
    """Paragraphs: the whole validation split by evaluation.json, if it is of these weights, or the part compared."""
    content, caution = model_file.content, model_file.config.model.text.caution
    paragraphs = [f"**{caution}**"] if caution else []
    images = content.get("data", {}).get("val_images", 0)
    record, _ = read_record(run) if run else (None, "")
    if record and record.provenance.weights_sha256 == weights_sha256(content["model"]):
        precision = record.result.precision or "float32"
        protocols = record.result.protocols
        for protocol, table in (("own", protocols["own"]), ("1k", protocols.get("1k"))):
            paragraphs += [_say_gallery(table, precision, protocol), _table(table)] if table else []
    elif parity.recall is not None:
        paragraphs += [_say_gallery(parity.recall.export, "float32", "own"), _table(parity.recall.export)]
        if images > parity.recall.export.images:
            paragraphs.append("This is a part of the validation split: a smaller gallery makes higher numbers.")
    else:
        paragraphs.append("It was not measured here: the validation images were not at hand.")
    seen = [row for row in content.get("metrics", []) if row["event"] == "evaluation"]
    return paragraphs + [
        f"While it was trained, all {images:,} images of its validation split gave a mean R@1 of {row['r1']:.2f}, in "
        f"{content['state'].get('precision', 'float32')}."
        for row in seen
        if row["step"] == content["state"].get("step")
    ]


def _say_gallery(table: RecallTable, precision: str, protocol: str) -> str:
    folds = f", mean of {table.folds} folds of 1,000 images" if protocol == "1k" else ""
    return (
        f"On {table.images:,} validation images and their {table.captions:,} captions{folds}, in {precision}; "
        f"percent with 95 % bootstrap intervals (by image), ties against the model:"
    )


def _table(table: RecallTable) -> str:
    rows = ["| | gallery | R@1 | R@5 | R@10 | median rank |", "|---|--:|--:|--:|--:|--:|"]
    for key, name, gallery in (("i2t", "image to text", table.captions), ("t2i", "text to image", table.images)):
        known = getattr(table.interval, key) if table.interval else {}
        spread = {r: f" ({low:.1f} to {high:.1f})" for r, (low, high) in known.items()}
        for label, recalls, said in ((name, getattr(table, key), spread), ("by chance", table.chance[key], {})):
            cells = [f"{recalls[r]:.2f}{said.get(r, '')}" for r in ("r1", "r5", "r10")]
            rows.append(f"| {label} | {gallery // table.folds:,} | {' | '.join(cells)} | {recalls['median_rank']:,g} |")
    return "\n".join(rows)


def _say_parity(name: str, parity: Parity) -> str:
    allowed = "the recall decides" if parity.tolerance is None else f"{parity.tolerance:.0e} allowed"
    lines = [
        f"This folder was read back by {name} before it got its name, and compared with the checkpoint in float32. "
        f"Components of embeddings differ by {parity.difference:.1e} at most ({allowed}); "
        f"the token ids of {parity.texts:,} texts are equal."
    ]
    if parity.texts_cleaned:
        lines.append(
            f"Of these texts {name} itself cleans {parity.texts_cleaned:,} (HTML entities, curly quotes and the like) "
            f"so that they give other ids than in training."
        )
    if parity.recall is None:
        lines.append("Recall was not compared: the validation images were not at hand.")
        return " ".join(lines)
    before, after = parity.recall.checkpoint, parity.recall.export
    lines.append(
        f"Mean R@1 on {after.images:,} validation images: {before.r1:.2f} of the checkpoint, "
        f"{after.r1:.2f} of this folder."
    )
    if view := parity.recall.own_view:
        lines.append(
            f"With {name}'s own resizing of images it is {view.table.r1:.2f}, and the cosine of its "
            f"embeddings of images with the checkpoint's {view.cosine_mean:.5f} in the mean, "
            f"{view.cosine_min:.5f} at least."
        )
    return " ".join(lines)

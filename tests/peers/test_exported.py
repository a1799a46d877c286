"""Exported folders do in open_clip, onnxruntime and safetensors what the checkpoint does here."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.engine import quantize
from clipcoco.engine.model import build
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.engine.recall import recall_table
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.export import int8
from clipcoco.export.write import export_model
from conftest import TOY
from harness import python

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the peers' own imports


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    """A run called toy, trained until it ranks better than chance, and its embeddings by `eval`."""
    folder = tmp_path_factory.mktemp("work")
    words = ["train", "--preset", "demo", "--name", "toy", *TOY, f"data.root={scenes}", "train.epochs=8"]
    clipcoco(*words, cwd=folder).ok()
    clipcoco("eval", "toy", "--embeddings", "toy.npz", cwd=folder).ok()
    return folder


@pytest.fixture(scope="module")
def toy(folder) -> ModelFile:
    return open_model(folder / "runs/toy/checkpoints/best.pt")


@pytest.fixture(scope="module")
def table(scenes) -> CaptionTable:
    return read_captions(scenes, "val2017")


def exported(clipcoco, folder: Path, name: str) -> tuple[Path, dict]:
    done = clipcoco("export", "toy", "--format", name, "--output", name, "--json", cwd=folder).ok()
    assert sorted(done.json["files"]) == sorted(path.name for path in (folder / name).iterdir())
    recall = done.json["parity"]["recall"]
    for direction in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10"):
            assert recall["export"][direction][key] == pytest.approx(recall["checkpoint"][direction][key], abs=0.2)
    return folder / name, done.json["parity"]


def test_open_clip_loads_the_folder_and_finds_the_same(clipcoco, folder, toy, table):
    open_clip = pytest.importorskip("open_clip", reason="installed by make test-all")
    pytest.importorskip("transformers", reason="open_clip reads our tokenizer by it; installed by make test-all")
    from PIL import Image

    path, parity = exported(clipcoco, folder, "open_clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{path}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{path}")(table.captions)
    assert torch.equal(tokens, torch.from_numpy(toy.tokenizer.encode(table.captions, 16)).long())
    images = torch.stack([preprocess(Image.open(table.folder / file)) for file in table.files])
    with torch.no_grad():
        image_rows, text_rows = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    ours = np.load(folder / "toy.npz")
    np.testing.assert_allclose(text_rows, ours["text_embeddings"], atol=1e-5)
    cosines = (image_rows.numpy() * ours["image_embeddings"]).sum(1)
    assert cosines.mean() >= 0.999
    assert parity["recall"]["own_view"]["cosine_mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    theirs = recall_table(image_rows, text_rows, torch.from_numpy(table.owners))
    assert theirs.i2t["r1"] == pytest.approx(parity["recall"]["own_view"]["table"]["i2t"]["r1"], abs=0.2)
    assert model.logit_scale.item() == toy.model.logit_scale.item()
    assert model.visual.preprocess_cfg["interpolation"] == "bilinear"


def test_open_clip_cleans_some_texts_and_the_export_says_how_many(toy, scenes, tmp_path):
    pytest.importorskip("transformers", reason="installed by make test-all")
    pytest.importorskip("open_clip", reason="installed by make test-all")
    content = json.loads((scenes / "annotations" / "captions_val2017.json").read_text())
    content["annotations"][0]["caption"] = "a man&rsquo;s dog"
    content["annotations"][1]["caption"] = "one <end> of a dog"
    (tmp_path / "data" / "annotations").mkdir(parents=True)
    shutil.copytree(scenes / "val2017", tmp_path / "data" / "val2017")
    (tmp_path / "data" / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    data = toy.config.data.model_copy(update={"root": str(tmp_path / "data")})
    made = export_model(toy, None, "open_clip", tmp_path / "x", data, lambda event: None)
    assert (made.parity.texts, made.parity.texts_cleaned) == (124, 1)
    assert "open_clip itself cleans 1 (HTML" in (tmp_path / "x" / "README.md").read_text()


def difference(toy: ModelFile, name: str, folder: Path, vision: dict, text: dict) -> float:
    """Of the embeddings, between a toy of this architecture with random weights and its export."""
    model = toy.config.model
    model = model.model_copy(
        update={"vision": model.vision.model_copy(update=vision), "text": model.text.model_copy(update=text)}
    )
    config = toy.config.model_copy(update={"model": model})
    torch.manual_seed(0)
    built = build(config.model, toy.tokenizer.vocab_size)
    for weight, value in built.state_dict().items():  # no weight may be like another by accident
        if value.is_floating_point():
            value += 0.05 * torch.rand_like(value) if "var" in weight else 0.05 * torch.randn_like(value)
    other = ModelFile(toy.path, config, toy.tokenizer, {**toy.content, "model": built.state_dict()})
    data = config.data.model_copy(update={"root": "/nowhere"})  # of random weights recall says nothing
    return export_model(other, None, name, folder, data, lambda event: None).parity.difference


TOWERS = [{"layers": 0}, {"layers": 2}, {"layers": 1, "pool": "end"}, {"layers": 1, "heads": 1}]


@pytest.mark.parametrize("text", TOWERS, ids=str)
def test_every_text_tower_leaves_for_open_clip(toy, tmp_path, text):
    pytest.importorskip("transformers", reason="installed by make test-all")
    pytest.importorskip("open_clip", reason="installed by make test-all")
    assert difference(toy, "open_clip", tmp_path / "x", {}, text) <= 1e-5
    config = json.loads((tmp_path / "x" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["layers"] == text["layers"] + (text.get("pool") != "end")


def test_an_efficientnet_gets_timms_names(toy, tmp_path):
    pytest.importorskip("transformers", reason="installed by make test-all")
    pytest.importorskip("open_clip", reason="installed by make test-all")
    assert difference(toy, "open_clip", tmp_path / "x", {"backbone": "efficientnet_b0"}, {}) <= 1e-5


@pytest.mark.parametrize("name", ["safetensors", "onnx"])
def test_earlier_stages_and_a_bag_of_words_leave_for_other_formats(toy, tmp_path, name):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="installed by make test-all")
    for backbone in ("resnet18", "efficientnet_b0"):
        vision = {"backbone": backbone, "stages": 3}
        assert difference(toy, name, tmp_path / backbone, vision, {"layers": 0}) <= 1e-4


def test_onnx_files_take_raw_pixels_and_any_batch(clipcoco, folder, toy, table):
    runtime = pytest.importorskip("onnxruntime", reason="installed by make test-all")
    path, _ = exported(clipcoco, folder, "onnx")
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "image.onnx", "text.onnx", "tokenizer.json"]
    assert b"site-packages" not in (path / "text.onnx").read_bytes(), "no paths of this machine"
    ours = np.load(folder / "toy.npz")
    session = runtime.InferenceSession(str(path / "text.onnx"))
    tokens = toy.tokenizer.encode(table.captions, 16).astype(np.int64)
    for rows in (slice(1), slice(50), slice(None)):
        (theirs,) = session.run(None, {"tokens": tokens[rows]})
        np.testing.assert_allclose(theirs, ours["text_embeddings"][rows], atol=1e-4)
    (entry,) = runtime.InferenceSession(str(path / "image.onnx")).get_inputs()
    assert (entry.type, entry.shape) == ("tensor(uint8)", ["batch", 3, 32, 32])


def test_onnx_with_weights_of_8_bits_is_the_rounded_model_or_absent(toy, scenes, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime", reason="installed by make test-all")
    monkeypatch.setattr(int8, "LEAST", 1)
    data = toy.config.data.model_copy(update={"root": str(scenes)})

    def export(data, name):
        return export_model(toy, None, name, tmp_path / name, data, lambda event: None)

    small, large = export(data, "onnx int8"), export(data, "onnx")
    for graph in ("image.onnx", "text.onnx"):
        assert small.files[graph] < 0.4 * large.files[graph]
    tokens = toy.tokenizer.encode(read_captions(scenes, "val2017").captions, 16).astype(np.int64)
    options = runtime.SessionOptions()  # the graph as it is written
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(tmp_path / "onnx int8/text.onnx"), options)
    with torch.inference_mode():
        rounded = torch.nn.functional.normalize(quantize.rounded(toy.text, 8).eval()(torch.from_numpy(tokens)), dim=1)
    np.testing.assert_allclose(session.run(None, {"tokens": tokens})[0], rounded, atol=1e-5)
    assert "its weights are whole numbers of 8 bits" in " ".join((tmp_path / "onnx int8/README.md").read_text().split())
    shutil.rmtree(tmp_path / "onnx int8")
    monkeypatch.setattr(int8, "quantize", lambda rows, bits: quantize.quantize(torch.randn(rows.shape), bits))
    with pytest.raises(EnvironmentProblem, match=r"8 bits lose .* points of mean R@1.*\(--int8\)"):
        export(data, "onnx int8")
    with pytest.raises(DataError):
        export(data.model_copy(update={"root": str(tmp_path / "nowhere")}), "onnx int8")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_the_lines_in_the_readme_of_onnx_encode_a_picture_and_a_text(clipcoco, folder, table):
    pytest.importorskip("onnxruntime", reason="installed by make test-all")
    path = folder / "onnx"
    if not path.exists():
        exported(clipcoco, folder, "onnx")
    (snippet,) = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    assert len(snippet.splitlines()) <= 11
    (path / "photo.jpg").symlink_to(table.folder / table.files[0])
    caption = table.captions[0]
    program = snippet.replace("a dog on a sofa", caption)
    done = python(program, cwd=path)
    ours = np.load(folder / "toy.npz")
    expected = float(ours["image_embeddings"][0] @ ours["text_embeddings"][0])
    assert float(done.stdout) == pytest.approx(expected, abs=0.02)


def test_the_lines_in_the_readme_of_open_clip_load_it(clipcoco, folder):
    pytest.importorskip("open_clip", reason="installed by make test-all")
    pytest.importorskip("transformers", reason="installed by make test-all")
    path = folder / "open_clip"
    if not path.exists():
        exported(clipcoco, folder, "open_clip")
    (snippet,) = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    program = snippet + "print(tuple(model.encode_text(tokenizer(['a dog'])).shape))"
    assert python(program, cwd=path).stdout == "(1, 16)\n"


def test_the_lines_in_the_readme_of_safetensors_load_it(clipcoco, folder, toy):
    path, _ = exported(clipcoco, folder, "safetensors")
    (snippet,) = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    program = snippet + "print(len(weights), config['model']['projection_dim'], len(tokenizer.encode('a').ids))"
    assert python(program, cwd=path).stdout == f"{len(toy.model.state_dict())} 16 16\n"

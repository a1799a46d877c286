"""What an export refuses, and that its folder is whole and right, or absent."""

import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch

from clipcoco.data.tokenizer import Tokenizer
from clipcoco.disk.files import write_json
from clipcoco.disk.seal import unsealed
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.errors import ConfigError, EnvironmentProblem
from clipcoco.export import check_request
from clipcoco.export.formats import FORMATS, whole_tokenizer
from clipcoco.export.write import export_model
from clipcoco.runs.directory import RunDir
from conftest import TOY
from harness import python, until


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    """Where a run called toy is."""
    folder = tmp_path_factory.mktemp("work")
    words = ["train", "--preset", "demo", "--name", "toy", *TOY, f"data.root={scenes}", "train.epochs=1"]
    clipcoco(*words, cwd=folder).ok()
    return folder


@pytest.fixture(scope="module")
def toy(folder) -> ModelFile:
    return open_model(folder / "runs/toy/checkpoints/best.pt")


def export(toy: ModelFile, output: Path, name: str = "safetensors", **data: object):
    data = toy.config.data.model_copy(update=data)
    return export_model(toy, None, name, output, data, lambda event: None)


# ---------------------------------------------------------------- what is refused beforehand


def test_a_format_that_is_none_gets_a_hint(clipcoco, folder):
    done = clipcoco("export", "--format", "openclip", "--output", "x", cwd=folder)
    assert done.code == 2
    assert "no format 'openclip' (--format). Did you mean open_clip?" in done.stderr
    done = clipcoco("export", "--format", "tensorflow", "--output", "x", cwd=folder)
    assert "Choose open_clip, safetensors, onnx" in done.stderr
    done = clipcoco("export", "--format", "safetensors", "--int8", "--output", "x", cwd=folder)
    assert (done.code, "--int8 is for --format onnx" in done.stderr) == (2, True)


def test_a_folder_with_something_in_it_stays_as_it_is(clipcoco, folder):
    there = folder / "there"
    there.mkdir()
    (there / "precious").write_text("1")
    (folder / "file").write_text("2")
    for output in ("there", "file"):
        done = clipcoco("export", "--format", "safetensors", "--output", output, cwd=folder)
        assert done.code == 2
        assert f"{output} exists already" in done.stderr
        assert "(--output)" in done.stderr
    assert [path.name for path in there.iterdir()] == ["precious"]
    done = clipcoco("export", "--format", "safetensors", "--output", "no/where", cwd=folder)
    assert done.code == 2
    assert "(--output). Make it first" in done.stderr


def test_what_would_change_the_model_is_refused_and_no_run_is_an_error(clipcoco, folder):
    words = ["export", "--format", "safetensors", "--output", "x"]
    done = clipcoco(*words, "model.projection_dim=8", cwd=folder)
    assert (done.code, "Only data.* can be set" in done.stderr) == (2, True)
    done = clipcoco(*words, "tox", cwd=folder)
    assert (done.code, "Did you mean toy?" in done.stderr) == (4, True)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("open_clip", "open_clip", "export"), ("open_clip", "transformers", "export"), ("onnx", "onnxruntime", "onnx")],
)
def test_a_package_that_is_missing_is_one_line_with_the_command(monkeypatch, tmp_path, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentProblem, match=rf"needs .*{module}.*pip install 'clipcoco\[{extra}\]'"):
        check_request(name, tmp_path / "x")


def test_nothing_is_installed_at_run_time(tmp_path):
    program = "import sys; sys.modules['onnx'] = None; from clipcoco.cli import run; sys.exit(run(sys.argv[1:]))"
    words = ["export", "--format", "onnx", "--output", "x"]
    done = python(program, *words, exits=5, cwd=tmp_path)
    assert done.stderr.count("\n") == 1
    assert re.match(r"error: format onnx needs onnx(, \w+)*, not installed here", done.stderr)
    assert "pip install 'clipcoco[onnx]'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "mobilenet_v3_large"}, "no mobilenet_v3_large"),
        ({"stages": 3}, r"no image tower that looks at earlier stages \(model.vision.stages\)"),
    ],
)
def test_an_image_tower_that_open_clip_has_not_got_names_the_other_ways(toy, tmp_path, changes, said):
    vision = toy.config.model.vision.model_copy(update=changes)
    model = toy.config.model.model_copy(update={"vision": vision})
    other = replace(toy, config=toy.config.model_copy(update={"model": model}))
    with pytest.raises(ConfigError, match=rf"{said}.*--format onnx or --format safetensors"):
        export(other, tmp_path / "x", "open_clip")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is written


def test_weights_settings_and_tokenizer_are_those_of_the_checkpoint(clipcoco, folder, toy):
    from safetensors.torch import load_file

    done = clipcoco("export", "toy", "--format", "safetensors", "--output", "plain", "--json", cwd=folder).ok()
    plain = folder / "plain"
    assert {path.name: path.stat().st_size for path in plain.iterdir()} == done.json["files"]
    assert (done.json["schema"], done.json["format"], done.json["folder"]) == (1, "safetensors", "plain")
    weights = load_file(plain / "model.safetensors")
    assert weights.keys() == toy.content["model"].keys()
    assert all(torch.equal(weights[name], value) for name, value in toy.content["model"].items())
    config = json.loads((plain / "config.json").read_text())
    assert config.pop("data") == toy.content["config"]["data"] | {"root": "data"}  # no folder of this machine
    assert config == {name: part for name, part in toy.content["config"].items() if name != "data"}
    ids = tokenizers.Tokenizer.from_file(str(plain / "tokenizer.json")).encode("A red circle").ids
    assert ids == toy.tokenizer.encode(["A red circle"], 16)[0].tolist()
    parity = done.json["parity"]
    assert parity["difference"] == 0
    assert parity["recall"]["export"] == parity["recall"]["checkpoint"]
    measured = clipcoco("eval", "toy", "--json", cwd=folder).json["protocols"]["own"]
    assert parity["recall"]["export"] == measured, "on the same 24 images, in float32 like the training"


def test_the_card_has_the_recall_table_with_galleries_chance_and_interval(toy, folder, tmp_path):
    recall = export(toy, tmp_path / "x").parity.recall.export
    card = (tmp_path / "x" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: safetensors\nlicense: ")
    low, high = recall.interval.i2t["r5"]
    assert f"| image to text | 120 | {recall.i2t['r1']:.2f} (" in card
    assert f"{recall.i2t['r5']:.2f} ({low:.1f} to {high:.1f})" in card
    assert f"| by chance | 24 | {100 / 24:.2f} |" in card
    assert "24 validation images and their 120 captions, in float32" in card
    assert "$" not in card


@pytest.mark.parametrize("own", [True, False], ids=["of these weights", "of others"])
def test_the_card_takes_the_table_of_the_whole_split_from_the_run(toy, folder, tmp_path, own):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    record = unsealed(json.loads((folder / "runs/toy/evaluation.json").read_text()))
    record["result"]["precision"] = "bfloat16"
    record["result"]["protocols"]["own"] |= {"images": 5000, "captions": 25014}
    record["provenance"]["weights_sha256"] = weights_sha256(toy.content["model"]) if own else "0" * 64
    write_json(run.evaluation, record)
    export_model(toy, run, "safetensors", tmp_path / "y", toy.config.data, lambda event: None)
    card = (tmp_path / "y" / "README.md").read_text()
    assert ("On 5,000 validation images and their 25,014 captions, in bfloat16" in card) == own
    assert ("On 24 validation images and their 120 captions, in float32" in card) != own


def test_without_the_images_the_tensors_are_compared_and_it_says_so(clipcoco, folder, tmp_path):
    words = ["export", "toy", "--format", "safetensors", "--output", tmp_path / "x", f"data.root={tmp_path / 'none'}"]
    done = clipcoco(*words, "--json", cwd=folder).ok()
    assert "note: recall was not compared: no captions at" in done.stderr
    assert done.json["parity"]["recall"] is None
    assert done.json["parity"]["difference"] == 0
    assert "Recall was not compared" in (tmp_path / "x" / "README.md").read_text()


def test_an_empty_folder_is_taken_and_a_strange_name_can_do_no_harm(toy, tmp_path):
    output = tmp_path / "é <b> {x} $y"
    output.mkdir()
    odd = replace(toy, path=tmp_path / "<script>`$title`.pt")
    export(odd, output, root="/nowhere")
    card = (output / "README.md").read_text()
    assert "<script>" not in card
    assert "# -script---title-" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name]


ODD = [
    "",
    " ",
    "<pad><start>x <end>",
    "caf\u00e9 CAFE\u0301 \u0130 \u039f\u03a3",
    "\u732b\u304c \U0001f34e",
    "so " * 99,
]


def test_tokenizer_json_cuts_pads_and_closes_as_ours(toy):
    texts = [*ODD, "A Dog, isn't it?", json.dumps(toy.content["config"])]
    whole = tokenizers.Tokenizer.from_str(whole_tokenizer(toy.tokenizer, 16).to_str())
    assert [one.ids for one in whole.encode_batch(texts)] == toy.tokenizer.encode(texts, 16).tolist()


# ---------------------------------------------------------------- a wrong export is never left


def assert_refused(toy: ModelFile, folder: Path, words: str) -> None:
    """The export is refused with `words`, and nothing is left of it in `folder`."""
    with pytest.raises(EnvironmentProblem, match=words):
        export(toy, folder / "x")
    assert not list(folder.iterdir())


def spoiled(monkeypatch, spoil, **changes):
    """Something happens to the folder between writing and checking."""
    right = FORMATS["safetensors"]

    def write(model_file: ModelFile, folder: Path) -> None:
        right.write(model_file, folder)
        spoil(folder)

    monkeypatch.setitem(FORMATS, "safetensors", replace(right, write=write, **changes))


def change_weight(name: str, change):
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
        weights[name] = change(weights[name])
        save_file(weights, folder / "model.safetensors")

    return spoil


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("visual.trunk.layer4.1.bn2.running_mean", lambda value: value + 0.1),
        ("text.transformer.resblocks.0.attn.in_proj_weight", lambda value: value.flip(0)),
        ("text.text_projection", lambda value: value * torch.nan),
    ],
)
def test_changed_weights_are_refused_with_the_figure(monkeypatch, toy, tmp_path, name, change):
    spoiled(monkeypatch, change_weight(name, change))
    assert_refused(toy, tmp_path, r"embeddings differ by [0-9.e-]+|embeddings differ by nan")


def test_another_tokenizer_is_refused(monkeypatch, toy, tmp_path):
    other = Tokenizer.train(["two words", "words two words"], 300)

    def spoil(folder: Path) -> None:
        (folder / "tokenizer.json").write_text(whole_tokenizer(other, 16).to_str())

    spoiled(monkeypatch, spoil)
    assert_refused(toy, tmp_path, r"token ids differ for [0-9]+ of 124 captions")


def test_another_recall_is_refused_even_where_tensors_would_pass(monkeypatch, toy, tmp_path):
    spoiled(monkeypatch, change_weight("visual.head.proj.weight", lambda value: -value), tolerance=2.0)
    assert_refused(toy, tmp_path, r"(i2t|t2i) R@\d+ is [0-9.]+, of the checkpoint [0-9.]+, on 24")


def test_a_package_that_fails_is_one_line_and_nothing_is_left(monkeypatch, toy, tmp_path):
    spoiled(monkeypatch, lambda folder: (folder / "model.safetensors").write_bytes(b"not at all"))
    assert_refused(toy, tmp_path, r"failed in the packages of safetensors: .*--upgrade safetensors")


def test_a_full_disk_is_seen_beforehand(monkeypatch, toy, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    assert_refused(toy, tmp_path, r"needs \d+\.\d MB, 1\.0 MB are free on")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_there_is_no_folder(clipcoco, folder, tmp_path, number):
    process = clipcoco.start("export", "toy", "--format", "safetensors", "--output", tmp_path / "x", cwd=folder)
    until(lambda: any(path.stat().st_size for path in tmp_path.glob(".x.*.tmp/tokenizer.json")), process)
    process.signal(number)
    code = process.wait().code
    left = [path.name for path in tmp_path.iterdir()]
    if number == signal.SIGKILL:
        assert not any(re.fullmatch("x", name) for name in left)
    else:
        assert code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert not left

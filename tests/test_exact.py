"""Nothing that decides a number goes unchecked: weights, pictures, settings, records, and checkpoints of old."""

import contextlib
import hashlib
import itertools
import json
import lzma
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from clipcoco import train
from clipcoco.config.load import load_config
from clipcoco.data.captions import read_captions
from clipcoco.data.contents import contents_of
from clipcoco.data.features import FeatureFile, FeatureKey
from clipcoco.data.manifest import Entry, Manifest, read_manifest
from clipcoco.data.split import ORIGINALS, Source, choose_source
from clipcoco.engine import checkpoint
from clipcoco.engine.checkpoint import checked, weights_sha256
from clipcoco.engine.model_file import open_model
from clipcoco.engine.optim import build_optimizer, restore_moments
from clipcoco.engine.state import TrainState
from clipcoco.errors import CheckpointError, ConfigError, DataError
from clipcoco.events import StepDone
from clipcoco.prepare.resize import make_copies
from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import read_record
from conftest import LIGHT
from fork_server import ForkServer
from harness import one_line

GOLDEN = Path(__file__).parent / "golden"  # a run of 0.1.0 at step 8 of 18, its tensors short patterns


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.pt"
    path.write_bytes(lzma.decompress((GOLDEN / "format-1.pt.xz").read_bytes()))
    return path


def test_the_first_format_opens_to_the_bit(golden):
    file = open_model(golden)
    assert file.content["state"]["step"] == 8
    digest = "c8eee80c2164e8789b327b1251dc007c3335ca0318603ee98689b7fdce837932"
    assert weights_sha256(file.model.state_dict()) == digest
    # And means what it meant to the version that wrote it: end token, one stage, unscaled words.
    tokens = torch.tensor([[1, 5, 9, 7, 2, 0], [1, 9, 2, 0, 0, 0], [1, 30, 31, 32, 33, 2]])
    pixels = (torch.arange(3 * 32 * 32) * 37 % 251).to(torch.uint8).view(1, 3, 32, 32)
    with torch.inference_mode():
        similar = file.model.eval().encode_images(pixels) @ file.model.encode_texts(tokens).T
    assert similar.tolist()[0] == pytest.approx([-0.8918, 0.2053, 0.3834], abs=1e-3)


def first_drawing(scenes: Path, folder: Path) -> Path:
    """The captions of the scenes that were drawn first, for the pictures of today: of these it recorded nothing."""
    data = shutil.copytree(scenes, folder / "data")
    for split, captions in json.loads(lzma.decompress((GOLDEN / "format-1.captions.json.xz").read_bytes())).items():
        file = data / "annotations" / f"captions_{split}2017.json"
        content = json.loads(file.read_text())
        for row, text in zip(content["annotations"], itertools.chain(*captions), strict=True):
            row["caption"] = text
        file.write_text(json.dumps(content))
    return data


def test_the_first_format_is_measured_and_resumed(clipcoco: ForkServer, golden, scenes, tmp_path):
    run = tmp_path / "runs" / "golden"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copyfile(golden, run / "checkpoints" / "last.pt")
    shutil.copyfile(GOLDEN / "format-1.yaml", run / "config.yaml")
    data = first_drawing(scenes, tmp_path)
    done = clipcoco("eval", "golden", f"data.root={data}", "--json", cwd=tmp_path).ok()
    assert (done.json["step"], done.json["images"]) == (8, 24)
    done = clipcoco("resume", "golden", f"data.root={data}", cwd=tmp_path).ok()
    assert re.search(r"exact +not to the bit: .*pictures were not recorded", done.stderr)
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found[:3] == checkpoint.load(golden)["metrics"]
    assert found[-1]["step"] == 18


def spread(model: dict[str, torch.Tensor], many: int = 0) -> dict[str, torch.Tensor]:
    """Weights of floats that all share the same `many` numbers: as views where enough, else by strides of 0."""
    floats = {name: value for name, value in model.items() if value.is_floating_point()}
    few = torch.zeros(many or max(map(torch.numel, floats.values())))
    return {
        name: few[: value.numel()].view(value.shape) if value.numel() <= len(few) else few[:1].expand(value.shape)
        for name, value in floats.items()
    }


def lists(times: int, inside: int) -> list:
    """Lists that each hold the one before, `inside` times."""
    value: list = []
    for _ in range(times):
        value = [value] * inside
    return value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({part: None}, part) for part in ("state", "data", "versions", "metrics", "scaler")),
        ({"state": {"step": "8"}}, "state.step"),
        ({"state": {"step": True}}, "state.step"),
        ({"state": {"step": -1}}, "state.step"),
        ({"state": {"best_epoch": None}}, "state.best_epoch"),
        ({"state": {"best_r1": 1e308}}, "state.best_r1"),
        ({"state": {"seconds": -1.0}}, "state.seconds"),
        ({"state": {"interval_loss": float("nan")}}, "state.interval_loss"),
        ({"state": {"frozen_epochs": 10**30}}, "state.frozen_epochs"),
        ({"state": {"warned": [b"x"]}}, "state.warned"),
        ({"state": {"precision": "float8"}}, "state.precision"),
        ({"data": {"source": ["originals"]}}, "data.source"),
        ({"data": {"train_images": 1.5}}, "data.train_images"),
        ({"versions": {"torch": 2}}, "versions.torch"),
        ({"versions": {"torch": "2\nerror: all is well"}}, "versions.torch"),
        ({"metrics": [[[]]]}, "metrics"),
        ({"metrics": [{"event": "step", "step": 1, "epoch": 1}]}, "loss"),
        ({"metrics": [{"event": "other", "step": "1", "epoch": 1}]}, "step"),
        ({"metrics": [{"event": "other", "step": 1, "epoch": 1, "more": float("inf")}]}, "not JSON compliant"),
        ({"later": lists(40, 2)}, "without end"),
        ({"later": lists(150, 1)}, "without end"),
    ],
)
def test_plain_parts_of_another_kind_are_refused_in_one_line(changes, said):
    with pytest.raises(CheckpointError) as error:
        checked({"state": {}, **changes}, Path("strange.pt"))
    assert said in one_line(error.value)
    assert "strange.pt" in str(error.value)


def test_what_later_versions_add_is_passed_over_and_what_earlier_ones_lacked_has_a_default():
    rows = [{"event": "born later", "step": 1, "epoch": 1, "more": [1, None]}]
    later = {"state": {"step": 3, "later": b"x"}, "metrics": rows, "data": {"later": 1.5}, "later": {"a": [1]}}
    assert checked(later, Path("later.pt")) is later
    assert TrainState.from_plain(later["state"]) == TrainState(step=3)
    checked({"state": {}}, Path("earlier.pt"))


@pytest.mark.parametrize(
    ("part", "alter", "said"),
    [
        ("optimizer", lambda state: state[3]["exp_avg"].fill_(float("nan")), "not finite"),
        ("optimizer", lambda state: state[3]["exp_avg_sq"].fill_(-1.0), "negative"),
        ("optimizer", lambda state: state[3].update(exp_avg=torch.zeros(2)), "do not fit weight 3"),
        ("optimizer", lambda state: state.update({10**6: state[3]}), "not those of this model"),
        ("optimizer", lambda state: state[3].pop("step"), "not those of AdamW"),
        ("optimizer", lambda state: state[3].update(step=torch.tensor(float("inf"))), "not finite"),
        ("model", lambda model: model["visual.trunk.features.0.1.running_var"].fill_(-1.0), "negative"),
        ("model", lambda model: model.update({"logit_scale": torch.tensor(3)}), "of another shape or kind"),
        ("model", lambda model: model.update({"a\nerror: fine": torch.zeros(1)}), r"a\nerror"),
        ("model", lambda model: model.update({"logit_scale": torch.zeros((), device="meta")}), "another shape or kind"),
        ("model", lambda model: model.update(spread(model, 1)), "another shape or kind"),
        ("model", lambda model: model.update(spread(model)), "share their bytes"),
    ],
)
def test_tensors_that_would_spoil_a_model_are_refused(golden, part, alter, said):
    content = checkpoint.load(golden)
    alter(content["optimizer"]["state"] if part == "optimizer" else content["model"])
    with pytest.raises(CheckpointError) as error:
        restore_moments(build_optimizer(open_model(golden, content).model, 1e-3, 0.0, 1.0), content["optimizer"])
    assert said in one_line(error.value)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1"])
def test_a_format_that_never_was_is_refused(tmp_path, number):
    torch.save({"format": number, "model": {}, "config": {}, "tokenizer": {}, "state": {}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="names no format"):
        checkpoint.load(tmp_path / "odd.pt")


@pytest.fixture(scope="module")
def pretrained(clipcoco: ForkServer, scenes, tmp_path_factory) -> Path:
    """A folder with a run from weights.pth."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), folder / "weights.pth")
    done = clipcoco(*from_weights(scenes), cwd=folder).ok()
    assert re.search("weights +weights.pth, whole by its own sums, SHA-256 " + sha256(folder)[:12], done.stderr)
    return folder


def from_weights(scenes: Path) -> list[str]:
    words = ["model.vision.weights=weights.pth", "train.frozen_epochs=0"]
    return ["train", "--preset", "demo", *LIGHT, *words, "train.epochs=1", f"data.root={scenes}", "--name", "run"]


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()


def test_the_sum_of_the_weights_is_kept_and_other_weights_are_another_run(clipcoco: ForkServer, pretrained, scenes):
    run = pretrained / "runs" / "run"
    assert f"\n# SHA-256 of model.vision.weights: {sha256(pretrained)}\n" in (run / "config.yaml").read_text()
    assert checkpoint.load(run / "checkpoints" / "last.pt")["data"]["weights"] == sha256(pretrained)
    whole = (pretrained / "weights.pth").read_bytes()
    torch.manual_seed(2)
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), pretrained / "weights.pth")
    done = clipcoco("train", "--config", "runs/run/config.yaml", "--name", "again", cwd=pretrained)
    assert done.code == 4
    assert "weights.pth is not the file that the run began with" in done.stderr
    done = clipcoco(*from_weights(scenes), "--or-resume", cwd=pretrained)
    assert done.code == 2
    assert "run run began with another weights.pth" in done.stderr
    (pretrained / "weights.pth").write_bytes(whole)
    clipcoco(*from_weights(scenes), "--or-resume", cwd=pretrained).ok()


def test_the_settings_of_a_run_that_lost_their_end_are_refused_and_edited_ones_told(clipcoco, pretrained, tmp_path):
    path, text = tmp_path / "config.yaml", (pretrained / "runs" / "run" / "config.yaml").read_text()
    whole = load_config(file=pretrained / "runs" / "run" / "config.yaml")
    assert whole.notes == ()
    for length in range(1, len(text) - 1, 41):
        path.write_text(text[:length])
        with pytest.raises(ConfigError, match=r"cut short|is empty"):
            load_config(file=path)
    for edited in (text.replace("epochs: 1", "epochs: 2"), text + "\n# mine\n", text.replace("seed: 0", "seed: 0 ")):
        path.write_text(edited)
        assert load_config(file=path).notes == (f"{path} was edited since the run wrote it",)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    again = load_config(file=path)
    assert again == replace(whole, source=again.source, layers=again.layers)
    done = clipcoco("inspect-config", path, "seed=1", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    path.write_text(text.replace("seed: 0", "seed: 3"))
    assert "warning: config.yaml was edited since" in clipcoco("inspect-config", "config.yaml", cwd=tmp_path).stderr


@pytest.mark.parametrize("damage", ["cut", "edit", "none"])
def test_a_resume_with_changes_rewrites_the_settings_of_the_run(clipcoco, pretrained, damage, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    config = folder / "runs" / "run" / "config.yaml"
    text = config.read_text()
    config.write_text({"cut": text[:-30], "edit": text.replace("seed: 0", "seed: 9"), "none": text}[damage])
    clipcoco("resume", "run", "train.epochs=2", cwd=folder).ok()
    loaded = load_config(file=config)
    assert (loaded.config.seed, loaded.config.train.epochs, loaded.notes) == (0, 2, ())
    assert loaded.weights == sha256(pretrained)


@pytest.fixture(scope="module")
def at_rest(scenes, tmp_path_factory) -> Path:
    """A folder with the data, and a run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    root = shutil.copytree(scenes, folder / "data", ignore=shutil.ignore_patterns(".clipcoco"))
    for path in root.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    config = load_config("demo", overrides=[*LIGHT, "train.epochs=2", "data.root=data", "checkpoint.keep=0"])
    steps: list[int] = []

    def report(event) -> None:
        if isinstance(event, StepDone):
            steps.append(event.step)

    with contextlib.chdir(folder):
        train(config, name="run", device="cpu", report=report, stop=lambda: "enough" if len(steps) > 7 else None)
    return folder


@pytest.fixture
def stopped(at_rest, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be mistreated."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(at_rest, tmp_path, dirs_exist_ok=True)


def exact(clipcoco: ForkServer, folder: Path) -> str:
    done = clipcoco("resume", "run", "--device", "cpu", cwd=folder).ok()
    return next(line for line in done.stderr.splitlines() if line.lstrip().startswith("exact"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nothing", "exact to the bit"),
        ("touched", "exact to the bit"),
        ("one in disguise", "exact not to the bit: 1 picture changed"),
        ("all", "exact not to the bit: 72 pictures changed"),
    ],
)
def test_pictures_decide_whether_a_resume_is_to_the_bit(clipcoco, stopped, change, said):
    pictures = sorted((stopped / "data").rglob("*.jpg"))
    if change == "touched":
        for path in pictures:
            path.touch()
    elif change == "one in disguise":  # of the same size and time
        data, when = bytearray(pictures[0].read_bytes()), pictures[0].stat()
        data[-3] ^= 1
        pictures[0].write_bytes(data)
        os.utime(pictures[0], ns=(when.st_atime_ns, when.st_mtime_ns))
    elif change == "all":
        for path in pictures:
            path.write_bytes(path.read_bytes() + b"\0")
    assert " ".join(exact(clipcoco, stopped).split()).startswith(said)
    held = checkpoint.load(stopped / "runs" / "run" / "checkpoints" / "last.pt")["pictures"]
    assert len(held["earlier"]) == {"one in disguise": 1, "all": 48}.get(change, 0)


def test_eval_tells_how_many_of_its_pictures_were_trained_on(clipcoco, stopped):
    told = {}
    for split, name in (("val", "as it was"), ("train", "train")):
        told[name] = clipcoco("eval", "run/last", "--split", split, "--json", cwd=stopped).json["trained_images"]
    trained = sorted((stopped / "data" / "train2017").iterdir())
    for old, new in zip(trained, sorted((stopped / "data" / "val2017").iterdir()), strict=False):
        shutil.copyfile(old, new)
    shown = clipcoco("eval", "run/last", cwd=stopped)
    assert "warning: 24 of 24 images were trained on: recall on them says little" in shown.stderr
    for path in trained:
        path.write_bytes(path.read_bytes() + b"\0")
    told["changed"] = clipcoco("eval", "run/last", "--split", "train", "--json", cwd=stopped).json["trained_images"]
    assert told == {"as it was": 0, "train": 48, "changed": 48}


def test_contents_are_remembered_while_a_file_keeps_its_size_and_times(stopped, monkeypatch):
    root = stopped / "data"
    table, source = read_captions(root, "val2017"), Source(ORIGINALS, "", "")
    remembered = root / ".clipcoco" / "pictures.json"
    monkeypatch.setattr("clipcoco.disk.sums._JUST_NOW", 10**15)
    remembered.unlink(missing_ok=True)
    first = contents_of(table, source)
    assert [row.tobytes() for row in first] == [
        hashlib.sha256((root / file).read_bytes()).digest()[:16] for file in table.files
    ]
    assert not remembered.exists()  # all have changed just now
    monkeypatch.setattr("clipcoco.disk.sums._JUST_NOW", -(10**12))
    told = []
    contents_of(table, source, told.append)
    assert [(event.phase, event.done, event.total) for event in told] == [("hash", n, 24) for n in range(1, 25)]
    monkeypatch.setattr("clipcoco.disk.sums._sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert (contents_of(table, source, told.append) == first).all()
    assert len(told) == 24, "it is quick, and silent"
    monkeypatch.undo()
    remembered.write_text(remembered.read_text().replace("1000000000", "1000000001"))
    assert (contents_of(table, source) == first).all()


@pytest.mark.parametrize("state", [{"evaluated_epochs": 9}, {"step": 10**9}, {"best_epoch": 2}, {"step": 0}])
def test_a_state_that_contradicts_itself_is_refused(clipcoco, stopped, state):
    path = stopped / "runs/run/checkpoints/last.pt"
    content = checkpoint.load(path)
    content["state"] |= {"evaluated_epochs": 1, "best_epoch": 1, **state}
    torch.save(content, stopped / "odd.pt")
    done = clipcoco("resume", "odd.pt", "train.epochs=20", "data.root=data", cwd=stopped)
    assert done.code == 4
    assert "odd.pt contradicts itself: " in done.stderr


def test_a_run_whose_status_says_nothing_is_resumed(clipcoco, stopped):
    status = stopped / "runs/run/status.json"
    status.write_text(status.read_text().replace('"total_steps": 12', '"total_steps": null'))
    clipcoco("resume", "run", cwd=stopped).ok()


def test_a_checkpoint_that_has_seen_no_step_is_not_a_bug(clipcoco, stopped):
    path = stopped / "runs/run/checkpoints/last.pt"
    torch.save({**checkpoint.load(path), "state": {}}, path)
    done = clipcoco("resume", "run", cwd=stopped)
    assert done.code in (0, 4), done.stderr


def test_init_from_a_path_that_is_not_text(clipcoco, stopped):
    odd = stopped / "odd\udcff\nname"
    odd.mkdir()
    shutil.copy(stopped / "runs/run/checkpoints/last.pt", odd / "w.pt")
    words = ["train", "--preset", "demo", *LIGHT, "data.root=data", "train.epochs=1", "--name", "on"]
    clipcoco(*words, "--init", odd / "w.pt", "--debug", cwd=stopped).ok()
    assert load_config(file=stopped / "runs/on/config.yaml").notes == ()


@pytest.mark.parametrize("entry", ["[Infinity, 0, 0, '00']", "[1, 2, 3, 5]", "[]", "5"])
def test_what_a_stranger_remembers_of_pictures_is_forgotten(scenes, tmp_path, entry):
    root = shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))
    table, source = read_captions(root, "val2017"), Source(ORIGINALS, "", "")
    (root / ".clipcoco").mkdir()
    (root / ".clipcoco/pictures.json").write_text('{"pictures": {"a": ' + entry.replace("'", '"') + "}}")
    assert (contents_of(table, source) == contents_of(read_captions(scenes, "val2017"), source)).all()


def test_copies_are_those_that_were_made(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))
    config = load_config("demo", overrides=[*LIGHT, f"data.root={root}", "data.prepared_size=40"]).config.data
    make_copies(root, read_captions(root, "val2017").files, 40, lambda event: None)
    source, [table] = choose_source(config, [read_captions(root, "val2017")])
    assert source.name == "prepared-40"
    before = contents_of(table, source)
    assert (before == contents_of(read_captions(root, "val2017"), Source(ORIGINALS, "", ""))).all()
    first, second = (table.folder / file for file in table.files[:2])
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=f"1 copies in .* are not those that were made, first .*{first.name}"):
        contents_of(table, source)
    first.write_bytes(kept)
    second.unlink()  # to be replaced by another picture, as an original would be
    after = contents_of(table, source)
    assert not after[1].any()
    assert (after[[0, 2]] == before[[0, 2]]).all()


def evaluation(pretrained: Path, tmp_path: Path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    shutil.copyfile(pretrained / "runs" / "run" / "evaluation.json", run.evaluation)
    return run.evaluation, lambda: read_record(run)[0]


def manifest(pretrained: Path, tmp_path: Path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path, {"size": 256}) as kept:
        for number in range(20):
            kept.add(Entry(f"val2017/{number}.jpg", 1000 + number, f"{number:064x}", f"{number + 1:064x}"))

    def read():
        settings, entries = read_manifest(path)
        return (settings, entries) if settings and len(entries) == 20 else None

    return path, read


@pytest.mark.parametrize("odd", [{"sha256": "\ud800"}, {"sha256": 5}, {"source": None}, {"size": 1.5}, {"size": True}])
def test_a_manifest_whose_entries_are_of_another_kind_has_none(tmp_path, odd):
    rows = [{"size": 256}, {"file": "val2017/1.jpg", "size": 1, "sha256": "0" * 64, "source": "", **odd}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_manifest(tmp_path / "manifest.jsonl") == ({"size": 256}, {})


def features(pretrained: Path, tmp_path: Path):
    key = FeatureKey("w" * 64, "resnet18", 64, "float32", "originals", True, 0, [1.0, 1.0], "v" * 64, 8)
    path = tmp_path / "features-x.f16"
    kept = FeatureFile(path, key)
    kept.append(range(20), np.ones((20, 2, 8), np.float16))
    kept.about.stamps, kept.about.unreadable = ["1:1"] * 20, [3]
    kept.save()
    whole = path.read_bytes()

    def read():
        path.write_bytes(whole)
        found = FeatureFile(path, key)
        return None if found.note else (found.places, found.about)

    return path.with_suffix(".json"), read


@pytest.mark.parametrize("record", [evaluation, manifest, features])
def test_a_flipped_bit_in_a_record_is_seen(pretrained, tmp_path, record):
    path, read = record(pretrained, tmp_path)
    whole, good, rng, refused = path.read_bytes(), read(), random.Random(0), 0
    assert good is not None
    for _ in range(80):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found = read()
        assert found in (good, None)
        refused += found is None
    assert refused > 60

"""Training from a frozen backbone's features: the same learning as from images, and never from old features."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from clipcoco.api import resume, train
from clipcoco.config.load import load_config
from clipcoco.data.images import _resized
from clipcoco.disk.locks import lock
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.evaluate import Inputs, embed
from clipcoco.engine.model import DualEncoder, ImageEncoder, build
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import start_epoch, train_step
from clipcoco.engine.weights import pretrained_backbone
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import Progress
from clipcoco.prepare.resize import make_copies
from clipcoco.runs.plan import Parts, read_parts
from clipcoco.runs.training import backbone_features, build_training
from conftest import LIGHT, TOY
from harness import flip_a_bit


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of backbone weights such as torchvision saves; random ones do here."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> tuple[str, ...]:
    """The same of the backbone whose checkpoints are small: the words of whole commands."""
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(torchvision.models.mobilenet_v3_large().state_dict(), path)
    return ("--preset", "demo", *LIGHT, f"model.vision.weights={path}")


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))


def parts_of(root: Path, weights: Path, *changes: str) -> tuple[Parts, DualEncoder]:
    overrides = [*TOY, f"data.root={root}", f"model.vision.weights={weights}", "train.frozen_epochs=all", *changes]
    config = load_config("demo", overrides=overrides).config
    parts = read_parts(config, "cpu", config.train.precision, None)
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    model.visual.trunk.load_state_dict(pretrained_backbone(config.model.vision))
    return parts, model


def cached(parts: Parts, model: DualEncoder, report=lambda event: None, stop=lambda: None):
    return backbone_features(parts, model, report, stop)


def losses(root: Path, weights: Path, from_cache: bool, steps: int = 20) -> list[float]:
    # No augmentation: the largest centred square, never mirrored, is what the cache holds too.
    plain = ("data.crop_scale=[1.0, 1.0]", "data.flip=false", "model.vision.feature_dropout=0")
    parts, model = parts_of(root, weights, *plain)
    features = cached(parts, model) if from_cache else None
    run = build_training(parts, model, TrainState(), features, lambda event: None, lambda: None)
    start_epoch(model, 0, frozen_epochs=9)
    found = []
    while len(found) < steps:
        epoch = len(found) // run.loader.steps_per_epoch
        for batch in run.loader.epoch(epoch, features=run.features):
            found.append(train_step(run, batch, 5e-4).loss)
            run.state.step += 1
    return found[:steps]


def test_the_losses_are_those_of_training_from_images(data, weights):
    from_images, from_cache = (losses(data, weights, way) for way in (False, True))
    assert from_images[0] - from_images[-1] > 0.05  # it learns
    assert np.abs(np.subtract(from_images, from_cache)).max() < 1e-3


def test_recall_from_the_cache_is_that_through_the_whole_model(data, weights):
    parts, model = parts_of(data, weights)
    features = cached(parts, model)
    tokens = parts.tokenizer.encode(parts.val_table.captions, parts.config.model.text.context_length)
    split = Inputs(parts.config.data, parts.val_table, tokens, workers=0)
    whole, short = (
        embed(model, part, parts.device, lambda event: None, lambda: None)
        for part in (split, dataclasses.replace(split, features=features.val))
    )
    assert torch.equal(whole.texts, short.texts)
    assert not torch.equal(whole.images, short.images)  # float16 has rounded
    assert (whole.images * short.images).sum(dim=1).min() > 1 - 1e-5


def test_half_of_the_samples_are_mirrored_and_no_two_epochs_are_equal(data, weights):
    parts, model = parts_of(data, weights, "data.flip=true")
    features = cached(parts, model)
    assert features.train.rows.shape[1] == 2
    run = build_training(parts, model, TrainState(), features, lambda event: None, lambda: None)
    shown = {}
    for epoch in range(8):
        for batch in run.loader.epoch(epoch, features=features.train):
            for image, row in zip(batch.image_ids.tolist(), batch.features.numpy(), strict=True):
                shown.setdefault(image, set()).add(row.tobytes())
    assert max(len(views) for views in shown.values()) == 2
    assert sum(len(views) for views in shown.values()) > 1.8 * len(shown)


def test_crops_are_further_views_that_no_seed_changes(data, weights):
    crops = ("data.flip=true", "data.cached_crops=2", "data.crop_scale=[0.2, 0.6]")
    parts, model = parts_of(data, weights, *crops)
    features = cached(parts, model)
    rows = features.train.rows.astype(np.float32)
    assert rows.shape[1] == 4
    assert features.val.rows.shape[1] == 1
    assert all(np.abs(rows[:, a] - rows[:, b]).max() > 0.01 for a, b in itertools.combinations(range(4), 2))
    run = build_training(parts, model, TrainState(), features, lambda event: None, lambda: None)
    shown: dict[int, set[bytes]] = {}
    for epoch in range(20):
        for batch in run.loader.epoch(epoch, features=features.train):
            for image, row in zip(batch.image_ids.tolist(), batch.features.numpy(), strict=True):
                shown.setdefault(image, set()).add(row.tobytes())
    assert max(map(len, shown.values())) == 4
    assert sum(map(len, shown.values())) > 3.8 * len(shown)

    sound, seen = files(data), []
    cached(*parts_of(data, weights, *crops, "seed=5"), report=counting(seen))
    assert files(data) == sound
    assert not seen
    cached(*parts_of(data, weights, *crops[:2], "data.crop_scale=[0.3, 0.6]"))
    assert len(files(data)) == len(sound) + 1


def test_a_crop_of_the_whole_image_is_the_evaluations_view(data, weights):
    parts, model = parts_of(data, weights, "data.cached_crops=1", "data.crop_scale=[1.0, 1.0]")
    rows = cached(parts, model).train.rows.astype(np.float32)
    assert np.abs(rows[:, 1] - rows[:, 0]).max() < 1e-2 * np.abs(rows).max()


def files(root: Path) -> dict[str, str]:
    folder = root / ".clipcoco"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("features-*.f16"))}


def counting(seen: list[int]):
    return lambda event: seen.append(event.done) if getattr(event, "phase", "") == "features" else None


def test_a_later_run_finds_them_and_a_larger_subset_adds_to_them(data, weights):
    seen: list[int] = []
    cached(*parts_of(data, weights, "data.train_fraction=0.5"), report=counting(seen))
    assert max(seen) == 24
    half = next(path for path in (data / ".clipcoco").glob("*train2017.f16")).read_bytes()
    seen.clear()
    cached(*parts_of(data, weights, "data.train_fraction=0.5"), report=counting(seen))
    assert not seen
    parts, model = parts_of(data, weights)
    features = cached(parts, model, report=counting(seen))
    assert max(seen) == 24  # only the other half
    whole = next(path for path in (data / ".clipcoco").glob("*train2017.f16")).read_bytes()
    assert whole[: len(half)] == half
    model.eval()
    images = next(iter(Inputs(parts.config.data, parts.train_table, np.zeros((1, 1)), 0).images(False)))
    with torch.inference_mode():
        expected = model.visual.features(images).numpy()
    got = features.train.take(range(len(expected)), [0] * len(expected))
    assert np.abs(got - expected).max() < 1e-2 * np.abs(expected).max()


def test_other_weights_another_view_or_another_source_is_another_file(data, weights, tmp_path):
    cached(*parts_of(data, weights))
    assert len(files(data)) == 2
    torch.manual_seed(2)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pth")
    cached(*parts_of(data, tmp_path / "other.pth"))
    cached(*parts_of(data, weights, "data.image_size=40"))
    cached(*parts_of(data, weights, "data.flip=true"))
    names = [f"train2017/{path.name}" for path in (data / "train2017").iterdir()]
    make_copies(data, [*names, *(f"val2017/{path.name}" for path in (data / "val2017").iterdir())], 40, lambda t: None)
    parts, model = parts_of(data, weights, "data.prepared_size=40")
    assert parts.source.name == "prepared-40"
    cached(parts, model)
    assert len(files(data)) == 2 + 2 + 2 + 1 + 2  # the mirrored views change the training file alone


def test_code_that_resizes_otherwise_never_meets_old_features(data, weights, monkeypatch):
    cached(*parts_of(data, weights))
    monkeypatch.setattr("clipcoco.data.images._resized", lambda *args: _resized(*args) // 2)
    seen: list[int] = []
    cached(*parts_of(data, weights), report=counting(seen))
    assert seen
    assert len(files(data)) == 2 + 2


def test_a_changed_image_makes_them_anew(data, weights):
    parts, model = parts_of(data, weights)
    running = cached(parts, model)
    before = running.train.take([3], [0])
    shutil.copy(parts.train_table.folder / parts.train_table.files[4], data / parts.train_table.files[3])
    told: list[str] = []
    features = cached(parts, model, report=lambda event: told.append(getattr(event, "message", "")))
    assert "images have changed" in told[0]  # before the work that it makes
    assert np.array_equal(features.train.take([3], [0]), features.train.take([4], [0]))
    assert not np.array_equal(features.train.take([3], [0]), before)
    assert np.array_equal(running.train.take([3], [0]), before)  # a run at work keeps what it began with


@pytest.mark.parametrize("part", [".f16", ".json"])
def test_a_flipped_bit_is_seen_and_made_good(data, weights, part):
    parts, model = parts_of(data, weights)
    cached(parts, model)
    sound = files(data)
    path = next((data / ".clipcoco").glob(f"features-*-train2017{part}"))
    flip_a_bit(path)
    told: list[str] = []
    cached(parts, model, report=lambda event: told.append(getattr(event, "message", "")))
    assert any("recomputing" in message for message in told)
    assert files(data) == sound


FILL = """
import os, sys
import clipcoco.data.loader, clipcoco.engine.features as features
features._SAVE_SECONDS = 0.0
clipcoco.data.loader.EVALUATION_BATCH = 4  # many moments to be killed at
sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_features import cached, parts_of
at = {kill_at}
cached(*parts_of(Path({data!r}), Path({weights!r})), report=lambda event: event.done == at and os.kill(os.getpid(), 9))
"""


def test_kill_9_while_they_are_written_leaves_no_trace(clipcoco, data, weights, tmp_path):
    calm = shutil.copytree(data, tmp_path / "calm")

    def fill(root: Path, kill_at: int) -> int:
        code = FILL.format(tests=str(Path(__file__).parent), data=str(root), weights=str(weights), kill_at=kill_at)
        return clipcoco(cwd=tmp_path, prelude=code).code

    assert fill(calm, 0) == 0
    for kill_at in (16, 20):  # images
        assert fill(data, kill_at) == -signal.SIGKILL
        index = next((data / ".clipcoco").glob("features-*.json"))
        assert 0 < len(json.loads(index.read_text())["images"]) < 48
    assert fill(data, 0) == 0
    assert files(data) == files(calm)


def test_stopped_meanwhile_keeps_what_is_there(data, weights, monkeypatch):
    monkeypatch.setattr("clipcoco.data.loader.EVALUATION_BATCH", 8)
    parts, model = parts_of(data, weights)
    seen: list[int] = []
    assert cached(parts, model, report=counting(seen), stop=lambda: len(seen) >= 2) is None
    assert seen == [8, 16]
    seen.clear()
    assert cached(parts, model, report=counting(seen)) is not None
    assert seen == [8, *range(8, 49, 8)]  # what the validation images lacked, then those of training


@pytest.mark.parametrize("seconds", [0.0, 99.0])
def test_the_error_that_ended_it_is_told_and_no_later_one(data, weights, monkeypatch, seconds):
    errors = iter([OSError(28, "the first"), OSError(28, "the second")])
    monkeypatch.setattr("clipcoco.engine.features._SAVE_SECONDS", seconds)
    monkeypatch.setattr("clipcoco.data.features.FeatureFile.save", lambda file: (_ for _ in ()).throw(next(errors)))
    parts, model = parts_of(data, weights)
    with pytest.raises(EnvironmentProblem, match=r"can't be kept at .*: the first \(data.root\). Free space"):
        cached(parts, model)
    errors = iter([OSError(28, "the third")])

    def ended(event) -> None:
        raise DataError("what ended it")

    with pytest.raises(DataError, match="what ended it"):
        cached(parts, model, report=ended)


def test_an_unreadable_image_is_replaced_as_in_training_from_images(data, weights):
    parts, model = parts_of(data, weights)
    (data / parts.train_table.files[5]).write_bytes(b"no image")
    features = cached(parts, model)
    run = build_training(parts, model, TrainState(), features, lambda event: None, lambda: None)
    by_image, from_cache = (list(run.loader.epoch(0, features=way)) for way in (None, features.train))
    for one, other in zip(by_image, from_cache, strict=True):
        assert torch.equal(one.image_ids, other.image_ids)
        assert torch.equal(one.tokens, other.tokens)
        assert one.replaced == other.replaced
    assert sum(len(batch.replaced) for batch in from_cache) == 1


def test_a_disk_that_is_gone_is_an_error_and_not_remembered(data, weights, monkeypatch):
    parts, model = parts_of(data, weights)
    monkeypatch.setattr("clipcoco.engine.features.MAX_REPLACEMENTS", 10)
    images = {data / file: (data / file).stat() for file in parts.train_table.files[20:32]}
    for path in images:
        path.rename(path.with_suffix(".away"))
        path.mkdir()  # there, and unreadable
        os.utime(path, ns=(0, images[path].st_mtime_ns))
    with pytest.raises(DataError, match=r"12 of 48 images can't be read, first train2017/.*Is the disk there"):
        cached(parts, model)
    for path in images:
        path.rmdir()
        path.with_suffix(".away").rename(path)
    assert cached(parts, model).train.readable.all()


def test_another_run_that_fills_them_is_waited_for_and_told_of(data, weights):
    cached(*parts_of(data, weights, "data.train_fraction=0.5"))
    parts, model = parts_of(data, weights)
    told: list[str] = []
    with lock(next((data / ".clipcoco").glob("features-*-train2017.lock"))):
        waited = cached(parts, model, lambda event: told.append(event.message), stop=lambda: "a test" if told else None)
    assert waited is None
    assert len(told) == 1
    assert "another run is computing features" in told[0]


def test_an_unreadable_validation_image_is_an_error_before_training_images_are_read(data, weights):
    parts, model = parts_of(data, weights)
    (data / parts.val_table.files[5]).write_bytes(b"no image")
    with pytest.raises(DataError, match=parts.val_table.files[5]):
        cached(parts, model)
    assert not list((data / ".clipcoco").glob("features-*-train2017*"))


def test_a_run_goes_from_the_cache_into_fine_tuning_and_resumes_to_the_bit(clipcoco, data, light, tmp_path):
    # With all that a frozen backbone's features have: earlier stages, and a mean over the caption's tokens.
    settings = ["model.vision.stages=3", "model.text.pool=mean", "model.vision.feature_dropout=0.3"]
    words = [*light, f"data.root={data}", "train.frozen_epochs=1", "train.epochs=2", *settings]
    calm = clipcoco("train", *words, "--name", "calm", cwd=tmp_path).ok()
    assert "backbone frozen for 1 epoch (as set)" in calm.stderr
    assert "passes the backbone once" in calm.stderr
    last = "checkpoints/last.pt"
    expected = torch.load(tmp_path / "runs/calm" / last, weights_only=True)
    started = torch.load(light[-1].partition("=")[2], weights_only=True)
    name = "features.0.0.weight"
    assert not torch.equal(expected["model"][f"visual.trunk.{name}"], started[name])  # fine-tuned at last
    given, done = {"runs_dir": tmp_path / "runs", "device": "cpu"}, [0]

    def watch(event) -> None:
        done[0] = event.done if isinstance(event, Progress) and event.phase == "train" else done[0]

    for step in (4, 6, 7):  # within the frozen epoch, at its border, behind it
        given |= {"report": watch, "stop": lambda step=step: "a test" if done[0] >= step else None}
        if step == 4:
            ended = train(load_config("demo", overrides=words[2:]), name="stopped", **given)
        else:
            ended = resume("stopped", **given)
        assert (ended.state, ended.step) == ("stopped", step)
    clipcoco("resume", "stopped", cwd=tmp_path).ok()
    got = torch.load(tmp_path / "runs/stopped" / last, weights_only=True)
    assert all(torch.equal(value, got["model"][key]) for key, value in expected["model"].items())


def test_on_a_cpu_pretrained_weights_are_frozen_for_all_epochs(clipcoco, data, weights, tmp_path):
    words = ["--preset", "demo", *TOY, f"data.root={data}", f"model.vision.weights={weights}", "train.epochs=2"]
    done = clipcoco("train", *words, "--device", "cpu", "--name", "laptop", "--json", cwd=tmp_path).ok()
    assert "backbone frozen for all epochs (on a CPU each image then passes the backbone once)" in done.stderr
    # the table at the end comes through the whole model, the rows before from the cache
    rows = [json.loads(line) for line in (tmp_path / "runs/laptop/metrics.jsonl").read_text().splitlines()]
    best = max(row["r1"] for row in rows if row["event"] == "evaluation")
    assert done.json["r1"] == pytest.approx(best, abs=5)
    again = clipcoco("eval", "laptop", "--json", cwd=tmp_path).json
    assert again["protocols"] == done.json["protocols"]
    clipcoco("resume", "laptop", "train.epochs=3", cwd=tmp_path).ok()
    content = torch.load(tmp_path / "runs/laptop/checkpoints/last.pt", weights_only=True)
    assert content["state"]["step"] == 18
    assert content["state"]["frozen_epochs"] == 3  # also where this longer run is stopped and resumed
    trunk = torch.load(weights, weights_only=True)["conv1.weight"]
    assert torch.equal(content["model"]["visual.trunk.conv1.weight"], trunk)


def test_where_all_epochs_are_frozen_train_cached_holds_and_a_resume_keeps_it(clipcoco, data, light, tmp_path):
    cached = ["train.cached.epochs=2", "train.cached.batch_size=12", "train.cached.lr=2e-3"]
    words = [*light, f"data.root={data}", *cached, "--name", "laptop"]
    done = clipcoco("train", *words, cwd=tmp_path).ok()
    assert "2 epochs x 4 steps x 12 images, lr 0.002" in done.stderr
    assert "hence as train.cached says" in done.stderr
    folder = tmp_path / "runs/laptop"
    config = load_config(file=folder / "config.yaml").config
    assert (config.train.epochs, config.train.batch_size, config.train.lr) == (2, 12, 2e-3)
    assert config.train.frozen_epochs == "all"  # so that no device decides at a resume, or when it is trained again
    content = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert content["state"]["step"] == 8
    # the same command again is the same run; more epochs by either name are more of the same
    assert "finished" in clipcoco("train", *words, "--or-resume", cwd=tmp_path).ok().stderr
    for setting, epochs in (("train.epochs=3", 3), ("train.cached.epochs=4", 4)):
        clipcoco("resume", "laptop", setting, cwd=tmp_path).ok()
        content = torch.load(folder / "checkpoints/last.pt", weights_only=True)
        assert (content["state"]["step"], content["config"]["train"]["epochs"]) == (4 * epochs, epochs)
    # what it is trained by stays: neither that nor a word that says nothing about it is taken in silence
    for words_, said in (("train.cached.lr=0.5", "train.lr can't change at a resume: 0.002 -> 0.5"),):
        assert said in clipcoco("resume", "laptop", words_, cwd=tmp_path).stderr
    fixed = [*words[:-1], "fixed", "train.frozen_epochs=1", "train.epochs=1"]
    assert "1 epoch x 6 steps x 8 images" in clipcoco("train", *fixed, cwd=tmp_path).ok().stderr  # train's own
    refused = clipcoco("resume", "fixed", "train.cached.epochs=9", cwd=tmp_path)
    assert (refused.code, "train.cached.epochs has no effect on this run" in refused.stderr) == (2, True)
    again = clipcoco("train", "--config", folder / "config.yaml", "--name", "again", "--dry-run", cwd=tmp_path).ok()
    assert "4 epochs x 4 steps x 12 images, lr 0.002" in again.stdout
    assert "finished" in clipcoco("train", *words, "train.frozen_epochs=all", "--or-resume", cwd=tmp_path).ok().stderr
    # fine-tuned, the same words mean the other recipe
    plan = [*words[:-1], "other", "train.frozen_epochs=0", "--dry-run"]
    assert "3 epochs x 6 steps x 8 images, lr 0.001" in clipcoco("train", *plan, cwd=tmp_path).ok().stdout


def test_features_are_dropped_only_where_all_epochs_are_frozen(data, weights):
    found = {}
    for frozen in ("all", 1):
        parts, model = parts_of(data, weights, f"train.frozen_epochs={frozen}", "model.vision.feature_dropout=0.9")
        features = cached(parts, model)
        run = build_training(parts, model, TrainState(), features, lambda event: None, lambda: None)
        start_epoch(model, 0, parts.derived.frozen_epochs)
        batch = next(run.loader.epoch(0, features=run.features))
        torch.manual_seed(0)
        found[frozen] = model(batch)[0]
        model.eval()
        whole = model(batch)[0]
        assert torch.equal(found[frozen], whole) == (frozen == 1)


@pytest.mark.parametrize(
    ("backbone", "parts"),
    [
        ("resnet18", {"layer2": 8, "layer3": 4}),
        ("resnet50", {"layer2": 8, "layer3": 4}),
        ("mobilenet_v3_large", {"features.6": 8, "features.12": 4, "features.15": 2}),
        ("efficientnet_b0", {"features.3": 8, "features.5": 4, "features.7": 2}),
    ],
)
def test_three_stages_are_the_means_of_what_hooks_see_there(backbone, parts):
    config = load_config("tiny", overrides=[f"model.vision.backbone={backbone}", "model.vision.stages=3"]).config.model
    torch.manual_seed(0)
    encoder, seen = ImageEncoder(config.vision, 8).eval(), {}
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    for name in parts:
        hook = lambda module, inputs, output, name=name: seen.update({name: output})  # noqa: E731
        encoder.trunk.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        last = encoder.trunk((images.float() - encoder.mean) / encoder.std)
        features = encoder.features(images)
    assert [tuple(output.shape[2:]) for output in seen.values()] == [(size, size) for size in parts.values()]
    expected = torch.cat([*(output.mean(dim=(2, 3)) for output in seen.values()), last], dim=1)
    torch.testing.assert_close(features, expected)
    assert features.shape[1] == config.vision.width


def test_frozen_epochs_that_are_set_hold_for_a_prolonged_run_too(clipcoco, data, light, tmp_path):
    words = [*light, f"data.root={data}", "train.frozen_epochs=1"]
    clipcoco("train", *words, "train.epochs=1", "--name", "short", cwd=tmp_path).ok()
    longer = clipcoco("resume", "short", "train.epochs=2", cwd=tmp_path).ok()
    assert "backbone frozen for 1 epoch (as set)" in longer.stderr
    content = torch.load(tmp_path / "runs/short/checkpoints/last.pt", weights_only=True)
    trunk = torch.load(light[-1].partition("=")[2], weights_only=True)["features.0.0.weight"]
    assert not torch.equal(content["model"]["visual.trunk.features.0.0.weight"], trunk)


def test_a_resume_says_that_the_run_began_with_these_frozen_epochs(data, weights):
    config = load_config("demo", overrides=[*TOY, f"data.root={data}", f"model.vision.weights={weights}"]).config
    header = dict(read_parts(config, "cpu", "float32", None, frozen_epochs=2).header)
    assert "backbone frozen for 2 epochs (as the run began)" in header["train"]


def test_a_dry_run_measures_both_kinds_of_steps(clipcoco, data, light, tmp_path):
    words = [*light, f"data.root={data}", "--dry-run", "--json"]
    both = clipcoco("train", *words, "train.frozen_epochs=1", cwd=tmp_path)
    assert both.json["time"].count("s a step") == 2
    assert "min for the features, once" in both.json["time"]
    one = clipcoco("train", *words, "train.frozen_epochs=all", cwd=tmp_path)
    assert one.json["time"].count("s a step") == 1
    assert not (data / ".clipcoco").exists()


def as_reader(work) -> None:
    """Do it in a process that may only read: as nobody, where we are root."""
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_whoever_may_only_read_uses_what_is_finished_and_keeps_the_rest_elsewhere(data, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no path leads through folders of ours
    monkeypatch.setenv("TORCH_HOME", "torch")
    Path("torch").mkdir(mode=0o777)
    Path("torch").chmod(0o777)
    finished, more = (parts_of(Path("data"), weights, f"data.image_size={size}") for size in (32, 40))
    cached(*finished)
    sound, told = files(data), []
    folders = [path for path in (data, *data.rglob("*")) if path.is_dir()]
    for folder in (*folders, tmp_path):
        folder.chmod(0o555)

    def read() -> None:
        assert cached(*finished, report=told.append).train.readable.all()
        assert not told

    def compute() -> None:
        cached(*more, report=told.append)
        assert any("data/.clipcoco can't be written: the features are kept in torch" in str(event) for event in told)
        told.clear()
        cached(*more, report=told.append)
        assert not told

    try:
        as_reader(read)
        as_reader(compute)
    finally:
        for folder in (tmp_path, *folders):
            folder.chmod(0o755)
    assert files(data) == sound
    assert len(list(Path("torch").rglob("*.f16"))) == 2

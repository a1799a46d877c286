"""Each mistake that a user can make: the right exit code, one line, no traceback, nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import LIGHT
from fork_server import Finished


def assert_error(done: Finished, code: int, *parts: str, lines: int = 1) -> None:
    assert done.code == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == lines, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def empty(tmp_path: Path):
    """A folder that must be as empty afterwards as before."""
    yield tmp_path
    assert not list(tmp_path.glob("runs*"))


def train(*changes: object) -> list[str]:
    return ["train", "--preset", "demo", *LIGHT, *map(str, changes)]


USAGE = [
    (["train", "--preset", "demo", "epochs", "3"], 2, ["as in train.epochs=VALUE"]),
    (["eval", "x" * 5000], 2, ["xxx... is longer than a name can be"]),
    (["search", "a dog", "--images", "x" * 5000], 2, ["xxx... is longer than a name can be"]),
    (["train"], 2, ["--preset NAME (demo, tiny, small, medium, full, own)"]),
    (["train", "--preset", "smal"], 2, ["no preset 'smal'", "Did you mean small?"]),
    (["train", "smal"], 2, ["no preset 'smal'", "Did you mean small?"]),
    (["train", "--preset", "demo", "--config", "x.yaml"], 2, ["both given"]),
    (["train", "--config", "none.yaml"], 2, ["none.yaml"]),
    (["train", "--config", "configs/clip_coco_tiny.yaml"], 2, ["For the preset: --preset tiny"]),
    (["train", "configs/clip_coco_full.yaml"], 2, ["For the preset: --preset full"]),
    (["inspect-config", "clip_coco_small.yml"], 2, ["clipcoco inspect-config small"]),
    (["train", "--preset", "demo", "model.vision.backbone=resnet-50"], 2, ["Did you mean resnet50?"]),
    (["train", "--preset", "demo", "train.learning_rate=1"], 2, ["Did you mean train.lr?"]),
    (["train", "--preset", "demo", "train.epochs=0"], 2, ["train.epochs must be at least 1, not 0 (--set)"]),
    (["train", "--preset", "demo", "--set", "train.lr"], 2, ["train.lr"]),
    (["train", "--preset", "demo", "--device", "gpu"], 2, ["no device 'gpu'"]),
    (["train", "--preset", "demo", "train.precision=float16", "--device=cpu"], 5, ["float16 is not possible on cpu"]),
    (["train", "--preset", "demo", "--or-resume"], 2, ["--name NAME"]),
    (["inspect-config", "smal"], 2, ["Did you mean small?"]),
    (["inspect-config", "none.yaml"], 2, ["none.yaml"]),
    (["resume"], 4, ["there is no run in runs", "clipcoco train --preset demo"]),
    (["resume", "nobody"], 4, ["no run 'nobody'"]),
    (["eval"], 4, ["there is no run in runs"]),
    (["eval", "--checkpoint", "none.pt"], 4, ["no checkpoint at none.pt"]),
    (["eval", "--protocol", "5k"], 2, ["Choose own, 1k, eccv or all"]),
    (["eval", "--split", "tests"], 2, ["Choose val, train, test or karpathy-test"]),
    (["eval", "--fraction", "0"], 2, ["above 0"]),
    (["eval", "--from-embeddings", "none.npz"], 3, ["no file at none.npz"]),
    (["prepare-data", "--preset", "small", "--root", "none", "--verify"], 3, ["no captions at none/annotations"]),
]


@pytest.mark.parametrize(("words", "code", "parts"), USAGE, ids=[" ".join(case[0])[:60] for case in USAGE])
def test_usage(clipcoco, empty, words, code, parts):
    assert_error(clipcoco(*words, cwd=empty), code, *parts)
    assert not list(empty.iterdir())


def test_all_mistakes_are_told_at_once_with_file_and_line(clipcoco, empty):
    (empty / "my.yaml").write_text("extends: tiny\ntrain:\n  learning_rate: 1\n  epochs: none\n  batch_size: 1\n")
    done = clipcoco("train", "--config", "my.yaml", cwd=empty)
    assert_error(done, 2, "(my.yaml:3)", "(my.yaml:4)", "(my.yaml:5)", lines=3)


def test_a_device_that_is_not_here(clipcoco, empty):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert_error(clipcoco(*train("--device", "cuda"), cwd=empty), 5, "cuda is not available here", "--device auto")


@pytest.fixture
def broken(scenes: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(scenes, root)
    return root


class TestData:
    def test_no_folder(self, clipcoco, empty):
        done = clipcoco("train", "--preset", "tiny", *LIGHT, "data.root=nowhere", cwd=empty)
        assert_error(done, 3, "no captions at nowhere/annotations/captions_train2017.json (data.root)")
        assert "clipcoco prepare-data" in done.stderr
        assert "--set data.root=DIR" in done.stderr

    def test_missing_images(self, clipcoco, empty, broken):
        for path in sorted((broken / "train2017").iterdir())[:5]:
            path.unlink()
        assert_error(
            clipcoco(*train(f"data.root={broken}"), cwd=empty), 3, "5 of 48 images are missing", "000000000001.jpg"
        )

    def test_annotations_cut_short(self, clipcoco, empty, broken):
        path = broken / "annotations" / "captions_val2017.json"
        path.write_bytes(path.read_bytes()[:-50])
        assert_error(clipcoco(*train(f"data.root={broken}"), cwd=empty), 3, "captions_val2017.json", "byte")

    def test_a_file_name_that_leaves_the_root(self, clipcoco, empty, broken):
        path = broken / "annotations" / "captions_train2017.json"
        content = json.loads(path.read_text())
        content["images"][3]["file_name"] = "../../etc/passwd"
        path.write_text(json.dumps(content))
        assert_error(clipcoco(*train(f"data.root={broken}"), cwd=empty), 3, "etc/passwd")

    def test_fewer_images_than_a_batch(self, clipcoco, empty, scenes):
        done = clipcoco(*train(f"data.root={scenes}", "train.batch_size=64"), cwd=empty)
        assert_error(done, 3, "48", "64")

    def test_a_warm_up_longer_than_the_run(self, clipcoco, empty, scenes):
        done = clipcoco(*train(f"data.root={scenes}", "train.warmup_steps=100"), cwd=empty)
        assert_error(done, 2, "train.warmup_steps", "100", "18")

    def test_images_that_can_not_be_read_past_the_threshold(self, clipcoco, tmp_path, broken):
        for path in sorted((broken / "train2017").iterdir())[:20]:
            path.write_bytes(b"<html>")
        done = clipcoco(*train(f"data.root={broken}"), cwd=tmp_path)
        assert done.code == 3
        assert "training images can't be read" in done.stderr.splitlines()[-1]
        assert not any((tmp_path / "runs").iterdir())  # not a step was made

    def test_one_unreadable_image_is_named_once_and_replaced(self, clipcoco, tmp_path, broken):
        victim = sorted((broken / "train2017").iterdir())[7]
        victim.write_bytes(b"")
        done = clipcoco(*train(f"data.root={broken}"), cwd=tmp_path).ok()
        assert done.stderr.count(victim.name) == 1

    def test_weights_that_can_not_be_had(self, clipcoco, empty, scenes):
        changes = train(f"data.root={scenes}", "model.vision.weights=imagenet-v1")
        env = {"TORCH_HOME": str(empty / "torch"), "https_proxy": "http://127.0.0.1:9"}
        done = clipcoco(*changes, cwd=empty, env=env)
        assert_error(done, 5, "mobilenet_v3_large-", "--set model.vision.weights=none")

    def test_a_name_that_is_taken(self, clipcoco, tmp_path, scenes):
        (tmp_path / "runs" / "mine").mkdir(parents=True)
        done = clipcoco(*train(f"data.root={scenes}", "--name", "mine"), cwd=tmp_path)
        assert_error(done, 2, "run mine exists", "--name mine-2")
        assert not list((tmp_path / "runs" / "mine").iterdir())

    @pytest.mark.parametrize("name", ["../mine", "", ".hidden"])
    def test_a_name_that_is_none(self, clipcoco, empty, scenes, name):
        assert_error(clipcoco(*train(f"data.root={scenes}", "--name", name), cwd=empty), 2, "can't name a run")


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    clipcoco(*train(f"data.root={scenes}", "train.epochs=1", "--name", "run"), cwd=folder).ok()
    return folder


class TestCheckpoints:
    def altered(self, folder: Path, target: Path, alter) -> Path:
        content = torch.load(folder / "runs" / "run" / "checkpoints" / "best.pt", weights_only=True)
        alter(content)
        torch.save(content, target)
        return target

    @pytest.mark.parametrize("cut", [0, 1, 5000, -1])
    def test_a_cut_file(self, clipcoco, folder, tmp_path, cut):
        whole = (folder / "runs" / "run" / "checkpoints" / "best.pt").read_bytes()
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        assert_error(clipcoco("eval", "--checkpoint", "cut.pt", cwd=tmp_path), 4, "cut.pt is not a clipcoco checkpoint")

    @pytest.mark.parametrize(
        ("alter", "part"),
        [
            (lambda c: c["model"].pop("logit_scale"), "do not fit|does not fit"),
            (lambda c: c["model"].update(extra=torch.zeros(1)), "does not fit"),
            (lambda c: c["model"].update(logit_scale=torch.zeros(3)), "does not fit"),
            (lambda c: c["model"]["text.text_projection"].fill_(float("nan")), "not finite"),
            (lambda c: c["config"]["model"]["text"].update(width=4096), "does not fit"),
            (lambda c: c["config"]["model"]["text"].update(width=10**9), "configuration that can't be used"),
            (lambda c: c["config"].update(surprise=1), "configuration that can't be used"),
            (lambda c: c["tokenizer"].update(merges=[1]), "tokenizer is damaged"),
            (lambda c: c.update(format=2), "Upgrade clipcoco"),
            (lambda c: c.pop("tokenizer"), "lacks tokenizer"),
        ],
    )
    def test_a_crafted_one(self, clipcoco, folder, tmp_path, alter, part):
        path = self.altered(folder, tmp_path / "crafted.pt", alter)
        done = clipcoco("eval", "--checkpoint", path, cwd=tmp_path)
        assert_error(done, 4)
        assert any(text in done.stderr for text in part.split("|"))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("train.lr=0.5", "train.lr can't change at a resume: 0.001 -> 0.5"),
            ("model.text.width=64", "model.text.width can't change"),
            ("train.batch_size=4", "train.batch_size can't change"),
        ],
    )
    def test_a_resume_that_would_be_another_experiment(self, clipcoco, folder, change, part):
        assert_error(clipcoco("resume", "run", "--set", change, cwd=folder), 2, part, "--init")

    def test_other_data_at_a_resume(self, clipcoco, folder, broken):
        path = broken / "annotations" / "captions_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["caption"] = "something else"
        path.write_text(json.dumps(content))
        done = clipcoco("resume", "run", f"data.root={broken}", "train.epochs=2", cwd=folder)
        assert done.code == 4
        assert "are not those of run run: train differ" in done.stderr.splitlines()[-1]

    def test_weights_alone_can_not_be_resumed_but_trained_on(self, clipcoco, folder, tmp_path):
        run = tmp_path / "runs" / "run"
        shutil.copytree(folder / "runs" / "run", run)
        path = self.altered(folder, run / "checkpoints" / "light.pt", lambda c: c.pop("optimizer"))
        done = clipcoco("resume", path, "train.epochs=2", cwd=tmp_path)
        assert done.code == 4
        assert "--init" in done.stderr.splitlines()[-1]

    def test_eval_with_a_config_of_the_same_architecture(self, clipcoco, folder):
        same = f"extends: {folder}/runs/run/config.yaml\n"
        (folder / "same.yaml").write_text(
            f"{same}model:\n  temperature: 0.1\n  vision: {{weights: mine.pth}}\n  text: {{dropout: 0.5}}\n"
        )
        clipcoco("eval", "run", "--config", "same.yaml", cwd=folder).ok()

    def test_eval_with_a_config_of_another_model(self, clipcoco, folder):
        (folder / "other.yaml").write_text("extends: small\n")
        done = clipcoco("eval", "run", "--config", "other.yaml", cwd=folder)
        assert_error(done, 2, "describes another model", "model.projection_dim")

    def test_eval_settings_that_would_change_the_model(self, clipcoco, folder):
        assert_error(clipcoco("eval", "run", "--set", "model.text.width=64", cwd=folder), 2, "Only data.* can be set")

    def test_a_part_of_a_run_that_is_not_there(self, clipcoco, folder):
        assert_error(clipcoco("eval", "run/epoch_009", cwd=folder), 4, "no checkpoint 'epoch_009'", "best")

    def test_protocol_1k_of_too_few_images(self, clipcoco, folder):
        assert_error(clipcoco("eval", "run", "--protocol", "1k", cwd=folder), 2, "needs 1,000 images, 24 are here")


def test_numbers_that_are_not_finite_end_a_run_with_its_last_good_state(clipcoco, folder, scenes, tmp_path):
    content = torch.load(folder / "runs/run/checkpoints/best.pt", weights_only=True)
    content["model"]["text.text_projection"].fill_(3e38)  # finite, but no product with it is
    torch.save(content, tmp_path / "huge.pt")
    words = train(f"data.root={scenes}", "--init", "huge.pt", "--name", "sick", "train.batch_size=4")
    done = clipcoco(*words, cwd=tmp_path)
    assert_error(done, 6, "not finite at step 10", "Try a lower train.lr")
    status = json.loads((tmp_path / "runs/sick/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    assert not list((tmp_path / "runs/sick/checkpoints").iterdir())
    assert "Traceback" in (tmp_path / "runs/sick/log.txt").read_text()


def test_embeddings_that_mean_nothing(clipcoco, empty):
    np.savez(empty / "e.npz", image_embeddings=np.eye(4), image_ids=np.arange(4))
    assert_error(clipcoco("eval", "--from-embeddings", "e.npz", cwd=empty), 3, "holds no embeddings")

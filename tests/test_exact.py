"""Nothing that decides a number goes unchecked: weights, pictures, settings, records, and checkpoints of old."""

import json
import lzma
import re
import shutil
from pathlib import Path

import pytest
import torch

from clipcoco.engine import checkpoint
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.optim import build_optimizer, restore_moments
from clipcoco.engine.plain_parts import checked
from clipcoco.engine.state import TrainState
from clipcoco.errors import CheckpointError
from clipcoco.model_file import open_model
from fork_server import ForkServer

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


def test_the_first_format_is_measured_and_resumed(clipcoco: ForkServer, golden, scenes, tmp_path):
    run = tmp_path / "runs" / "golden"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copyfile(golden, run / "checkpoints" / "last.pt")
    shutil.copyfile(GOLDEN / "format-1.yaml", run / "config.yaml")
    done = clipcoco("eval", "golden", f"data.root={scenes}", "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (done.json["step"], done.json["images"]) == (8, 24)
    done = clipcoco("resume", "golden", f"data.root={scenes}", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert re.search(r"exact +", done.stderr)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[:3] == checkpoint.load(golden)["metrics"]
    assert rows[-1]["step"] == 18


def shared_lists(times: int) -> list:
    value: list = []
    for _ in range(times):
        value = [value, value]
    return value


def nested_lists(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({part: None}, part) for part in ("state", "data", "versions", "metrics", "scaler")),
        ({"state": {"step": "8"}}, "state.step"),
        ({"state": {"step": True}}, "state.step"),
        ({"state": {"step": -1}}, "state.step"),
        ({"state": {"best_epoch": None}}, "state.best_epoch"),
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
        ({"later": shared_lists(40)}, "without end"),
        ({"later": nested_lists(150)}, "without end"),
    ],
)
def test_plain_parts_of_another_kind_are_refused_in_one_line(changes, said):
    with pytest.raises(CheckpointError) as error:
        checked({"state": {}, **changes}, Path("strange.pt"))
    assert said in str(error.value)
    assert str(error.value).isprintable()
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
    ],
)
def test_tensors_that_would_spoil_a_model_are_refused(golden, part, alter, said):
    content = checkpoint.load(golden)
    alter(content["optimizer"]["state"] if part == "optimizer" else content["model"])

    def resumed():
        model = open_model(golden, content).model
        restore_moments(build_optimizer(model, 1e-3, 0.0, 1.0), content["optimizer"])

    with pytest.raises(CheckpointError) as error:
        resumed()
    assert said in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "1"])
def test_a_format_that_never_was_is_refused(tmp_path, number):
    torch.save({"format": number, "model": {}, "config": {}, "tokenizer": {}, "state": {}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="names no format"):
        checkpoint.load(tmp_path / "odd.pt")

"""What the commands promise when all goes well."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcoco import load_config, train
from clipcoco.engine.checkpoint import weights_sha256
from conftest import LIGHT, TOY
from harness import python, rows

FIRST = (*TOY, "train.epochs=2")


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    words = "train", "--preset", "demo", "--json", "--name", "first", *FIRST, f"data.root={scenes}"
    no_more = "import clipcoco.runs.measure; clipcoco.runs.measure.embed = None"  # than what training saw
    (folder / "trained.json").write_text(clipcoco(*words, cwd=folder, prelude=no_more).ok().stdout)
    return folder


def fresh(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "clipcoco", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_eval_repeats_the_table_of_training_to_the_digit(clipcoco, folder):
    trained = json.loads((folder / "trained.json").read_text())
    for words in (["eval", "first"], ["eval"], ["eval", "--checkpoint", "runs/first/checkpoints/best.pt"]):
        again = clipcoco(*words, "--json", cwd=folder).json
        assert (again | {"checkpoint": "", "seconds": 0}).items() <= (
            trained | {"checkpoint": "", "seconds": 0}
        ).items()
    best = max(rows(folder / "runs/first"), key=lambda row: row.get("r1", -1))
    assert best["r1"] == trained["r1"]
    assert best["i2t"] == trained["protocols"]["own"]["i2t"]


def test_eval_json_has_the_promised_shape(clipcoco, folder):
    result = clipcoco("eval", "first", "--json", cwd=folder).json
    assert result["schema"] == 1
    assert (result["run"], result["split"], result["images"], result["captions"]) == ("first", "val2017", 24, 120)
    own = result["protocols"]["own"]
    assert own["i2t"].keys() == own["t2i"].keys() == {"r1", "r5", "r10", "median_rank"}
    assert result["r1"] == own["r1"] == pytest.approx((own["i2t"]["r1"] + own["t2i"]["r1"]) / 2)
    assert {"rsum", "chance", "interval", "ties"} <= own.keys()
    assert "1k" not in result["protocols"]  # 24 images are fewer than a thousand


def test_embeddings_recomputed_outside_give_the_printed_figures(clipcoco, folder):
    printed = clipcoco("eval", "first", "--embeddings", "e.npz", "--json", cwd=folder).json["protocols"]["own"]
    with np.load(folder / "e.npz") as file:
        images, texts = file["image_embeddings"], file["text_embeddings"]
        own = file["caption_image_ids"][:, None] == file["image_ids"][None, :]
    scores = texts @ images.T
    t2i = np.array([1 + (row[~mask] >= row[mask]).sum() for row, mask in zip(scores, own, strict=True)])
    i2t = np.array([1 + (c[~m] >= c[m].max()).sum() for c, m in zip(scores.T, own.T, strict=True)])
    for direction, ranks in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            assert printed[direction][f"r{k}"] == pytest.approx(100 * (ranks <= k).mean())
    judged = clipcoco("eval", "--from-embeddings", "e.npz", "--json", cwd=folder).json
    assert judged["protocols"]["own"] == printed


def test_eval_takes_any_split_and_fraction(clipcoco, folder):
    result = clipcoco("eval", "first", "--split", "train", "--fraction", "0.5", "--json", cwd=folder).json
    assert (result["split"], result["images"]) == ("train2017", 24)


def test_captions_that_are_cut_are_told_before_training_and_by_eval(clipcoco, folder, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data", ignore=shutil.ignore_patterns(".clipcoco"))

    def equal(told: str) -> int:
        found = re.search(r"(\d+) of them are then equal to another", told)
        return int(found[1]) if found else 0

    annotations = data / "annotations/captions_val2017.json"
    content = json.loads(annotations.read_text())

    def say(*texts: str) -> None:
        for row, text in zip(content["annotations"], texts, strict=False):
            row["caption"] = text
        annotations.write_text(json.dumps(content))

    say("a red star", "a red ring", "a red moon")
    first = clipcoco("eval", "first", f"data.root={data}", "--json", cwd=folder)
    words = ("train", "--preset", "demo", *TOY, f"data.root={data}", "--dry-run")
    dry_before = equal(clipcoco(*words, cwd=tmp_path).ok().stderr)
    before = first.json["captions_cut"]
    say(*("a red square " * 13 + last for last in ("house", "tree", "house")))  # 40 words; two are one text already
    told = f"{before + 3} of 120 captions are longer than 16 tokens and are cut (model.text.context_length), "
    evaluated = clipcoco("eval", "first", f"data.root={data}", "--json", cwd=folder)
    assert evaluated.json["captions_cut"] == before + 3
    assert f"warning: {told}{equal(first.stderr) + 2} of them are then equal to another" in evaluated.stderr
    dry = clipcoco(*words, cwd=tmp_path).ok()
    assert "captions are longer than 16 tokens and are cut" in dry.stderr
    assert equal(dry.stderr) == dry_before + 2


def test_a_run_directory_holds_what_it_promises(folder):
    run = folder / "runs" / "first"
    assert {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "log.txt",
        "evaluation.json",
        "report.html",
        "figures",
        "tensorboard",
        "checkpoints",
    } <= {path.name for path in run.iterdir()}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert (status["step"], status["total_steps"], status["exit_code"]) == (12, 12, 0)
    assert status["best"]["r1"] == json.loads((folder / "trained.json").read_text())["r1"]
    assert (run / "report.html").read_text().count("data:image/jpeg;base64") >= 12


def test_a_checkpoint_is_plain_data_and_self_contained(folder):
    content = torch.load(folder / "runs/first/checkpoints/last.pt", weights_only=True)
    promised = "format model optimizer scaler state rng config tokenizer metrics versions data"
    assert set(promised.split()) <= content.keys()
    assert content["format"] == 1
    assert content["state"]["step"] == 12
    assert set(content["tokenizer"]) == {"vocab", "merges"}


def test_the_stored_config_trains_the_same_run_again(clipcoco, folder):
    done = clipcoco("train", "--config", "runs/first/config.yaml", "--name", "again", "--json", cwd=folder).ok()
    assert done.json["protocols"] == json.loads((folder / "trained.json").read_text())["protocols"]


def test_runs_are_found_by_prefix_path_and_part(clipcoco, folder):
    for words in ("firs", "runs/first", "first/last", "runs/first/checkpoints/last.pt"):
        assert clipcoco("eval", words, "--json", cwd=folder).json["run"] == "first"


def test_or_resume_is_the_same_run_and_another_config_is_refused(clipcoco, folder, scenes):
    words = ["train", "--preset", "demo", *FIRST, f"data.root={scenes}", "--name", "first", "--or-resume"]
    again = clipcoco(*words, cwd=folder).ok()
    assert "first is finished" in again.stderr
    other = clipcoco(*words, "train.lr=0.5", cwd=folder)
    assert other.code == 2
    assert "another configuration: train.lr" in other.stderr


def test_init_starts_from_the_weights_with_a_fresh_schedule(clipcoco, folder, scenes):
    words = ["train", "--preset", "demo", *TOY, f"data.root={scenes}", "--name", "second", "--init", "first/last"]
    clipcoco(*words, "train.lr=1e-12", "train.epochs=1", cwd=folder).ok()
    old, new = (torch.load(folder / f"runs/{n}/checkpoints/last.pt", weights_only=True) for n in ("first", "second"))
    assert new["state"]["step"] == 6
    assert new["tokenizer"] == old["tokenizer"]
    torch.testing.assert_close(
        new["model"]["text.text_projection"], old["model"]["text.text_projection"], atol=1e-6, rtol=0
    )


def test_a_finished_run_can_be_prolonged(clipcoco, folder):
    done = clipcoco("resume", "first", "--set", "train.epochs=3", cwd=folder).ok()
    assert "train.epochs: 2 -> 3" in done.stderr
    assert [row["step"] for row in rows(folder / "runs/first") if row["event"] == "step"] == list(range(1, 19))


def test_a_dry_run_takes_real_steps_and_writes_nothing(clipcoco, scenes, tmp_path):
    done = clipcoco("train", "--preset", "demo", *TOY, f"data.root={scenes}", "--dry-run", cwd=tmp_path).ok()
    for part in ("memory", "disk", "s a step", "nothing (--dry-run)"):
        assert part in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def drawn(clipcoco, tmp_path_factory) -> Path:
    """A folder with the demo's data in it."""
    folder = tmp_path_factory.mktemp("demo")
    done = clipcoco("prepare-data", "--preset", "demo", cwd=folder).ok()
    assert "Ready: 6,000 train and 500 val images" in done.stdout
    assert "Next: clipcoco train --preset demo" in done.stdout
    return folder


def test_the_demo_data_are_drawn_when_they_are_missing(clipcoco, drawn):
    assert "Nothing to do" in clipcoco("prepare-data", "--preset", "demo", cwd=drawn).stdout
    again = clipcoco("prepare-data", "--preset", "demo", "--json", cwd=drawn)
    assert again.json["val_captions"] == 2500


def test_the_demo_begins_as_it_always_has(drawn, tmp_path):
    """Its first 20 steps, to the bit. A commit that renews the golden file says which numbers change, and why:
    it then holds `here`, the losses and the sum that this test has found."""
    golden = json.loads((Path(__file__).parents[1] / "golden/demo.json").read_text())
    here = {name: metadata.version(name).partition("+")[0] for name in golden["versions"]}
    if here != golden["versions"] or torch.cuda.is_available():
        pytest.skip(f"the golden numbers are of a CPU and {golden['versions']}")
    if (cpu := {name: torch.cpu.get_capabilities().get(name) for name in golden["cpu"]}) != golden["cpu"]:
        pytest.skip(f"the golden numbers are of another CPU: {cpu}")
    done = [0]

    def watch(event) -> None:
        done[0] = event.done if getattr(event, "phase", "") == "train" else done[0]

    def stop() -> str | None:
        return "a test" if done[0] >= 20 else None

    config = load_config("demo", overrides=[f"data.root={drawn / 'data/demo'}", "train.log_every_steps=1"])
    run = train(config, runs_dir=tmp_path, report=watch, stop=stop)
    assert [row["loss"] for row in rows(run.path)] == golden["losses"]
    model = torch.load(run.path / "checkpoints/last.pt", weights_only=True)["model"]
    assert weights_sha256(model) == golden["weights_sha256"]


def test_prepare_data_checks_a_coco_folder(clipcoco, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    done = clipcoco("prepare-data", "--preset", "full", "--root", "data", cwd=tmp_path).ok()
    assert "Ready: 48 train and 24 val images, 360 captions" in done.stdout


def test_inspect_config_writes_a_config_file(clipcoco, tmp_path):
    shown = clipcoco("inspect-config", "small", "--set", "train.epochs=8", cwd=tmp_path)
    assert "epochs: 8" in shown.stdout
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    again = clipcoco("inspect-config", "mine.yaml", "--json", cwd=tmp_path).json
    small = clipcoco("inspect-config", "small", "train.epochs=8", "--json", cwd=tmp_path).json
    assert again["config"] == small["config"]
    assert small["source"]["train.epochs"] == "--set"
    assert small["source"]["train.batch_size"].startswith("presets/small.yaml:")
    assert small["derived"]["train_images"] == 11829
    assert small["derived"]["steps_per_epoch"] == 369
    assert "official" in small["derived"]["counted_from"]
    on_a_cpu = small["derived_on_a_cpu"]  # all epochs are frozen there
    assert (on_a_cpu["cached"], on_a_cpu["steps_per_epoch"], on_a_cpu["total_steps"]) == (True, 46, 8 * 46)
    assert "on a CPU 46 steps an epoch" in shown.stdout


def test_inspect_config_alone_lists_the_presets(clipcoco, tmp_path):
    done = clipcoco("inspect-config", cwd=tmp_path).ok()
    assert all(name in done.stdout for name in ("demo", "tiny", "small", "medium", "full"))


def test_help_needs_no_torch_and_no_arguments_give_help(tmp_path):
    shown = fresh(cwd=tmp_path)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("train", "resume", "eval", "prepare-data", "inspect-config"))
    for words in (["--help"], ["train", "-h"], ["inspect-config", "demo"], ["inspect-config"]):
        program = (
            "import sys; from clipcoco.cli import run; code = run(sys.argv[1:]); "
            "assert code == 0; assert 'torch' not in sys.modules; assert 'torchvision' not in sys.modules; "
            "assert {'--help', '-h'}.isdisjoint(sys.argv) or 'yaml' not in sys.modules"  # nor what reads settings
        )
        python(program, *words, cwd=tmp_path)


def test_help_opens_with_two_examples(clipcoco, tmp_path):
    for command in ("train", "resume", "eval", "prepare-data", "inspect-config"):
        shown = clipcoco(command, "--help", cwd=tmp_path).stdout
        assert shown.split("Options")[0].count(f"clipcoco {command}") >= 3  # usage and two examples


@pytest.mark.parametrize("words", [["inspect-config", "full"], ["--help"]])
def test_a_reader_that_leaves_early_is_not_an_error(tmp_path, words):
    program = f"{sys.executable} -m clipcoco {' '.join(words)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_an_ascii_locale_is_enough(folder):
    done = fresh(
        "eval",
        "first",
        "--device",
        "cpu",
        cwd=folder,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert "image -> text" in done.stdout
    assert (done.stdout + done.stderr).isascii()


def test_nothing_asks_the_network(clipcoco, scenes, tmp_path):
    """A run with a proxy that does not exist, and no home to keep things in."""
    env = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path / "home")}
    clipcoco("train", "--preset", "demo", *TOY, f"data.root={scenes}", "train.epochs=1", cwd=tmp_path, env=env).ok()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_tensorboard_holds_curves_settings_and_retrievals(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "runs" / "first" / "tensorboard"), size_guidance={"images": 0})
    reader.Reload()
    tags = reader.Tags()
    assert {"train/loss", "val/r1", "val/i2t/r1"} <= set(tags["scalars"])
    assert "_hparams_/session_start_info" in reader.PluginTagToContent("hparams")
    assert len([tag for tag in tags["images"] if tag.startswith("retrievals/text_to_image/")]) == 12
    strip = reader.Images("retrievals/text_to_image/01")[0]
    assert strip.encoded_image_string.startswith(b"\x89PNG")
    assert strip.width >= 5 * 160
    assert "Its image is at rank" in reader.SummaryMetadata("retrievals/text_to_image/01").summary_description


def test_the_next_command_for_few_pictures_has_batches_of_which_there_are_some(clipcoco, scenes, tmp_path):
    content = json.loads((scenes / "annotations/captions_train2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    rows_ = [f'{files[one["image_id"]]},"{one["caption"]}"' for one in content["annotations"]]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows_]) + "\n")
    words = ["--captions", "captions.csv", "--images", scenes / "train2017", "--root", "mine"]
    printed = clipcoco("prepare-data", *words, cwd=tmp_path).ok().stdout.split("Next: clipcoco ")[1].split()
    assert printed == ["train", "--preset", "own", "data.root=mine"]
    light = [word for word in LIGHT if "batch_size" not in word]  # which would mean both
    more = [*light, "model.vision.weights=none", "train.frozen_epochs=all", "--device", "cpu", "--dry-run"]
    assert "x 2 steps x 16 images" in clipcoco(*printed, *more, cwd=tmp_path).ok().stdout

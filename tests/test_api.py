"""clipcoco in Python: what it computes, and that it leaves the process as it found it."""

import doctest
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipcoco as package
from clipcoco import evaluate, load, load_config, recall_at_k, resume, train
from clipcoco.api.restore import globals_restored, kernels_restored
from clipcoco.config.load import dump
from clipcoco.config.schema import SETTINGS
from clipcoco.data.captions import read_captions
from clipcoco.engine.device import choose_deterministic_kernels, make_deterministic
from clipcoco.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem, NumericError
from clipcoco.events import Progress, StepDone
from conftest import TOY
from harness import rows


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory) -> Path:
    """A working directory: toy.yaml, two pictures, and run `first`."""
    folder = tmp_path_factory.mktemp("python")
    settings = load_config("demo", overrides=[*TOY, f"data.root={scenes}", "train.epochs=2", "checkpoint.keep=1"])
    (folder / "toy.yaml").write_text(dump(settings))
    pictures = sorted((scenes / "val2017").iterdir())
    for name, picture in zip(("dog.jpg", "cat.png"), pictures, strict=False):
        Image.open(picture).save(folder / name)
    train(folder / "toy.yaml", name="first", runs_dir=folder / "runs")
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def process() -> dict[str, object]:
    """All that is set for the whole process and that a library could leave changed."""
    numbers = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numbers],
        "python": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
        "precision": (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,
        ),
        "default": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "workers": multiprocessing.get_start_method(allow_none=True),
        "folder": Path.cwd(),
    }


# ---- the package


def test_importing_the_package_or_reading_a_config_imports_no_torch():
    code = (
        "import sys, clipcoco; from clipcoco import load_config; load_config('demo'); dir(clipcoco)\n"
        "assert not {'torch', 'numpy', 'typer', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loading_and_encoding_import_no_compiler(folder):
    code = (
        "import sys, clipcoco; model = clipcoco.load('first')\n"
        "model.encode_images('dog.jpg'); model.encode_texts('a'); clipcoco.evaluate(model)\n"
        "assert 'torchvision' in sys.modules and not {'torch._dynamo', 'sympy'} & sys.modules.keys()\n"
        "import torch, torchvision  # which are whole all the same\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "assert is_compile_supported('cpu') == torch._dynamo.utils.is_compile_supported('cpu')\n"
        "boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])\n"
        "assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).shape == (1, 1, 2, 2)\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_offers_what_it_names_and_nothing_else():
    named = {"__version__", "evaluate", "load", "load_config", "recall_at_k", "resume", "train"}
    assert set(package.__all__) == named
    assert set(package.__all__) <= set(dir(package))
    assert package.load_config is load_config
    with pytest.raises(AttributeError, match="laod"):
        package.laod  # noqa: B018


OF_THE_API = [f"clipcoco.api{part}" for part in ("", ".model", ".training", ".measuring", ".recall")]


@pytest.mark.parametrize(
    "name", [*OF_THE_API, "clipcoco.engine.recall", "clipcoco.engine.composition", "clipcoco.data.changed_words"]
)
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.slow
def test_a_users_script_is_checked_by_types(tmp_path):
    (tmp_path / "script.py").write_text(
        """
from pathlib import Path
import clipcoco
from clipcoco import load, load_config, recall_at_k, resume, train

run = train(load_config("demo"), name="x", report=lambda event: None, stop=lambda: None)
run = resume(Path("runs/x"), ["train.epochs=9"], stop=lambda: None)
model = run.model()
images, texts = model.encode_images([Path("a.jpg"), "b.jpg"]), model.encode_texts(["a dog"])
figure: float = recall_at_k(images, texts, owners=[0, 0]).i2t[1]
layers: int = load("x").config.model.text.layers
reveal_type(images)
clipcoco.laod("x")
model.encode_texts([1])
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert "32Bit" in next(line for line in lines if "Revealed type" in line)
    errors = [line for line in lines if ": error:" in line]
    assert len(errors) == 2, done.stdout
    assert "laod" in errors[0]
    assert "list-item" in errors[1]


# ---- training


def test_training_is_that_of_the_command_to_the_bit(clipcoco, folder):
    clipcoco("train", "--config", "toy.yaml", "--name", "commanded", cwd=folder).ok()
    assert rows(folder / "runs" / "first") == rows(folder / "runs" / "commanded")


def test_training_is_silent_and_reports_when_asked(capfd):
    events = []
    config = load_config(file=Path("toy.yaml"), overrides=["train.epochs=1"])
    run = train(config, name="told", report=events.append)
    assert capfd.readouterr() == ("", "")
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 7))
    assert (run.path, run.state, run.step) == (Path.cwd() / "runs" / "told", "finished", 6)
    assert [run.best.r1] == [row["r1"] for row in rows(run.path) if row["event"] == "evaluation"]


def test_stop_ends_a_training_with_its_reason():
    asked = []

    def stop() -> str | None:
        asked.append(1)
        return "enough" if len(asked) > 5 else None

    assert train("toy.yaml", name="event", stop=lambda: True).reason == "True"  # as of threading's Event.is_set
    run = train("toy.yaml", name="halfway", stop=stop)
    assert (run.state, run.reason) == ("stopped", "enough")
    assert 0 < run.step < 12
    status = json.loads((run.path / "status.json").read_text())
    assert (status["state"], status["reason"], status["step"]) == ("stopped", "enough", run.step)
    assert (run.path / "checkpoints" / "last.pt").exists()


def test_a_configuration_comes_as_preset_file_loaded_or_changed(scenes):
    loaded = load_config(file=Path("toy.yaml"))
    config = loaded.config.model_copy(update={"seed": 5})
    run = train(config, stop=lambda: "at once")
    assert run.path.name.startswith("python-20")
    assert run.model().config == config
    assert run.best is None
    assert run.model().recall is None
    for wrong, says in (("smal", "Did you mean small"), ("no.yaml", "no configuration file at no.yaml")):
        with pytest.raises(ConfigError, match=says):
            train(wrong)
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        train(config.model_copy(update={"train": config.train.model_copy(update={"epochs": 0})}))
    with pytest.raises(ConfigError, match="exists"):
        train("toy.yaml", name="first")


# ---- what is global


def seed_all() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def test_nothing_global_changes_while_training_loading_and_encoding():
    seed_all()
    before = process()
    run = train(load_config(file=Path("toy.yaml"), overrides=["train.epochs=1"]), name="clean")
    model = load("clean")
    model.encode_images(["dog.jpg"])
    model.encode_texts(["a dog"])
    recall_at_k(np.eye(3), np.eye(3), [0, 1, 2])
    after = process()
    assert run.state == "finished"
    for name in before:
        assert after[name] == before[name], name


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_needs_no_main_thread(workers, folder):
    loaded = load_config(file=Path("toy.yaml"), overrides=[f"data.workers={workers}", "train.epochs=1"])
    before, found = process(), []

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        mine = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        found.append(train(loaded, name=f"threaded-{workers}"))
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, []) == mine)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    run, same_mask = found
    assert run.state == "finished"
    assert same_mask
    after = process()
    for name in before:
        assert after[name] == before[name], name


def test_an_interrupt_passes_leaves_nothing_changed_and_the_run_resumable(clipcoco, folder):
    def report(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 9:
            raise KeyboardInterrupt

    seed_all()
    before = process()
    with pytest.raises(KeyboardInterrupt):
        train("toy.yaml", name="interrupted", report=report)
    assert process() == before
    clipcoco("resume", "interrupted", cwd=folder).ok()
    assert rows(folder / "runs" / "interrupted") == rows(folder / "runs" / "first")


def test_a_stopped_run_goes_on_from_python_to_the_same_bits(folder):
    steps: list[int] = []
    stopped = train(
        "toy.yaml", name="halves", report=steps_into(steps), stop=lambda: "a test" if len(steps) > 7 else None
    )
    assert (stopped.state, stopped.reason) == ("stopped", "a test")
    seed_all()
    before = process()
    run = resume("halves", report=steps_into(steps))
    assert process() == before
    assert (run.state, run.path) == ("finished", folder / "runs" / "halves")
    assert rows(run.path) == rows(folder / "runs" / "first")
    calm = [row for row in rows(run.path) if row["event"] == "evaluation" and row["best"]][-1]
    assert (run.best.epoch, run.best.r1) == (calm["epoch"], calm["r1"])
    again = resume("halves")  # nothing is left to do
    assert (again.state, again.step, again.best) == ("finished", run.step, run.best)
    with pytest.raises(ConfigError, match="can't change at a resume"):
        resume("halves", ["train.lr=1"])


def steps_into(steps: list[int]):
    return lambda event: steps.append(event.step) if isinstance(event, StepDone) else None


def test_what_a_gpu_needs_is_brought_back_too(monkeypatch):
    torch.use_deterministic_algorithms(False)  # imports torch's compiler, which leaves a variable in the environment
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for setting in (None, ":16:8"):
        if setting:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", setting)
        before = process()
        with globals_restored():
            make_deterministic(7, torch.device("cuda"))
            assert process() != before
            assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert process() == before


def test_threads_that_encode_leave_the_random_state_and_the_flags_alone(folder):
    model = load("first")
    expected, found = model.encode_texts(["a dog"]), []
    torch.manual_seed(5)
    before, interval = process(), sys.getswitchinterval()

    def work() -> None:
        found.extend(bool((model.encode_texts(["a dog"]) == expected).all()) for _ in range(40))

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        drawn = torch.rand(1000).tolist()  # meanwhile
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [True] * 160
    torch.manual_seed(5)
    assert drawn == torch.rand(1000).tolist()
    torch.manual_seed(5)
    assert process() == before


def test_what_two_threads_set_is_brought_back_by_the_last():
    before = process()
    one, other = kernels_restored(), kernels_restored()
    one.__enter__()
    choose_deterministic_kernels(torch.device("cuda"))
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled()
    other.__exit__(None, None, None)
    assert process() == before


def test_what_is_encoded_is_float32_whatever_the_default(folder):
    try:
        torch.set_default_dtype(torch.float64)
        assert load("first").encode_texts(["a dog"]).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_batch_that_memory_does_not_hold_names_a_smaller_one(folder, monkeypatch):
    model = load("first")
    monkeypatch.setattr(model.model, "encode_texts", lambda tokens: torch.empty(2**60))
    with pytest.raises(EnvironmentProblem, match=r"a batch of 1 does not fit .* \(batch_size\)\. Give a smaller one"):
        model.encode_texts(["a dog"])


def test_a_gpu_that_was_used_before_is_told_in_our_words():
    before = process()
    said = "Deterministic behavior was enabled ... you must set an environment variable: CUBLAS_WORKSPACE_CONFIG=:16:8"
    with pytest.raises(EnvironmentProblem, match=r"Set it to :4096:8 before the first use"), globals_restored():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), globals_restored():
        raise RuntimeError("another")
    assert process() == before


def test_the_settings_of_a_notebook_do_not_matter(folder):
    expected = load("first").encode_texts(["a dog"])
    asked = []

    def stop() -> str | None:
        asked.append(1)
        return "enough" if len(asked) > 3 else None

    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            run = train(load_config(file=Path("toy.yaml")), name="elsewhere", stop=stop)
            found = load("first").encode_texts(["a dog"])
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert 0 < run.step < 6
    assert rows(run.path) == [row for row in rows(folder / "runs" / "first") if row["step"] <= run.step]
    assert (found == expected).all()


# ---- encoding


def test_embeddings_are_those_of_eval_to_the_bit(clipcoco, folder, scenes):
    clipcoco("eval", "first", "--embeddings", "first.npz", cwd=folder).ok()
    table = read_captions(scenes, "val2017")
    model = load("first")
    with np.load("first.npz") as file:
        images = model.encode_images(scenes / name for name in table.files)
        texts = model.encode_texts(table.captions)
        assert images.dtype == texts.dtype == np.float32
        assert (images == file["image_embeddings"]).all()
        assert (texts == file["text_embeddings"]).all()
    found = recall_at_k(images, texts, table.owners)
    assert found.mean[1] == pytest.approx(model.recall["own"]["r1"])
    assert found.i2t[10] == model.recall["own"]["i2t"]["r10"]


def test_a_picture_is_the_same_as_file_as_pil_image_and_as_array():
    model = load("first")
    opened = Image.open("dog.jpg")  # batches of one size: another one may change the last bit
    array = np.asarray(opened)
    flipped = np.ascontiguousarray(array[:, ::-1])[:, ::-1]  # negative strides
    vectors = model.encode_images(["dog.jpg", Path("dog.jpg"), opened, array, flipped], batch_size=5)
    assert (vectors == vectors[0]).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    grey = opened.convert("L")
    one, other = model.encode_images([grey, np.asarray(grey)])
    assert not np.allclose(one, vectors[0], atol=1e-3)
    assert (one == other).all()
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (model.encode_images([deep, grey])[0] == one).all()
    assert (model.encode_images([opened.convert("RGBA")] * 5)[0] == vectors[0]).all()


def test_batches_of_any_size_and_of_none():
    model = load("first")
    assert np.allclose(model.encode_images(["dog.jpg"] * 3, batch_size=2), model.encode_images(["dog.jpg"]), atol=1e-6)
    assert model.encode_images([]).shape == model.encode_texts([]).shape == (0, 16)
    texts = model.encode_texts(["a dog", "a cat", "a dog", "word " * 500, ""])
    assert texts.shape == (5, 16)
    assert (texts[0] == texts[2]).all()
    assert not (texts[0] == texts[1]).all()


@pytest.mark.parametrize("kind", ["name", "path", "PIL", "array", "tensor"])
def test_one_picture_and_one_text_give_one_vector(kind):
    model = load("first")
    with Image.open("dog.jpg") as opened:
        picture = opened.convert("RGB")
    pixels = np.asarray(picture)
    one = {
        "name": "dog.jpg",
        "path": Path("dog.jpg"),
        "PIL": picture,
        "array": pixels,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    }[kind]
    assert model.encode_images(one).shape == (16,)
    assert (model.encode_images(one) == model.encode_images(["dog.jpg"])[0]).all()
    assert (model.encode_texts("a dog") == model.encode_texts(["a dog"])[0]).all()


def test_a_batch_of_arrays_or_of_tensors_is_its_pictures():
    model = load("first")
    with Image.open("dog.jpg") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    batch = np.stack([pixels, pixels[::-1], pixels[:, ::-1]])
    expected = model.encode_images(list(batch))
    assert expected.shape == (3, 16)
    assert (model.encode_images(batch) == expected).all()
    assert (model.encode_images(torch.from_numpy(batch).permute(0, 3, 1, 2)) == expected).all()
    seen: list[Progress] = []
    model.encode_images((picture for picture in batch), batch_size=2, report=seen.append)
    model.encode_images(batch, batch_size=2, report=seen.append)
    assert [(event.done, event.total) for event in seen] == [(2, 0), (3, 0), (2, 3), (3, 3)]


def test_search_is_the_product_of_the_vectors(scenes):
    model, pictures = load("first"), sorted((scenes / "val2017").iterdir())
    vectors = model.encode_images(pictures)
    scores = vectors @ model.encode_texts(["a red star"])[0]
    best = np.argsort(-scores, kind="stable")[:4].tolist()
    by_path, by_vector = model.search("a red star", pictures, 4), model.search("a red star", vectors, k=4)
    assert [hit.image for hit in by_path] == [pictures[row] for row in best]
    assert [(hit.index, hit.score) for hit in by_path] == [(hit.index, hit.score) for hit in by_vector]
    assert [hit.score for hit in by_path] == pytest.approx(scores[best].tolist())
    assert len(model.search("a red star", pictures[:2])) == 2
    assert model.unknown_words("a Red hund on a sofa") == ["hund", "sofa"]
    with pytest.warns(UserWarning, match="in no training caption: hund"):
        model.search("hund", vectors)


def test_evaluate_gives_what_eval_prints(clipcoco, folder, scenes):
    printed = clipcoco("eval", "first", "--json", cwd=folder).json
    same = {**printed, "seconds": 0, "checkpoint": ""}
    model, events = load("first"), []
    before = process()
    for subject in ("first", Path("runs/first"), model):
        found = evaluate(subject, report=events.append)
        assert {**json.loads(json.dumps(found)), "seconds": 0, "checkpoint": ""} == same
    assert process() == before
    assert any(isinstance(event, Progress) for event in events)
    assert evaluate(model, {"data.root": str(scenes)}, split="train")["images"] == 48
    with torch.no_grad():
        model.model.visual.head[0].weight.zero_()  # it is measured as it is now
    assert evaluate(model)["protocols"]["own"]["i2t"]["r1"] == 0
    with pytest.raises(ConfigError, match="model, not the measurement"):
        evaluate(model, {"model.projection_dim": 3})
    with pytest.raises(ConfigError, match="no split 'tests'"):
        evaluate(model, split="tests")


def test_settings_come_as_a_dictionary_too(folder):
    settings = {"train.epochs": 1, "data.crop_scale": [0.9, 1.0], "train.lr": 1e-5, "train.precision": "float32"}
    run = train("toy.yaml", overrides=settings, name="by-dictionary")
    config = run.model().config
    assert (config.train.epochs, config.data.crop_scale, config.train.lr) == (1, [0.9, 1.0], 1e-5)
    assert resume(run.path, {"train.epochs": 2}).step == 12
    with pytest.raises(ConfigError, match=r"train.epochs must be"):
        train("toy.yaml", overrides={"train.epochs": "many"})
    with pytest.raises(TypeError, match="give them to load_config"):
        train(load_config("demo"), overrides={"train.epochs": 1})
    with pytest.raises(TypeError, match="not as one string"):
        train("demo", overrides="train.epochs=1")


def test_a_model_says_what_it_is_worth(folder):
    model = load("first")
    said = f"mean R@1 {model.recall['own']['r1']:.2f} over 24 images (chance 4.17)"
    assert repr(model) == f"<clipcoco model runs/first/checkpoints/best.pt, on cpu: {said}>"
    page = model._repr_html_()
    assert said in page
    for way in ("i2t", "t2i"):
        assert all(f"<td>{model.recall['own'][way][key]:.2f}</td>" in page for key in ("r1", "r5", "r10"))
    content = torch.load(model.path, weights_only=True)
    content["metrics"], content["state"]["step"] = [], 5
    torch.save(content, folder / "<b>.pt")
    young = load("<b>.pt")
    assert repr(young) == "<clipcoco model <b>.pt, on cpu: never measured>"
    assert young._repr_html_() == "<p>clipcoco model &lt;b&gt;.pt, on cpu: never measured</p>"


def test_what_the_page_for_users_of_open_clip_says_holds(capsys):
    page = (Path(__file__).parents[1] / "docs/from_open_clip.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].replace('"demo"', '"first"'), names)
    assert names["tokens"].shape == (1, 16)
    for kind in ("text", "image"):
        np.testing.assert_allclose(names[kind][0], names[f"{kind}s"][0], atol=1e-6)
    np.testing.assert_allclose(names["probs"].sum(dim=-1), 1, atol=1e-6)
    assert capsys.readouterr().out.splitlines()[0] == str(load("first").recall["own"]["i2t"]["r1"])
    here = [line.split(" | ", 1)[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"\b(?:data|model|train)\.[a-z][a-z_]+(?:\.[a-z_]+)*(?=[=`, ])", " ".join(here))) <= {
        *SETTINGS,
        *("model.encode_images", "model.model.encode_images", "model.model.logit_scale"),
    }
    reference = (Path(__file__).parents[1] / "docs/reference.md").read_text()
    assert all(f"`{option}" in reference for option in re.findall(r"--[a-z][a-z-]+", " ".join(here)))


def test_what_is_not_a_picture_or_not_a_text_is_named():
    model = load("first")
    (Path.cwd() / "broken.jpg").write_bytes(Path("dog.jpg").read_bytes()[:200])
    for wrong in ("broken.jpg", "nowhere.jpg"):
        with pytest.raises(DataError, match=f"image 1 can't be read: .*{wrong}"):
            model.encode_images(["dog.jpg", wrong])
    for wrong, says in (
        (np.zeros((8, 8, 3)), r"image 0 is a float64 array \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"image 0 is a uint8 array \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"image 0 is a torch.uint8 tensor \(8, 8, 3\)"),
        (torch.zeros(3, 8, 8), r"image 0 is a torch.float32 tensor \(3, 8, 8\)"),
        (None, "image 0 is a NoneType"),
    ):
        with pytest.raises(TypeError, match=says):
            model.encode_images([wrong])
    with pytest.raises(ValueError, match="no pixels"):
        model.encode_images([np.zeros((0, 8, 3), np.uint8)])
    with pytest.raises(TypeError, match="text 1 is a int"):
        model.encode_texts(["a dog", 3])


def test_a_model_in_training_mode_encodes_the_same_and_stays_in_it():
    model = load("first")
    expected = model.encode_texts(["a dog"]), model.encode_images(["dog.jpg"])
    model.model.train()
    assert (model.encode_texts(["a dog"]) == expected[0]).all()
    assert (model.encode_images(["dog.jpg"]) == expected[1]).all()
    assert model.model.training


# ---- loading


def test_recall_is_of_the_very_weights(folder):
    """Of other weights of the run it would be a figure that they never reached."""
    best, last = load("first"), load("first/epoch_002")
    evaluations = [row for row in rows(folder / "runs" / "first") if row["event"] == "evaluation"]
    assert best.recall["own"]["r1"] == max(row["r1"] for row in evaluations)
    assert (last.recall["own"]["i2t"], last.recall["own"]["images"]) == (evaluations[-1]["i2t"], 24)


def test_recall_is_what_was_measured_at_the_end_where_that_is_known(clipcoco, folder):
    path = folder / "runs" / "first" / "evaluation.json"
    clipcoco("report", "first", cwd=folder).ok()
    whole = json.loads(path.read_text())
    assert json.loads(json.dumps(load("first").recall)) == whole["result"]["protocols"]
    seen = {"i2t", "t2i", "r1", "rsum", "images"}
    elsewhere = whole | {"result": whole["result"] | {"step": 3}}
    for other in (elsewhere, [], {"result": None}, {"result": {"step": whole["result"]["step"]}}):
        path.write_text(json.dumps(other))
        assert load("first").recall["own"].keys() == seen
    path.write_text("[" * 10_000)
    assert load("first").recall["own"].keys() == seen
    path.unlink()


def test_what_is_neither_a_run_nor_a_checkpoint_is_a_checkpoint_error():
    for words in ("nobody", "toy.yaml", "first/epoch_900", ""):
        with pytest.raises(CheckpointError):
            load(words)


# ---- recall


@pytest.mark.parametrize("kind", [np.float64, np.float16, torch.bfloat16])
def test_recall_equals_the_definition_written_out(kind):
    generator = np.random.default_rng(0)
    owners = generator.permutation(np.repeat(np.arange(30), 3))
    images = generator.integers(-2, 3, (30, 4)).astype(np.float32)  # small whole numbers: many ties
    texts = images[owners] + generator.integers(-1, 2, (90, 4)).astype(np.float32)
    scores = texts @ images.T
    own = owners[:, None] == np.arange(30)
    t2i = np.array([1 + (row[~mask] >= row[mask]).sum() for row, mask in zip(scores, own, strict=True)])
    i2t = np.array([1 + (c[~m] >= c[m].max()).sum() for c, m in zip(scores.T, own.T, strict=True)])
    if kind is torch.bfloat16:
        images, texts = torch.tensor(images).to(kind), torch.tensor(texts).to(kind).requires_grad_()
    else:
        images, texts = images.astype(kind), texts.astype(kind)
    found = recall_at_k(images, texts, owners, ks=(1, 3, 30))
    assert found.ties > 0
    for k in (1, 3, 30):
        assert found.i2t[k] == pytest.approx(100 * (i2t <= k).mean())
        assert found.t2i[k] == pytest.approx(100 * (t2i <= k).mean())


def test_recall_refuses_what_it_is_not_defined_for():
    eye = np.eye(3)
    for arguments in (
        (eye, eye, [0, 1]),  # too few owners
        (eye, eye, [0, 1, 1]),  # image 2 has no caption
        (eye, eye, [0, 1, 3]),
        (eye, eye, [0.0, 1.0, 2.0]),
        (eye, np.eye(4), [0, 1, 2, 2]),  # other dimensions
        (eye[0], eye, [0, 1, 2]),
        (eye.astype(int), eye, [0, 1, 2]),
        (eye[:0], eye[:0], []),
    ):
        with pytest.raises(DataError):
            recall_at_k(*arguments)
    with pytest.raises(NumericError, match="NaN"):
        recall_at_k(np.full((3, 3), np.nan), eye, [0, 1, 2])
    with pytest.raises(NumericError):
        recall_at_k(eye * 1e300, eye, [0, 1, 2])  # infinite in float32
    with pytest.raises(ValueError, match="ks"):
        recall_at_k(eye, eye, [0, 1, 2], ks=(0, 1))


def test_a_script_without_a_guard_trains_once_whatever_the_workers(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, clipcoco\n"
        "before = vars(sys.modules['__main__']).copy()\n"
        "config = clipcoco.load_config(file='toy.yaml', overrides=['data.workers=2', 'train.epochs=1'])\n"
        "print(clipcoco.train(config, runs_dir='unguarded').state, __file__ == before['__file__'], __spec__)\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()  # which optimisers and gradients import\n"
    )
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "finished True None\n"), done.stderr
    assert len(list((folder / "unguarded").iterdir())) == 1

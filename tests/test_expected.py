"""A finished run says whether it lies in the band of its preset, and nothing where it is another run than that."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from clipcoco.config.derive import as_cached
from clipcoco.config.load import config_from_plain, dump, load_config, preset_names, presets_folder, to_plain
from clipcoco.config.schema import SETTINGS
from clipcoco.disk.seal import seal_text, unsealed
from clipcoco.report.expected import FREE, read_expected
from clipcoco.report.page import write_report
from clipcoco.report.settings import commands, read_settings
from clipcoco.runs.config_file import write_settings
from clipcoco.runs.directory import RunDir
from conftest import LIGHT, TOY
from harness import Page


def presets_with(folder: Path, band: str, epochs: int = 1) -> str:
    """What a process runs so that its preset demo is a toy of 48 + 24 scenes, of which `band` is expected."""
    shutil.copytree(presets_folder(), folder)
    text = dump(load_config("demo", overrides=[*TOY, f"train.epochs={epochs}", f"expected.trained={band}"]))
    (folder / "demo.yaml").write_text(text.replace("extends: demo", "extends: base"))
    return (
        "import pathlib, clipcoco.config.derive as derive, clipcoco.config.load as load\n"
        f"load.presets_folder = lambda: pathlib.Path({str(folder)!r})\n"
        "derive.DRAWN.update(train=(48, 240), val=(24, 120))\n"
    )


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    """A finished run of the preset as it is, and of the preset with other settings, beside their data."""
    folder = tmp_path_factory.mktemp("expected")
    shutil.copytree(scenes, folder / "data" / "demo")
    toy = presets_with(folder / "presets", "[0, 100]")
    (folder / "prelude.py").write_text(toy)
    own = ("seed=3", "data.workers=0", "checkpoint.every_steps=4", "train.log_every_steps=2")
    done = clipcoco("train", "--preset", "demo", "--name", "as-it-is", *own, cwd=folder, prelude=toy).ok()
    (folder / "said").write_text(done.stdout)
    done = clipcoco(
        "train", "--preset", "demo", "--name", "changed", "--json", *LIGHT, "train.epochs=1", cwd=folder
    ).ok()
    (folder / "changed.json").write_text(done.stdout)
    return folder


@pytest.fixture
def run(folder, tmp_path) -> RunDir:
    """A copy of the records of the run of a preset as it is."""
    shutil.copytree(folder / "runs/as-it-is", tmp_path / "runs/run", ignore=shutil.ignore_patterns("*.pt"))
    return RunDir(tmp_path / "runs/run")


def test_a_run_of_a_preset_as_it_is_lies_in_its_band(folder):
    page = Page(folder / "runs/as-it-is/report.html")
    r1 = json.loads((folder / "runs/as-it-is/evaluation.json").read_text())["result"]["r1"]
    said = f"0 to 100 %, own gallery of 24: {r1:.2f} lies within\n"
    assert f"  expected  {said}" in (folder / "said").read_text()
    assert f"Expected of the preset demo: {said.strip().replace(':', ';')}." in page.words
    headline, expected, tables = (page.source.index(f'class="{name}"') for name in ("headline", "expected", "tables"))
    assert headline < expected < tables
    assert "look at" not in (folder / "said").read_text()


def test_report_says_the_same_again(clipcoco, folder):
    page = folder / "runs/as-it-is/report.html"
    before = page.read_bytes()
    clipcoco("report", "as-it-is", cwd=folder, prelude=(folder / "prelude.py").read_text()).ok()
    assert page.read_bytes() == before


@pytest.mark.parametrize(("band", "verdict"), [("[0, 0]", "above")])  # below is a test of its own
def test_beside_its_band_a_run_says_so_through_a_stop(clipcoco, folder, tmp_path, band, verdict):
    toy = presets_with(tmp_path / "presets", band, epochs=2)
    (tmp_path / "data").symlink_to(folder / "data")
    slow = toy + "import time, clipcoco.engine.step as step\nstep.set_learning_rate = lambda *_: time.sleep(0.1)\n"
    process = clipcoco.start("train", "--preset", "demo", "--name", "run", cwd=tmp_path, prelude=slow)
    process.wait_for("eval epoch 1 ")
    process.signal(signal.SIGINT)
    assert process.wait().code == 75
    assert "Expected of the preset" not in Page(tmp_path / "runs/run/report.html").words
    done = clipcoco("resume", "run", "--json", cwd=tmp_path, prelude=toy).ok()
    low, high = json.loads(band)
    wanted = {"low": low, "high": high, "protocol": "own", "verdict": verdict, "by": "preset"}
    assert done.json["expected"] == wanted
    words = Page(tmp_path / "runs/run/report.html").words
    assert f"lies {verdict}." in words
    assert ("then at another seed" in words) == (verdict == "below")
    longer = clipcoco("resume", "run", "train.epochs=3", cwd=tmp_path, prelude=toy).ok()
    assert "lies" not in longer.stdout
    assert (
        "That is not asked of this run: changed settings: train.epochs."
        in Page(tmp_path / "runs/run/report.html").words
    )


def test_a_run_below_its_band_says_where_to_look(clipcoco, folder, tmp_path):
    toy = presets_with(tmp_path / "presets", "[100, 100]")
    words = ["train", "--preset", "demo", "--name", "run", f"data.root={folder}/data/demo"]
    lines = clipcoco(*words, cwd=tmp_path, prelude=toy).ok().stdout.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.endswith("lies below"))
    assert lines[at + 1].startswith("  look at   the report's notes")


def test_of_other_settings_nothing_is_claimed(folder):
    assert json.loads((folder / "changed.json").read_text())["expected"] is None
    words = Page(folder / "runs/changed/report.html").words
    low, high = load_config("demo").config.expected.trained
    assert (
        f"Expected of the preset demo: {low:g} to {high:g} %, own gallery. That is not asked of this run: "
        "changed settings: data.image_size, data.crop_scale, model.projection_dim, model.temperature and"
    ) in words


def test_nothing_is_claimed_of_what_began_with_other_weights(clipcoco, folder, tmp_path):
    toy = presets_with(tmp_path / "presets", "[0, 100]")
    (tmp_path / "data").symlink_to(folder / "data")
    init = folder / "runs/as-it-is/checkpoints/best.pt"
    done = clipcoco("train", "--preset", "demo", "--name", "run", "--init", init, cwd=tmp_path, prelude=toy).ok()
    assert "lies" not in done.stdout
    assert (
        f"not asked of this run: it began with the weights of {init}." in Page(tmp_path / "runs/run/report.html").words
    )


# ---- the presets, with the records that they would leave behind


def dressed(
    run: RunDir, preset: str, *changes: str, cached: bool = False, r1: float, images: tuple[int, int], weights=""
) -> RunDir:
    """The records of `run` as if it were of `preset`: its configuration, its counts, and `r1` by either protocol."""
    loaded = load_config(preset, overrides=changes)
    write_settings(run, replace(loaded, config=as_cached(loaded.config)) if cached else loaded, {}, "")
    record = unsealed(json.loads(run.evaluation.read_text()))
    own = record["result"]["protocols"]["own"]
    record["result"]["protocols"] = {"own": {**own, "r1": r1}, "1k": {**own, "r1": r1, "folds": 5}}
    record["result"]["images"], record["provenance"]["data"]["train_images"] = images[1], images[0]
    record["provenance"]["data"]["weights"] = weights
    run.evaluation.write_text(json.dumps(record))
    return run


SIZES = {
    "demo": (6_000, 500),
    "tiny": (1_183, 250),
    "small": (11_829, 1_000),
    "medium": (59_144, 5_000),
    "full": (118_287, 5_000),
}


@pytest.mark.parametrize("cached", [False, True], ids=["trained", "cached"])
@pytest.mark.parametrize("preset", SIZES)
def test_each_preset_has_its_band_and_its_data(run, preset, cached):
    expected = load_config(preset).config.expected
    band = expected.cached if cached else expected.trained
    if band == "none":
        assert read_expected(dressed(run, preset, cached=cached, r1=50.0, images=SIZES[preset])) is None
        return
    assert 0 < band[0] < band[1] < 100
    for r1, verdict in ((band[0] - 0.01, "below"), (band[0], "within"), (band[1], "within"), (band[1] + 0.01, "above")):
        found = read_expected(dressed(run, preset, cached=cached, r1=r1, images=SIZES[preset]))
        assert (found.verdict, found.low, found.high) == (verdict, *band)
        among = f"own gallery of {SIZES[preset][1]:,}" if SIZES[preset][1] < 5_000 else "folds of 1,000"
        assert found.band == f"{band[0]:g} to {band[1]:g} %, {among}"
    fewer = (SIZES[preset][0] - 1, SIZES[preset][1])
    for other in (fewer, SIZES["full" if preset == "demo" else "demo"]):
        assert read_expected(dressed(run, preset, cached=cached, r1=band[0], images=other)) is None
    words = Page(write_report(run)).words
    assert f"not asked of this run: other data than its {SIZES[preset][0]:,} + {SIZES[preset][1]:,} images." in words


def test_every_preset_but_base_and_own_states_a_band():
    stated = {name: load_config(name).config.expected for name in ("base", *preset_names())}
    of_base = stated.pop("base")
    assert (of_base.cached, of_base.trained) == ("none", "none")
    of_own = stated.pop("own")  # nobody knows whose pictures
    assert (of_own.cached, of_own.trained) == ("none", "none")
    assert all((band.cached, band.trained) != ("none", "none") for band in stated.values())


ANOTHER = {  # of each kind of setting another value than small's
    "seed": 7,
    "data.root": "elsewhere",
    "data.subset_seed": 1,
    "data.prepared_size": 0,
    "data.workers": 3,
    "train.precision": "float32",
    "train.log_every_steps": 1,
    "checkpoint.every_steps": 7,
    "checkpoint.keep": 0,
    "data.image_size": 192,
    "data.flip": "false",
    "model.text.width": 256,
    "model.vision.stages": 1,
    "train.lr": 1e-2,
    "train.epochs": 7,
    "train.frozen_epochs": 0,
    "train.early_stop_epochs": 2,
}


@pytest.mark.parametrize("name", ANOTHER)
def test_a_band_allows_for_place_pace_and_luck_alone(run, name):
    dressed(run, "small", f"{name}={ANOTHER[name]}", r1=15.0, images=SIZES["small"])
    found = read_expected(run)
    assert (found is not None) == (name in FREE)
    words = Page(write_report(run)).words
    assert ("15.00 lies within." in words) == (name in FREE)
    assert (f"changed settings: {name}." in words) == (name not in FREE)
    assert set(SETTINGS) >= FREE


def test_cached_features_are_what_auto_came_to_and_what_may_be_asked_for(run):
    for asked in ((), ("train.frozen_epochs=all",)):
        found = read_expected(dressed(run, "small", *asked, cached=True, r1=25.0, images=SIZES["small"]))
        assert (found.verdict, found.cached) == ("within", True)
        settings = read_settings(run)
        assert [at.name for at in settings.differing] == ["train.frozen_epochs"]
        again = commands(run, settings)[1].split("--set ")[1:]
        before = load_config(file=run.config).config
        trained = as_cached(load_config("small", overrides=again).config)
        assert trained == before  # on whatever device
    dressed(run, "small", "train.cached.epochs=3", cached=True, r1=25.0, images=SIZES["small"])
    assert "changed settings: train.epochs." in Page(write_report(run)).words


@pytest.mark.parametrize(
    ("cached", "change", "published"),
    [
        (False, "train.micro_batch_size=8", ""),  # BatchNorm is frozen: the same gradient
        (True, "train.backbone_lr_scale=0.5", ""),  # of no backbone that is trained
        (True, "data.crop_scale=[0.2, 1.0]", ""),  # of no image that is read again
        (False, "model.vision.weights=/disk/resnet.pth", "0676ba61" + 56 * "0"),
    ],
)
def test_what_changes_nothing_in_such_a_run_costs_no_band(run, cached, change, published):
    def expected(*more, cached=cached, weights=published):
        return read_expected(
            dressed(run, "small", change, *more, cached=cached, r1=15.0, images=SIZES["small"], weights=weights)
        )

    assert expected()
    if published:
        assert not expected(weights="0676ba62" + 56 * "0")
    elif cached:
        assert not expected("train.frozen_epochs=1", cached=False)
        assert "crop_scale" not in change or not expected("data.cached_crops=2")
    else:
        assert not expected("model.vision.weights=none")


def test_a_band_of_ones_own_is_judged_and_is_not_called_the_presets(run, tmp_path):
    """Set for the run: of whatever settings and data, it is what was asked."""
    band = "expected.trained=[40, 60]"
    for preset, *changes in (("small", "train.epochs=7"), ("own", "train.frozen_epochs=1")):
        dressed(run, preset, band, *changes, r1=15.0, images=(90, 10))
        found = read_expected(run)
        assert (found.verdict, found.to_plain()["by"]) == ("below", "settings")
        words = Page(write_report(run)).words
        assert "Expected by the settings of this run: 40 to 60 %, own gallery of 10; 15.00 lies below." in words
        assert "Expected of the preset" not in words
    dressed(run, "small", "expected.protocol=1k", r1=15.0, images=SIZES["small"])
    assert read_expected(run).to_plain()["by"] == "settings"
    # As a run of a version whose preset said otherwise: its own file names that preset.
    dressed(run, "small", band, r1=15.0, images=SIZES["small"])
    text = run.config.read_text()
    said = "# --set (small.yaml:"
    (at,) = (line for line in text.splitlines() if "trained: [40" in line)
    assert said in at
    older = "".join(text.replace(at, f"{at.partition('#')[0]}# small.yaml:36").splitlines(keepends=True)[1:])
    run.config.write_text(seal_text(older))
    assert read_expected(run).to_plain() == {
        "low": 40,
        "high": 60,
        "protocol": "own",
        "verdict": "below",
        "by": "preset",
    }


def test_the_readme_promises_what_the_presets_do():
    """Of each preset its epochs, batches and bands; of a measured one the recall lies inside."""
    readme = (presets_folder().parent / "README.md").read_text()
    for name in SIZES:
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}` |"))
        config = load_config(name).config
        bands = [(config.expected.cached, config.train.cached), (config.expected.trained, config.train)]
        for band, steps in bands:
            if band != "none":
                assert f"{steps.epochs} x {steps.batch_size}" in line
            if band != "none" and "measured" not in line:
                assert f"{band[0]:g} to {band[1]:g} %" in line
        stated = sum(band != "none" for band, _ in bands)
        assert len(re.findall(r"\d+ to \d+ %", line)) == (0 if "measured" in line else stated)
        if "measured" in line:
            (r1,) = re.findall(r"\*\*([\d.]+) %\*\*", line)
            assert config.expected.trained[0] <= float(r1) <= config.expected.trained[1]
        assert ("in folds of 1,000" in line) == (config.expected.protocol == "1k")


@pytest.mark.parametrize("state", ["stopped", "failed", "running"])
def test_a_run_without_its_end_is_not_judged(run, state):
    dressed(run, "small", r1=15.0, images=SIZES["small"]).write_status(state=state, exit_code=1)
    assert read_expected(run) is None
    assert "Expected of" not in Page(write_report(run)).words


def test_an_older_run_and_an_edited_one_are_not_judged(run):
    dressed(run, "small", r1=15.0, images=SIZES["small"])
    text = run.config.read_text()
    run.config.write_text(text.replace("seed: 0", "seed: 1"))
    assert read_expected(run) is None
    older = "".join(text.split("expected:")[0].splitlines(keepends=True)[1:])
    run.config.write_text(seal_text(older))
    assert read_expected(run) is None
    write_report(run)
    assert "expected." not in str(read_settings(run).differing)
    plain = to_plain(load_config("small").config)
    del plain["expected"]
    assert config_from_plain(plain, "a checkpoint").expected.cached == "none"

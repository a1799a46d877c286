import os
import re
import resource
import threading
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from clipcoco.config.derive import (
    OFFICIAL,
    derive,
    resolve_backbone_lr_scale,
    resolve_frozen_epochs,
    resolve_warmup,
    subset_size,
)
from clipcoco.config.load import (
    config_from_plain,
    dump,
    flatten,
    load_config,
    override,
    preset_names,
    presets_folder,
    to_plain,
)
from clipcoco.config.messages import suggestion
from clipcoco.config.schema import SETTINGS, Config, json_schema
from clipcoco.config.text import written
from clipcoco.disk.seal import seal_text
from clipcoco.errors import ConfigError, DataError
from harness import python


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mistakes(content: str | bytes, name: str = "my.yaml") -> tuple[str, ...]:
    """What the loader says about a file of this content."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(file=Path(name))
    assert all(line.isprintable() and len(line) < 300 for line in caught.value.mistakes)
    return caught.value.mistakes


def accepted(content: str | bytes) -> Config:
    Path("my.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_config(file=Path("my.yaml")).config


def set_mistakes(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config("small", overrides=overrides)
    return caught.value.mistakes


# ---- files that are refused, one mistake each


def test_a_pipe_is_read_once_it_is_written_to_and_not_waited_for_for_ever(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr("clipcoco.config.text._PATIENCE_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="nobody has written to it"):
        load_config(file=pipe)
    monkeypatch.undo()
    writer = threading.Timer(0.2, pipe.write_text, ["extends: small\nseed: 7\n"])
    writer.start()
    assert load_config(file=pipe).config.seed == 7
    writer.join()
    reading, writing = os.pipe()  # what a shell makes of <(command)
    os.write(writing, b"extends: small\nseed: 8\n")
    os.close(writing)
    assert load_config(file=Path(f"/dev/fd/{reading}")).config.seed == 8
    os.close(reading)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the configuration is empty (my.yaml)."),
        ("# nothing\n\n", "the configuration is empty (my.yaml)."),
        ("---\n", "the configuration is empty (my.yaml)."),
        ("- a\n- b\n", "the configuration must be sections with settings, not a list (my.yaml)."),
        ("tiny\n", "the configuration must be sections with settings, not one value (my.yaml)."),
        ("model:\n  vision:\n    stages: two\n", "model.vision.stages must be one of 1, 3, not two (my.yaml:3)."),
        ("train:\n  learning_rat: 1\n", "train.learning_rat is not a setting (my.yaml:2). Did you mean train.lr?"),
        ("train:\n  foo: 1\n", "train.foo is not a setting (my.yaml:2)."),
        ("trian:\n  lr: 1\n  epochs: 2\n", "trian is not a section (my.yaml:1). Did you mean train?"),
        ("train.lr: 1\n", "train.lr has a dot in its key (my.yaml:1). Write lr below train."),
        ("train: 5\n", "train must be a section with settings, not 5 (my.yaml:1)."),
        ("train:\nseed: 1\n", "train is empty (my.yaml:1). Indent its settings below it, or remove the line."),
        ("train:\n  lr: 1\n  epochs: 3\n  lr: 2\n", "train.lr is there twice (my.yaml:2 and my.yaml:4). Keep one."),
        ("train:\n  lr: 1\ntrain:\n  lr: 2\n", "train is there twice (my.yaml:1 and my.yaml:3). Keep one."),
        ("train:\n  epochs: ten\n", "train.epochs must be a whole number of at least 1, not ten (my.yaml:2)."),
        ("train:\n  epochs: 2.5\n", "train.epochs must be a whole number of at least 1, not 2.5 (my.yaml:2)."),
        ("train:\n  epochs: '3'\n", 'train.epochs must be a whole number of at least 1, not "3" (my.yaml:2).'),
        ("train:\n  epochs: true\n", "train.epochs must be a whole number of at least 1, not true (my.yaml:2)."),
        ("train:\n  epochs:\n", "train.epochs must be a whole number of at least 1, not null (my.yaml:2)."),
        ("train:\n  lr: true\n", "train.lr must be a number above 0 and at most 10, not true (my.yaml:2)."),
        ("train:\n  lr: {a: 1}\n", "train.lr must be a number above 0 and at most 10, not a section (my.yaml:2)."),
        ("train:\n  lr: 0\n", "train.lr must be above 0, not 0 (my.yaml:2)."),
        ("train:\n  lr: -1e-4\n", "train.lr must be above 0, not -0.0001 (my.yaml:2)."),
        ("train:\n  epochs: 0\n", "train.epochs must be at least 1, not 0 (my.yaml:2)."),
        ("train:\n  batch_size: 0\n", "train.batch_size must be at least 2, not 0 (my.yaml:2)."),
        ("train:\n  batch_size: 1000000\n", "train.batch_size must be at most 65,536, not 1000000 (my.yaml:2)."),
        ("train:\n  lr: .nan\n", "train.lr must be finite, not nan (my.yaml:2)."),
        ("train:\n  lr: -.inf\n", "train.lr must be finite, not -inf (my.yaml:2)."),
        ("train:\n  grad_clip: 1e400\n", "train.grad_clip must be finite, not inf (my.yaml:2)."),
        ("train:\n  epochs: .inf\n", "train.epochs must be finite, not inf (my.yaml:2)."),
        ("train:\n  warmup_steps: .inf\n", "train.warmup_steps must be finite, not inf (my.yaml:2)."),
        ("data:\n  crop_scale: [.nan, 1]\n", "data.crop_scale must be finite, not [nan, 1] (my.yaml:2)."),
        ("data:\n  train_fraction: 0\n", "data.train_fraction must be above 0, not 0 (my.yaml:2)."),
        ("data:\n  val_fraction: -0.5\n", "data.val_fraction must be above 0, not -0.5 (my.yaml:2)."),
        ("data:\n  train_fraction: 1.1\n", "data.train_fraction must be at most 1, not 1.1 (my.yaml:2)."),
        ("data:\n  crop_scale: [0.9, 0.5]\n", "data.crop_scale must be [smaller, larger], not [0.9, 0.5] (my.yaml:2)."),
        (
            "data:\n  crop_scale: [1]\n",
            "data.crop_scale must be a list of 2 numbers, each above 0 and at most 1, not [1] (my.yaml:2).",
        ),
        ("data:\n  workers: -1\n", "data.workers must be auto or a whole number of at least 0, not -1 (my.yaml:2)."),
        ("data:\n  workers: all\n", "data.workers must be auto or a whole number of at least 0, not all (my.yaml:2)."),
        ("data:\n  flip: on\n", "data.flip must be true or false, not on (my.yaml:2)."),
        ("data:\n  flip: 1\n", "data.flip must be true or false, not 1 (my.yaml:2)."),
        ("data:\n  root: ''\n", "data.root must not be empty (my.yaml:2)."),
        ("data:\n  root: 12\n", "data.root must be text, not 12 (my.yaml:2)."),
        ('data:\n  root: "a\\0b"\n', "data.root must be text on one line without control characters (my.yaml:2)."),
        ("seed: 12:30\n", 'seed must be a whole number of at least 0, not "12:30" (my.yaml:1).'),
        (
            "train:\n  precision: fp16\n",
            "train.precision must be one of auto, float32, bfloat16, float16, not fp16 (my.yaml:2).",
        ),
        (
            "model:\n  text:\n    heads: 7\n",
            "model.text.heads must divide width: 512 is not a multiple of 7 (my.yaml:3, presets/base.yaml:LINE).",
        ),
        (
            "model:\n  vision:\n    backbone: resnet18\n    weights: imagenet-v2\n",
            "model.vision.weights can be imagenet-v1, none or a file for backbone resnet18, not imagenet-v2 "
            "(my.yaml:4, my.yaml:3).",
        ),
        (
            "model:\n  vision:\n    weights: None\n",
            "model.vision.weights can be imagenet-v1, imagenet-v2, none or a file for backbone resnet50, "
            "not None (my.yaml:3, presets/base.yaml:LINE).",
        ),
        ("expected:\n  cached: [30, 20]\n", "expected.cached must be [lower, upper], not [30.0, 20.0] (my.yaml:2)."),
        (
            "expected:\n  trained: [1, 101]\n",
            "expected.trained must be none or a list of 2 numbers, each at least 0 and at most 100, not [1, 101] "
            "(my.yaml:2).",
        ),
        ("train:\n  epochs: 3\n\tlr: 1\n", "tabs are not allowed"),
        ("train:\n\tlr: 1\n", "tabs are not allowed (my.yaml:2:1). Indent by spaces."),
        ("data: [1, 2\n", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ('data:\n  root: "C:\\data"\n', "not valid YAML: found unknown escape character 'd' (my.yaml:2:13)."),
        ("a: b: c\n", "not valid YAML: mapping values are not allowed here (my.yaml:1:5)."),
        (b"seed: \xff\n", "my.yaml:1 is not UTF-8. Save the file as UTF-8."),
        ("seed: 1\n".encode("utf-16"), "my.yaml is UTF-16. Save it as UTF-8."),
        ("seed: 1\n".encode("utf-16-le"), "my.yaml:1 holds a NUL byte. Save it as UTF-8 text."),
        (b"seed: 1\n\x00", "my.yaml:2 holds a NUL byte. Save it as UTF-8 text."),
        (b"seed: 1\n# \x07\n", "a character that text cannot have (my.yaml:2)."),
        ("seed: 1\n---\nseed: 2\n", "a second document starts (my.yaml:2)."),
        ("seed: " + "7" * 5_000, "a number of 5,000 digits is too long (my.yaml:1)."),
        ("seed: &a 1\n", "anchors (&name) are not allowed (my.yaml:1). Write the value out."),
        ("seed: &a [*a]\n", "aliases (*name) are not allowed (my.yaml:1). Write the value out."),
        ("seed: !!int 1\n", 'tags ("tag:yaml.org,2002:int") are not allowed (my.yaml:1). Write the plain value.'),
        ("? [a]\n: 1\n", "a setting's name must be a word (my.yaml:1)."),
        ("extends: smal\n", "no preset and no file smal to extend (my.yaml:1). Did you mean small?"),
        ("extends: nowhere.yaml\n", "no preset and no file nowhere.yaml to extend (my.yaml:1)"),
        ("extends: [tiny]\n", "extends must be a preset's name or a file, not [tiny] (my.yaml:1)."),
        ("extends: my.yaml\n", "files extend each other in a circle: my.yaml -> my.yaml."),
    ],
)
def test_refused(content: str | bytes, said: str) -> None:
    before, after = [*said.split("LINE"), ""][:2]
    found = mistakes(content)[0]
    assert found.startswith(before)
    assert found.endswith(after)


def test_all_mistakes_at_once() -> None:
    found = mistakes(
        "train:\n  epochs: 0\n  learning_rate: 1\n  lr: 1\n  lr: ten\ndata: &d\n  flip: no\nmodel:\n  tau: 1\n"
    )
    assert len(found) == 6
    for part in ("my.yaml:2", "my.yaml:3", "my.yaml:4 and my.yaml:5", "train.lr must", "anchors", "model.tau"):
        assert sum(part in line for line in found) == 1


def test_a_mistake_in_what_is_extended_names_that_file() -> None:
    Path("below").mkdir()
    Path("below/parent.yaml").write_text("train:\n  epochs: 0\n")
    found = mistakes("extends: below/parent.yaml\nfoo: 1\n")
    assert found == (
        "foo is not a setting (my.yaml:2).",
        "train.epochs must be at least 1, not 0 (below/parent.yaml:2).",
    )


def test_a_circle_over_two_files() -> None:
    Path("b.yaml").write_text("extends: my.yaml\n")
    assert mistakes("extends: b.yaml\n")[0].endswith("my.yaml -> b.yaml -> my.yaml.")


def test_missing_file_folder_and_long_name(tmp_path: Path) -> None:
    for path, said in [
        (Path("no.yaml"), "no configuration file at no.yaml. One to start from: clipcoco inspect-config demo > FILE"),
        (Path("small.yaml"), "no configuration file at small.yaml. For the preset: --preset small"),
        (tmp_path, f"{tmp_path} cannot be read as a configuration file (Is a directory)."),
        (Path("x" * 300), "(File name too long)."),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(file=path)
        assert said in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission() -> None:
    Path("my.yaml").write_text("seed: 1\n")
    Path("my.yaml").chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_config(file=Path("my.yaml"))


def test_presets_and_files_are_told_apart() -> None:
    for arguments, said in [
        ({"preset": "smal"}, "no preset 'smal'. Did you mean small? (demo, tiny, small, medium, full, own)"),
        ({"preset": "clip_coco_tiny"}, "no preset 'clip_coco_tiny'. Did you mean tiny?"),
        ({"preset": "zzz"}, "no preset 'zzz' (demo, tiny, small, medium, full, own)"),
        ({"preset": "my.yaml"}, "no preset my.yaml. A file goes with --config."),
        ({}, "no configuration given. Name a preset (demo, tiny, small, medium, full, own) or a file."),
        ({"preset": "tiny", "file": Path("my.yaml")}, "a preset and a file are both given."),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(**arguments)
        assert str(caught.value).startswith(said)


# ---- files that are accepted


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("train:\n  lr: 1e-4\n", "train.lr", 0.0001),
        ("train:\n  lr: 1\n", "train.lr", 1.0),
        ("seed: 010\n", "seed", 10),
        ("seed: 0o10\n", "seed", 8),
        ("seed: 0x1F\n", "seed", 31),
        ("data:\n  flip: False\n", "data.flip", False),
        ("data:\n  root: on\n", "data.root", "on"),
        ("data:\n  root: 12:30\n", "data.root", "12:30"),
        ("data:\n  root: 2017-01-01\n", "data.root", "2017-01-01"),
        ("data:\n  root: my photos/Zürich\n", "data.root", "my photos/Zürich"),
        ("data:\n  root: ~/coco\n", "data.root", "~/coco"),
        ("data:\n  root: $SCRATCH/coco\n", "data.root", "$SCRATCH/coco"),
        ("data:\n  root: 'C:\\data'\n", "data.root", "C:\\data"),
        (b"\xef\xbb\xbfseed: 3\n", "seed", 3),
        (b"seed: 3\r\ntrain:\r\n  epochs: 4\r\n", "train.epochs", 4),
        ("%YAML 1.2\n---\nseed: 3\n...\n", "seed", 3),
        ("train:\n  warmup_steps: 0\n", "train.warmup_steps", 0),
        ("train:\n  warmup_steps: 0.1\n", "train.warmup_steps", 0.1),
        ("data:\n  workers: 0\n", "data.workers", 0),
        ("extends: tiny\n", "train.batch_size", 16),
    ],
)
def test_accepted(content: str | bytes, name: str, value: object) -> None:
    found = flatten(accepted(content))[name]
    assert found == value
    assert type(found) is type(value)


# ---- attacks and accidents, under limits of memory and time


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
        "seed: &x [*x]\n",
        "seed: " + "[" * 3_000 + "]" * 3_000,
        "seed: " + "[" * 3_000,
        "".join(f"{' ' * depth}a:\n" for depth in range(500)),
        "a: 1\n" * 150_000,
        "seed: [" + "1, " * 300_000 + "1]\n",
        "#" * 10_000_000,
    ],
    ids=["alias bomb", "self-reference", "nested", "unclosed", "indented", "many keys", "long list", "10 MB"],
)
def test_hostile_files_are_cheap(content: str) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(mistakes(content)) <= 2_001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024  # KiB


def test_a_tag_runs_nothing() -> None:
    Path("my.yaml").write_text('data:\n  root: !!python/object/apply:os.system ["touch sentinel"]\n')
    with pytest.raises(ConfigError, match=r"tags \(.*python/object/apply:os.system.*\) are not allowed"):
        load_config(file=Path("my.yaml"))
    assert not Path("sentinel").exists()


# ---- --set


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lr", "--set train.lr is not NAME=VALUE, as in train.lr=5e-4."),
        ("train.lr=", '--set "train.lr=" is not NAME=VALUE, as in train.lr=5e-4.'),
        ("=3", '--set "=3" is not NAME=VALUE, as in train.lr=5e-4.'),
        ("train.epochs=0", "train.epochs must be at least 1, not 0 (--set)."),
        ("train.epochs=__import__('os')", "train.epochs must be a whole number of at least 1, not"),
        ("train.learning_rate=1", "train.learning_rate is not a setting (--set). Did you mean train.lr?"),
        ("train={lr: 1}", "train is a section (--set). Name one of its settings, as in train.lr=5e-4."),
        ("data.crop_scale=[0.5", "not valid YAML: expected ',' or ']', but got '<stream end>' (--set"),
        ("seed=!!int 3", "tags"),
        ("extends=tiny", "extends is not a setting (--set)."),
    ],
)
def test_set_refused(text: str, said: str) -> None:
    (found,) = set_mistakes(text)
    assert found.startswith(said)


def test_set_wins_and_the_last_of_two() -> None:
    overrides = ["train.lr=1e-3", "train.lr=2e-3", "data.crop_scale=[0.5, 1]", "data.root=a=b"]
    loaded = load_config("small", overrides=overrides)
    assert loaded.config.train.lr == 0.002
    assert loaded.config.data.crop_scale == [0.5, 1.0]
    assert loaded.config.data.root == "a=b"


# ---- did you mean


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.learning_rate", "train.lr"),
        ("learning_rate", "train.lr"),
        ("lr", "train.lr"),
        ("train.bs", "train.batch_size"),
        ("train.batchsize", "train.batch_size"),
        ("train.n-epochs", "train.epochs"),
        ("train.epoch", "train.epochs"),
        ("trian.lr", "train.lr"),
        ("num_workers", "data.workers"),
        ("data.image_root", "data.root"),
        ("model.embed_dim", "model.projection_dim"),
        ("model.tau", "model.temperature"),
        ("model.backbone", "model.vision.backbone"),
        ("model.dropout", "model.text.dropout"),
        ("optimizer", "train"),
        ("model.vison", "model.vision"),
        ("train.foo", None),
        ("train.eps", None),
        ("model.colour", None),
        ("x", None),
    ],
)
def test_did_you_mean(name: str, meant: str | None) -> None:
    assert suggestion(name) == meant


# ---- provenance and the dump


def line_of(preset: str, text: str) -> str:
    lines = (presets_folder() / f"{preset}.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))
    return f"presets/{preset}.yaml:{number}"


def test_every_value_has_its_source() -> None:
    Path("my.yaml").write_text("extends: small\nseed: 4\ntrain:\n  weight_decay: 0.1\n")
    loaded = load_config(file=Path("my.yaml"), overrides=["train.epochs=12", "seed=5"])
    assert loaded.source.keys() == set(SETTINGS) == flatten(loaded.config).keys()
    assert loaded.source["train.weight_decay"] == "my.yaml:4"
    assert loaded.source["train.lr"] == line_of("small", "lr:")
    assert loaded.source["data.root"] == line_of("base", "root:")
    assert loaded.source["train.epochs"] == loaded.source["seed"] == "--set"
    lines = (presets_folder() / "small.yaml").read_text().splitlines()
    cached = next(number for number, line in enumerate(lines, 1) if line == "    epochs: 20")
    epochs = {
        "train.epochs": f"{line_of('small', 'epochs:')} says 10",
        "train.cached.epochs": f"presets/small.yaml:{cached} says 20",
    }
    assert loaded.replaced == {**epochs, "seed": "my.yaml:2 says 4"}
    assert (loaded.name, loaded.chain) == ("my", ("base", "small"))


def test_a_preset_by_its_file_is_that_preset() -> None:
    for name in ("base", "demo"):
        by_file = load_config(file=presets_folder() / f"{name}.yaml")
        assert by_file == load_config(name)


def test_dump_shows_sources_and_order() -> None:
    lines = dump(load_config("small", overrides=["train.epochs=12"]), ["11,829 images"]).splitlines()
    assert lines[0] == "# base.yaml, then small.yaml, then --set"
    assert lines[-1] == "# 11,829 images"
    source = line_of("small", "epochs:").removeprefix("presets/")
    (epochs,) = (line for line in lines if line.startswith("  epochs:"))
    assert epochs.split("#")[1].strip() == f"--set ({source} says 10)"
    assert len({line.index("#") for line in lines[2:-1] if "#" in line}) == 1


AWKWARD = [
    *("true", "null", "~", "1e-4", "010", ".inf", "# no", "a: b", "'q' \"d\" \\ b", "ü 漢 🐕", "- x", "%a", "2024"),
    *("[x]", "=a", "a\ufeffb", " "),
]


@pytest.mark.parametrize("diff", [False, True])
@pytest.mark.parametrize("root", AWKWARD)
def test_dump_comes_back_equal(root: str, diff: bool) -> None:
    plain = to_plain(load_config("small", overrides=["train.lr=1e-7", "seed=5", "train.warmup_steps=3"]).config)
    plain["data"]["root"] = root
    wanted = config_from_plain(plain, "here")
    assert load_config("small", overrides=[f"data.root={written(root)}"]).config.data.root == root  # as printed to type
    loaded = load_config("small")
    text = dump(replace(loaded, config=wanted), ["a line"], diff=diff)
    again = accepted(text)
    assert again == wanted
    assert [type(value) for value in flatten(again).values()] == [type(value) for value in flatten(wanted).values()]


@pytest.mark.parametrize("diff", [False, True])
def test_dump_of_a_dump_keeps_the_preset_behind_it(diff: bool) -> None:
    as_in_base = load_config("demo", overrides=["data.flip=true"])
    Path("mine.yaml").write_text(dump(as_in_base, diff=diff))
    again = load_config(file=Path("mine.yaml"))
    assert (again.chain, again.config) == (("base", "demo"), as_in_base.config)


def test_what_an_older_runs_file_leaves_out_means_what_it_meant_then() -> None:
    text = dump(load_config("small", overrides=["train.cached.epochs=25", "model.text.layers=4"]))
    later = re.compile(r"^ +(pool|stages|feature_dropout):.*\n| +cached:\n( {4}.*\n)+", re.MULTILINE)
    Path("config.yaml").write_text(seal_text(later.sub("", text)))
    loaded = load_config(file=Path("config.yaml"), overrides=["model.vision.stages=3"])
    config, small = loaded.config, load_config("small", overrides=["model.text.layers=4"]).config
    assert (config.model.text.pool, config.model.vision.stages) == ("end", 3)
    assert config.model.vision.feature_dropout == 0
    assert loaded.source["model.text.pool"] == "config.yaml"
    assert config.train.cached.epochs == config.train.epochs == small.train.epochs
    Path("mine.yaml").write_text(later.sub("", text))  # no run's: a file of one's own says what differs
    assert load_config(file=Path("mine.yaml")).config.model == small.model


def test_diff_shows_only_what_differs() -> None:
    text = dump(load_config("base", overrides=["train.epochs=3"]), diff=True)
    rows = [line.split("#")[0].rstrip() for line in text.splitlines()]
    assert rows == ["", "extends: base", "train:", "  epochs: 3"]


def test_a_replaced_value_cannot_break_the_dump() -> None:
    Path("my.yaml").write_text('data:\n  root: "a\\nseed: 7\\L b\\Nc"\n')
    loaded = load_config(file=Path("my.yaml"), overrides=["data.root=x"])
    assert accepted(dump(loaded)) == loaded.config


def test_a_file_name_cannot_break_the_dump() -> None:
    name = "a\nseed: 7 #.yaml"
    Path(name).write_text("seed: 3\n")
    assert accepted(dump(load_config(file=Path(name)))).seed == 3


# ---- configurations from a checkpoint


def test_plain_values_come_back() -> None:
    config = load_config("tiny").config
    assert config_from_plain(to_plain(config), "run.pt") == config


@pytest.mark.parametrize("values", [None, [], {}, {1: {2: 3}}, {"train": {"epochs": "x" * 10_000}}, {"seed": [[1]]}])
def test_crafted_plain_values_are_refused(values: object) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_plain(values, "run.pt")
    assert all("run.pt" in line and len(line) < 200 for line in caught.value.mistakes)


def test_override_of_a_stored_config() -> None:
    stored = load_config("tiny", overrides=["seed=9"]).config
    changed = override(stored, ["train.epochs=7"])
    assert (changed.seed, changed.train.epochs, changed.train.batch_size) == (9, 7, 16)
    with pytest.raises(ConfigError, match=r"train.epochs must be at least 1, not 0 \(--set\)"):
        override(stored, ["train.epochs=0"])


# ---- train.cached


def cached_of(*overrides: str, file: str = "") -> tuple[object, ...]:
    if file:
        Path("my.yaml").write_text(file)
    loaded = (
        load_config(file=Path("my.yaml"), overrides=overrides) if file else load_config("small", overrides=overrides)
    )
    return tuple(flatten(loaded.config)[f"train.cached.{name}"] for name in ("epochs", "batch_size", "lr"))


def test_what_is_said_of_train_is_said_of_train_cached_unless_that_is_said_apart() -> None:
    assert cached_of() == (20, 256, 5e-4)
    assert cached_of("train.epochs=3") == (3, 256, 5e-4)
    assert cached_of("train.epochs=3", "train.cached.epochs=7") == (7, 256, 5e-4)
    assert cached_of(file="extends: small\ntrain:\n  batch_size: 20\n") == (20, 20, 5e-4)
    own = "extends: small\ntrain:\n  batch_size: 20\n  cached:\n    batch_size: 40\n"
    assert cached_of(file=own) == (20, 40, 5e-4)
    assert cached_of("train.lr=2e-3", file=own) == (20, 40, 2e-3)


def test_an_older_configuration_means_by_train_cached_what_it_says_of_train() -> None:
    plain = to_plain(load_config("tiny").config)
    del plain["train"]["cached"], plain["model"]["text"]["pool"], plain["model"]["vision"]["stages"]
    plain["model"]["text"]["layers"] = 2
    older = config_from_plain(plain, "run.pt")
    assert older.train.cached.model_dump() == {"epochs": 5, "batch_size": 16, "lr": 5e-4}
    assert (older.model.text.pool, older.model.vision.stages) == ("end", 1)


def test_a_mistake_in_both_is_told_once() -> None:
    assert len(set_mistakes("train.epochs=0")) == 1
    assert len(mistakes("train:\n  epochs: 0\n  cached:\n    epochs: -1\n")) == 2


# ---- presets and what follows from them


def test_the_presets_are_the_files() -> None:
    assert {path.stem for path in presets_folder().glob("*.yaml")} == {"base", *preset_names()}
    assert preset_names() == ["demo", "tiny", "small", "medium", "full", "own"]


@pytest.mark.parametrize(
    ("name", "images", "gallery", "per_epoch", "total", "frozen"),
    [
        ("tiny", 1_183, 250, 18, 360, 20),  # all frozen on every device
        ("small", 11_829, 1_000, 369, 3_690, 6),
        ("medium", 59_144, 5_000, 924, 18_480, 3),
        ("full", 118_287, 5_000, 924, 46_200, 3),
    ],
)
def test_steps_of_the_presets(name: str, images: int, gallery: int, per_epoch: int, total: int, frozen: int) -> None:
    config = load_config(name).config
    derived = derive(config, OFFICIAL["train"], OFFICIAL["val"], "the official table")
    assert derived.cached == (name == "tiny")
    on_a_cpu = derive(config, OFFICIAL["train"], OFFICIAL["val"], "the official table", "cpu")
    assert on_a_cpu.cached
    assert on_a_cpu.total_steps == 20 * (images // config.train.cached.batch_size)
    assert (derived.train_images, derived.val_images) == (images, gallery)
    assert (derived.steps_per_epoch, derived.total_steps) == (per_epoch, total)
    assert derived.frozen_epochs == frozen
    assert derived.backbone_lr_scale == 0.1
    assert derived.checkpoint_bytes == 12 * derived.parameters
    header = (presets_folder() / f"{name}.yaml").read_text().splitlines()
    assert header[0] == f"#   clipcoco train --preset {name}"
    assert f"{images:,}" in header[1]


def test_demo_needs_no_download() -> None:
    config = load_config("demo").config
    assert config.model.vision.weights == "none"
    assert config.data.flip is False
    derived = derive(config, (2_000, 10_000), (500, 2_500), "data/demo")
    assert (derived.frozen_epochs, derived.backbone_lr_scale) == (0, 1.0)


def test_subsets_round_half_up() -> None:
    assert [subset_size(n, fraction) for n, fraction in [(5, 0.5), (7, 0.5), (10, 1.0), (10, 0.04)]] == [3, 4, 10, 0]


def test_warmup_in_steps_and_as_a_share() -> None:
    assert resolve_warmup(0.05, 3_690) == 185
    assert resolve_warmup(500, 500) == 500
    with pytest.raises(ConfigError, match=r"train.warmup_steps is 501, more than the 500 steps of the whole run"):
        resolve_warmup(501, 500)


def test_auto_settings_say_why() -> None:
    auto = load_config("full").config.train
    assert resolve_frozen_epochs(auto, "imagenet-v1", 924, "cuda") == (3, "until the heads have had about 2,000 steps")
    assert resolve_frozen_epochs(auto, "none", 924, "cpu")[0] == 0
    assert resolve_backbone_lr_scale(auto, "my.pt") == 0.1
    fixed = load_config("full", overrides=["train.frozen_epochs=1", "train.backbone_lr_scale=0.5"]).config.train
    assert resolve_frozen_epochs(fixed, "none", 924, "cpu") == (1, "as set")
    assert resolve_backbone_lr_scale(fixed, "none") == 0.5


def test_too_few_images() -> None:
    config = load_config("tiny").config
    with pytest.raises(DataError, match=r"2 training images do not fill one batch of 64 .*train.cached.batch_size"):
        derive(config, (200, 1_000), (100, 500), "data/coco")
    fine_tuned = load_config("tiny", overrides=["train.frozen_epochs=0"]).config
    with pytest.raises(
        DataError, match=r"2 training images do not fill one batch of 16 \(data/coco\).*train.batch_size"
    ):
        derive(fine_tuned, (200, 1_000), (100, 500), "data/coco")
    with pytest.raises(DataError, match=r"data.val_fraction 0.05 of 5 validation images is none"):
        derive(config, (118_287, 591_753), (5, 25), "data/coco")


def test_reading_a_configuration_needs_no_torch() -> None:
    code = (
        "import sys, clipcoco.config.load as load, clipcoco.config.derive; load.load_config('small');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'rich', 'typer')))"
    )
    python(code)


class Yaml12(yaml.SafeLoader):
    """As editors read: 3e-4 is a number."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@pytest.mark.parametrize("preset", ["base", *preset_names()])
def test_an_editor_takes_every_preset_and_every_dump(preset):
    check = jsonschema.Draft202012Validator(json_schema()).validate
    check(yaml.load((presets_folder() / f"{preset}.yaml").read_text(), Yaml12))
    check(yaml.load(dump(load_config(preset)), Yaml12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 3}", "'epoch' was unexpected"),
        ("train: {epochs: none}", "'none' is not of type 'integer'"),
        ("model: {vision: {backbone: resnet-50}}", "'resnet-50' is not one of"),
        ("model: {text: {layers: -1}}", "-1 is less than the minimum"),
    ],
)
def test_an_editor_marks_what_is_wrong(text, said):
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.Draft202012Validator(json_schema()).validate(yaml.load(text, Yaml12))

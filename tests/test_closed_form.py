"""The closed form: its numbers, data from which nothing can be learnt, and its row in a run."""

import json
import math
from collections import Counter, OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from clipcoco.config.load import load_config
from clipcoco.data.features import Features
from clipcoco.data.tokenizer import END, PAD, START
from clipcoco.engine import checkpoint
from clipcoco.engine import closed_form as closed
from clipcoco.engine.evaluate import Inputs
from clipcoco.engine.model import build
from clipcoco.engine.recall import recall_table
from clipcoco.events import ClosedForm, Progress, StepDone, Warned
from clipcoco.runs import training as going
from clipcoco.runs.start import plan_run
from clipcoco.runs.training import make_ready
from conftest import LIGHT
from harness import Page, raising, rows
from test_go import HERE, loaded, resume, start

FIRST_WORD = 3  # behind the special tokens


def quiet(event: object) -> None: ...


def inputs(features: np.ndarray, captions: list[list[list[int]]], readable: list[bool] | None = None) -> Inputs:
    """`features` (N,V,F), and the words of the captions of each image, here in rows that stand upside down."""
    offsets = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    context = 2 + max(len(caption) for own in captions for caption in own)
    tokens = np.full((offsets[-1], context), PAD, np.int32)
    for row, caption in zip(tokens, [caption for own in captions for caption in own], strict=True):
        row[: len(caption) + 2] = [START, *caption, END]
    count = len(features)
    table = SimpleNamespace(
        files=[""] * count, offsets=offsets, owners=np.repeat(np.arange(count, dtype=np.int64), np.diff(offsets))
    )
    kept = Features(features[::-1].copy(), np.arange(count)[::-1].copy(), np.array(readable or [True] * count))
    return Inputs(None, table, tokens, workers=0, features=kept)


def paired(seed: int, count: int, width: int = 24, words: int = 40) -> Inputs:
    """Images and captions that speak of the same few of 12 things, each image with 1 to 4 captions."""
    rng, shown = np.random.default_rng(seed), np.random.default_rng(0).standard_normal((12, width))
    features, captions = np.zeros((count, 2, width)), []
    for image in range(count):
        things = rng.choice(12, 3, replace=False)
        features[image] = shown[things].sum(0) + 0.3 * rng.standard_normal((2, width))
        own = [[*rng.choice(things, 2), *(12 + rng.integers(0, words - 12, 2))] for _ in range(rng.integers(1, 5))]
        captions.append([[FIRST_WORD + int(word) for word in caption] for caption in own])
    # as of stages of a backbone, of which each has a scale of its own
    return inputs((features * np.geomspace(0.1, 10, width)).astype(np.float16), captions)


def oracle(train: Inputs, val: Inputs, words: int, coordinates: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of `val`: every pair written out, whitened by symmetric roots, in float64."""

    def captions(some: Inputs) -> list[list[int]]:
        return [[token for token in row if token not in (PAD, START, END)] for row in some.tokens.tolist()]

    def views(some: Inputs) -> np.ndarray:
        return some.features.rows[some.features.places].astype(np.float64)

    holding = Counter(word for caption in captions(train) for word in set(caption))
    chosen = sorted(holding, key=lambda word: (-holding[word], word))[:words]

    def tf_idf(caption: list[int]) -> np.ndarray:
        found = np.array([caption.count(w) * math.log(len(train.tokens) / holding[w]) for w in chosen])
        return found / (np.linalg.norm(found) or 1)

    def inverse_root(matrix: np.ndarray, ridge: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix + ridge * matrix.diagonal().mean() * np.eye(len(matrix)))
        return vectors / np.sqrt(values) @ vectors.T

    texts = [tf_idf(caption) for caption in captions(train)]
    pairs = []
    for image in np.flatnonzero(train.features.readable).tolist():
        own = np.flatnonzero(train.table.owners == image).tolist()
        pairs += [(1 / len(own), views(train)[image].mean(0), texts[row]) for row in own]
    share, x, y = (np.array(part) for part in zip(*pairs, strict=True))
    share = share / share.sum()
    x_mean, y_mean = share @ x, share @ y
    scale = np.sqrt(share @ (x - x_mean) ** 2) ** -0.5
    x, y = (x - x_mean) * scale, y - y_mean
    left = inverse_root((x * share[:, None]).T @ x, closed.RIDGES[0])
    right = inverse_root((y * share[:, None]).T @ y, closed.RIDGES[1])
    u, correlations, vt = np.linalg.svd(left @ ((x * share[:, None]).T @ y) @ right, full_matrices=False)
    u, correlations, v = u[:, :coordinates], correlations[:coordinates], vt.T[:, :coordinates]
    images = (views(val)[:, 0] - x_mean) * scale @ left @ u * correlations
    captioned = (np.array([tf_idf(caption) for caption in captions(val)]) - y_mean) @ right @ v * correlations
    return tuple(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (images, captioned))


@pytest.mark.parametrize("together", [10_240, 7, 1])  # captions in memory at once
def test_the_embeddings_are_those_of_a_literal_computation(monkeypatch, together):
    for name, value in (("_CAPTIONS", together), ("WORDS", 30), ("COORDINATES", 8)):
        monkeypatch.setattr(closed, name, value)
    train, val = paired(1, 150), paired(2, 60)
    train.features.readable[[0, 77]] = False
    words = closed._Words(train.tokens)
    images, texts = closed._correlate(train, words, quiet, lambda: None).embed(val, words)
    expected = oracle(train, val, words=30, coordinates=8)
    # coordinates may be mirrored, which no similarity tells
    np.testing.assert_allclose(images @ texts.T, expected[0] @ expected[1].T, atol=2e-5)
    table = closed.closed_form(train, val, quiet, lambda: None)
    assert table == recall_table(images, texts, torch.from_numpy(val.table.owners))
    assert table.r1 > 3 * (table.chance["i2t"]["r1"] + table.chance["t2i"]["r1"])
    assert (table.images, table.captions) == (60, len(val.tokens))


def test_what_is_not_readable_or_not_finite_says_nothing():
    train, val = paired(1, 80), paired(2, 40)
    train.features.readable[3] = False
    told = closed.closed_form(train, val, quiet, lambda: None)
    train.features.rows[train.features.places[3]] = np.nan
    assert closed.closed_form(train, val, quiet, lambda: None) == told
    train.features.readable[3] = True  # but it is infinite
    train.features.rows[train.features.places[3]] = np.inf
    assert closed.closed_form(train, val, quiet, lambda: None) == told
    val.features.rows[:, :, 5] = np.inf
    assert closed.closed_form(train, val, quiet, lambda: None).r1 == 0


WORD, OTHER = [FIRST_WORD], [FIRST_WORD + 1]


@pytest.mark.parametrize(
    "train",
    [
        inputs(np.ones((1, 1, 4), np.float16), [[WORD]]),
        inputs(np.ones((2, 1, 4), np.float16), [[WORD], [OTHER]]),
        inputs(np.eye(4, dtype=np.float16)[:, None], [[WORD], [WORD], [WORD], [WORD]]),
        inputs(np.eye(4, dtype=np.float16)[:, None], [[WORD], [OTHER], [[]], [WORD]], [False] * 4),
    ],
    ids=["one image", "constant features", "one caption", "nothing readable"],
)
def test_where_nothing_can_be_told_apart_all_are_misses(train):
    val = inputs(np.eye(4, dtype=np.float16)[:, None], [[WORD], [OTHER], [[99]], [[]]])
    assert closed.closed_form(train, val, quiet, lambda: None).r1 == 0


def test_few_images_of_many_features_and_unknown_words_are_no_trouble():
    train = paired(1, 5, width=300)
    val = paired(1, 5, width=300)  # what it learnt from
    val.tokens[-1, 1:-1] = 10**6
    assert closed.closed_form(train, val, quiet, lambda: None).r1 > 50


def test_a_stop_ends_it_at_the_next_part(monkeypatch):
    monkeypatch.setattr(closed, "_CAPTIONS", 50)
    told = []
    assert closed.closed_form(paired(1, 150), paired(2, 60), told.append, lambda: len(told) > 1) is None
    assert [event.phase for event in told] == ["closed form"] * 2
    assert told[0].done < told[1].done < told[1].total == 150


@pytest.mark.parametrize(
    ("change", "share"),
    [
        ("model.text.layers=0", 0.8),
        ("model.text.layers=2", 0.8),
        ("model.projection_dim=6", 0.7),  # of twelve things
        ("model.text.width=16", 0.7),
    ],
)
def test_a_model_that_begins_with_it_finds_nearly_as_much_before_its_first_step(change, share):
    train, val = paired(1, 300), paired(2, 60)
    table, random, begun = closed.closed_form(train, val, quiet, lambda: None), None, None
    for begins in (False, True):
        torch.manual_seed(0)
        settings = ["model.text.layers=0", "model.text.width=64", "model.projection_dim=32", "model.text.dropout=0"]
        settings += ["model.vision.backbone=resnet18", "model.vision.weights=none", "model.text.heads=2", change]
        model = build(load_config("base", overrides=settings).config.model, 100).eval()
        model.visual.head = torch.nn.Sequential(
            OrderedDict(proj=torch.nn.Linear(24, model.text.text_projection.shape[1], bias=False))
        )
        generator = torch.get_rng_state()
        if begins:
            closed.closed_form(train, val, quiet, lambda: None, model)
        assert torch.equal(torch.get_rng_state(), generator), "what training draws is the same"
        with torch.no_grad():
            images = model.encode_features(torch.from_numpy(val.features.take(range(60), [0] * 60)).float())
            texts = model.encode_texts(torch.from_numpy(val.tokens))
        random, begun = begun, recall_table(images, texts, torch.from_numpy(val.table.owners))
    assert random.r1 < 0.5 * table.r1
    assert begun.r1 > share * table.r1


# ---- its row in a run


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> tuple[str, ...]:
    """Random weights do: the features of drawn scenes still differ."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return (
        "model.vision.backbone=resnet18",
        f"model.vision.weights={path}",
        "train.frozen_epochs=all",
        "model.text.context_length=32",
    )


@pytest.fixture(scope="module")
def calm(scenes, frozen, tmp_path_factory):
    return start(scenes, tmp_path_factory.mktemp("calm"), *frozen)


def test_a_run_from_features_begins_with_its_row(calm):
    first, *others = (json.loads(line) for line in (calm.path / "metrics.jsonl").read_text().splitlines())
    assert (first["event"], first["step"], first["epoch"]) == ("closed form", 0, 1)
    assert first["clock"]["seconds"] > 0
    assert first["rsum"] == pytest.approx(sum(first[way][key] for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")))
    assert "closed form" not in [row["event"] for row in others]


def test_a_run_that_leaves_the_features_has_none(scenes, frozen, tmp_path):
    run = start(scenes, tmp_path, *frozen, "train.frozen_epochs=1")
    assert {row["event"] for row in rows(run.path)} == {"step", "evaluation"}


@pytest.mark.parametrize("when", ["in it", "before the first step", "after a step"])
def test_a_resumed_run_has_the_same_row_once(scenes, frozen, tmp_path, calm, when):
    kind, phase = {"in it": (Progress, "closed form"), "after a step": (StepDone, "")}.get(when, (ClosedForm, ""))
    events = []

    def stop():
        there = any(isinstance(event, kind) and getattr(event, "phase", "") == phase for event in events)
        return "a test" if there else None

    run = start(scenes, tmp_path, *frozen, events=events, stop=stop)
    assert run.status().state == "stopped"
    assert [row["event"] for row in rows(run.path)] == {
        "in it": [],
        "before the first step": ["closed form"],
    }.get(when, ["closed form", "step"])
    events.clear()
    resume(run, events)
    assert rows(run.path) == rows(calm.path)
    assert any(isinstance(event, ClosedForm) for event in events) == (when == "in it")


def test_memory_that_does_not_suffice_costs_a_warning(scenes, frozen, tmp_path, calm, monkeypatch):
    random = rows(start(scenes, tmp_path / "random", *frozen, "model.start=random").path)
    assert random[0] == rows(calm.path)[0]
    assert rows(calm.path)[1]["loss"] < random[1]["loss"], "what it begins with is worth something"
    monkeypatch.setattr(going, "closed_form", raising(MemoryError()))
    events = []
    run = start(scenes, tmp_path, *frozen, events=events)
    assert [e.message for e in events if isinstance(e, Warned)] == [
        "the closed form is left out: it does not fit into the memory"
    ]
    assert [row for row in rows(run.path) if row["event"] != "warning"] == random[1:]


def test_weights_that_are_given_begin_as_they_are(scenes, frozen, calm, tmp_path):
    init = calm.checkpoints / "last.pt"
    plan = plan_run(loaded(scenes, *frozen), **HERE | {"init": init}, name="two", runs_dir=tmp_path, report=quiet)
    before = checkpoint.load(init)["model"]["text.token_embedding.weight"]
    make_ready(plan.parts, plan.model, plan.state, None, quiet, lambda: None, compared=False)
    assert torch.equal(plan.model.text.token_embedding.weight, before)


def test_a_person_sees_it_beside_the_result(clipcoco, scenes, frozen, tmp_path):
    done = clipcoco("train", "--preset", "demo", *LIGHT, *frozen, f"data.root={scenes}", "--name", "one", cwd=tmp_path)
    row = rows(tmp_path / "runs/one")[0]
    i2t, t2i = ("/".join(f"{row[way][key]:.2f}" for key in ("r1", "r5", "r10")) for way in ("i2t", "t2i"))
    told = f"closed form (CCA, no training) R@1 {row['r1']:.2f} i2t {i2t} t2i {t2i}"
    assert told in done.ok().stderr
    assert told in (tmp_path / "runs/one/log.txt").read_text()
    lines = done.stdout.splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("  mean ")]
    assert lines[place + 1].split()[:3] == ["closed", "form", f"{row['r1']:.2f}"]
    assert f"  closed form: CCA, no training; i2t {i2t}, t2i {t2i}" in lines
    assert max(map(len, lines[:10])) <= 80
    again = clipcoco("runs", "one", cwd=tmp_path).ok().stdout.splitlines()
    assert lines[place + 1] in again
    page = Page(tmp_path / "runs/one/report.html")
    beside = [cells[1:4] for cells in page.cells if cells and cells[0] == "closed form"]
    assert beside == [i2t.split("/"), t2i.split("/")]
    assert f"needs none and reaches {row['r1']:.2f} % R@1" in page.words

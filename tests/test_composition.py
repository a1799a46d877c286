"""The composition meter: pairs of true and false captions, against plain loops, at the ends, and through commands."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipcoco import load_config, train
from clipcoco.config.load import dump
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.changed_words import false_captions
from clipcoco.data.false_captions import SUGAR_CREPE, FalseCaptions, read_sugar_crepe
from clipcoco.disk.seal import unsealed, write_sealed
from clipcoco.engine.composition import Judged, judge, margins
from clipcoco.engine.device import choose_device
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.evaluate import Inputs, embed
from clipcoco.engine.model import build
from clipcoco.engine.model_file import open_model
from clipcoco.engine.state import TrainState
from clipcoco.errors import DataError
from clipcoco.events import Evaluated, read_row
from clipcoco.prepare.scenes import drawn_false_captions, false_texts, scenes_of
from clipcoco.prepare.wording import false_captions as drawn_false
from clipcoco.report.comparison import between
from clipcoco.runs.directory import RunDir
from clipcoco.runs.measure import measure_run
from clipcoco.runs.metrics import plain_row
from clipcoco.runs.plan import read_parts
from clipcoco.runs.record import read_record
from clipcoco.runs.standing import read_standing
from clipcoco.runs.training import build_training
from conftest import LIGHT
from harness import one_line, rows

KINDS = ["colours swapped", "shapes swapped", "relation reversed", "colour replaced", "shape replaced"]


def table_of(images: int, captions: int = 5) -> CaptionTable:
    texts = [f"caption {number}" for number in range(images * captions)]
    offsets = np.arange(0, images * captions + 1, captions)
    ids, sizes = np.arange(images) + 10, np.zeros((images, 2), dtype=np.int64)
    files = [f"val2017/{number}.jpg" for number in range(images)]
    return CaptionTable(Path("."), ids, files, sizes, np.arange(len(texts)), texts, offsets, "ids", (), "val2017")


def judged(right: list[list[bool]], kind: str = "a") -> Judged:
    """Of each image the first captions, and whether each is nearer than a false one."""
    table = table_of(len(right), max(map(len, right)))
    pairs = [
        (kind, image, table.captions[table.offsets[image] + n], "x")
        for image, of in enumerate(right)
        for n in range(len(of))
    ]
    flat = np.array([one for of in right for one in of])
    return Judged(FalseCaptions.of("drawn scenes", table, pairs), table, np.where(flat, 0.5, -0.5))


def test_a_pair_is_right_where_the_image_is_nearer_to_its_caption_and_wrong_where_both_are_one():
    generator = torch.Generator().manual_seed(0)
    images, texts, false = (F.normalize(torch.randn(200, 16, generator=generator)) for _ in range(3))
    found = margins(images, texts, false)
    for image, true, other, margin in zip(images, texts, false, found.tolist(), strict=True):
        assert margin == pytest.approx(float(image @ true) - float(image @ other), abs=1e-6)
    assert (margins(images, texts, texts) == 0).all()  # to the bit, whatever the product's rounding
    assert (margins(images, images, false) > 0).all()
    assert (margins(images, false, images) < 0).all()


def test_perfect_blind_and_guessing_models():
    table = table_of(300, 2)
    owners = torch.from_numpy(table.owners)
    pairs = FalseCaptions.of(
        "drawn scenes", table, [("a", row // 2, text, "x") for row, text in enumerate(table.captions)]
    )
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(300, 16, generator=generator))
    random = F.normalize(torch.randn(600, 16, generator=generator))
    for texts, false, accuracy, ties in (
        (images[owners], random, 100.0, 0),
        (random, images[owners], 0.0, 0),
        (random, random, 0.0, 600),
    ):
        embeddings = Embeddings(images, texts, table.image_ids, table.caption_ids, owners, false=false)
        found = judge(embeddings, pairs, table).composition().kinds["a"]
        assert (found.accuracy, found.ties, found.pairs, found.images) == (accuracy, ties, 600, 300)
        low, high = found.interval
        assert (low == 0, high == 100) == (accuracy == 0, accuracy == 100)
        assert 0.5 < high - low < 2  # of 300 images, not of 600 pairs
    guess = Embeddings(images, random, table.image_ids, table.caption_ids, owners, false=random.roll(7, 0))
    low, high = judge(guess, pairs, table).composition().kinds["a"].interval
    assert low < 50 < high


def test_the_interval_is_that_of_a_plain_bootstrap_over_images():
    generator = np.random.default_rng(0)
    # Pairs of an image stand or fall together: over pairs the interval would be too narrow.
    right = [[bool(generator.random() < 0.6)] * int(generator.integers(1, 6)) for _ in range(150)]
    found = judged(right).composition().kinds["a"]
    flat = [one for of in right for one in of]
    assert found.accuracy == pytest.approx(100 * np.mean(flat))
    assert (found.pairs, found.images) == (len(flat), 150)
    shares = []
    for _ in range(4000):
        drawn = [right[image] for image in generator.integers(150, size=150)]
        shares.append(100 * sum(map(sum, drawn)) / sum(map(len, drawn)))
    assert found.interval == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.8)
    assert judged(right).counts()["a"]["pairs"] == [len(of) for of in right]
    assert judged(right).counts()["a"]["right"] == [sum(of) for of in right]
    assert judged(right).counts()["a"]["image_ids"] == list(range(10, 160))


def test_a_pair_whose_true_caption_is_not_its_images_is_left_out():
    table = table_of(3, 2)
    given = [("a", 1, "caption 2", "x"), ("b", 1, "caption 0", "y"), ("b", 2, "caption 5", "z")]
    found = FalseCaptions.of("SugarCrepe", table, given)
    assert (found.kinds, found.true.tolist(), found.false) == (["a", "b"], [2, 5], ["x", "z"])
    assert found.fingerprint(table) != FalseCaptions.of("SugarCrepe", table, given[:1]).fingerprint(table)


# ---- a run on drawn scenes


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> Path:
    """A toy that was trained for two epochs."""
    folder = tmp_path_factory.mktemp("composition")
    loaded = load_config("demo", overrides=[*LIGHT, f"data.root={scenes}", "train.epochs=2", "checkpoint.keep=0"])
    (folder / "toy.yaml").write_text(dump(loaded))
    train(folder / "toy.yaml", name="toy", runs_dir=folder / "runs")
    return folder / "runs" / "toy"


def test_training_sees_what_eval_measures(run, scenes):
    evaluations = [row for row in rows(run) if row["event"] == "evaluation"]
    result = measure_run(RunDir(run), None, None, lambda event: None).result
    best = next(row for row in reversed(evaluations) if row["best"])
    composition = result["composition"]
    assert list(composition["kinds"]) == KINDS
    assert composition["source"] == "drawn scenes"
    assert composition["chance"] == 50
    assert best["composition"] == {kind: found["accuracy"] for kind, found in composition["kinds"].items()}
    assert all(list(row["composition"]) == KINDS for row in evaluations)
    record, _ = read_record(RunDir(run))
    assert json.loads(json.dumps(asdict(record.result.composition))) == json.loads(json.dumps(composition))
    for kind, hits in record.false_captions.items():
        found = record.result.composition.kinds[kind]
        assert 100 * sum(hits.right) / sum(hits.pairs) == pytest.approx(found.accuracy)
        assert (len(hits.image_ids), sum(hits.pairs)) == (found.images, found.pairs)
        assert max(hits.pairs) == 1  # one of each kind an image, so that an evaluation stays cheap


def test_false_captions_change_no_bit_of_the_split_and_each_is_encoded_once(run, scenes):
    file = open_model(run / "checkpoints" / "best.pt")
    table, device = read_captions(scenes, "val2017"), choose_device("cpu", "float32")
    tokens = file.tokenizer.encode(table.captions, 16)
    false, _ = drawn_false_captions(scenes, table)
    # Two that are captions of the split, one twice, and one that is the true one when it is cut.
    texts = [*false.false, table.captions[7], table.captions[0] + " and more", false.false[0]]
    given = file.tokenizer.encode(texts, 16)
    given[-2] = tokens[0]
    seen, encode = [], file.model.encode_texts
    file.model.encode_texts = lambda batch: (
        seen.extend(map(tuple, F.pad(batch, (0, 16 - batch.shape[1])).tolist())),
        encode(batch),
    )[1]
    plain, both = (
        embed(
            file.model,
            Inputs(file.config.data, table, tokens, 0, false_tokens=more),
            device,
            lambda e: None,
            lambda: None,
        )
        for more in (None, given)
    )
    assert plain.false is None
    assert torch.equal(plain.images, both.images)
    assert torch.equal(plain.texts, both.texts)
    assert max(Counter(seen).values()) == 2  # once a call
    assert set(seen) == set(map(tuple, [*tokens.tolist(), *given.tolist()]))
    assert torch.equal(both.false[-3:-1], both.texts[[7, 0]])
    assert torch.equal(both.false[-1], both.false[0])
    file.model.eval()  # `embed` leaves it as it was
    alone = encode(torch.from_numpy(given[:1]))
    assert both.false[0] == pytest.approx(alone[0].detach().numpy(), abs=1e-5)


def test_a_row_of_older_and_of_other_data_has_no_such_key():
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.0, "median_rank": 4.0}
    row = plain_row(Evaluated(1, 1, float("nan"), recalls, recalls, 1.0))
    assert "composition" not in row
    assert row["val_loss"] is None  # of a number that is not finite the key stays
    read = read_row(json.dumps(row).encode())
    assert read.composition is None
    told = plain_row(Evaluated(1, 1, 1.0, recalls, recalls, 1.0, composition={"a": 50.0}))
    assert read_row(json.dumps(told).encode()).composition == {"a": 50.0}
    for wrong in ({"a": 101.0}, {"a" * 41: 50.0}, {str(n): 50.0 for n in range(21)}, {"a": None}):
        with pytest.raises(ValueError, match="composition"):
            read_row(json.dumps({**told, "composition": wrong}).encode())


def test_scenes_are_known_by_their_ids_and_of_other_data_nothing_is_claimed(scenes, tmp_path):
    table = read_captions(scenes, "val2017")
    whole, part = scenes_of(scenes, table), scenes_of(scenes, table.subset(0.4, 0))
    assert len(part) == 10
    assert set(part) < set(whole)
    assert len(scenes_of(scenes, read_captions(scenes, "train2017"))) == 48
    assert drawn_false_captions(tmp_path, table) == (None, "")  # somebody else's
    older = tmp_path / "older"
    shutil.copytree(scenes / "annotations", older / "annotations")
    shutil.copy(scenes / "README.txt", older)
    path = older / "annotations/captions_val2017.json"
    text = path.read_text()
    path.write_text(text.replace("red", "blue"))
    found, why = drawn_false_captions(older, read_captions(older, "val2017"))
    assert found is None
    assert "another version" in why
    path.write_text(
        text.replace('"id": 500001,', '"id": 400001,')
        .replace('"id": 500001}', '"id": 400001}')
        .replace('"image_id": 500001', '"image_id": 400001')
    )
    assert scenes_of(older, read_captions(older, "val2017")) is None


# ---- SugarCrepe


def crepe(folder: Path, content: dict[str, object]) -> Path:
    folder.mkdir()
    for name in SUGAR_CREPE:
        (folder / name).write_text(json.dumps(content.get(name, {})))
    return folder


def test_sugar_crepe_lies_on_val2017_word_for_word(shared, tmp_path):
    found = read_sugar_crepe(shared / "sugar-crepe", read_captions(shared / "coco-real", "val2017"))
    assert (found.source, len(found.false)) == ("SugarCrepe", 594)
    (tmp_path / "annotations").mkdir()
    shutil.copy(shared / "coco-annotations/captions_val2017.json", tmp_path / "annotations")
    table = read_captions(tmp_path, "val2017")
    whole = read_sugar_crepe(shared / "sugar-crepe", table)
    assert len(whole.false) == 7511
    assert len(set(table.owners[whole.true].tolist())) == 1560
    counts = (692, 2062, 788, 1652, 1406, 666, 245)  # as published
    assert Counter(whole.kinds) == {Path(name).stem: count for name, count in zip(SUGAR_CREPE, counts, strict=True)}
    assert not any(
        true == false for true, false in zip((table.captions[row] for row in whole.true), whole.false, strict=True)
    )
    for name in SUGAR_CREPE:  # as prepare-data will ask for them
        assert (shared / "sugar-crepe" / name).stat().st_size == SUGAR_CREPE[name][0]


def test_files_of_another_form_are_refused_in_one_line(tmp_path):
    table = table_of(3)
    pair = {"filename": "1.jpg", "caption": "caption 5", "negative_caption": "no caption"}
    good = crepe(tmp_path / "good", {"swap_obj.json": {"0": pair}})
    found = read_sugar_crepe(good, table)
    assert (found.source, found.true.tolist()) == ("SugarCrepe, another edition", [5])
    assert (
        read_sugar_crepe(crepe(tmp_path / "other", {"swap_obj.json": {"0": {**pair, "caption": "caption 0"}}}), table)
        is None
    )
    for number, content in enumerate(
        ([1], {"0": 1}, {"0": {"filename": "1.jpg"}}, {"0": {**pair, "caption": 1}}, {"0": {**pair, "filename": {}}})
    ):
        with pytest.raises(DataError, match=r"add_obj.json is none of SugarCrepe's files"):
            read_sugar_crepe(crepe(tmp_path / f"wrong{number}", {"add_obj.json": content}), table)
    (good / "add_att.json").write_bytes(b"\xff{")
    with pytest.raises(DataError) as error:
        read_sugar_crepe(good, table)
    one_line(error.value)
    (good / "add_att.json").unlink()
    assert read_sugar_crepe(good, table) is None


def test_two_runs_are_compared_on_the_same_pairs(run, scenes, tmp_path):
    runs = [RunDir(tmp_path / name) for name in ("a", "b")]
    for one in runs:
        shutil.copytree(run, one.path)
        measure_run(one, None, None, lambda event: None)
    record = unsealed(json.loads(runs[1].evaluation.read_text()))
    hits = record["false_captions"]["relation reversed"]
    hits["right"] = [1] * len(hits["right"])
    record["result"]["composition"]["kinds"]["relation reversed"]["accuracy"] = 100.0
    write_sealed(runs[1].evaluation, record)
    found = {row.direction: row for row in between(*map(read_standing, runs)).composition}
    assert list(found) == KINDS
    assert found["relation reversed"].beyond
    assert found["relation reversed"].b == 100
    low, high = found["colours swapped"].difference_interval
    assert low < 0 < high
    assert found["colours swapped"].name() == "colours swapped"
    del record["false_captions"]  # without them two accuracies and no interval of their difference
    write_sealed(runs[1].evaluation, record)
    assert {row.difference_interval for row in between(*map(read_standing, runs)).composition} == {None}
    others = {**hits, "pairs": [2] * len(hits["pairs"])}  # which the sum denies
    write_sealed(runs[1].evaluation, {**record, "false_captions": {"relation reversed": others}})
    assert {row.difference_interval for row in between(*map(read_standing, runs)).composition} == {None}
    record["result"]["composition"]["sha256"] = "other pairs"
    write_sealed(runs[1].evaluation, record)
    assert between(*map(read_standing, runs)).composition == ()
    for wrong in ({**hits, "right": [2] * len(hits["right"])}, {**hits, "pairs": []}, {**hits, "image_ids": [1, 1]}):
        write_sealed(runs[1].evaluation, {**record, "false_captions": {"a": wrong}})
        assert read_record(runs[1]) == (None, "evaluation.json is damaged")
    record["result"]["composition"]["kinds"] = {}
    write_sealed(runs[1].evaluation, record)
    assert read_record(runs[1]) == (None, "evaluation.json is damaged")


# ---- captions of photographs


@pytest.mark.parametrize(
    ("caption", "changed"),
    [
        ("A black cat on a red sofa.", {"swapped": "A red cat on a black sofa."}),
        ("An orange box beside a blue car", {"swapped": "A blue box beside an orange car"}),
        ("a man behind a woman", {"swapped": "a woman behind a man", "relation reversed": "a man in front of a woman"}),
        # what would stay true is not swapped
        ("a black and white dog", {"swapped": None}),
        ("A black dog and a white dog", {"swapped": None}),
        ("A black and white dog on white steps", {"swapped": None}),
        ("a man and a woman", {"swapped": None}),
        ("Boys over there", {"relation reversed": "Boys under there"}),
        ("Nothing of note", {"swapped": None, "replaced": None, "relation reversed": None}),
    ],
)
def test_words_of_a_caption_are_swapped_and_replaced(caption, changed):
    found = dict(false_captions(caption))
    assert list(found.items()) == false_captions(caption)
    assert {kind: found.get(kind) for kind in changed} == changed
    assert caption not in found.values()
    if "replaced" in found:
        old, new = (set(text.lower().split()) - {"a", "an"} for text in (caption, found["replaced"]))
        assert len(new - old) == 1


def test_most_captions_of_photographs_can_be_made_false(shared):
    content = json.loads((shared / "coco-annotations/captions_val2017.json").read_text())
    captions = [row["caption"] for row in content["annotations"][:3000]]
    assert sum(bool(false_captions(caption)) for caption in captions) > 0.75 * len(captions)


# ---- in training


def test_an_image_is_shown_false_captions_of_its_own(scenes):
    """As many as are asked for or as there are, others in another epoch, and none twice."""
    settings = load_config("demo", overrides=[*LIGHT, f"data.root={scenes}", "train.text_negatives=4"])
    parts = read_parts(settings.config, "cpu", "float32", None)
    table, drawn = parts.train_table, scenes_of(scenes, parts.train_table)
    training = build_training(parts, build(parts.config.model, 300), TrainState(), None, print, lambda: None)
    captions, owners = torch.arange(60), table.owners[:60]
    ids = torch.from_numpy(table.image_ids[owners])
    shown = [training.loader._false(epoch, captions, ids) for epoch in (0, 0, 1)]
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])
    counts = Counter()
    for caption, tokens in zip(captions.tolist(), shown[0].numpy(), strict=True):
        made = [text for _, text in drawn_false(drawn[owners[caption]], table.captions[caption])]
        possible = {row.tobytes() for row in parts.false_texts.encode(made)}
        found = [row.tobytes() for row in tokens if row.any()]
        assert len(set(found)) == len(found) == min(4, len(made))
        assert possible.issuperset(found)
        counts[len(found)] += 1
    assert counts[4]
    assert counts[2]  # of a caption of one thing


def test_of_photographs_words_are_changed_and_captions_without_any_are_refused(tmp_path):
    table = replace(table_of(2), captions=["A red dog beside a blue car"] * 10)
    assert "A blue dog beside a red car" in false_texts(tmp_path, table, 1, len).of(3)
    with pytest.raises(DataError, match=r"none of the first captions of val2017 .*train.text_negatives.* Set it to 0"):
        false_texts(tmp_path, table_of(2), 1, len)


# ---- the command


def test_eval_shows_the_table_and_refuses_what_it_cannot_use(clipcoco, run, scenes, tmp_path):
    def measured(*words: str):
        return clipcoco("eval", *words, cwd=tmp_path)

    done = measured(str(run)).ok()
    rows_shown = {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()}
    result = measured(str(run), "--json").json["composition"]
    for kind, found in result["kinds"].items():
        low, high = found["interval"]
        expected = [f"{found['accuracy']:.2f}", "±", f"{(high - low) / 2:.1f}", f"{found['pairs']}", f"{found['ties']}"]
        assert rows_shown[kind] == expected
    assert rows_shown["chance"][:1] == ["50.00"]
    assert max(map(len, done.stdout.splitlines())) <= 80

    # scenes of another version: recall alone, and a line says why
    older = tmp_path / "older"
    shutil.copytree(scenes, older)
    path = older / "annotations/captions_val2017.json"
    path.write_text(path.read_text().replace("red", "blue"))
    done = measured(str(run), f"data.root={older}").ok()
    assert "false captions" not in done.stdout
    assert "warning: no accuracy on false captions: these scenes were drawn by another version" in done.stderr

    # somebody's photographs with SugarCrepe, of one pair
    (older / "README.txt").unlink()
    one = next(iter(json.loads(path.read_text())["annotations"]))
    pair = {"filename": f"{one['image_id']:012}.jpg", "caption": one["caption"], "negative_caption": "Nothing."}
    folder = crepe(tmp_path / "crepe", {"swap_att.json": {"0": pair}})
    words = (str(run), f"data.root={older}")
    assert measured(*words, "--json").json["composition"] is None
    found = measured(*words, "--sugar-crepe", str(folder), "--json").json["composition"]
    assert (found["source"], list(found["kinds"])) == ("SugarCrepe, another edition", ["swap_att"])
    shutil.copytree(folder, older / "sugar-crepe")
    assert measured(*words, "--json").json["composition"] == found
    for given, code, part in (
        (tmp_path / "nowhere", 3, "is not a folder (--sugar-crepe)"),
        (tmp_path, 3, "are in"),
        (crepe(tmp_path / "others", {}), 3, "none of its captions is in val2017 (--sugar-crepe)"),
    ):
        refused = measured(*words, "--sugar-crepe", str(given))
        assert (refused.code, part in refused.stderr, len(refused.stderr.splitlines())) == (code, True, 1), (
            refused.stderr
        )
    refused = measured("--from-embeddings", "x.npz", "--sugar-crepe", str(folder))
    assert (refused.code, "--from-embeddings judges the file as it is" in refused.stderr) == (2, True)

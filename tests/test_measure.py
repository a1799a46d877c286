"""What takes neighbouring images together, folds and batches of the validation loss, and in which order."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipcoco.cli import run
from clipcoco.data.captions import read_captions
from clipcoco.engine.embeddings import Embeddings, write_embeddings
from clipcoco.engine.evaluate import in_order, validation_loss
from clipcoco.engine.loss import LOSSES
from clipcoco.engine.recall import folds_table
from clipcoco.prepare.own_data import adopt
from clipcoco.runs.measure import evaluate_embeddings

FOLDERS, EACH = 20, 100


def of_folders(ids: np.ndarray) -> Embeddings:
    """Pictures of a folder look alike, and five captions each; `ids` number them folder by folder."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(FOLDERS, 64, generator=generator).repeat_interleave(EACH, 0)
    images = F.normalize(centres + 0.7 * torch.randn(len(ids), 64, generator=generator))
    owners = torch.arange(len(ids)).repeat_interleave(5)
    noise = F.normalize(torch.randn(len(owners), 64, generator=generator))
    texts = F.normalize(images[owners] + 1.1 * noise)
    return Embeddings(images, texts, ids, np.arange(len(owners)), owners)


def test_neither_folds_nor_the_validation_loss_know_how_folders_are_sorted():
    by_folder = np.arange(FOLDERS * EACH)
    shuffled = np.random.default_rng(0).permutation(by_folder)
    found = {}
    for order in ("ids", "hashed ids"):
        for name, ids in (("by folder", by_folder), ("shuffled", shuffled)):
            embeddings = in_order(of_folders(ids), order)
            table = folds_table(embeddings.images, embeddings.texts, embeddings.owners)
            found[order, name] = table.r1, table.interval.r1, validation_loss(embeddings, LOSSES["infonce"], 32, 0.07)
    _, (low, high), loss = found["ids", "shuffled"]
    for name in ("by folder", "shuffled"):
        assert low < found["hashed ids", name][0] < high
        assert found["hashed ids", name][2] == pytest.approx(loss, rel=0.1)
    assert found["ids", "by folder"][0] < low - 2  # so that the above says something
    assert found["ids", "by folder"][2] > 3 * loss


def test_images_are_put_in_order_with_their_captions():
    ids = np.array([30, 10, 20])
    owners = torch.tensor([0, 0, 1, 2, 2])
    given = Embeddings(torch.eye(3), torch.eye(3)[owners] * torch.arange(1.0, 6)[:, None], ids, np.arange(5), owners)
    found = in_order(given, "ids")
    assert found.image_ids.tolist() == [10, 20, 30]
    assert (found.owners.tolist(), found.caption_ids.tolist()) == ([0, 1, 1, 2, 2], [2, 3, 4, 0, 1])
    assert torch.equal(found.images, torch.eye(3)[[1, 2, 0]])
    assert found.texts.argmax(1).tolist() == [1, 2, 2, 0, 0]
    assert in_order(given, "published") is given
    assert in_order(found, "ids") is found


def folds_of_file(path: Path, embeddings: Embeddings) -> dict:
    write_embeddings(path, embeddings)
    return evaluate_embeddings(path, ("1k",)).result["protocols"]["1k"]


def test_a_file_of_embeddings_shows_how_far_the_ranking_is(tmp_path, monkeypatch, capsys):
    write_embeddings(tmp_path / "e.npz", of_folders(np.arange(FOLDERS * EACH)))
    monkeypatch.setattr("clipcoco.console.run.LINE_SECONDS", 0.0)
    assert run(["eval", "--from-embeddings", str(tmp_path / "e.npz")]) == 0
    told = [line[9:] for line in capsys.readouterr().err.splitlines() if "ranking" in line]
    assert told == [f"ranking {done}/16" for done in range(16)]  # tiles


def test_a_file_of_embeddings_is_folded_by_hashed_ids_whatever_the_order_of_its_rows(tmp_path):
    embeddings = of_folders(np.arange(FOLDERS * EACH))
    by_folder = folds_of_file(tmp_path / "a.npz", embeddings)
    shuffled = np.random.default_rng(0).permutation(FOLDERS * EACH)
    rows = torch.from_numpy(shuffled)
    owners = rows.argsort()[embeddings.owners]
    mixed = Embeddings(
        embeddings.images[rows], embeddings.texts, embeddings.image_ids[shuffled], embeddings.caption_ids, owners
    )
    found = folds_of_file(tmp_path / "b.npz", mixed)
    assert found["order"] == by_folder["order"] == "hashed ids"
    assert found["r1"] == by_folder["r1"]


def test_folds_of_coco_are_the_published_ones(tmp_path, shared):
    content = json.loads((shared / "coco-annotations/captions_val2017.json").read_text())
    val2017 = np.array([row["id"] for row in content["images"]])  # in the order of the file, which is none
    names = (shared / "coco-annotations/karpathy_test.txt").read_text().split()
    karpathy = np.array([int(name[-16:-4]) for name in names])
    images = F.normalize(torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)))
    for ids, rows, order in ((val2017, val2017.argsort(), "ids"), (karpathy, np.arange(5000), "published")):
        found = folds_of_file(
            tmp_path / "e.npz", Embeddings(images, images.roll(1, 0), ids, np.arange(5000), torch.arange(5000))
        )
        expected = folds_table(images[rows], images.roll(1, 0)[rows], torch.arange(5000))
        assert (found["order"], found["rsum"]) == (order, expected.rsum)


def test_who_is_not_coco_is_taken_in_the_order_of_hashed_ids(tmp_path, scenes):
    assert read_captions(scenes, "val2017").order == "ids"
    own, root = tmp_path / "own.csv", tmp_path / "root"
    files = sorted((scenes / "val2017").iterdir())
    own.write_text("image,caption\n" + "".join(f"{file.name},a picture called {file.stem}\n" for file in files))
    adopt(own, scenes / "val2017", root, report=lambda progress: None)
    tables = [read_captions(root, split) for split in ("train2017", "val2017")]
    assert [table.order for table in tables] == ["hashed ids"] * 2
    assert [table.name for table in tables] == ["root train", "root val"]  # as their folder, not as COCO's
    assert read_captions(scenes, "val2017").name == "val2017"
    assert tables[0].subset(0.5, 0).order == "hashed ids"
    path = root / "annotations/captions_val2017.json"
    for info, order in (
        ({"description": "COCO 2017 Dataset"}, "ids"),
        ({"description": ["COCO 2017 Dataset"]}, "hashed ids"),
        ("COCO 2017 Dataset", "hashed ids"),
        (None, "hashed ids"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "info": info}))
        assert read_captions(root, "val2017").order == order

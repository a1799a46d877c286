"""Karpathy's test split: its ids, its images out of both folders, and who was trained on them."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipcoco.cli import run
from clipcoco.config.load import load_config
from clipcoco.data.captions import CaptionTable, read_captions
from clipcoco.data.karpathy import coco_ids, known_images, published_order
from clipcoco.data.split import ORIGINALS, Source, open_splits
from clipcoco.engine.embeddings import Embeddings, write_embeddings
from clipcoco.engine.extended import extended
from clipcoco.engine.trained_on import learnt_from, pictures_of
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.prepare.plan import Request
from conftest import LIGHT

COCO = {"description": "COCO 2017 Dataset"}


def annotated(root: Path, split: str, ids: list[int], captions: dict[int, list[int]], info: dict = COCO) -> None:
    """Captions of these images by their ids, six where nothing is said."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    given = {image: captions.get(image, [10**6 + 10 * image + n for n in range(6)]) for image in ids}
    images = [{"id": image, "file_name": f"{image:012d}.jpg", "width": 8, "height": 8} for image in ids]
    rows = [{"id": n, "image_id": image, "caption": f"caption {n}"} for image in ids for n in given[image]]
    content = {"info": info, "images": images, "annotations": rows}
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def with_pictures(table: CaptionTable) -> None:
    for image, file in zip(table.image_ids.tolist(), table.files, strict=True):
        (table.folder / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (image // 65536, image // 256 % 256, image % 256)).save(table.folder / file, "PNG")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Ten images for training and six for validation; four and two of them are Karpathy's."""
    test, five = coco_ids()["test"].tolist(), coco_ids()["test_captions"].tolist()
    captions = {image: [*five[5 * n : 5 * n + 5], 10**8 + n] for n, image in enumerate(test[:6])}
    captions[test[0]].reverse()
    annotated(tmp_path, "train2017", [*range(1, 7), *test[:4]], captions)
    annotated(tmp_path, "val2017", [*range(11, 15), *test[4:6]], captions)
    for split in ("train2017", "val2017"):
        with_pictures(read_captions(tmp_path, split))
    return tmp_path


def config(root: Path, *changes: str):
    return load_config("base", overrides=[f"data.root={root}", *changes]).config


def test_the_ids_are_those_that_are_published() -> None:
    known = coco_ids()
    assert [len(known[name]) for name in ("test", "val", "val2017", "test_captions")] == [5000, 5000, 5000, 25_000]
    assert not set(known["test"].tolist()) & set(known["val"].tolist())
    digest = hashlib.sha256(" ".join(map(str, known["test"].tolist())).encode()).hexdigest()
    assert digest == "203ac417d83f9daeaa4e041453b76d9ff25f6c96730a6dda61383fb3916df81e"  # in this order
    found = known_images(np.concatenate([known["test"], known["val"]]))
    assert list(found.values()) == [4407 + 4392, 593 + 608, 0, 5000, 5000]
    assert found["train2017"] == 4407 + 4392
    assert known_images(known["val2017"])["karpathy_train"] == 5000 - 593 - 608
    assert known_images(np.arange(5000)) is None  # of a few, which are COCO's by chance, nothing is said
    packed = Path(__file__).parents[1] / "src/clipcoco/data/karpathy.npz"
    assert packed.stat().st_size < 200_000
    with np.load(packed) as content:
        assert str(content["source"]).count("MIT") == 2


def test_they_agree_with_the_annotations_and_with_another_list(shared: Path) -> None:
    rows = json.loads((shared / "coco-annotations/captions_val2017.json").read_text())["annotations"]
    known, by_image = coco_ids(), {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row["id"])
    assert sorted(by_image) == known["val2017"].tolist()
    five, here = set(known["test_captions"].tolist()), set(known["test"].tolist()) & by_image.keys()
    assert len(here) == 593
    for image in here:
        assert [number for number in sorted(by_image[image]) if number in five] == sorted(by_image[image])[:5]
    names = (shared / "coco-annotations/karpathy_test.txt").read_text().split()
    assert known["test"].tolist() == [int(name[-16:-4]) for name in names]


def test_its_images_come_from_both_folders_with_five_captions_each(coco: Path) -> None:
    [split] = open_splits(config(coco).data, "karpathy-test")
    test = coco_ids()["test"][:6]
    assert split.table.image_ids.tolist() == sorted(test.tolist())
    assert {file.split("/")[0] for file in split.table.files} == {"train2017", "val2017"}
    assert all(int(file[-16:-4]) == image for file, image in zip(split.table.files, split.table.image_ids, strict=True))
    assert (np.diff(split.table.offsets) == 5).all()
    assert set(split.table.caption_ids.tolist()) == set(coco_ids()["test_captions"][:30].tolist())
    assert split.table.captions == [f"caption {number}" for number in split.table.caption_ids]
    assert (split.table.order, split.table.name) == ("published", "a part of karpathy-test")
    assert split.table.image_ids[published_order(split.table.image_ids)].tolist() == test.tolist()
    (coco / split.table.files[0]).unlink()
    with pytest.raises(DataError, match=r"1 of 6 images are missing in .* Get them: clipcoco prepare-data --all"):
        open_splits(config(coco).data, "karpathy-test")


def test_excluded_images_are_in_no_part_of_training_and_in_nothing_that_is_fetched(coco: Path) -> None:
    test, kept = set(coco_ids()["test"].tolist()), {}
    for fraction in (0.5, 1.0):
        settings = config(coco, "data.exclude=karpathy-test", f"data.train_fraction={fraction}").data
        train, val = open_splits(settings, "train", "val")
        kept[fraction] = set(train.table.image_ids.tolist())
        assert (len(train.whole.files), len(train.table.files)) == (6, round(6 * fraction))
        assert not kept[fraction] & test
        assert len(val.table.files) == 6  # val2017 stays whole
        request = Request(coco, {"train2017": fraction, "val2017": 1.0}, 0, 0, exclude="karpathy-test")
        assert request.table("train2017").fingerprint() == train.table.fingerprint()
        assert request.table("val2017").fingerprint() == val.table.fingerprint()
    assert kept[0.5] < kept[1.0]
    whole, _ = open_splits(config(coco).data, "train", "val")
    assert whole.table.fingerprint() != train.table.fingerprint()  # a resume sees it
    assert len(whole.table.files) == 10


@pytest.mark.parametrize("words", [["--split", "karpathy-test"], ["data.exclude=karpathy-test", "--split", "train"]])
def test_other_data_have_no_such_split(words: list[str], tmp_path: Path) -> None:
    annotated(tmp_path, "train2017", coco_ids()["test"][:4].tolist(), {}, {"description": "clipcoco scenes"})
    annotated(tmp_path, "val2017", [1, 2], {}, {"description": "clipcoco scenes"})
    settings = config(tmp_path, *(word for word in words if "=" in word)).data
    with pytest.raises(DataError, match=r"karpathy-test is of COCO 2017, and .* holds other data"):
        open_splits(settings, words[-1])


def test_of_all_that_train2017_shows_4407_are_counted(tmp_path: Path) -> None:
    """Ids and names tell, whether or not the pictures are there still."""
    known = coco_ids()
    inside = np.setdiff1d(known["test"], known["val2017"]).tolist()
    annotated(tmp_path, "train2017", [1, 2, *inside], {})
    annotated(tmp_path, "val2017", [3], {})
    nothing = Source(ORIGINALS, "", "")
    train, val = (read_captions(tmp_path, split) for split in ("train2017", "val2017"))
    pictures = pictures_of(train, val, nothing, lambda event: None)
    table = dataclasses.replace(
        train, image_ids=known["test"], files=[f"val2017/{image:012d}.jpg" for image in known["test"].tolist()]
    )
    assert learnt_from(pictures, table, nothing, lambda event: None) == len(inside) == 4407


def test_a_figure_of_what_was_trained_on_is_called_contaminated(coco: Path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path_factory.mktemp("runs"))
    small = [*LIGHT, "model.vision.weights=none", "train.epochs=1", "train.batch_size=2", "data.workers=0"]
    small += [f"data.root={coco}", "data.exclude=karpathy-test"]
    assert run(["train", "--preset", "base", *small, "--name", "held-out", "--plain"]) == 0
    assert "6 (without karpathy-test) + 6 images" in capsys.readouterr().err
    other = Path(shutil.copytree(coco, "other"))  # where four of the test images are pictures that were trained on
    for test, trained in zip(coco_ids()["test"][:4].tolist(), range(1, 5), strict=True):
        shutil.copy(coco / f"train2017/{trained:012d}.jpg", other / f"train2017/{test:012d}.jpg")
    for root, seen in ((coco, 0), (other, 4)):
        assert run(["eval", "--split", "karpathy-test", f"data.root={root}", "--embeddings", "e.npz"]) == 0
        said = capsys.readouterr().out
        assert "a part of karpathy-test" in said
        assert ("contaminated: trained on 4 of these 6 images" in said) == bool(seen)
        assert run(["eval", "--from-embeddings", "e.npz", "--json"]) == 0  # the file carries it on
        found = json.loads(capsys.readouterr().out)
        assert (found["images"], found["captions"], found["protocols"]["own"]["folds"]) == (6, 30, 1)
        assert found["caution"] == ("contaminated: trained on 4 of these 6 images" if seen else None)
    assert run(["resume", "held-out", "--set", "data.exclude=none", "--set", "train.epochs=2"]) == 2
    assert "data.exclude" in capsys.readouterr().err


def test_eccv_is_refused_of_other_data_and_without_its_package(tmp_path: Path, capsys, monkeypatch) -> None:
    known = coco_ids()
    rows, owners = torch.eye(3)[[0, 1, 2]], torch.arange(3)
    part = Embeddings(rows, rows, known["test"][:3], known["test_captions"][:3], owners)
    write_embeddings(tmp_path / "e.npz", part)
    words = ["eval", "--from-embeddings", str(tmp_path / "e.npz"), "--json", "--protocol"]
    assert run([*words, "eccv"]) == 2
    assert "are of Karpathy's test split: its 5,000 images with five captions each" in capsys.readouterr().err
    assert run([*words, "all"]) == 0
    assert "extended" not in json.loads(capsys.readouterr().out)
    monkeypatch.setattr("clipcoco.engine.extended.installed", lambda: False)
    owners = torch.arange(5000).repeat_interleave(5)
    whole = Embeddings(torch.ones(5000, 2), torch.ones(25_000, 2), known["test"], known["test_captions"], owners)
    with pytest.raises(EnvironmentProblem, match=r"not installed here \(--protocol\). pip install 'clipcoco\[eccv\]'"):
        extended(whole)

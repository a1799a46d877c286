"""The published COCO files, where they are at hand: counts, order, cleaning, decoding, token ids."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import models

from clipcoco.data.captions import overlap, read_captions
from clipcoco.data.images import evaluation_view, read
from clipcoco.data.split import check_files
from clipcoco.data.tokenizer import END, START, Tokenizer, pipeline

SHARED = Path(__file__).parents[2].parent / "shared"
ANNOTATIONS = SHARED / "coco-annotations" / "captions_val2017.json"
COCO = SHARED / "coco-real"


@pytest.fixture(scope="module")
def val_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ANNOTATIONS.is_file():
        pytest.skip(f"COCO's captions_val2017.json is not at {ANNOTATIONS}")
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    shutil.copy(ANNOTATIONS, root / "annotations")
    return root


@pytest.fixture
def coco() -> Path:
    if not COCO.is_dir():
        pytest.skip(f"no real COCO images at {COCO}")
    return COCO


def test_val2017_has_its_known_counts_order_and_clean_captions(val_root: Path) -> None:
    table = read_captions(val_root, "val2017")
    assert (len(table.image_ids), len(table.captions)) == (5_000, 25_014)
    assert Counter(np.diff(table.offsets).tolist()) == {5: 4_987, 6: 12, 7: 1}
    assert (np.diff(table.image_ids) > 0).all()
    assert table.image_ids[0] == 139
    assert table.files[0] == "val2017/000000000139.jpg"
    within = np.diff(table.owners) == 0
    assert (np.diff(table.caption_ids)[within] > 0).all()
    assert all(caption == " ".join(caption.split()) != "" for caption in table.captions)
    assert [note for note in table.notes if "dropped" in note] == []
    assert [len(table.subset(fraction, 0).image_ids) for fraction in (0.01, 0.1, 0.5)] == [50, 500, 2_500]


def test_token_ids_of_all_val_captions_equal_the_whole_pipeline(val_root: Path) -> None:
    captions = read_captions(val_root, "val2017").captions
    tokenizer = Tokenizer.train(captions, 10_000)
    assert 7_000 < tokenizer.vocab_size <= 10_000  # no pair is left that occurs twice
    plain = tokenizer.to_plain()
    whole = pipeline(models.BPE(vocab=plain["vocab"], merges=[tuple(pair) for pair in plain["merges"]]))
    rows = tokenizer.encode(captions, 80)
    expected = [[START, *encoded.ids, END] for encoded in whole.encode_batch(captions)]
    assert [row[row != 0].tolist() for row in rows] == expected


def test_real_images_are_there_and_decode(coco: Path) -> None:
    train, val = (read_captions(coco, split) for split in ("train2017", "val2017"))
    assert (len(train.image_ids), len(train.captions)) == (130, 650)
    assert (len(val.image_ids), len(val.captions)) == (300, 1_501)
    assert overlap(train, val) == 0
    for table in (train, val):
        check_files(table)
    for file in val.files:
        assert evaluation_view(read(coco / file), 64).shape == (3, 64, 64)

"""Rows on the disk: verified, appended, whole after a kill."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from clipcoco.data.features import FeatureFile, FeatureKey
from clipcoco.disk.rows import RowFile


class About(BaseModel):
    words: dict[str, str] = {}


def open_rows(path: Path, key: str = "k") -> RowFile[About]:
    return RowFile(path, {"made by": key}, (3,), About)


def rows(*firsts: float) -> np.ndarray:
    return np.array([[first, 1, 2] for first in firsts], np.float16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of two rows, saved one after the other."""
    file = open_rows(tmp_path / "x.f16")
    for number, name in enumerate("ab"):
        file.append([name], rows(number))
        file.about.words[name] = name * 2
        file.save()
    return file.path


def test_what_was_saved_is_read(path):
    file = open_rows(path)
    assert (file.places, file.about.words, file.note) == ({"a": 0, "b": 1}, {"a": "aa", "b": "bb"}, "")
    assert np.array_equal(file.rows, rows(0, 1))
    file.append(["c"], rows(2))
    assert np.array_equal(file.rows, rows(0, 1, 2))
    assert len(open_rows(path).rows) == 2  # nothing is on the disk before `save`


def test_of_another_key_is_no_row_and_no_damage(path):
    file = open_rows(path, "other")
    assert (len(file.rows), file.places, file.note) == (0, {}, "")


@pytest.mark.parametrize("part", [".f16", ".json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "folder"])
def test_damage_is_seen(path, part, damage):
    content, damaged = bytearray(path.with_suffix(part).read_bytes()), path.with_suffix(part)
    content[len(content) // 2] ^= 4
    damaged.unlink()
    if damage == "folder":
        damaged.mkdir()
    else:
        damaged.write_bytes({"flipped": content, "cut": content[:-1], "empty": b"", "garbage": b"x" * 999}[damage])
    file = open_rows(path)
    assert (len(file.rows), file.places, file.about.words, file.note) == (0, {}, {}, "x.f16 is damaged")


def test_what_a_kill_left_behind_the_last_whole_row_is_no_row(path):
    with open(path, "ab") as file:
        file.write(b"half")
    again = open_rows(path)
    again.append(["c"], rows(2))
    again.save()
    assert np.array_equal(open_rows(path).rows, rows(0, 1, 2))


def test_rows_that_are_mapped_stay_as_they_were_when_the_file_is_written_anew(path):
    before, file = open_rows(path), open_rows(path)
    file.keep(["b"])
    file.save()
    assert np.array_equal(before.rows, rows(0, 1))
    after = open_rows(path)
    assert (after.places, after.about) == ({"b": 0}, before.about)
    assert np.array_equal(after.rows, rows(1))


def test_a_save_that_fails_costs_nothing_that_was_saved(path, monkeypatch):
    file = open_rows(path)
    file.append(["c"], rows(2))
    with monkeypatch.context() as context:
        context.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            file.save()
    assert np.array_equal(open_rows(path).rows, rows(0, 1))
    file.save()
    assert np.array_equal(open_rows(path).rows, rows(0, 1, 2))


OF_0_1 = (
    '{"key": {"weights": "w", "backbone": "resnet18", "image_size": 64, "precision": "float32", "source": "originals", '
    '"mirror": false, "crops": 0, "crop_scale": [1.0, 1.0], "views_sha256": "v", "width": 3, "view": 2, '
    '"device": "cpu"}, "sha256": "4a3d3e268e1f7e8d493ec0ed08ff9fdf13c4d4e7dbf03f53efe6d6b8a17ae756", '
    '"images": [9, 4], "stamps": ["s", "t"], "unreadable": [4], '
    '"checksum": "684a3e30aeba6ca781a68b7f885b9e26d685af3b0f49f882d84630f2c3874ad2"}\n'
)


def test_features_of_0_1_are_read_and_written_in_the_same_way(tmp_path):
    key = FeatureKey("w", "resnet18", 64, "float32", "originals", False, 0, [1.0, 1.0], "v", 3, view=2)
    path = tmp_path / "features-resnet18-d8cd5ad814b3-val2017.f16"
    assert key.path(tmp_path, "val2017") == path
    path.write_bytes(rows(0, 1).tobytes())
    path.with_suffix(".json").write_text(OF_0_1)
    file = FeatureFile(path, key)
    assert (file.places, file.about.stamps, file.about.unreadable) == ({9: 0, 4: 1}, ["s", "t"], [4])
    assert np.array_equal(file.rows[:, 0], rows(0, 1))
    file.save()
    assert path.with_suffix(".json").read_text() == OF_0_1

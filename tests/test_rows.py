"""Rows on the disk: verified, appended, whole after a kill."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from clipcoco.data.features import FeatureFile, FeatureKey
from clipcoco.disk.arrays import Sum
from clipcoco.disk.rows import RowFile, locked
from clipcoco.disk.seal import read_sealed, write_sealed


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


class Wide(RowFile[About]):
    summed = ("sum", Sum)


def test_a_sum_at_the_speed_of_memory_is_of_all_bytes_however_they_were_added(tmp_path):
    block, rng = 2**20, np.random.default_rng(0)
    content = rng.standard_normal((7000, 256)).astype(np.float16)  # 3.4 blocks
    for name, steps in (("whole", [7000]), ("parts", [1, 2047, 2500, 2000, 452])):
        file = Wide(tmp_path / f"{name}.f16", {}, (256,), About)
        for stop, step in zip(np.cumsum(steps).tolist(), steps, strict=True):
            file.append(range(stop - step, stop), content[stop - step : stop])
            file.save()
            file = Wide(file.path, {}, (256,), About) if step % 2 else file
        assert not Wide(file.path, {}, (256,), About).note
    whole, parts = (tmp_path / name for name in ("whole.f16", "parts.f16"))
    assert whole.with_suffix(".json").read_bytes() == parts.with_suffix(".json").read_bytes()
    good = whole.read_bytes()
    changes = [
        (at, 1, good[at : at + 1].translate(bytes(i ^ 8 for i in range(256)))) for at in (0, block, 3 * block + 9)
    ]
    changes += [(at, 512, bytes(512)) for at in (0, 2 * block - 256)]
    changes += [(0, 1024, good[512:1024] + good[:512]), (0, 2 * block, good[block : 2 * block] + good[:block])]
    changes += [(0, 2**14, good[2**13 : 2**14] + good[: 2**13])]  # in the same columns
    for start, length, instead in changes:
        whole.write_bytes(good[:start] + instead + good[start + length :])
        assert Wide(whole, {}, (256,), About).note == "whole.f16 is damaged", (start, length)


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


UNCLOSED = pytest.mark.filterwarnings("ignore:.*FileIO")


def files(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def before_each_line(work: Callable[[], object], do: Callable[[], object]) -> None:
    """Of all that `work` runs here, in disk/ and in data/features.py."""

    def trace(frame, event, arg):
        if frame.f_code.co_filename.endswith(("/rows.py", "/seal.py", "/files.py", "/features.py", __file__)):
            do()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


def interrupted(at: int, work: Callable[[], object]) -> bool:
    """Whether it came to that line."""
    lines = count()

    def interrupt() -> None:
        if next(lines) == at:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        before_each_line(work, interrupt)
    return next(lines) > at


@pytest.mark.parametrize("kept", ["b", "ba", ""])
@pytest.mark.parametrize("new", [None, "c"])
def test_at_each_moment_of_a_save_others_read_whole_rows(path, kept, new):
    for name in ("x.f16", "other"):  # the rows go from file to file
        old, file = open_rows(path).places, open_rows(path)
        file.keep([name for name in kept if name in old])
        if new:
            file.append([name], rows(7))

        def read(old=old, file=file) -> None:
            found = open_rows(path)
            assert (found.note, found.places) in [("", old), ("", file.places)]
            assert all(found.rows[place, 0] == {"a": 0, "b": 1}.get(name, 7) for name, place in found.places.items())

        before_each_line(file.save, read)
        assert open_rows(path).places == file.places
        assert np.array_equal(open_rows(path).rows, file.rows)
        assert len(files(path)) == 2
    assert files(path) == {"x.f16", "x.json"}


def test_what_a_kill_left_of_another_file_is_removed_by_the_next_save(path):
    file = open_rows(path)
    file.keep("b")
    path.with_name("x.f16.0a1b2c3d").write_bytes(b"half")
    path.with_name("x.f16.json").write_bytes(b"of somebody else")
    file.save()
    assert {"x.f16", "x.f16.0a1b2c3d"}.isdisjoint(files(path))
    assert len(files(path)) == 3


@pytest.mark.parametrize("name", ["../x.f16", "", ".", "..", "/", 7, None, ["x.f16"], "x.f16\0"])
def test_a_file_of_rows_is_a_plain_name_beside_its_index(path, name):
    write_sealed(path.with_suffix(".json"), read_sealed(path.with_suffix(".json")) | {"file": name})
    assert open_rows(path).note == "x.f16 is damaged"


@pytest.mark.parametrize("content", [rows(0), rows(0, 1)], ids=len)
def test_a_name_that_occurs_twice_is_damage_even_when_the_sum_fits(path, content):
    twice = {"names": ["a", "a"], "sha256": hashlib.sha256(content.data).hexdigest()}
    write_sealed(path.with_suffix(".json"), read_sealed(path.with_suffix(".json")) | twice)
    assert open_rows(path).note == "x.f16 is damaged"


def test_without_locks_two_who_write_harm_neither_each_other_nor_a_reader(path):
    first, second, reader = (open_rows(path) for _ in range(3))
    for file, name in ((first, "c"), (second, "d"), (first, "e"), (second, "f")):
        file.shared = True
        inode = path.stat().st_ino if path.exists() else None
        file.append([name], rows(ord(name)))
        file.save()
        assert (open_rows(path).places, open_rows(path).note) == (file.places, "")
        assert np.array_equal(open_rows(path).rows, file.rows)
        assert inode is None or not path.exists() or path.stat().st_size == 12
    assert [list(file.places) for file in (first, second)] == [["a", "b", "c", "e"], ["a", "b", "d", "f"]]
    assert np.array_equal(reader.rows, rows(0, 1))
    assert len(files(path)) == 3  # of each its own


def test_without_locks_the_first_rows_take_no_name_that_another_may_take(tmp_path):
    both = [open_rows(tmp_path / "x.f16") for _ in range(2)]
    for number, file in enumerate(both):
        file.shared = True
        file.append("a", rows(number))
        file.save()
    assert len(files(tmp_path / "x.f16")) == 3
    assert np.array_equal(open_rows(tmp_path / "x.f16").rows, rows(1))


def test_a_file_that_was_replaced_meanwhile_is_not_appended_to(path):
    file, other = open_rows(path), rows(5, 6, 7, 8).tobytes()
    path.unlink()
    path.write_bytes(other)
    file.append(["c"], rows(2))
    file.save()
    assert np.array_equal(open_rows(path).rows, rows(0, 1, 2))


def test_a_file_with_another_name_stays_as_it_is(path, tmp_path):
    (tmp_path / "elsewhere").hardlink_to(path)
    before = path.read_bytes()
    file = open_rows(path)
    file.append(["c"], rows(2))
    file.save()
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert np.array_equal(open_rows(path).rows, rows(0, 1, 2))


@UNCLOSED
def test_an_interrupt_at_any_moment_leaves_names_and_rows_that_fit(path):
    for at in count():
        for new in (False, True):
            file = open_rows(path.with_name(f"{at}-{new}.f16") if new else path)
            had, name = len(file.places), f"{at}"

            def work(file=file, name=name) -> None:
                file.append([name, f"{name}'"], rows(3, 4))
                file.save()

            came = interrupted(at, work)
            assert len(file.rows) == len(file.places) in (had, had + 2)
            file.append([f"{name}+"], rows(5))
            file.save()
            again = open_rows(file.path)
            assert (again.note, again.places) == ("", file.places)
            assert np.array_equal(again.rows, file.rows)
            assert again.rows[-1, 0] == 5
        if not came:
            break
    assert at > 40


@pytest.mark.parametrize("call", ["numpy.memmap", "os.fsync", "os.fstat", "os.replace"])
@pytest.mark.parametrize("keep", ["ab", "b"])
def test_a_save_that_fails_leaves_an_object_that_is_of_use(path, monkeypatch, call, keep):
    file = open_rows(path)
    if keep == "b":
        file.keep(keep)
    file.append(["c"], rows(2))
    before = file.rows.copy()
    with monkeypatch.context() as context:
        context.setattr(call, lambda *args, **words: (_ for _ in ()).throw(OSError("no memory")))
        with pytest.raises(OSError, match="no memory"):
            file.save()
    assert files(path) == {"x.f16", "x.json"}
    assert np.array_equal(open_rows(path).rows, rows(0, 1))
    assert np.array_equal(file.rows, before)
    file.append(["d"], rows(3))
    file.save()
    assert np.array_equal(open_rows(path).rows, np.concatenate([before, rows(3)]))


def test_an_index_that_could_not_be_read_again_is_not_written(path, monkeypatch):
    monkeypatch.setattr("clipcoco.disk.seal._MOST", path.with_suffix(".json").stat().st_size + 9)
    file = open_rows(path)
    file.append(["a name of more than nine letters"], rows(2))
    with pytest.raises(OSError, match="it would have more than"):
        file.save()
    assert np.array_equal(open_rows(path).rows, rows(0, 1))


def test_where_there_are_no_locks_nothing_of_others_is_removed(path, monkeypatch):
    half, told = path.with_name(".x.f16.0a1b2c3d.tmp"), []
    half.touch()
    with monkeypatch.context() as context:
        context.setattr("fcntl.flock", lambda *args: (_ for _ in ()).throw(OSError(95, "not supported")))
        with locked(path, "search is writing", told.append) as alone:
            assert (alone, half.exists(), len(told)) == (False, True, 1)
    with locked(path, "search is writing", told.append) as alone:
        assert (alone, half.exists(), len(told)) == (True, False, 1)


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


@UNCLOSED
def test_an_interrupt_leaves_as_many_stamps_as_features(tmp_path):
    key = FeatureKey("w", "resnet18", 64, "float32", "originals", False, 0, [1.0, 1.0], "v", 3, view=2)

    def add(file: FeatureFile, images: list[int], stamps: list[str]) -> None:
        """As engine/features does."""
        file.about.stamps += stamps
        file.about.unreadable += images[1:]
        file.append(images, rows(*images)[:, None])
        file.save()

    for at in count():
        file = FeatureFile(tmp_path / f"{at}.f16", key)
        add(file, [9, 4], ["s", "t"])
        came = interrupted(at, lambda file=file: add(file, [6, 5], ["u", "v"]))
        file.save()
        again = FeatureFile(file.path, key)
        assert (again.note, len(again.rows)) == ("", len(file.places))
        assert (again.about.stamps, again.about.unreadable) in [(["s", "t"], [4]), (["s", "t", "u", "v"], [4, 5])]
        if not came:
            break
    assert len(again.places) == 4

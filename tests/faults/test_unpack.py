"""Archives that are damaged or interrupted: nothing half taken as good. Only the published ones come here."""

import hashlib
import os
import random
import re
import struct
import zipfile
from pathlib import Path

import pytest

from clipcoco.data.manifest import Entry
from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.prepare.unpack import unpack
from harness import file_size_limit, killable, one_line, tree

IMAGES = re.compile(r"val2017/\d{12}\.jpg")
CAPTIONS = re.compile(r"annotations/captions_(train|val)2017\.json")
STAGING = ".clipcoco/unpacking-val2017/"


def name(number: int) -> str:
    return f"val2017/{number:012d}.jpg"


def pictures(count: int = 5, size: int = 3000) -> dict[str, bytes]:
    rng = random.Random(0)
    return {name(number): rng.randbytes(size + number) for number in range(1, count + 1)}


def make(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("val2017")
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def call(archive: Path, root: Path, members: re.Pattern[str] = IMAGES) -> list[Entry]:
    kept: list[Entry] = []
    unpack(archive, root, members, lambda _: None, kept.append)
    return kept


def refusal(archive: Path, root: Path) -> str:
    """The one line of a DataError that names the archive; nothing has come to where training looks."""
    before = sorted(root.parent.iterdir())
    with pytest.raises(DataError) as caught:
        call(archive, root)
    message = one_line(caught.value)
    assert len(message) < 400
    assert archive.name in message
    assert not (root / "val2017").exists()
    assert set(root.parent.iterdir()) - set(before) <= {root}
    return message


def test_wanted_members_come_to_their_place_and_are_told_with_their_sums(tmp_path: Path) -> None:
    members = pictures()
    others = {"val2017/readme.txt": b"no", "val2017/1.jpg": b"no", "train2017/000000000001.jpg": b"no"}
    archive = make(tmp_path / "val2017.zip", members | others, zipfile.ZIP_DEFLATED)
    told: list[TaskProgress] = []
    kept: list[Entry] = []
    unpack(archive, tmp_path / "root", IMAGES, told.append, kept.append)
    assert tree(tmp_path / "root") == members
    assert kept == [Entry(n, len(data), hashlib.sha256(data).hexdigest()) for n, data in members.items()]
    assert {row.task for row in told} == {"unpack val2017.zip"}
    assert [row.done for row in told] == sorted(row.done for row in told)
    assert told[-1].done == told[-1].total == sum(map(len, members.values()))
    assert told[-1].unit == "bytes"


def test_of_the_annotations_only_the_captions(tmp_path: Path) -> None:
    wanted = {f"annotations/captions_{split}2017.json": b"{}" + split.encode() for split in ("train", "val")}
    archive = make(tmp_path / "a.zip", wanted | {"annotations/instances_val2017.json": b"large"})
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "mine.json").write_bytes(b"mine")
    call(archive, root, CAPTIONS)
    assert tree(root) == wanted | {"annotations/mine.json": b"mine"}


def test_a_second_call_writes_nothing_and_tells_the_same(tmp_path: Path) -> None:
    archive, root = make(tmp_path / "val2017.zip", pictures()), tmp_path / "root"
    first = call(archive, root)
    before = {path: path.stat().st_mtime_ns for path in (root / "val2017").iterdir()}
    assert call(archive, root) == first
    assert {path: path.stat().st_mtime_ns for path in (root / "val2017").iterdir()} == before


def test_files_that_are_not_the_archives_are_made_again(tmp_path: Path) -> None:
    members, root = pictures(), tmp_path / "root"
    archive = make(tmp_path / "val2017.zip", members)
    call(archive, root)
    (root / name(1)).write_bytes(b"x" * len(members[name(1)]))  # the right size
    (root / name(2)).write_bytes(members[name(2)][:-1])
    (root / name(3)).unlink()
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(b"mine")
    (root / name(4)).unlink()
    (root / name(4)).symlink_to(elsewhere)
    assert len(call(archive, root)) == len(members)
    assert tree(root) == members
    assert elsewhere.read_bytes() == b"mine"
    assert not (root / name(4)).is_symlink()


def test_zip64_is_read(tmp_path: Path) -> None:
    members, archive = pictures(3), tmp_path / "val2017.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for member, content in members.items():
            with file.open(member, "w", force_zip64=True) as target:
                target.write(content)
    data = archive.read_bytes()
    start, count = len(data) - 22, len(members)
    size, offset = struct.unpack("<LL", data[start + 12 : start + 20])
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    archive.write_bytes(data[:start] + end64 + locator + end)
    call(archive, tmp_path / "root")
    assert tree(tmp_path / "root") == members


def test_a_member_that_yields_less_than_it_said_is_refused(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1000)
    archive = make(tmp_path / "val2017.zip", {name(1): data}, zipfile.ZIP_DEFLATED)
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<L", 1000), struct.pack("<L", 2000)))
    assert "000000000001.jpg" in refusal(archive, tmp_path / "root")


def test_a_wrong_crc_names_its_member_and_leaves_no_file(tmp_path: Path) -> None:
    members = pictures()
    archive = make(tmp_path / "val2017.zip", members)
    data = bytearray(archive.read_bytes())
    data[data.index(members[name(3)]) + 100] ^= 1
    archive.write_bytes(data)
    assert "000000000003.jpg" in refusal(archive, tmp_path / "root")
    assert not any("000000000003" in file for file in tree(tmp_path / "root"))
    make(archive, members)  # fetched again: what was good stays
    assert len(call(archive, tmp_path / "root")) == len(members)
    assert tree(tmp_path / "root") == members


@pytest.mark.parametrize("content", [b"", b"<html>a portal</html>", b"PK\5\6", bytes(100_000), b"PK\5\6" + bytes(18)])
def test_what_is_not_an_archive(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "val2017.zip"
    archive.write_bytes(content)
    refusal(archive, tmp_path / "root")


def test_a_truncated_archive(tmp_path: Path) -> None:
    archive = make(tmp_path / "val2017.zip", pictures())
    data = archive.read_bytes()
    for cut in (10, 100, 1000, 5000, len(data) - 22, len(data) - 1):
        archive.write_bytes(data[:cut])
        refusal(archive, tmp_path / "root")


def test_any_damage_is_one_line_or_does_not_matter(tmp_path: Path) -> None:
    members = pictures(3, size=200)
    archive = make(tmp_path / "val2017.zip", members, zipfile.ZIP_DEFLATED)
    good, rng = archive.read_bytes(), random.Random(2)
    refused = 0
    for trial in range(400):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(len(data))] = rng.choice((0, 255, rng.randrange(256)))
        archive.write_bytes(data)
        root = tmp_path / f"root{trial}"
        try:
            call(archive, root)
        except ClipcocoError as error:  # a size that no disk has room for, too
            refused += 1
            one_line(error)
        unpacked = tree(root / "val2017") if (root / "val2017").exists() else {}
        assert all(members.get(f"val2017/{file}") == content for file, content in unpacked.items())
    assert 100 < refused < 400


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path, kind: str) -> None:
    archive, root, outside = make(tmp_path / "val2017.zip", pictures()), tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    if kind == "file":
        (root / "val2017").write_bytes(b"")
    else:
        (root / "val2017").symlink_to(outside)
    if kind == "link":
        outside.mkdir()
    with pytest.raises(DataError, match="val2017 is a link or a file"):
        call(archive, root)
    assert not outside.exists() or not list(outside.iterdir())


def test_leftovers_of_another_archive_are_not_taken_over(tmp_path: Path) -> None:
    archive, root, members = tmp_path / "val2017.zip", tmp_path / "root", pictures()
    make(archive, {name(99): b"x" * 10, name(100): b"y" * 10})
    archive.write_bytes(archive.read_bytes().replace(b"y" * 10, b"z" * 10))
    with pytest.raises(DataError):
        call(archive, root)
    assert len(tree(root)) == 1  # in the folder of what is under way
    make(archive, members)
    call(archive, root)
    assert tree(root) == members


# --- killed, and no room ---------------------------------------------------------------------------------

KILLED = """
import hashlib, re, types
from clipcoco.prepare import unpack

class Digest:  # each piece of a file, just written or read
    def __init__(self):
        self.digest = hashlib.sha256()
        self.hexdigest = self.digest.hexdigest

    def update(self, data):
        self.digest.update(data)
        count()

unpack.hashlib = types.SimpleNamespace(sha256=Digest)
begin()
unpack.unpack(Path(sys.argv[1]), Path(sys.argv[2]), re.compile(r"val2017/\\d{12}\\.jpg"), count, count)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("existing", [False, True])
def test_killed_anywhere_the_same_call_completes(tmp_path: Path, existing: bool) -> None:
    members = pictures(4, size=20_000) | {name(5): random.Random(4).randbytes(2_500_000)}
    archive = make(tmp_path / "val2017.zip", members)

    def fresh(root: Path) -> Path:
        if existing:  # file by file instead of one rename
            (root / "val2017").mkdir(parents=True)
            (root / name(1)).write_bytes(members[name(1)])
            (root / name(2)).write_bytes(b"half")
        return root

    with killable(KILLED) as killed:
        steps = killed(0, archive, fresh(tmp_path / "calm"))
        assert steps > 20
        assert tree(tmp_path / "calm") == members
        halves = 0
        for step in range(1, steps + 1):
            root = fresh(tmp_path / f"root{step}")
            killed(step, archive, root)
            left = tree(root)
            assert all(
                members[file] == content for file, content in left.items() if file in members and content != b"half"
            )
            halves += any(
                file not in members and members[file.removeprefix(STAGING)] != content for file, content in left.items()
            )
            assert len(call(archive, root)) == len(members)
            assert tree(root) == members
        assert halves >= 2  # within the large file
        root = fresh(tmp_path / "root")
        for step in (2, 8, 12, 12, 15, 15, 18, 18):  # and again and again in the same folder
            killed(step, archive, root)
    assert len(call(archive, root)) == len(members)
    assert tree(root) == members


def test_no_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    archive = make(tmp_path / "val2017.zip", {name(1): b"x"})
    huge = struct.pack("<L", 0xFFFFFFF0)  # 4 GB each
    data = archive.read_bytes()
    at = data.index(b"PK\1\2")
    record = data[at : len(data) - 22]
    first = record.index(b"PK\1\2", 4)  # after the folder's
    wanted = record[first:]
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    count = free // 0xFFFFFFF0 + 2
    names = [name(number).encode() for number in range(1, count + 1)]
    records = [wanted[:24] + huge + wanted[28:46] + one for one in names]
    body = b"".join(records)
    archive.write_bytes(data[:at] + body + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(body), at, 0))
    with pytest.raises(EnvironmentProblem, match=r"needs [\d,.]+ GB, [\d,.]+ GB are free"):
        call(archive, tmp_path / "root")
    assert not tree(tmp_path / "root")


def test_a_file_size_limit_is_one_line_and_the_next_call_goes_on(tmp_path: Path) -> None:
    members = pictures(6) | {name(4): bytes(200_000)}
    archive, root = make(tmp_path / "val2017.zip", members), tmp_path / "root"
    with file_size_limit(100_000), pytest.raises(EnvironmentProblem, match=r"File too large\)\. Make room") as caught:
        call(archive, root)
    one_line(caught.value)
    left = tree(root)
    assert all(members[f"val2017/{Path(file).name}"] == content for file, content in left.items())
    assert len(left) == 3
    assert len(call(archive, root)) == 6
    assert tree(root) == members


def test_a_disk_that_fills_while_unpacking(small_disk: Path, tmp_path: Path) -> None:
    members = pictures(30, size=30_000)
    archive, root, filler = make(tmp_path / "val2017.zip", members), small_disk / "root", small_disk / "filler"

    def fill(row: TaskProgress) -> None:
        if row.done > 300_000 and not filler.exists():
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096 - 8192)

    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        unpack(archive, root, IMAGES, fill, lambda _: None)
    assert all(len(data) == len(members[f"val2017/{Path(file).name}"]) for file, data in tree(root).items())
    half = len(tree(root))
    assert 5 < half < 30
    with pytest.raises(EnvironmentProblem, match="MB are free"):  # now it is known beforehand
        call(archive, root)
    assert len(tree(root)) == half
    filler.unlink()
    assert len(call(archive, root)) == 30
    assert tree(root) == members


def test_a_missing_archive_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="No such file"):
        call(tmp_path / "none.zip", tmp_path / "root")

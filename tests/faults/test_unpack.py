"""Archives that are damaged, hostile or interrupted: nothing outside the root, nothing half taken as good."""

import hashlib
import os
import random
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from clipcoco.data.manifest import Entry
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.prepare.unpack import unpack
from harness import file_size_limit, killed, one_line, python, tree

IMAGES = re.compile(r"val2017/\d{12}\.jpg")
CAPTIONS = re.compile(r"annotations/captions_(train|val)2017\.json")
UNLIMITED = 10**12
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


def call(archive: Path, root: Path, members: re.Pattern[str] = IMAGES, total: int = UNLIMITED) -> list[Entry]:
    kept: list[Entry] = []
    unpack(archive, root, members, total, lambda _: None, kept.append)
    return kept


def refusal(archive: Path, root: Path, total: int = UNLIMITED) -> str:
    """The one line of a DataError that names the archive; nothing has come to where training looks."""
    before = sorted(root.parent.iterdir())
    with pytest.raises(DataError) as caught:
        call(archive, root, total=total)
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
    unpack(archive, tmp_path / "root", IMAGES, sum(map(len, members.values())), told.append, kept.append)
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


def member_info(member: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(member)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


@pytest.mark.parametrize(
    ("member", "mode"),
    [
        ("../evil.jpg", 0),
        ("val2017/../../evil.jpg", 0),
        ("..", 0),
        ("/tmp/evil.jpg", 0),
        ("val2017\\..\\..\\evil.jpg", 0),
        ("C:\\evil.jpg", 0),
        (name(1), stat.S_IFLNK | 0o777),
        ("other/link", stat.S_IFLNK | 0o777),
        (name(1), stat.S_IFIFO | 0o644),
        (name(1), stat.S_IFCHR | 0o644),
    ],
)
def test_a_hostile_member_is_refused_wherever_it_stands(tmp_path: Path, member: str, mode: int) -> None:
    archive = tmp_path / "val2017.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name(7), b"honest")
        file.writestr(member_info(member, mode), b"/etc/passwd")
    assert "unsafe name" in (message := refusal(archive, tmp_path / "root")) or "link" in message


def test_a_name_cut_by_nul_is_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "val2017.zip", {"val2017/000000000001.jpgXevil": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"jpgXevil", b"jpg\0evil"))
    assert "unsafe name" in refusal(archive, tmp_path / "root")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "val2017.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name(1), b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(name(1), b"two")
    assert "twice" in refusal(archive, tmp_path / "root")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_methods_that_may_eat_memory_are_refused(tmp_path: Path, method: int) -> None:
    assert "compressed by method" in refusal(make(tmp_path / "a.zip", pictures(1), method), tmp_path / "root")


def patch_flag(archive: Path, flag: int) -> None:
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for match in re.finditer(re.escape(signature), bytes(data)):
            data[match.start() + offset] |= flag
    archive.write_bytes(data)


@pytest.mark.parametrize(("flag", "needle"), [(0x1, "encrypted"), (0x20, "damaged"), (0x40, "damaged")])
def test_encrypted_and_patched_members_are_refused(tmp_path: Path, flag: int, needle: str) -> None:
    archive = make(tmp_path / "val2017.zip", pictures())
    patch_flag(archive, flag)
    assert needle in refusal(archive, tmp_path / "root")


def zeros(archive: Path, declared: int | None = None) -> Path:
    """50 MB in 50 kB; with `declared`, its headers say that it is so small, and give the CRC of that part."""
    make(archive, {name(1): bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    if declared is not None:
        data = archive.read_bytes()
        honest = struct.pack("<L", zlib.crc32(bytes(50_000_000))), struct.pack("<L", 50_000_000)
        assert data.count(honest[0]) == data.count(honest[1]) == 2
        data = data.replace(honest[1], struct.pack("<L", declared))
        archive.write_bytes(data.replace(honest[0], struct.pack("<L", zlib.crc32(bytes(declared)))))
    assert archive.stat().st_size < 100_000
    return archive


def test_a_bomb_that_declares_its_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    message = refusal(zeros(tmp_path / "val2017.zip"), tmp_path / "root", total=1_000_000)
    assert "50,000,000 bytes" in message
    assert not (tmp_path / "root").exists()


def test_a_bomb_that_lies_about_its_size_yields_no_more_than_it_said(tmp_path: Path) -> None:
    archive, root = zeros(tmp_path / "val2017.zip", declared=1000), tmp_path / "root"
    call(archive, root, total=1000)
    assert tree(root) == {name(1): bytes(1000)}
    call(archive, root, total=995)  # 1 % more than expected is allowed
    with pytest.raises(DataError, match="would take 1,000 bytes"):
        call(archive, root, total=980)


def test_a_member_that_yields_less_than_it_said_is_refused(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1000)
    archive = make(tmp_path / "val2017.zip", {name(1): data}, zipfile.ZIP_DEFLATED)
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<L", 1000), struct.pack("<L", 2000)))
    assert "000000000001.jpg" in refusal(archive, tmp_path / "root", total=2000)


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


@pytest.mark.parametrize(
    "content", [b"", b"<html>captive portal</html>", b"PK\5\6", bytes(100_000), b"PK\5\6" + bytes(18)]
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
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
            call(archive, root, total=3000)
        except DataError as error:
            refused += 1
            one_line(error)
        unpacked = tree(root / "val2017") if (root / "val2017").exists() else {}
        assert all(members.get(f"val2017/{file}") == content for file, content in unpacked.items())
    assert 100 < refused < 400


FLOOD = """
import re, resource, sys
from pathlib import Path
from clipcoco.prepare.unpack import unpack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), re.compile("x"), 10**12, print, print)
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def directory(path: Path, count: int, name_length: int, *, zip64: bool = False, declared: int | None = None) -> Path:
    """An archive that is a list of `count` members, of which its end declares `declared` (or all)."""
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, name_length, 0, 0, 0, 0, 0, 0)
    record += b"x" * name_length
    size = count * len(record)
    told = count if declared is None else declared
    with open(path, "wb") as file:
        for _ in range(count // 10_000):
            file.write(record * 10_000)
        if zip64:
            file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, told, told, size, 0))
            file.write(struct.pack("<4sLQL", b"PK\6\7", 0, size, 1))
            size = 0xFFFFFFFF
        told = min(told, 0xFFFF)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, told, told, size, 0, 0))
    return path


@pytest.mark.parametrize("case", ["many", "denied", "zip64", "large", "hole"])
def test_a_million_members_are_refused_in_little_memory(tmp_path: Path, case: str) -> None:
    archive = tmp_path / "val2017.zip"
    if case == "hole":  # a list of 3 GB that is nothing but a hole in the file
        with open(archive, "wb") as file:
            file.seek(3_000_000_000)
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 3_000_000_000, 0, 0))
    else:
        directory(
            archive,
            1_000_000,
            30 if case == "large" else 1,
            zip64=case == "zip64",
            declared=3 if case == "denied" else None,
        )
    message, grown = python(FLOOD, archive, tmp_path / "root").stdout.splitlines()
    assert message.startswith("DataError ")
    assert ("bytes" if case in ("large", "hole") else "1,000,000 members") in message
    assert int(grown) < 120_000  # kB; listed, they would take ten times that
    assert not (tmp_path / "root").exists()


def test_as_many_members_as_coco_has_pass(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no member that is looked for"):
        call(directory(tmp_path / "train2017.zip", 120_000, 40), tmp_path / "root")


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
unpack.unpack(Path(sys.argv[1]), Path(sys.argv[2]), re.compile(r"val2017/\\d{12}\\.jpg"), 10**12, count, count)
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

    steps = killed(0, KILLED, archive, fresh(tmp_path / "calm"))
    assert steps > 20
    assert tree(tmp_path / "calm") == members
    halves = 0
    for step in range(1, steps + 1):
        root = fresh(tmp_path / f"root{step}")
        killed(step, KILLED, archive, root)
        left = tree(root)
        assert all(members[file] == content for file, content in left.items() if file in members and content != b"half")
        halves += any(
            file not in members and members[file.removeprefix(STAGING)] != content for file, content in left.items()
        )
        assert len(call(archive, root)) == len(members)
        assert tree(root) == members
    assert halves >= 2  # within the large file
    root = fresh(tmp_path / "root")
    for step in (2, 8, 12, 12, 15, 15, 18, 18):  # and again and again in the same folder
        killed(step, KILLED, archive, root)
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
        unpack(archive, root, IMAGES, UNLIMITED, fill, lambda _: None)
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

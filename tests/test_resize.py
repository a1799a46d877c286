"""Smaller copies show what their originals show, and whatever ends their making, the same call goes on."""

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import harness
from clipcoco.data.images import decode, evaluation_view
from clipcoco.data.manifest import Entry, Manifest, copies_folder, copies_manifest, read_manifest
from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.events import TaskProgress
from clipcoco.prepare.resize import CopyStore, copy_bytes, make_copies, reduced, settings, write_copy
from harness import file_size_limit, python

SIZE = 64
IMAGES = 600  # more than two batches of manifest entries


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def waves(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, and in no two places the same."""
    x, y = np.linspace(0, 7, width)[None], np.linspace(0, 5, height)[:, None]
    channels = [np.sin(x + seed * 0.37) * np.cos(y), np.sin(x * 0.7 + y + seed), np.cos(y * 1.3 - x)]
    return Image.fromarray((np.stack(np.broadcast_arrays(*channels), -1) * 100 + 128).astype(np.uint8))


def nothing(progress: TaskProgress) -> None:
    pass


EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by a quarter
PHOTO = waves(212, 150)
LARGE = {
    "jpeg": encoded(PHOTO, quality=95, exif=EXIF, icc_profile=b"a profile"),
    "jpeg progressive": encoded(PHOTO, quality=95, progressive=True),
    "jpeg with broken EXIF": encoded(PHOTO, quality=95, exif=b"Exif\0\0MM\0*broken"),
    "jpeg grey": encoded(PHOTO.convert("L"), quality=95),
    "jpeg CMYK": encoded(PHOTO.convert("CMYK"), quality=95),
    "png": encoded(PHOTO, "PNG"),
    "png grey": encoded(PHOTO.convert("L"), "PNG"),
    "png grey, alpha": encoded(PHOTO.convert("LA"), "PNG"),
    "png palette": encoded(PHOTO.convert("L").convert("P"), "PNG"),
    "png alpha": encoded(PHOTO.convert("RGBA"), "PNG"),
    "png 16 bits": encoded(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "PNG"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_copy_is_a_plain_jpeg_of_the_same_picture(kind: str) -> None:
    copy = opened(reduced(LARGE[kind], SIZE))
    assert copy.format == "JPEG"
    assert copy.size == ((64, 90) if kind == "jpeg" else (90, 64))  # turned as its EXIF says
    assert copy.mode == ("L" if kind in ("jpeg grey", "png grey") else "RGB")
    assert not {"exif", "icc_profile"} & set(copy.info)
    whole = Image.fromarray(decode(LARGE[kind]).permute(1, 2, 0).numpy())
    expected = np.asarray(whole.resize(copy.size, Image.Resampling.LANCZOS), float)
    assert np.abs(np.asarray(copy.convert("RGB"), float) - expected).mean() < 2


@pytest.mark.parametrize(
    ("before", "after"),
    [((640, 480), (85, 64)), ((480, 640), (64, 85)), ((500, 500), (64, 64)), ((65, 650), (64, 640))],
)
def test_the_shorter_side_is_as_asked_and_the_shape_is_kept(before: tuple, after: tuple) -> None:
    assert opened(reduced(encoded(waves(*before), quality=95), SIZE)).size == after


UNTOUCHED = {
    "just as large": encoded(waves(64, 90), quality=95),
    "smaller": encoded(waves(40, 30), "PNG"),
    "one pixel": encoded(waves(1, 1)),
    "one pixel wide": encoded(waves(1, 5000)),
    "too long for a JPEG": encoded(Image.new("L", (65, 67_000)), "PNG"),
    "flat, so that a JPEG takes more bytes": encoded(Image.new("RGB", (300, 300)), "PNG"),
}
BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "GIF": encoded(PHOTO, "GIF"),
    "truncated": LARGE["jpeg"][:-2000],
    "truncated PNG": LARGE["png"][:-2000],
    "header alone": LARGE["jpeg"][:600],
}


@pytest.mark.parametrize("kind", UNTOUCHED | BROKEN)
def test_what_is_small_or_broken_keeps_its_bytes(kind: str) -> None:
    data = (UNTOUCHED | BROKEN)[kind]
    assert reduced(data, SIZE) == data


def test_real_photographs_look_the_same_in_training(shared: Path, tmp_path: Path) -> None:
    everything = [path.read_bytes() for path in (shared / "coco-real").glob("*2017/*.jpg")]
    photographs = [data for data in everything if min(opened(data).size) > 300]
    differences, before, after = [], 0, 0
    for data in photographs:
        copy = reduced(data, 256)
        views = [evaluation_view(decode(image), 224).float() for image in (data, copy)]
        differences.append(float((views[0] - views[1]).abs().mean()))
        before, after = before + len(data), after + len(copy)
    assert len(photographs) == 24
    assert max(differences) < 10
    assert np.mean(differences) < 4.5
    assert after < before / 4
    assert after / 24 < copy_bytes(256) < 1.2 * after / 24


# ---- whole folders


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pictures in two folders, of which each 100th is broken and each 70th small."""
    root = tmp_path_factory.mktemp("original")
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
    some = [encoded(waves(120 + seed, 100, seed), quality=90) for seed in range(40)]
    for number in range(IMAGES):
        data = some[number % 40] + number.to_bytes(4)  # behind the image's end: no two files are equal
        if number % 100 == 5:
            data = data[:400]
        elif number % 70 == 3:
            data = encoded(waves(50, 40, number))
        split = "val2017" if number % 6 == 0 else "train2017"
        (root / split / f"{number:012d}.jpg").write_bytes(data)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """The same files as links, without copies."""
    return Path(shutil.copytree(original, tmp_path / "coco", copy_function=os.link))


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Entry]]:
    """What an undisturbed call in one thread leaves."""
    root = Path(shutil.copytree(original, tmp_path_factory.mktemp("whole") / "coco"))
    make_copies(root, names(root), SIZE, nothing, threads=1)
    return tree(root), entries(root)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("*2017/*"))


def tree(root: Path) -> dict[str, bytes]:
    """All files beside the manifest, leftovers included."""
    return {name: data for name, data in harness.tree(copies_folder(root, SIZE)).items() if name != "manifest.jsonl"}


def entries(root: Path) -> dict[str, Entry]:
    return read_manifest(copies_manifest(root, SIZE))[1]


def times(root: Path, files: list[str]) -> list[int]:
    return [(copies_folder(root, SIZE) / file).stat().st_mtime_ns for file in files]


def test_copies_lie_in_the_same_folders_and_the_manifest_says_what_they_are(root: Path) -> None:
    seen: list[TaskProgress] = []
    made = make_copies(root, names(root), SIZE, seen.append)
    copies, known = tree(root), entries(root)
    assert sorted(copies) == names(root)
    assert (made.made, made.kept) == (IMAGES, 0)
    assert made.bytes_before == sum((root / file).stat().st_size for file in names(root))
    assert made.bytes_after == sum(map(len, copies.values()))
    for file, data in copies.items():
        before = (root / file).read_bytes()
        assert data == reduced(before, SIZE)
        assert known[file] == Entry(file, len(data), sha256(data).hexdigest(), sha256(before).hexdigest())
    assert read_manifest(copies_manifest(root, SIZE))[0] == settings(SIZE)
    counts = [progress.done for progress in seen]
    assert counts == sorted(counts)
    assert counts[-1] == IMAGES
    assert {(progress.total, progress.unit) for progress in seen} == {(IMAGES, "images")}


def test_the_number_of_threads_changes_no_byte(root: Path, whole: tuple) -> None:
    make_copies(root, names(root), SIZE, nothing, threads=5)
    assert (tree(root), entries(root)) == whole


def test_threads_leave_the_filters_of_warnings_alone(root: Path) -> None:
    for file in names(root):
        (root / file).unlink()
        (root / file).write_bytes(LARGE["jpeg with broken EXIF"])
    before = list(warnings.filters)
    make_copies(root, names(root), SIZE, nothing, threads=8)
    assert list(warnings.filters) == before


def test_a_growing_subset_makes_only_what_is_new(root: Path, whole: tuple) -> None:
    first = names(root)[::3]
    assert make_copies(root, [*first, *first], SIZE, nothing).made == len(first)
    before = times(root, first)
    made = make_copies(root, names(root), SIZE, nothing)
    assert (made.made, made.kept) == (IMAGES - len(first), len(first))
    assert times(root, first) == before
    assert (tree(root), entries(root)) == whole
    again = make_copies(root, names(root), SIZE, nothing)
    assert (again.made, again.kept, again.bytes_before) == (0, IMAGES, 0)


def test_nothing_to_do_imports_no_torch_and_needs_no_originals(root: Path) -> None:
    make_copies(root, names(root), SIZE, nothing)
    files = names(root)
    shutil.rmtree(root / "train2017")
    program = f"""
import sys
from pathlib import Path
from clipcoco.prepare.resize import make_copies
assert make_copies(Path({str(root)!r}), {files!r}, {SIZE}, print).kept == {IMAGES}
assert "torch" not in sys.modules
"""
    python(program)


def test_copies_that_are_gone_or_cut_short_are_made_again(root: Path, whole: tuple) -> None:
    make_copies(root, names(root), SIZE, nothing)
    folder, (gone, cut, *others) = copies_folder(root, SIZE), names(root)
    (folder / gone).unlink()
    (folder / cut).write_bytes(b"")
    before = times(root, others)
    assert make_copies(root, names(root), SIZE, nothing).made == 2
    assert times(root, others) == before
    assert (tree(root), entries(root)) == whole


def test_copies_of_other_settings_are_made_again(root: Path, whole: tuple) -> None:
    folder, files = copies_folder(root, SIZE), names(root)
    with Manifest(copies_manifest(root, SIZE), settings(SIZE) | {"quality": 10}) as manifest:
        for file in files:
            manifest.add(write_copy(folder, file, (root / file).read_bytes(), SIZE // 2))
    assert make_copies(root, files, SIZE, nothing).made == IMAGES
    assert (tree(root), entries(root)) == whole


def test_copies_of_another_size_are_others(root: Path) -> None:
    files = names(root)[:20]
    make_copies(root, files, SIZE, nothing)
    before = times(root, files)
    assert make_copies(root, files, 32, nothing).made == 20
    assert times(root, files) == before


def test_originals_that_never_lay_on_the_disk(root: Path, tmp_path: Path, whole: tuple) -> None:
    """As --only-prepared does it: bytes from the network, in the threads that received them."""
    elsewhere = tmp_path / "elsewhere"
    with CopyStore(elsewhere, SIZE) as store, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda file: store.store(file, (root / file).read_bytes()), store.missing(names(root))))
    assert (tree(elsewhere), entries(elsewhere)) == whole
    assert store.copies.made == IMAGES
    with CopyStore(elsewhere, SIZE) as store:
        assert store.missing(names(root)) == []


def test_an_error_on_the_way_forgets_no_copy(root: Path) -> None:
    files = names(root)[:5]

    def store_then_fail() -> None:
        with CopyStore(root, SIZE) as store:
            for file in files:
                store.store(file, (root / file).read_bytes())
            raise KeyError

    with pytest.raises(KeyError):
        store_then_fail()
    assert sorted(entries(root)) == files


def test_an_original_that_is_gone_is_one_line(root: Path) -> None:
    files = names(root)
    (root / files[99]).unlink()
    with pytest.raises(DataError, match=f"{files[99]} can't be read: No such file.*"):
        make_copies(root, files, SIZE, nothing)


# ---- what ends a call


def start(target: Callable, *arguments: object) -> tuple[ForkServerProcess, Connection]:
    """A call in a process of its own, and what it reports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clipcoco.data.loader"])  # torch once, not for every process
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender.send, 2), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def wait_for(pipe: Connection, done: int) -> None:
    while pipe.recv().done < done:
        pass


def tell_the_end(root: Path, files: list[str], size: int, tell: Callable[[object], None], threads: int) -> None:
    # The fork server may come from a test of data workers, which are born deaf to signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        make_copies(root, files, size, tell, threads)
    except (ClipcocoError, KeyboardInterrupt) as end:
        tell(f"{type(end).__name__}: {end}")


def on_a_small_disk(root: Path, files: list[str], size: int, limit: int, *rest: object) -> None:
    with file_size_limit(limit):
        tell_the_end(root, files, size, *rest)


def the_end(pipe: Connection) -> str:
    while not isinstance(told := pipe.recv(), str):
        pass
    return told


def test_killed_ten_times_the_same_call_ends_with_the_same_tree(root: Path, whole: tuple) -> None:
    rng = random.Random(7)
    moments = sorted(rng.randrange(IMAGES - 50) for _ in range(10))
    left = []
    for moment in moments:
        process, pipe = start(make_copies, root, names(root), SIZE)
        wait_for(pipe, moment)
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        left.append(len(entries(root)))
        final = {file: data for file, data in tree(root).items() if not file.endswith(".tmp")}
        assert final.items() <= whole[0].items()
        for file, entry in entries(root).items():
            assert sha256((copies_folder(root, SIZE) / file).read_bytes()).hexdigest() == entry.sha256
    assert left == sorted(left)  # what was noted once is never made again
    assert left[-1] > 0
    assert make_copies(root, names(root), SIZE, nothing).kept == left[-1]
    assert (tree(root), entries(root)) == whole


def test_ctrl_c_notes_what_is_whole_and_leaves_nothing_else(root: Path, whole: tuple) -> None:
    process, pipe = start(tell_the_end, root, names(root), SIZE)
    wait_for(pipe, 100)
    os.kill(process.pid, signal.SIGINT)
    assert the_end(pipe) == "KeyboardInterrupt: "
    process.join(30)
    files, noted = tree(root), entries(root)
    assert files.keys() == noted.keys()
    assert 100 <= len(files) < IMAGES
    assert files.items() <= whole[0].items()
    assert make_copies(root, names(root), SIZE, nothing).kept == len(files)
    assert (tree(root), entries(root)) == whole


def test_a_disk_that_fills_is_one_line_and_the_same_call_goes_on(root: Path, whole: tuple) -> None:
    earlier = names(root)[:100]
    make_copies(root, earlier, SIZE, nothing)
    copies_manifest(root, SIZE).unlink()  # so that they are made again, and must outlive that
    limit = min(map(len, whole[0].values())) + 500
    process, pipe = start(on_a_small_disk, root, names(root), SIZE, limit)
    told = the_end(pipe)
    process.join(30)
    assert told.startswith(f"EnvironmentProblem: smaller copies can't be written: File too large ({root}")
    assert "\n" not in told
    assert tree(root).items() <= whole[0].items()  # no file is half there
    assert set(earlier) <= tree(root).keys()
    make_copies(root, names(root), SIZE, nothing)
    assert (tree(root), entries(root)) == whole


def test_too_little_room_is_told_before_the_first_copy(original: Path, small_disk: Path) -> None:
    root = Path(shutil.copytree(original, small_disk / "coco"))
    with open(small_disk / "filler", "wb") as filler:
        filler.truncate(shutil.disk_usage(small_disk).free - 500_000)
        os.posix_fallocate(filler.fileno(), 0, os.fstat(filler.fileno()).st_size)
    with pytest.raises(
        EnvironmentProblem, match=r"600 smaller copies need \d\.\d MB, \d\.\d MB are free on the volume of .*coco"
    ):
        make_copies(root, names(root), SIZE, nothing)
    assert tree(root) == {}


def test_a_manifest_with_a_torn_line_is_mended(root: Path, whole: tuple) -> None:
    make_copies(root, names(root), SIZE, nothing)
    path = copies_manifest(root, SIZE)
    path.write_bytes(path.read_bytes()[:-30])
    assert make_copies(root, names(root), SIZE, nothing).made == 1
    assert (tree(root), entries(root)) == whole
    assert all(map(json.loads, path.read_text().splitlines()))

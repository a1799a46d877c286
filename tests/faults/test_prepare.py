"""`prepare-data` against a whole COCO in miniature on a real server, with the published sums replaced by its own."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import miniature
from clipcoco.data.captions import read_captions
from clipcoco.data.manifest import read_manifest
from clipcoco.prepare import plan
from clipcoco.prepare.coco import originals_manifest
from conftest import LIGHT
from fork_server import Finished, ForkServer, Process
from harness import until
from http_server import Reply, Server

# COCO is the miniature, and it is not asked for long.
PRELUDE = """
import sys
sys.path[:0] = [{tests!r}]
import miniature
from clipcoco.prepare import network, plan
own = (miniature.from_json(open({coco!r}).read()), network.RetryPolicy(attempts=2, pause=0.01, timeout=5))
plan.Request.__init__.__defaults__ = (*plan.Request.__init__.__defaults__[:-2], *own)
"""


@dataclass
class Mini:
    folder: Path  # in the layout of the host
    coco: object
    prelude: str
    server: Server
    clipcoco: ForkServer

    def start(self, *words: object, cwd: Path, prelude: str = "", env: dict[str, str] | None = None) -> Process:
        environment = {"COLUMNS": "100", **(env or {})}
        return self.clipcoco.start("prepare-data", *words, cwd=cwd, env=environment, prelude=self.prelude + prelude)

    def __call__(self, *words: object, **more) -> Finished:
        return self.start(*words, **more).wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, object, str]:
    base = tmp_path_factory.mktemp("coco")
    real = Path(__file__).parents[3] / "shared" / "coco-real"
    coco = miniature.build(base / "host", real if real.is_dir() else None)
    (base / "coco.json").write_text(miniature.to_json(coco))
    return base / "host", coco, PRELUDE.format(tests=str(Path(__file__).parents[1]), coco=str(base / "coco.json"))


@pytest.fixture
def mini(made, clipcoco):
    folder, coco, prelude = made
    with Server(folder) as server:
        yield Mini(folder, coco, prelude, server, clipcoco)


def tree(root: Path) -> dict[str, str]:
    """Every file that a person sees, and the manifests as what they say."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".clipcoco") and path.name != "manifest.jsonl":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for manifest in (originals_manifest(root), root / "prepared-256" / "manifest.jsonl"):
        found[manifest.name] = str(sorted(map(str, read_manifest(manifest)[1].values())))
    return found


def fetched(mini: Mini) -> list[str]:
    return [request.path for request in mini.server.requests]


def flip_a_byte(path: Path | str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def from_server(mini: Mini, *words: object) -> list[object]:
    return [*words, "--mirror", mini.server.url]


def test_from_nothing_to_training_and_back_to_a_flipped_byte(mini, clipcoco, tmp_path):
    words = from_server(mini, "--preset", "small", "--train-fraction", 0.5, "--val-fraction", 0.25, "--root", "data")
    done = mini(*words, cwd=tmp_path).ok()
    root = tmp_path / "data"
    # exactly what training with these fractions reads, image by image, for that is fewer bytes than the archives
    for split, fraction in (("train2017", 0.5), ("val2017", 0.25)):
        table = read_captions(root, split).subset(fraction, 0)
        assert sorted(table.files) == sorted(f"{split}/{path.name}" for path in (root / split).iterdir())
        assert set(table.files) <= {path.lstrip("/") for path in fetched(mini)}
    assert "Ready: 20 train and 6 val images" in done.stdout
    assert "CC BY 4.0" in done.stdout
    assert "Next: clipcoco train --preset small data.train_fraction=0.5 data.val_fraction=0.25" in done.stdout
    for file in mini.coco.false_captions:
        assert (root / file.path).read_bytes() == (mini.folder / file.path).read_bytes()
        assert f"/{file.path}" in fetched(mini)

    mini.server.requests.clear()
    again = mini(*words, cwd=tmp_path).ok()
    assert "Nothing to do: 20 train and 6 val images" in again.stdout
    assert not mini.server.requests

    fractions = ["data.train_fraction=0.5", "data.val_fraction=0.25", "data.root=data"]
    settings = ["--preset", "small", *fractions, *LIGHT, "model.vision.weights=none", "train.epochs=1"]
    trained = clipcoco("train", *settings, "--json", "--name", "one", cwd=tmp_path).ok()
    assert "prepared-256 (smaller copies)" in trained.stderr
    assert trained.json["source"] == "prepared-256"

    check = [*words, "--verify", "--json"]
    sound = mini(*check, cwd=tmp_path)
    assert sound.code == 0, sound.stdout
    told = json.loads(sound.stdout)
    assert told["sound"]
    assert told["splits"]["train2017"]["images"] == 20
    assert told["splits"]["train2017"]["official"]
    image, copy = sorted((root / "train2017").iterdir())[0], sorted((root / "prepared-256/val2017").iterdir())[0]
    flip_a_byte(image)
    flip_a_byte(copy)
    gone = sorted((root / "val2017").iterdir())[0]
    gone.unlink()
    unreadable = sorted((root / "val2017").iterdir())[1]
    unreadable.write_bytes(b"GIF89a")
    altered = mini(*check, cwd=tmp_path)
    assert altered.code == 3
    told = json.loads(altered.stdout)
    assert told["splits"]["train2017"]["altered"] == [f"train2017/{image.name}"]
    assert told["splits"]["val2017"]["missing"] == [f"val2017/{gone.name}"]
    assert told["splits"]["val2017"]["altered"] == [f"val2017/{unreadable.name}"]
    assert told["copies"]["val2017"]["altered"] == [f"val2017/{copy.name}"]
    table = mini(*words, "--verify", cwd=tmp_path)
    assert table.code == 3
    assert f"missing: val2017/{gone.name}" in table.stdout
    assert "Traceback" not in table.stderr


@pytest.mark.parametrize("altered", [False, True])
def test_all_of_it_comes_as_archives_which_do_not_stay(mini, tmp_path, altered):
    if altered:  # one is there already, of the right size and with other content
        (tmp_path / "data" / ".clipcoco").mkdir(parents=True)
        flip_a_byte(shutil.copy(mini.folder / "zips" / "val2017.zip", tmp_path / "data" / ".clipcoco"))
    mini(*from_server(mini, "--all", "--root", "data", "--set", "data.prepared_size=0"), cwd=tmp_path).ok()
    archives = ["/annotations/annotations_trainval2017.zip", "/zips/val2017.zip", "/zips/train2017.zip"]
    assert fetched(mini) == [*archives, *(f"/{file.path}" for file in mini.coco.false_captions)]
    root = tmp_path / "data"
    for split in ("train2017", "val2017"):
        assert {p.name: p.read_bytes() for p in (root / split).iterdir()} == {
            p.name: p.read_bytes() for p in (mini.folder / split).iterdir()
        }
    assert not [path for path in root.rglob("*") if path.suffix in (".zip", ".part")]
    assert not (root / "prepared-256").exists()


def test_a_larger_part_fetches_only_what_is_new(mini, tmp_path):
    words = from_server(mini, "--val-fraction", 0.25, "--root", "data")
    mini("--train-fraction", 0.25, *words, cwd=tmp_path).ok()
    mini.server.requests.clear()
    mini("--train-fraction", 0.5, *words, cwd=tmp_path).ok()
    assert len(mini.server.requests) == 10
    assert len(list((tmp_path / "data/prepared-256/train2017").iterdir())) == 20


def test_a_dry_run_shows_the_plan_and_writes_nothing(mini, tmp_path):
    words = ["--preset", "small", "--root", "data", "--dry-run"]
    done = mini(*words, cwd=tmp_path).ok()
    assert "4 single images (10 %; all of them:" in done.stdout
    assert "5 single images (20 %" in done.stdout
    assert "annotations_trainval2017.zip" in done.stdout
    assert "needs" in done.stdout
    assert json.loads(mini(*words, "--json", cwd=tmp_path).stdout)["parts"][2]["way"] == "single"
    assert not list(tmp_path.iterdir())


def test_only_smaller_copies_are_kept_and_trained_on(mini, clipcoco, tmp_path):
    words = from_server(mini, "--train-fraction", 0.5, "--root", "data", "--only-prepared")
    mini(*words, cwd=tmp_path).ok()
    root = tmp_path / "data"
    assert not (root / "train2017").exists()
    assert len(list((root / "prepared-256/train2017").iterdir())) == 20
    mini.server.requests.clear()
    mini(*words, cwd=tmp_path).ok()
    assert not mini.server.requests
    settings = ["data.train_fraction=0.5", *LIGHT, "data.root=data", "model.vision.weights=none", "train.epochs=1"]
    trained = clipcoco("train", "--preset", "full", *settings, "--json", cwd=tmp_path).ok()
    assert trained.json["source"] == "prepared-256"
    mini(*words, "--verify", cwd=tmp_path).ok()


@pytest.mark.parametrize("carried", ["archives", "folders"])
def test_what_was_carried_here_by_hand_is_taken_from_there(mini, tmp_path, carried):
    source = tmp_path / "stick"
    if carried == "archives":
        shutil.copytree(mini.folder / "zips", source)
        shutil.copy(mini.folder / "annotations" / "annotations_trainval2017.zip", source)
    else:
        source.mkdir()
        shutil.unpack_archive(mini.folder / "annotations" / "annotations_trainval2017.zip", source)
        for split in ("train2017", "val2017"):
            shutil.copytree(mini.folder / split, source / split)
    mini("--all", "--root", "data", "--source", source, "--mirror", "http://127.0.0.1:9", cwd=tmp_path).ok()
    inside = tmp_path / "data" / "train2017"
    assert len(list(inside.iterdir())) == 40
    if carried == "folders":  # the same files, not copies of them
        assert all(path.samefile(source / "train2017" / path.name) for path in inside.iterdir())
    else:
        assert sorted(os.listdir(source)) == ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    streamed = mini("--all", "--root", "small", "--source", source, "--only-prepared", cwd=tmp_path).ok()
    assert not (tmp_path / "small" / "train2017").exists()
    kept, streamed = (
        {name: entry for name, entry in tree(tmp_path / root).items() if name.startswith("prepared")}
        for root in ("data", "small")
    )
    assert kept == streamed


def test_without_false_captions_all_else_is_prepared_and_they_come_later(mini, tmp_path):
    few = ["--preset", "small", "--val-fraction", 0.2, "--train-fraction", 0.1]
    words = from_server(mini, *few, "--root", "data")
    plan = mini(*words, "--dry-run", cwd=tmp_path).ok()
    assert re.search(r"false captions +[\d.]+ k?B  SugarCrepe", plan.stdout)
    broken = mini.coco.false_captions[2].path
    mini.server.always[f"/{broken}"] = Reply(content=b"[" + b" " * (mini.coco.false_captions[2].size - 1))
    done = mini(*words, cwd=tmp_path).ok()
    assert "Ready: 4 train and 5 val images" in done.stdout
    (note,) = (line for line in done.stderr.splitlines() if line.startswith("note: no sugar-crepe/"))
    assert "replace_att.json" in note
    assert not (tmp_path / "data" / broken).exists()
    mini.server.always.clear()
    mini.server.requests.clear()
    assert "Ready: 4 train" in mini(*words, cwd=tmp_path).ok().stdout
    assert fetched(mini) == [f"/{file.path}" for file in mini.coco.false_captions[2:]]
    assert "Nothing to do" in mini(*words, cwd=tmp_path).ok().stdout
    # of what was carried here only the published files count, and the network is not asked for the others
    source = tmp_path / "stick"
    shutil.copytree(tmp_path / "data", source, ignore=shutil.ignore_patterns(".clipcoco"))
    again = [*few, "--root", "new", "--source", source]
    mini.server.requests.clear()
    flip_a_byte(source / broken)
    assert f"the published {broken} is not in" in mini(*again, "--mirror", mini.server.url, cwd=tmp_path).ok().stderr
    shutil.copy(mini.folder / broken, source / broken)
    mini(*again, cwd=tmp_path).ok()
    assert not mini.server.requests
    assert (tmp_path / "new" / broken).read_bytes() == (mini.folder / broken).read_bytes()


@pytest.mark.parametrize("more", [[], ["--only-prepared"]])
def test_a_carried_archive_of_other_content_is_refused(mini, tmp_path, more):
    shutil.copytree(mini.folder / "zips", tmp_path / "stick")
    shutil.copy(mini.folder / "annotations" / "annotations_trainval2017.zip", tmp_path / "stick")
    flip_a_byte(tmp_path / "stick" / "val2017.zip")
    done = mini("--all", "--root", "data", "--source", "stick", *more, cwd=tmp_path)
    assert_one_line(done, 3, "is not the published val2017.zip")
    assert not list((tmp_path / "data").rglob("val2017"))


def assert_one_line(done: Finished, code: int, *parts: str) -> None:
    assert done.code == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in errors[0]


def test_no_network_says_how_to_fetch_by_hand(mini, tmp_path):
    done = mini("--preset", "tiny", "--root", "data", cwd=tmp_path)
    assert_one_line(done, 5, "annotations_trainval2017.zip", "--source DIR")


def test_a_portal_page_or_wrong_bytes_never_get_a_final_name(mini, tmp_path):
    words = from_server(mini, "--all", "--root", "data")
    path = mini.folder / "zips" / "val2017.zip"
    mini.server.always["/zips/val2017.zip"] = Reply(content=b"<html>Please log in</html>")
    assert_one_line(mini(*words, cwd=tmp_path), 5, "val2017.zip")
    mini.server.always["/zips/val2017.zip"] = Reply(content=bytes(path.stat().st_size))
    assert_one_line(mini(*words, cwd=tmp_path), 3, "val2017.zip")
    assert not (tmp_path / "data" / "val2017").exists()
    mini.server.always.clear()
    done = mini(*words, cwd=tmp_path).ok()
    assert "prepared-256/val2017 24" in done.stderr  # every long part is told of
    assert "prepared-256/train2017 40" in done.stderr


def test_a_single_image_of_other_dimensions_is_refused(mini, tmp_path):
    words = from_server(mini, "--train-fraction", 0.25, "--val-fraction", 0.25, "--root", "data")
    mini(*words, "--set", "data.prepared_size=0", cwd=tmp_path).ok()
    name = sorted((tmp_path / "data" / "train2017").iterdir())[0].name
    shutil.rmtree(tmp_path / "data" / "train2017")
    other = next(path for path in sorted((mini.folder / "val2017").iterdir()) if path.name != name)
    from PIL import Image, ImageOps

    with Image.open(other) as picture:
        ImageOps.expand(picture, 7).save(tmp_path / "wrong.jpg")
    mini.server.always[f"/train2017/{name}"] = Reply(content=(tmp_path / "wrong.jpg").read_bytes())
    assert_one_line(mini(*words, cwd=tmp_path), 3, name)
    assert not (tmp_path / "data" / "train2017" / name).exists()


def test_two_at_once_the_second_is_told_who_is_at_work(mini, tmp_path):
    mini.server.always["/zips/train2017.zip"] = Reply(pace=0.05)
    words = from_server(mini, "--all", "--root", "data")
    first = mini.start(*words, cwd=tmp_path)
    until(lambda: fetching(tmp_path), first)
    assert_one_line(mini(*words, cwd=tmp_path), 5, f"another process, {first.pid} on")
    first.signal(signal.SIGKILL)  # its lock dies with it
    first.wait()
    mini.server.always.clear()
    mini(*words, cwd=tmp_path).ok()


def fetching(folder: Path) -> bool:
    """Whether the archive of training images is arriving."""
    return (folder / "data" / ".clipcoco" / "train2017.zip.part").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_that_nothing_is_lost(mini, tmp_path, number, code):
    mini.server.always["/zips/train2017.zip"] = Reply(pace=0.05)
    process = mini.start(*from_server(mini, "--all", "--root", "data"), cwd=tmp_path)
    until(lambda: fetching(tmp_path), process)
    process.signal(number)
    done = process.wait()
    assert done.code == code
    assert "The same command goes on where it was." in done.stderr
    assert "Traceback" not in done.stderr


def killed_until_done(mini: Mini, words: list[object], cwd: Path, moments: list[float]) -> int:
    kills = 0
    for moment in moments:
        lock = cwd / "data" / ".clipcoco" / "lock"
        lock.unlink(missing_ok=True)
        process = mini.start(*words, cwd=cwd)
        until(lock.exists, process)  # its first trace on the disk: starting Python takes longer than the work
        time.sleep(moment)
        process.signal(signal.SIGKILL)
        kills += process.wait().code != 0
    mini(*words, cwd=cwd).ok()
    return kills


@pytest.mark.parametrize("way", ["archives", "single", "only-prepared"])
def test_kill_9_at_any_moment_then_the_same_command(mini, tmp_path, way):
    part = ["--all"] if way == "archives" else ["--train-fraction", 0.5, "--val-fraction", 0.5]
    more = ["--only-prepared"] if way == "only-prepared" else []
    words = from_server(mini, *part, *more, "--root", "data")
    (tmp_path / "calm").mkdir()
    mini(*words, cwd=tmp_path / "calm").ok()
    mini.server.latency = 0.02
    for path in ("/zips/val2017.zip", "/zips/train2017.zip"):
        mini.server.always[path] = Reply(pace=0.003)
    folder = tmp_path / "killed/data/sugar-crepe"
    folder.mkdir(parents=True)
    (folder / ".add_obj.json.part.json.f8a0cab0.tmp").write_text("{")  # of a kill that comes rarely
    kills = killed_until_done(mini, words, tmp_path / "killed", [0.05 + 0.1 * n for n in range(7)])
    assert kills >= 3
    assert tree(tmp_path / "killed" / "data") == tree(tmp_path / "calm" / "data")
    leftovers = [p.name for p in (tmp_path / "killed" / "data").rglob(".*") if p.is_file() and p.suffix == ".tmp"]
    assert not leftovers


def test_a_disk_too_small_is_told_beforehand(mini, small_disk, tmp_path):
    need = sum(archive.size for archive in mini.coco.images.values())
    if need < 3_000_000:
        (small_disk / "ballast").write_bytes(bytes(3_000_000 - need // 2))
    done = mini(*from_server(mini, "--all", "--root", small_disk / "data"), cwd=tmp_path)
    assert_one_line(done, 5, "the images need", "are free on the volume of", "--only-prepared")
    assert not mini.server.requests


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_goes_on_later(mini, tmp_path):
    words = from_server(mini, "--all", "--root", "data")

    size = mini.coco.images["train2017"].size // 2
    # no file may grow beyond: what a full disk does to the largest
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    done = mini(*words, cwd=tmp_path, prelude=limit)
    assert_one_line(done, 5)
    assert os.strerror(errno.EFBIG) in done.stderr or "full" in done.stderr or "room" in done.stderr
    mini(*words, cwd=tmp_path).ok()
    assert len(list((tmp_path / "data" / "train2017").iterdir())) == 40


def test_a_removed_copy_comes_again_though_only_copies_are_kept(mini, tmp_path):
    words = from_server(mini, "--train-fraction", 0.25, "--val-fraction", 0.25, "--root", "data", "--only-prepared")
    mini(*words, cwd=tmp_path).ok()
    gone = sorted((tmp_path / "data/prepared-256/train2017").iterdir())[0]
    gone.unlink()
    mini.server.requests.clear()
    mini(*words, cwd=tmp_path).ok()
    assert fetched(mini) == [f"/train2017/{gone.name}"]
    assert gone.is_file()


def test_a_kill_between_unpacking_and_removing_leaves_no_archive_for_ever(mini, tmp_path):
    words = from_server(mini, "--all", "--root", "data", "--set", "data.prepared_size=0")
    mini(*words, cwd=tmp_path).ok()
    work = tmp_path / "data" / ".clipcoco"
    for archive in [*(mini.folder / "zips").iterdir(), *(mini.folder / "annotations").glob("*.zip")]:
        shutil.copy(archive, work)
    mini(*words, cwd=tmp_path).ok()
    assert not list(work.glob("*.zip"))


def test_what_is_unpacked_already_needs_no_more_room(made, tmp_path):
    folder, coco, _ = made
    shutil.unpack_archive(folder / "annotations" / "annotations_trainval2017.zip", tmp_path)
    request = plan.Request(tmp_path, {"train2017": 1.0, "val2017": 1.0}, 0, 0, coco=coco)
    before = plan.make_plan(request).room
    work = tmp_path / ".clipcoco"
    shutil.copytree(folder / "train2017", work / "unpacking-train2017" / "train2017")
    shutil.copy(folder / "zips" / "train2017.zip", work)
    after = plan.make_plan(request).room
    unpacked = sum(path.stat().st_size for path in (folder / "train2017").iterdir())
    assert after <= before - unpacked


def test_the_plan_counts_what_the_source_lacks(mini, tmp_path):
    source = tmp_path / "stick"
    shutil.unpack_archive(mini.folder / "annotations" / "annotations_trainval2017.zip", source)
    (source / "train2017").mkdir()
    for path in sorted((mini.folder / "train2017").iterdir())[:30]:
        shutil.copy(path, source / "train2017")
    words = from_server(mini, "--all", "--source", source, "--root", "data", "--set", "data.prepared_size=0")
    told = mini(*words, "--dry-run", cwd=tmp_path)
    assert "10 of 40 single images" in told.stdout
    assert f"after 30 from {source}" in told.stdout
    train = json.loads(mini(*words, "--dry-run", "--json", cwd=tmp_path).stdout)["parts"][2]
    assert 0 < train["fetched"] < mini.coco.images["train2017"].size / 2
    mini(*words, cwd=tmp_path).ok()
    assert sum(path.startswith("/train2017/") for path in fetched(mini)) == 10


def test_a_source_whose_folders_are_links_to_another_volume(mini, other_volume, tmp_path):
    source = tmp_path / "stick"
    shutil.unpack_archive(mini.folder / "annotations" / "annotations_trainval2017.zip", source)
    for split in ("train2017", "val2017"):
        shutil.copytree(mini.folder / split, other_volume / split)
        (source / split).symlink_to(other_volume / split)
    for _ in range(2):
        mini("--all", "--root", "data", "--source", source, cwd=tmp_path).ok()


def test_a_carried_archive_is_never_removed(mini, tmp_path):
    """Even when the captions name more images than it holds."""
    root = tmp_path / "data"
    shutil.unpack_archive(mini.folder / "annotations" / "annotations_trainval2017.zip", root)
    path = root / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    for number in range(100):
        image = {"id": 900_000 + number, "file_name": f"{900_000 + number:012}.jpg", "width": 9, "height": 9}
        content["images"].append(image)
        content["annotations"].append({"id": 900_000 + number, "image_id": image["id"], "caption": "none"})
    path.write_text(json.dumps(content))
    shutil.copytree(mini.folder / "zips", tmp_path / "stick")
    done = mini("--all", "--root", "data", "--source", "stick", cwd=tmp_path)
    assert_one_line(done, 3, "images are missing in data")
    assert (tmp_path / "stick" / "val2017.zip").is_file()


def test_images_without_annotated_dimensions(mini, tmp_path):
    root = tmp_path / "data"
    shutil.unpack_archive(mini.folder / "annotations" / "annotations_trainval2017.zip", root)
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"captions_{split}.json"
        content = json.loads(path.read_text())
        for number, image in enumerate(content["images"]):
            del image["width"]
            if number % 2:
                del image["height"]
        path.write_text(json.dumps(content))
    words = from_server(mini, "--train-fraction", 0.25, "--val-fraction", 0.25, "--root", "data")
    mini(*words, cwd=tmp_path).ok()
    checked = mini(*words, "--verify", cwd=tmp_path)
    assert checked.code == 0, checked.stdout


def test_the_next_command_names_what_decides_the_images(mini, tmp_path):
    more = ["--set", "data.subset_seed=3", "--set", "data.prepared_size=0", "--train-fraction", 0.1234567]
    done = mini(*from_server(mini, "--preset", "small", *more, "--root", "data"), cwd=tmp_path)
    settings = "data.train_fraction=0.1234567 data.subset_seed=3 data.prepared_size=0 data.root=data"
    assert f"Next: clipcoco train --preset small {settings}" in done.stdout


def test_pictures_of_ones_own_are_not_fetched_from_coco(mini, tmp_path):
    rows = [f"{path.name},a picture\n" for path in (mini.folder / "val2017").iterdir()]
    (tmp_path / "rows.csv").write_text("image,caption\n" + "".join(rows))
    own = ["--captions", "rows.csv", "--images", mini.folder / "val2017", "--root", "~/mine"]
    home = {"env": {"HOME": str(tmp_path)}}
    done = mini(*own, "--val-fraction", 0.5, "--set", "data.prepared_size=0", cwd=tmp_path, **home).ok()
    assert "Ready: 12 train and 12 val images" in done.stdout
    assert not (tmp_path / "mine" / "prepared-256").exists()
    next((tmp_path / "mine" / "val2017").iterdir()).unlink()
    done = mini(*from_server(mini, "--all", "--root", "~/mine"), cwd=tmp_path, **home)
    assert_one_line(done, 3, "pictures of your own are missing", "--captions FILE")
    assert not mini.server.requests


def test_a_volume_full_to_the_last_byte_is_one_line(mini, small_disk, tmp_path):
    words = from_server(mini, "--train-fraction", 0.25, "--val-fraction", 0.25, "--root", small_disk / "data")
    mini(*words, cwd=tmp_path).ok()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free))
    (small_disk / "data" / "annotations" / "captions_val2017.json").unlink()
    done = mini(*words, cwd=tmp_path)
    assert_one_line(done, 5, str(small_disk))


USAGE = [
    ([], 2, "--preset NAME"),
    (["--preset", "tiny", "--source", "nowhere"], 2, "is not a folder (--source)"),
    (["--preset", "tiny", "--mirror", "ftp://x"], 2, "--mirror"),
    (["--preset", "tiny", "--only-prepared", "--set", "data.prepared_size=0"], 2, "--only-prepared"),
    (["--captions", "x.csv", "--images", ".", "--root", "data", "--all"], 2, "Leave out --all"),
    (["--captions", "x.csv"], 2, "--captions FILE --images DIR --root DIR"),
    (["--captions", "x.csv", "--images", "/tmp", "--root", "data"], 3, "no captions file at x.csv"),
    (["--train-fraction", "2"], 2, "data.train_fraction"),
    (["--preset", "tiny", "--root", "nowhere", "--verify"], 3, "no captions at nowhere"),
]


@pytest.mark.parametrize(("words", "code", "part"), USAGE, ids=[" ".join(case[0]) for case in USAGE])
def test_usage(mini, tmp_path, words, code, part):
    assert_one_line(mini(*words, cwd=tmp_path), code, part)
    assert not list(tmp_path.iterdir())

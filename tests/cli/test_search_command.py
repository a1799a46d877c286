"""`clipcoco search`: over a run's validation images and over any folder, from the first time to the hundredth."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cli.test_errors import assert_error
from cli.test_terminal import Terminal
from conftest import TOY

SPLITS = ("val", "train")
ENCODING = "kept for next time"


@pytest.fixture(scope="module")
def work(clipcoco, scenes, tmp_path_factory) -> Path:
    """A folder with one run, `first`."""
    folder = tmp_path_factory.mktemp("search")
    clipcoco(
        *("train", "--preset", "demo", "--name", "first", *TOY, "train.epochs=2", "checkpoint.keep=2"),
        f"data.root={scenes}",
        cwd=folder,
    )
    for split in SPLITS:
        clipcoco("eval", "first", "--split", split, "--embeddings", f"{split}.npz", "--json", cwd=folder).ok()
    return folder


def embedded(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and ids of all pictures of the run, as eval writes them."""
    files = [np.load(work / f"{split}.npz") for split in SPLITS]
    return tuple(np.concatenate([file[name] for file in files]) for name in ("image_embeddings", "image_ids"))


@pytest.fixture
def pictures(scenes, tmp_path) -> Path:
    """Twelve pictures of one's own, half of them in a folder inside."""
    folder = tmp_path / "my pictures"
    (folder / "inside").mkdir(parents=True)
    for number, path in enumerate(sorted((scenes / "val2017").iterdir())[:12]):
        shutil.copy(path, folder / ("inside" if number % 2 else "") / f"{number:02}.jpg")
    return folder


def encoded(done) -> int:
    """How many pictures the command says it encoded."""
    assert done.code == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if ENCODING in line]
    return int(lines[0].split()[1].replace(",", "")) if lines else 0


def query_vector(work: Path, text: str) -> np.ndarray:
    from clipcoco.engine.model_file import open_model

    file = open_model(work / "runs/first/checkpoints/best.pt")
    with torch.no_grad():
        tokens = torch.from_numpy(file.tokenizer.encode([text], file.config.model.text.context_length))
        return file.model.eval().encode_texts(tokens)[0].numpy()


@pytest.mark.parametrize("text", ["a small red circle", "a blue star above a green heart"])
def test_the_hits_are_those_of_the_product_with_the_embeddings_of_eval(clipcoco, work, scenes, text):
    images, ids = embedded(work)
    scores = images @ query_vector(work, text)
    best = np.argsort(-scores, kind="stable")[:5]
    found = clipcoco("search", text, "--json", cwd=work).json
    assert [int(Path(hit["file"]).stem) for hit in found["hits"]] == ids[best].tolist()
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(scores[best].tolist(), abs=1e-3)
    annotations = [json.loads((scenes / f"annotations/captions_{split}2017.json").read_text()) for split in SPLITS]
    captions = [row for document in annotations for row in document["annotations"]]
    first = min((row["id"], row["caption"]) for row in captions if row["image_id"] == ids[best[0]])[1]
    assert found["hits"][0]["caption"] == first


def test_a_picture_asks_for_other_pictures_as_eval_would(clipcoco, work, scenes):
    images, ids = embedded(work)
    scores = images @ images[3]
    picture = scenes / "val2017" / f"{ids[3]:012}.jpg"
    found = clipcoco("search", "--image", picture, "-k", 99, "--json", cwd=work).json
    order = [row for row in np.argsort(-scores, kind="stable") if row != 3]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(scores[order].tolist(), abs=1e-3)
    assert sorted(int(Path(hit["file"]).stem) for hit in found["hits"]) == sorted(ids[order].tolist())  # each once
    assert found["images"] == 71
    assert found["query"] == str(picture)


def test_json_has_the_promised_shape_and_names_its_page(clipcoco, work):
    done = clipcoco("search", "a red square", "-k", "7", "--json", cwd=work)
    found = done.json
    assert found.keys() == {"schema", "query", "run", "model", "gallery", "images", "seconds", "hits", "page"}
    assert (found["schema"], found["query"], found["run"], found["images"]) == (1, "a red square", "first", 72)
    assert found["gallery"] == "val2017 and train2017, 48 of them trained on"
    assert found["model"] == "runs/first/checkpoints/best.pt"
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, 8))
    for hit in found["hits"]:
        assert hit.keys() == {"rank", "score", "file", "caption"}
        assert Path(hit["file"]).is_absolute()
        assert Path(hit["file"]).is_file()
    assert Path(found["page"]) == work / "runs/first/search/a-red-square.html"
    assert Path(found["page"]).is_file()


def test_the_page_of_the_run_and_the_newest_search_lead_to_each_other(clipcoco, work):
    page = Path(clipcoco("search", "a red square", "--json", cwd=work).json["page"])
    assert (page.parent / "index.html").read_text() == page.read_text()
    assert 'href="../report.html"' in page.read_text()
    assert 'href="search/index.html"' in (work / "runs/first/report.html").read_text()


def test_the_list_stands_on_stdout_whole_and_all_else_on_stderr(clipcoco, work):
    done = clipcoco("search", "a", "red", "square", cwd=work, env={"COLUMNS": "30", "FORCE_COLOR": ""})
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("   1  ")
    assert ".jpg  " in lines[0]
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr.splitlines()[0].startswith("first, best, step ")
    assert "72 images of val2017 and train2017, 48 of them trained on · " in done.stderr
    assert "pictures  runs/first/search/a-red-square.html" in done.stderr


def test_quiet_prints_paths_alone_for_xargs(clipcoco, work, pictures):
    words = ["a blue square", "-q", "-k", "99", "--images", pictures]
    done = clipcoco("search", *words, cwd=work, env={"FORCE_COLOR": "1"})
    assert done.code == 0
    assert sorted(done.stdout.splitlines()) == sorted(map(str, pictures.rglob("*.jpg")))
    assert not (work / "runs/first/search/a-blue-square.html").exists()


def test_a_name_that_is_no_text_is_printed_as_it_is(clipcoco, work, pictures):
    os.rename(os.fsencode(pictures / "00.jpg"), os.fsencode(pictures) + b"/\xff\xfe.jpg")
    search = ["search", "a star", "-k", "99", "--images", pictures]
    assert f"{pictures}/\ufffd\ufffd.jpg" in clipcoco(*search, "-q", cwd=work).stdout.splitlines()  # read leniently
    assert any(os.fsencode(name) == b"\xff\xfe.jpg" for name in names(clipcoco(*search, "--json", cwd=work).json))
    clipcoco(*search, cwd=work).ok()


class TestIndex:
    def test_it_is_made_once(self, clipcoco, work, pictures):
        search = ["search", "a red square", "--images", pictures]
        assert encoded(clipcoco(*search, cwd=work)) == 12
        index = newest_index(work)
        before = index.stat().st_mtime_ns
        again = clipcoco(*search, cwd=work)
        assert encoded(again) == 0
        assert index.stat().st_mtime_ns == before
        assert again.stderr.splitlines()[0].startswith("first, best")

    def test_only_what_changed_is_encoded_again(self, clipcoco, work, pictures, scenes):
        search = ["search", "a red square", "-k", 99, "--json", "--images", pictures]
        clipcoco(*search, cwd=work)
        others = sorted((scenes / "val2017").iterdir())[12:]
        shutil.copy(others[0], pictures / "new.jpg")
        shutil.copy(others[1], pictures / "02.jpg")
        (pictures / "04.jpg").unlink()
        os.utime(pictures / "06.jpg", (1, 1))
        (pictures / "08.jpg").rename(pictures / "renamed.jpg")
        (pictures / "notes.txt").write_text("no picture")
        shown = clipcoco(*[word for word in search if word != "--json"], cwd=work)
        assert encoded(shown) == 2
        updated = clipcoco(*search, cwd=work).json
        newest_index(work).unlink()
        afresh = clipcoco(*search, cwd=work).json
        assert names(updated) == names(afresh)
        assert [hit["score"] for hit in updated["hits"]] == pytest.approx(
            [hit["score"] for hit in afresh["hits"]], abs=2e-3
        )
        assert {"new.jpg", "renamed.jpg", "02.jpg"} <= set(names(updated))
        assert not {"04.jpg", "08.jpg"} & set(names(updated))

    def test_another_checkpoint_has_rows_of_its_own(self, clipcoco, work, pictures):
        search = ["search", "a red square", "--images", pictures]
        assert encoded(clipcoco(*search, cwd=work)) == 12
        assert encoded(clipcoco(*search, "--run", "first/previous", cwd=work)) == 12
        assert encoded(clipcoco(*search, cwd=work)) == 0

    def test_new_weights_under_the_same_name_make_a_new_index(self, clipcoco, work, pictures, tmp_path):
        shutil.copytree(work / "runs", tmp_path / "runs")
        search = ["search", "a red square", "--run", "first/last", "--images", pictures]
        assert encoded(clipcoco(*search, cwd=tmp_path)) == 12
        checkpoints = tmp_path / "runs/first/checkpoints"
        os.replace(checkpoints / "epoch_001.pt", checkpoints / "last.pt")
        assert encoded(clipcoco(*search, cwd=tmp_path)) == 12

    def test_a_damaged_one_is_made_anew_with_a_note(self, clipcoco, work, pictures):
        search = ["search", "a red square", "--json", "--images", pictures]
        before = clipcoco(*search, cwd=work).json
        index = newest_index(work)
        index.write_bytes(index.read_bytes()[:-100])
        done = clipcoco(*search, cwd=work)
        assert f"note: the index {index.relative_to(work)} can't be used" in done.stderr
        assert {**done.json, "seconds": 0} == {**before, "seconds": 0}
        assert "note" not in clipcoco(*search, cwd=work).stderr


def names(found: dict) -> list[str]:
    return [Path(hit["file"]).name for hit in found["hits"]]


def newest_index(work: Path) -> Path:
    return max((work / "runs/first/index").glob("*.f16"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_encoded(clipcoco, work, tmp_path):
    folder = tmp_path / "many pictures"
    folder.mkdir()
    Image.linear_gradient("L").resize((1500, 1500)).convert("RGB").save(tmp_path / "large.jpg")
    for number in range(400):  # what follows the end of a JPEG makes it another file, and no other picture
        (folder / f"{number:03}.jpg").write_bytes((tmp_path / "large.jpg").read_bytes() + number.to_bytes(2))
    search = ["search", "a red square", "--images", str(folder)]
    terminal = Terminal(clipcoco, *search, cwd=work)
    terminal.wait_for("encoding ")
    os.write(terminal.master, b"\x03")
    assert terminal.wait() == 130
    assert "of 400 are done and kept; the same command goes on there" in " ".join(terminal.text().split())
    assert not terminal.screen.cursor.hidden
    again = Terminal(clipcoco, *search, cwd=work, columns=46)
    assert again.wait() == 0
    done = int(terminal.text().split("note: ")[1].split()[0])
    assert f"Encoding {400 - done:,} images" in again.text()
    hits = [line for line in again.text().splitlines() if ".jpg" in line]
    assert [line.split()[-1] for line in hits] == [f"{number:03}.jpg" for number in range(5)]  # all equal: by name


def test_the_benchmarks_of_search_run(clipcoco, work, scenes, monkeypatch, capsys):
    """In this process or in forks: `startup.py` itself starts 20 processes that import torch, a minute of CPU."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    queries, startup = importlib.import_module("queries"), importlib.import_module("startup")
    monkeypatch.setattr(sys, "argv", ["queries.py", str(work / "runs/first")])
    queries.main()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": a C S")[0] for line in said] == ["the 24 unseen"] * 5 + ["all 72"] * 5
    assert re.fullmatch(r"all 72: a C S: precision@5 \d+\.\d %, \d+ queries", said[5])
    for name, words in startup.commands_of("first", scenes).items():
        if words[:3] == [sys.executable, "-m", "clipcoco"]:
            more = ["--fraction", "0.5"] if "--fraction" in words else []  # of 24 pictures, not of thousands
            done = clipcoco(*words[3:], *more, cwd=work).ok()
            assert ("Usage: " in done.stdout) if "--help" in words else ("first, best" in done.stderr), name
    environment = dict(os.environ)
    for measure in (startup.cpu_seconds, startup.until_first_line):
        used = measure([sys.executable, "-S", "-c", "sum(range(10**7)); print('ready')"], environment)
        assert 0.05 < used < 60


def test_paths_are_as_they_are_for_a_program_and_escaped_for_a_person(clipcoco, work, pictures):
    shutil.copy(pictures / "00.jpg", pictures / "a\x1bb.jpg")
    words = ["search", "a blue square", "-q", "-k", "99", "--images", pictures]
    assert f"{pictures}/a\x1bb.jpg" in clipcoco(*words, cwd=work).ok().stdout.splitlines()
    terminal = Terminal(clipcoco, *words, cwd=work, columns=200)
    assert terminal.wait() == 0
    assert rb"/a\x1bb.jpg" in terminal.written


def test_a_terminal_gets_links_and_captions_cut_to_its_width(clipcoco, work, scenes):
    terminal = Terminal(clipcoco, "search", "a red square", "-k", "99", cwd=work)
    assert terminal.wait() == 0
    hits = [line for line in terminal.text().splitlines() if ".jpg  " in line]
    assert len(hits) > 24  # all that there are: which come first is not the same on every processor
    assert any(line.endswith("…") for line in hits)
    assert all(len(line) <= 80 for line in hits)
    for hit in hits:
        assert next(scenes.glob(f"*2017/{hit.split()[2]}")).as_uri().encode() + b"\x1b\\" in terminal.written
    assert (work / "runs/first/search/a-red-square.html").as_uri().encode() in terminal.written


class TestFolders:
    def test_what_is_no_picture_is_counted_and_the_rest_is_searched(self, clipcoco, work, pictures):
        (pictures / "00.jpg").rename(pictures / "no extension")
        (pictures / "notes.jpg").write_text("a text with a picture's name")
        (pictures / "empty.png").touch()
        (pictures / "cut.jpg").write_bytes((pictures / "02.jpg").read_bytes()[:200])
        Image.new("L", (9000, 8000)).save(pictures / "huge.png")
        (pictures / ".hidden.jpg").write_bytes((pictures / "02.jpg").read_bytes())
        (pictures / "nowhere.jpg").symlink_to("none")
        (pictures / "itself.jpg").symlink_to("itself.jpg")
        (pictures / "inside" / "loop").symlink_to("..")
        os.mkfifo(pictures / "pipe.jpg")
        for _ in range(2):  # the second time from the index
            done = clipcoco("search", "a star", "-k", "99", "--json", "--images", pictures, cwd=work)
            assert done.json["images"] == len(done.json["hits"]) == 12
            assert "no extension" in names(done.json)
            assert "note: 2 files are no JPEG or PNG: first empty.png" in done.stderr
            assert "note: 2 files are damaged, or above 64 megapixels: first cut.jpg" in done.stderr
            assert "note: 2 files can't be opened: first itself.jpg" in done.stderr
            assert "Traceback" not in done.stderr

    def test_a_linked_folder_is_searched_once(self, clipcoco, work, pictures, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        shutil.move(pictures / "00.jpg", elsewhere / "linked.jpg")
        for name in ("a", "b"):
            (pictures / name).symlink_to(elsewhere)
        found = clipcoco("search", "a star", "-k", "99", "--json", "--images", pictures, cwd=work).json
        assert len(found["hits"]) == 12
        assert names(found).count("linked.jpg") == 1

    def test_a_picture_finds_what_looks_like_it_turned_as_the_camera_noted(self, clipcoco, work, pictures, scenes):
        exif = Image.Exif()
        exif[274] = 6
        with Image.open(pictures / "00.jpg") as image:
            image.rotate(90, expand=True).save(pictures / "turned.png", exif=exif)
            image.save(pictures / "00.png")
        words = ["--image", pictures / "turned.png", "-k", 2, "--json", "--images", pictures]
        found = clipcoco("search", *words, cwd=work).json
        assert set(names(found)) <= {"00.png", "00.jpg"}
        assert found["hits"][0]["score"] == pytest.approx(1, abs=2e-3)
        assert found["hits"][0]["caption"] is None

    def test_the_asked_picture_and_copies_of_a_file_are_not_shown_again(self, clipcoco, work, pictures):
        shutil.copy(pictures / "00.jpg", pictures / "copy of the asked one.jpg")
        for name in ("a.jpg", "b.jpg"):
            shutil.copy(pictures / "02.jpg", pictures / name)
        words = ["search", "--image", pictures / "00.jpg", "-k", "99", "--json", "--images"]
        found = clipcoco(*words, pictures, cwd=work).json
        assert len(found["hits"]) == found["images"] == 11
        assert len({"02.jpg", "a.jpg", "b.jpg"} & set(names(found))) == 1
        assert not {"00.jpg", "copy of the asked one.jpg"} & set(names(found))
        (pictures / "alone").mkdir()
        shutil.copy(pictures / "00.jpg", pictures / "alone")
        assert_error(clipcoco(*words, pictures / "alone", cwd=work), 3, "no other picture in")

    def test_an_index_that_can_not_be_kept_is_a_note(self, clipcoco, work, pictures, tmp_path):
        shutil.copytree(work / "runs", tmp_path / "runs")
        for name in ("index", "search"):
            shutil.rmtree(tmp_path / "runs/first" / name, ignore_errors=True)
            (tmp_path / "runs/first" / name).write_text("a file in the way")
        done = clipcoco("search", "a star", "--json", "--images", pictures, cwd=tmp_path)
        assert done.code == 0
        assert done.json["page"] is None
        assert done.stderr.count("note: the index can't be kept") == 1
        assert ENCODING not in done.stderr
        assert "note: the page of pictures can't be written" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ([], 2, ["nothing to look for"]),
        ([""], 2, ["the query is empty"]),
        ([" \n\x01 "], 2, ["the query is empty"]),
        (["a dog", "--image", "x.jpg"], 2, ["Keep one"]),
        (["a dog", "-q", "--json"], 2, ["Keep one"]),
        (["a dog", "-k", "0"], 2, ["-k"]),
        (["a dog", "--images", "none"], 3, ["none does not exist (--images)"]),
        (["a dog", "--images", "runs/first/config.yaml"], 3, ["is not a folder"]),
        (["a dog", "--images", "empty"], 3, ["no picture in empty"]),
        (["a dog", "--images", "texts"], 3, ["no picture in texts"]),
        (["--image", "none.jpg"], 3, ["none.jpg is not a file (--image)"]),
        (["--image", "runs"], 3, ["runs is not a file (--image)"]),
        (["--image", "texts/a.jpg"], 3, ["texts/a.jpg can't be read: neither a JPEG nor a PNG"]),
        (["a dog", "--run", "nobody"], 4, ["no run 'nobody'"]),
        (["a dog", "--set", "model.projection_dim=3"], 2, ["Only data.*"]),
        (["a dog", "--set", "data.root=none"], 3, ["no captions at none"]),
        (["a dog", "--device", "gpu"], 2, ["no device 'gpu'"]),
        (["a dog", "--model", "ViT-B-32"], 2, ["Add --images DIR, or --run RUN"]),
        (["a dog", "--model", "ViT-B-32", "--run", "first"], 2, ["downloads nothing", "hf download"]),
        (["a dog", "--model", "local-dir:none", "--run", "first"], 4, ["none/open_clip_config.json can't be read"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(clipcoco, work, words, code, parts):
    (work / "empty").mkdir(exist_ok=True)
    (work / "texts").mkdir(exist_ok=True)
    (work / "texts/a.jpg").write_text("no picture")
    done = clipcoco("search", *words, cwd=work)
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert_error(type(done)(done.code, done.stdout, done.stderr), code, *parts)
    assert len(done.stderr.splitlines()) == 1 + len(notes)


def test_a_query_that_can_not_be_understood_whole_is_noted(clipcoco, work):
    long = clipcoco("search", "a red circle and " * 10, cwd=work)
    assert "note: the query is longer than the model reads, it ends for it at: a red circle and a red" in long.stderr
    strange = clipcoco("search", "漢字", cwd=work)
    assert "the order means nothing" in strange.stderr
    assert (long.code, strange.code) == (0, 0)
    assert "note" not in clipcoco("search", "a red circle", cwd=work).stderr


class TestHonesty:
    """A search says what it does not know."""

    @pytest.mark.parametrize(
        ("words", "note"),
        [
            ("hund", "'hund' occurs in no training caption: the order means nothing"),
            ("a RED Sofa.", "'sofa' occurs in no training caption"),
            ("zebras above a dog", "'zebras' and 'dog' occur in no training caption"),
            ("circl", "'circl' occurs in no training caption: the order means nothing"),  # a piece that is no word
        ],
    )
    def test_words_that_no_training_caption_has_are_named(self, clipcoco, work, words, note):
        for form in ([], ["-q"], ["--json"]):
            lines = clipcoco("search", words, *form, cwd=work).ok().stderr.splitlines()
            assert [line for line in lines if "training caption" in line] == [f"note: {note}"]

    def test_every_word_of_the_training_captions_is_known(self, clipcoco, work, scenes):
        captions = json.loads((scenes / "annotations/captions_train2017.json").read_text())["annotations"]
        words = sorted({word for row in captions for word in re.findall(r"\w+", row["caption"].lower())})
        content = torch.load(work / "runs/first/checkpoints/best.pt", weights_only=True)
        assert content["words"].split(" ") == words

    def test_weights_of_another_run_bring_their_words(self, clipcoco, work, scenes, tmp_path):
        annotations = tmp_path / "data/annotations"
        shutil.copytree(scenes, tmp_path / "data")
        path = annotations / "captions_train2017.json"
        path.write_text(re.sub("(?i)circle", "zebra", path.read_text()))
        for name, weights in (("second", "runs/first/checkpoints/best.pt"), ("third", "old.pt")):
            if name == "third":  # as an earlier version wrote them
                content = torch.load(work / "runs/first/checkpoints/best.pt", weights_only=True)
                del content["words"]
                torch.save(content, work / "old.pt")
            words = ["--name", name, "--init", weights, *TOY, f"data.root={tmp_path / 'data'}", "train.epochs=1"]
            words += ["checkpoint.keep=0", "--runs-dir", tmp_path / "runs"]
            clipcoco("train", "--preset", "demo", *words, cwd=work).ok()
        known = clipcoco("search", "circle zebra hund", "--run", tmp_path / "runs/second", cwd=work).ok()
        assert "note: 'hund' occurs in no training caption\n" in known.stderr
        for unknown in (["--run", tmp_path / "runs/third"], ["--run", "old.pt"]):  # it does not know what it has read
            done = clipcoco("search", "circle zebra hund", *unknown, cwd=work).ok()
            assert "training caption" not in done.stderr

    def test_the_first_line_says_what_the_model_is_worth(self, clipcoco, work, tmp_path):
        recall = json.loads((work / "runs/first/evaluation.json").read_text())["result"]["r1"]
        first = clipcoco("search", "a star", cwd=work).ok().stderr.splitlines()[0]
        assert re.fullmatch(r"first, best, step \d+ of 12: mean R@1 [\d.]+ over 24 images \(chance 4.17\)", first)
        assert f"mean R@1 {recall:.2f} " in first
        content = torch.load(work / "runs/first/checkpoints/last.pt", weights_only=True)
        content["metrics"], content["state"]["step"] = [], 5
        torch.save(content, tmp_path / "young.pt")
        words = ["search", "a star", "--run", tmp_path / "young.pt"]
        unmeasured = "young, step 5: never measured"
        assert clipcoco(*words, cwd=work).ok().stderr.splitlines()[0] == unmeasured
        assert f"note: {unmeasured}" in clipcoco(*words, "-q", cwd=work).ok().stderr.splitlines()

    def test_scores_that_do_not_differ_are_said(self, clipcoco, work, tmp_path):
        content = torch.load(work / "runs/first/checkpoints/last.pt", weights_only=True)
        head = content["model"]["visual.head.proj.weight"]
        head.copy_(head[:, :1].clone().expand_as(head))  # one direction, whatever is seen
        torch.save(content, tmp_path / "collapsed.pt")
        done = clipcoco("search", "a star", "--run", tmp_path / "collapsed.pt", cwd=work).ok()
        note = next(line for line in done.stderr.splitlines() if line.startswith("note: "))
        assert re.fullmatch(r"note: all 72 pictures score alike, from (\S+) to \1: the order means nothing", note)


def test_words_are_answered_without_torchvision_and_what_is_wrong_without_torch(clipcoco, work):
    """In processes of their own: which modules are there, when the first line is and at the end."""
    clipcoco("search", "a red star", cwd=work).ok()  # from now on there is an index
    code = """
import io, sys
from clipcoco.cli import run

class Watched(io.TextIOWrapper):
    def isatty(self): return True
    def write(self, text):
        if "Reading" in text: said.append("torch" in sys.modules)
        return super().write(text)

said = []
sys.stderr = Watched(sys.stderr.buffer)
assert run(["search", "a red star"]) == 0
assert said == [False], said
assert "torch" in sys.modules and not {"torchvision", "torch._dynamo", "sympy"} & sys.modules.keys()
"""
    assert (
        "a-red-star"
        in subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=True).stderr
    )
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "open_clip"))
from clipcoco.cli import run
for words, exits in (
    (["--image", "none.jpg"], 3), (["--image", "texts/a.jpg"], 3), (["a", "--model", "ViT-B-32", "--images", "."], 2),
    (["a", "--model", "local-dir:none", "--images", "."], 4), (["a", "--model", "local-dir:model", "--images", "."], 5),
):
    assert run(["search", *words]) == exits, words
"""
    (work / "texts").mkdir(exist_ok=True)
    (work / "texts/a.jpg").write_text("no picture")
    (work / "model").mkdir(exist_ok=True)
    description = {"model_cfg": {"embed_dim": 8, "text_cfg": {"context_length": 16}}}
    (work / "model/open_clip_config.json").write_text(json.dumps(description))
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 5


class TestQuestions:
    """`clipcoco search` alone, on a terminal."""

    def test_the_model_stays_open_and_an_error_of_one_question_ends_no_other(self, clipcoco, work, tmp_path):
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        Image.new("RGB", (64, 64), "red").save(pictures / "a.png")
        terminal = Terminal(clipcoco, "search", "--images", str(pictures), cwd=work)
        terminal.wait_for("Reading first, best …")
        terminal.wait_for("search:")
        ask(terminal, "a red star", "a-red-star.html")
        os.write(terminal.master, "\u200b\n".encode())  # which is no word and no end
        terminal.wait_for("error: the query is empty")
        ask(terminal, "hund", "'hund' occurs in no training caption")
        terminal.wait_for("hund.html")
        os.write(terminal.master, b"\n")
        assert terminal.wait() == 0
        assert terminal.text().count("Reading") == terminal.text().count("mean R@1") == 1

    @pytest.mark.parametrize(("keys", "code"), [(b"\x04", 0), (b"\n", 0), (b"\x03", 130), (b"a half\x03", 130)])
    def test_it_ends_cleanly(self, clipcoco, work, keys, code):
        terminal = Terminal(clipcoco, "search", cwd=work)
        terminal.wait_for("search:")
        os.write(terminal.master, keys)
        # Between readline's prompt and its wait a signal waits for the next key, on a busy machine: one presses again.
        assert terminal.wait(b"\x03" if code else b"") == code
        assert "Traceback" not in terminal.text()
        assert terminal.screen.cursor.x == 0

    def test_off_a_terminal_and_for_a_program_it_is_the_error_that_it_was(self, clipcoco, work):
        assert_error(clipcoco("search", cwd=work), 2, "nothing to look for")
        for form in ("-q", "--json"):
            terminal = Terminal(clipcoco, "search", form, cwd=work)
            assert terminal.wait() == 2
            assert "nothing to look for" in terminal.text()


def ask(terminal: Terminal, words: str, answer: str) -> None:
    os.write(terminal.master, words.encode() + b"\n")
    terminal.wait_for(answer)


def test_hostile_words_stay_words_and_their_page_stays_in_its_folder(clipcoco, work, pictures):
    (pictures / "00.jpg").rename(pictures / "<img src=x onerror=alert(1)>\x1b[31m.jpg")
    query = "../../<script>alert('1')</script>\x1b[2J"
    done = clipcoco("search", query, "-k", "99", "--images", pictures, cwd=work)
    assert done.code == 0
    assert "\x1b[31m" not in done.stdout
    page = work / "runs/first/search/script-alert-1-script-2j.html"
    html = page.read_text()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html


def open_clip_folder(folder: Path) -> Path:
    """A tiny model of open_clip with random weights, as `local-dir:` wants it."""
    open_clip = pytest.importorskip("open_clip", reason="installed by make test-all")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of open_clip's own imports
def test_any_model_of_open_clip_searches_without_a_run(clipcoco, pictures, tmp_path):
    import open_clip

    folder = open_clip_folder(tmp_path / "tiny-clip")
    search = ["search", "a red square", "--model", f"local-dir:{folder}", "--images", pictures]
    assert encoded(clipcoco(*search, cwd=tmp_path)) == 12
    found = clipcoco(*search, "-k", "12", "--json", cwd=tmp_path).json
    assert (found["run"], found["model"]) == (None, f"local-dir:{folder}")
    assert Path(found["page"]).is_relative_to(tmp_path / "runs/search")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    paths = sorted(pictures.rglob("*.jpg"))
    with torch.no_grad():
        images = model.eval().encode_image(
            torch.stack([preprocess(Image.open(path)) for path in paths]), normalize=True
        )
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a red square"]), normalize=True)[0]
    expected = {str(path): score for path, score in zip(paths, (images @ text).tolist(), strict=True)}
    assert {hit["file"]: hit["score"] for hit in found["hits"]} == pytest.approx(expected, abs=2e-3)
    assert [hit["score"] for hit in found["hits"]] == sorted((hit["score"] for hit in found["hits"]), reverse=True)
    assert "longer than the 16 tokens" in clipcoco(*search[:1], "a red square " * 9, *search[2:], cwd=tmp_path).stderr
    (folder / "open_clip_model.safetensors").unlink()
    assert_error(clipcoco(*search, cwd=tmp_path), 4, "holds no open_clip model")

"""The parts of `search`: the exact product, the index while it grows, the page, the names of pages."""

import hashlib
import json
import mmap
import os
import re
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipcoco.disk.arrays import load_arrays, write_arrays
from clipcoco.disk.locks import lock
from clipcoco.disk.seal import write_sealed
from clipcoco.errors import CheckpointError, EnvironmentProblem
from clipcoco.search import index as indexes
from clipcoco.search.entries import DAMAGED, OTHER
from clipcoco.search.index import Encoding, Index, Item, refresh
from clipcoco.search.models import open_folder
from clipcoco.search.page import slug, write_page
from clipcoco.search.query import Answer, Hit, Query, nearest
from harness import Page, file_size_limit, raising

EVIL = "<script>alert('1')</script> & \"quoted\" {{ 7 * 7 }} {% raw %}"


class TestNearest:
    @pytest.mark.parametrize("images", [1, 4, 4096, 4097, 20_000])
    def test_it_is_the_order_of_the_whole_product(self, images):
        generator = torch.Generator().manual_seed(images)
        rows = torch.nn.functional.normalize(torch.randn(images, 48, generator=generator), dim=1).half()
        query = torch.nn.functional.normalize(torch.randn(48, generator=generator), dim=0)
        expected = (rows.double() @ query.double()).sort(descending=True)
        places, scores = nearest(rows, query, 25)
        assert places == expected.indices[:25].tolist()
        assert scores == pytest.approx(expected.values[:25].tolist(), abs=1e-7)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_equal_rows_come_in_their_order_wherever_they_stand(self, threads):
        generator = torch.Generator().manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(9001, 33, generator=generator), dim=1).half()
        query = torch.randn(33, generator=generator)
        best = int((rows.float() @ query).argmax())
        equal = sorted([0, 1, 4095, 4096, best, 8999, 9000])
        rows[equal] = rows[best].clone()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            places, scores = nearest(rows, query, 6)
        finally:
            torch.set_num_threads(before)
        assert places == equal[:6]
        assert len(set(scores)) == 1


class Source:
    """Names are contents; the first letter says what becomes of them."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.stop_at: int | None = None

    def read(self, name: str) -> bytes | None:
        if name.startswith("unread"):
            raise PermissionError
        return None if name.startswith("other") else name.rstrip("'").encode()

    def prepare(self, data: bytes) -> torch.Tensor:
        from clipcoco.data.viewer import UnreadableImage

        if data.startswith(b"damaged"):
            raise UnreadableImage("it is")
        return torch.tensor([float(data[1:]), 1.0])

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        if self.stop_at is not None and sum(self.encoded) >= self.stop_at:
            raise KeyboardInterrupt
        self.encoded.append(len(batch))
        return batch

    def encoding(self) -> Encoding:
        return Encoding(self.read, self.prepare, self.encode, 2)


def open_index(file: Path, model: str = "m") -> Index:
    return Index(file, model, 2)


def items_of(names: list[str], changed: int = 1) -> list[Item]:
    return [Item(name, f"1 {changed}") for name in names]


def update(file: Path, names: list[str], source: Source, model: str = "m", changed: int = 1) -> Index:
    index = open_index(file, model)
    refresh(index, items_of(names, changed), source.encoding(), lambda event: None, pytest.fail)
    return index


def found(index: Index) -> dict[str, float]:
    names, rows = index.gallery()
    return {name: float(row[0]) for name, row in zip(names, rows, strict=True)}


def bytes_written() -> int:
    """By this process, so far, as the system counts."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        pytest.skip("the system does not count them")
    return int(re.search(r"wchar: (\d+)", counts.read_text())[1])


def in_a_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return child


class TestIndex:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "deep/i.f16"

    def test_each_name_keeps_its_own_row_through_many_changes(self, file):
        everything = [f"i{number}" for number in range(200)]
        rng = np.random.default_rng(0)
        for _ in range(12):
            names = sorted(rng.choice(everything, rng.integers(1, 150), replace=False).tolist())
            index = update(file, names, Source())
            assert found(index) == found(open_index(file)) == {name: float(name[1:]) for name in names}
            assert index.gallery()[1].dtype == np.float16
            [of_rows] = file.parent.glob("i.f16*")
            assert of_rows.stat().st_size <= 2 * 4 * len(names)  # rows of nobody are dropped when they are the most

    def test_what_is_known_by_its_content_is_not_encoded_again(self, file):
        source = Source()
        update(file, ["i1", "i2", "i3", "i3'"], source)
        assert found(update(file, ["i1'", "i2", "i4"], source, changed=2)) == {"i1'": 1, "i2": 2, "i4": 4}
        assert found(update(file, ["i3", "i4"], source, changed=3)) == {"i3": 3, "i4": 4}  # gone, and back
        assert source.encoded == [3, 1]

    def test_failures_are_remembered_but_for_those_that_may_pass(self, file):
        names = ["damaged", "i1", "other", "unread"]
        assert found(update(file, names, Source())) == {"i1": 1}
        again = open_index(file)
        assert [item.name for item in again.stale(items_of(names))] == ["unread"]
        assert [list(again.failures(why)) for why in (DAMAGED, OTHER)] == [["damaged"], ["other"]]

    def test_a_name_need_not_be_a_text(self, file):
        update(file, ["other\udcff"], Source())
        assert list(open_index(file).failures(OTHER)) == ["other\udcff"]

    def test_what_kills_and_earlier_versions_left_is_cleared(self, file):
        file.parent.mkdir()
        for name in (".i.f16.0a1b2c3d.tmp", ".i.arrays.0a1b2c3d.tmp", "i.npz"):
            (file.parent / name).write_bytes(b"half")
        update(file, ["i1"], Source())
        assert {path.name for path in file.parent.iterdir()} == {"i.f16", "i.arrays", "i.lock"}

    def test_another_model_starts_anew(self, file):
        source = Source()
        update(file, ["i1"], source)
        update(file, ["i1"], source, model="n")
        assert source.encoded == [1, 1]

    def test_an_interruption_loses_nothing_that_was_encoded(self, file):
        source, told = Source(), []
        items = items_of([f"i{number}" for number in range(500)])
        source.stop_at = 200
        with pytest.raises(KeyboardInterrupt):
            refresh(open_index(file), items, source.encoding(), lambda event: None, told.append)
        kept = sum(source.encoded)
        assert told == [f"{kept} of 500 are done and kept; the same command goes on there"]
        source.stop_at = None
        index = open_index(file)
        assert len(index.stale(items)) == 500 - kept
        refresh(index, items, source.encoding(), lambda event: None, told.append)
        assert sum(source.encoded) == 500
        assert found(index) == {f"i{number}": number for number in range(500)}

    def test_kill_9_loses_no_more_than_since_the_last_save_and_leaves_no_trace(self, file, tmp_path, monkeypatch):
        monkeypatch.setattr(indexes, "SAVE_EVERY", 128)
        names, source = [f"i{number}" for number in range(500)], Source()
        update(tmp_path / "calm/i.f16", names, Source())
        for at in (256, 448):
            killed = Source()
            killed.encode = lambda batch, at=at: batch if batch[0, 0] < at else os.kill(os.getpid(), 9)
            child = in_a_child(lambda killed=killed: update(file, names, killed))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
            assert len(open_index(file).stale(items_of(names))) == 500 - at // 128 * 128
        update(file, names, source)
        for name in ("i.f16", "i.arrays"):
            assert (file.parent / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()

    @pytest.mark.parametrize("own", [b"damaged", None])
    def test_another_search_that_writes_it_is_waited_for_and_what_it_wrote_is_used(self, file, tmp_path, own):
        source, told = Source(), []
        other = update(tmp_path / "other/i.f16", ["i1", "i2"], Source()).path
        file.parent.mkdir()
        if own:
            file.with_suffix(".arrays").write_bytes(own)

        def tell(line: str) -> None:
            told.append(line)
            for path in (other, other.with_suffix(".arrays")):
                os.replace(path, file.parent / path.name)
            writing.close()

        with ExitStack() as writing:
            writing.enter_context(lock(file.with_suffix(".lock")))
            index = open_index(file)
            assert refresh(index, items_of(["i1", "i2", "i3"]), source.encoding(), lambda event: None, tell) == 1
        assert re.fullmatch(
            rf"another search is writing i.f16 \(process {os.getpid()} on .*\): waiting for it", told[0]
        )
        assert (len(told), index.kept) == (1, True)
        assert found(open_index(file)) == {"i1": 1, "i2": 2, "i3": 3}

    def test_one_who_waits_can_be_interrupted(self, file):
        def tell(line: str) -> None:
            raise KeyboardInterrupt

        file.parent.mkdir()
        with lock(file.with_suffix(".lock")), pytest.raises(KeyboardInterrupt):
            refresh(open_index(file), items_of(["i1"]), Source().encoding(), lambda event: None, tell)

    def test_each_name_stands_once_in_the_index_and_rows_in_order_are_not_copied(self, file):
        names = [f"i{number}" for number in range(9)]
        assert isinstance(update(file, names, Source()).gallery()[1].base, mmap.mmap)
        assert file.with_suffix(".arrays").read_bytes().count(b"i7") == 1
        found, rows = update(file, names[::-1], Source()).gallery()
        assert (list(found), rows[:, 0].tolist()) == (names[::-1], [8, 7, 6, 5, 4, 3, 2, 1, 0])

    def test_an_index_that_can_not_be_written_is_not_kept(self, file):
        index, told = open_index(file), []
        with file_size_limit(99):
            assert refresh(index, items_of(["i1"]), Source().encoding(), lambda event: None, told.append) == 1
        assert told == [f"the index can't be kept: File too large ({file})"]
        assert found(index) == {"i1": 1}
        assert [path.name for path in file.parent.iterdir()] == ["i.lock"]

    @pytest.mark.parametrize("suffix", [".json", ".arrays"])
    def test_what_an_earlier_version_kept_is_used_and_written_anew(self, file, suffix):
        source, rows = Source(), np.array([[1, 1], [2, 1]], np.float16)
        update(file, ["damaged", "i1", "i2"], source)
        head, kept = load_arrays(file.with_suffix(".arrays"))
        head = {"key": head["key"], "sha256": hashlib.sha256(rows.data).hexdigest()}
        digits = kept["contents"].tobytes().hex()
        items = {"damaged": ["1 1", DAMAGED], "i1": ["1 1", digits[:32]], "i2": ["1 1", digits[32:]]}
        file.with_suffix(".arrays").unlink()
        if suffix == ".json":
            write_sealed(file.with_suffix(".json"), head | {"names": [digits[:32], digits[32:]], "items": items})
        else:
            write_arrays(file.with_suffix(".arrays"), head, kept)
        file.write_bytes(rows[::-1].tobytes())
        assert open_index(file).file.note == "i.f16 is damaged"
        file.write_bytes(rows.tobytes())
        assert open_index(file).is_of(items_of(["damaged", "i1", "i2"]))
        assert found(update(file, ["damaged", "i1", "i2", "i3"], source)) == {"i1": 1, "i2": 2, "i3": 3}
        assert found(open_index(file)) == {"i1": 1, "i2": 2, "i3": 3}
        assert source.encoded == [2, 1]
        assert {path.name for path in file.parent.iterdir()} == {"i.f16", "i.arrays", "i.lock"}

    def test_what_is_written_of_a_large_gallery_stays_below_twice_what_is_left(self, file, monkeypatch):
        monkeypatch.setattr(indexes, "SAVE_EVERY", 64)
        names = [f"i{number}" for number in range(6000)]
        index = Index(file, "m", 256)
        wide = Encoding(
            lambda name: name.encode(),
            lambda data: torch.full((256,), float(data[1:])),
            lambda batch: batch,
            2,
        )
        before = bytes_written()
        refresh(index, items_of(names), wide, lambda event: None, pytest.fail)
        left = sum(path.stat().st_size for path in file.parent.iterdir())
        assert 6000 * 512 < left < bytes_written() - before < 2 * left
        assert found(Index(file, "m", 256))["i5999"] == pytest.approx(5999, abs=2)

    def test_question_after_question_nothing_is_looked_up_again(self, file, monkeypatch):
        items, source = items_of(["i1", "i2", "other"]), Source()
        index = open_index(file)
        refresh(index, items, source.encoding(), lambda event: None, pytest.fail)
        first = index.gallery()
        monkeypatch.setattr(Index, "alone", raising(AssertionError))
        assert refresh(index, items, source.encoding(), lambda event: None, pytest.fail) == 0
        assert index.gallery() is first
        assert index.stale(items_of(["i1", "i2", "i3"])) == [Item("i3", "1 1")]
        monkeypatch.undo()
        more = items_of(["i3", "i1"])
        assert refresh(index, more, source.encoding(), lambda event: None, pytest.fail) == 1
        assert found(index) == {"i3": 3, "i1": 1}

    @pytest.mark.parametrize(
        "items",
        [
            [],
            [("i1", "1 1")],
            [("i2", "1 1"), ("i1", "1 1"), ("other", "1 1")],
            [("i1", "1 1"), ("i2", "1 2"), ("other", "1 1")],
            [("i1", "1 1"), ("i", "1 1"), ("2other", "1 1")],
            [("i1", "1 1"), ("i2", "1 1"), ("other", "1 1"), ("", "")],
            [("i1", "1 1"), ("i2", "1 1"), ("other", "1 1"), ("i3", "1 1")],
        ],
        ids=str,
    )
    def test_an_index_is_of_its_own_items_alone(self, file, items):
        update(file, ["i1", "i2", "other"], Source())
        index = open_index(file)
        assert not index.is_of([Item(*item) for item in items])
        assert index.is_of(items_of(["i1", "i2", "other"]))
        update(file, ["i1", "unread"], Source())
        assert not open_index(file).is_of(items_of(["i1", "unread"]))

    def test_a_file_system_without_locks_is_told_and_nothing_of_others_is_touched(self, file, monkeypatch):
        update(file, ["i1"], Source())
        before, told = file.stat(), []
        other = open_index(file).file
        monkeypatch.setattr("fcntl.flock", lambda *args: (_ for _ in ()).throw(OSError(95, "not supported")))
        refresh(open_index(file), items_of(["i1", "i2"]), Source().encoding(), lambda event: None, told.append)
        assert [line for line in told if "can't be locked" in line] == told != []
        assert found(open_index(file)) == {"i1": 1, "i2": 2}
        assert not file.exists() or file.stat().st_size == before.st_size
        assert other.rows.tolist() == [[1, 1]]

    def test_searches_at_the_same_time_answer_rightly_and_leave_a_whole_index(self, file):
        def search(seed: int) -> None:
            for _ in range(8):
                names = [f"i{number}" for number in np.random.default_rng(seed).choice(300, 150, replace=False)]
                index = open_index(file)
                refresh(index, items_of(names), Source().encoding(), lambda event: None, told.append)
                assert found(index) == {name: float(name[1:]) for name in names}
                seed += 10
            assert not [line for line in told if "another search is writing i.f16" not in line]

        told: list[str] = []
        children = [in_a_child(lambda seed=seed: search(seed)) for seed in range(3)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        search(99)
        assert not open_index(file).file.note

    def test_what_another_search_wrote_since_it_was_read_is_not_encoded_again(self, file):
        index, source, names = open_index(file), Source(), ["i1", "i2"]
        update(file, names, Source())
        assert refresh(index, items_of([*names, "i3"]), source.encoding(), lambda event: None, pytest.fail) == 1
        assert found(open_index(file)) == {"i1": 1, "i2": 2, "i3": 3}

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"contents": np.zeros(0, np.uint8)},
            {"contents": np.zeros(16 * 10**4, np.uint8)},
            {"contents": np.zeros(32, np.uint8)},
            {"names": np.frombuffer(b"i1\0", np.uint8)},
            {"stamps": np.frombuffer(b"\xff\0\xff\0", np.uint8)},
            {"places": np.array([0, 7], np.int32)},
            {"places": np.array([0.5, 1.5])},
            {"file": "../i.f16"},
            {"sum": 7},
            {"names": None},
        ],
        ids=str,
    )
    def test_damage_is_seen_and_what_a_stranger_wrote_is_refused(self, file, change):
        told: list[str] = []
        update(file, ["i1", "i2"], Source())
        if not change:
            file.write_bytes(file.read_bytes()[::-1])
        head, kept = load_arrays(file.with_suffix(".arrays"))
        head |= {key: value for key, value in change.items() if key in ("file", "sum")}
        kept = {key: change.get(key, value) for key, value in kept.items() if change.get(key, value) is not None}
        write_arrays(file.with_suffix(".arrays"), head, kept)
        index = open_index(file)
        assert not found(index)
        refresh(index, items_of(["i3"]), Source().encoding(), lambda event: None, told.append)
        assert told == [f"the index {file} can't be used, so it is rebuilt"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a dog on a sofa", r"a-dog-on-a-sofa"),
        ("  A DOG, on a sofa!  ", r"a-dog-on-a-sofa"),
        ("café", r"cafe"),
        ("../../etc/passwd", r"etc-passwd"),
        ("/", r"query-[0-9a-f]{8}"),
        ("..", r"query-[0-9a-f]{8}"),
        ("一只狗", r"query-[0-9a-f]{8}"),
        ("dog \U0001f415 狗", r"dog-[0-9a-f]{8}"),
        ("\udcff", r"query-[0-9a-f]{8}"),
        ("x" * 5000, r"x{60}-[0-9a-f]{8}"),
    ],
)
def test_a_page_has_a_name_that_stays_in_its_folder(words, expected):
    assert re.fullmatch(expected, slug(words))


def test_different_queries_in_other_scripts_have_different_pages():
    assert len({slug(words) for words in ("狗", "猫", "дом", "кот", "x" * 70, "x" * 71)}) == 6


def answer(query: Query, hits: list[Hit]) -> Answer:
    return Answer(query, "val2017", 24, 0.01, tuple(hits), 0, 0.0, True)


def test_the_page_stands_alone_and_escapes_all_that_strangers_wrote(tmp_path):
    name = f"{EVIL.replace('/', '')}\udcff\x1b‮.png"
    path = tmp_path / name
    Image.new("RGB", (500, 300), (200, 30, 30)).save(path, "PNG")
    gone = Hit(2, -0.125, "gone.jpg", tmp_path / "gone.jpg", None)
    page = Page(write_page(tmp_path / "pages", answer(Query(EVIL), [Hit(1, 0.5, name, path, EVIL), gone]), EVIL))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) == 4  # title, heading, below it, caption
    assert "49" not in page.text
    assert not set("\x1b‮\udcff") & set(page.text)
    (picture,) = page.all("img")
    assert picture["src"].startswith("data:image/jpeg;base64,")
    assert picture["alt"] == EVIL
    assert {link["href"] for link in page.all("a")} == {path.as_uri(), (tmp_path / "gone.jpg").as_uri()}
    assert "0.500" in page.text
    assert "-0.125" in page.text
    assert "this picture can" in page.text


def test_a_page_has_a_hundred_pictures_at_most_and_says_so(tmp_path):
    hits = [Hit(rank, 0.1, f"{rank}.jpg", tmp_path / f"{rank}.jpg", None) for rank in range(1, 131)]
    page = Page(write_page(tmp_path, answer(Query("a dog"), hits), "about"))
    assert len(page.all("li")) == 100
    assert "30 more were found" in page.text


def test_the_page_of_a_picture_shows_it(tmp_path):
    Image.new("RGB", (500, 300), (200, 30, 30)).save(tmp_path / "My Dog.jpg")
    query = Query("My Dog.jpg", tmp_path / "My Dog.jpg")
    path = write_page(tmp_path, answer(query, []), "about")
    assert path.name == "like-my-dog.html"
    assert len(Page(path).all("img")) == 1


class TestModelFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        description = {"model_cfg": {"embed_dim": 8, "text_cfg": {"context_length": 16}}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
        return tmp_path

    def test_without_open_clip_one_line_says_what_to_install(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "open_clip", None)
        with pytest.raises(EnvironmentProblem, match=r"needs open_clip.*pip install 'clipcoco\[export\]'"):
            open_folder(f"local-dir:{folder}").tokenize(["a dog"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("no JSON", "can't be read"),
            ('{"model_cfg": {}}', "no usable model_cfg"),
            ('{"model_cfg": {"text_cfg": {}}}', "no usable model_cfg"),
            ('{"model_cfg": {"embed_dim": 1e9, "text_cfg": {}}}', "no usable model_cfg"),
            *(
                (
                    f'{{"model_cfg": {{"embed_dim": 8, "text_cfg": {{"context_length": {length}}}}}}}',
                    "no usable model_cfg",
                )
                for length in ("1e999", "-5", "1000000000000", "77.0", '"77"')
            ),
            ('{"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": true}}}}', "code of its own"),
            (r'{"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust\u005fremote_code": 1}}}}', "code of its own"),
            ('{"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"revision": "x"}}}}', "options of its tokenizer"),
            ('{"model_cfg": {"text_cfg": {"tokenizer_kwargs": ["x"]}}}', "options of its tokenizer"),
            ('{"model_cfg": {"text_cfg": {"hf_tokenizer_name": "a/b"}}}', "a tokenizer that the folder does not hold"),
            ('{"model_cfg": {"text_cfg": {"hf_model_name": "a/b"}}}', "a model that the folder does not hold"),
            ('{"model_cfg": {"text_cfg": {}, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}}', "does not hold"),
            ('{"model_cfg": {"text_cfg": {}, "vision_cfg": {"timm_model_name": "local-dir:/a"}}}', "does not hold"),
            ('{"model_cfg": {"text_cfg": {}, "text_cfg": {}}}', "a name is there twice"),
            ('{"model_cfg": ' + "[" * 100_000, "can't be read"),
        ],
    )
    def test_a_folder_that_holds_no_model_to_trust(self, folder, content, message):
        (folder / "open_clip_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            open_folder(f"local-dir:{folder}")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["mine.Mine", null]}}', "code of its own"),
            ("Tokenizer_Config.JSON", r'{"\u0061uto_map": {}}', "code of its own"),
            ("config.json", '{"text_config": {"AUTO_MAP": {"AutoConfig": "mine.Mine"}}}', "code of its own"),
            ("inside/tokenizer_config.json", '{"auto_map": {}}', "code of its own"),
            ("tokenizer_config.json", '{"vocab_file": "/etc/passwd"}', "a file elsewhere"),
            ("tokenizer_config.json", '{"fast_tokenizer_files": ["tokenizer.4.0.json", "../x"]}', "a file elsewhere"),
            ("config.json", None, "is a link"),
            ("inside/weights.bin", None, "is a link"),
        ],
    )
    def test_no_file_of_the_folder_runs_code_or_leads_out_of_it(self, folder, name, content, message):
        (folder / "inside").mkdir()
        if content is None:
            (folder / name).symlink_to(folder.parent / "anything")
        else:
            (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            open_folder(f"local-dir:{folder}")

    def test_what_models_have_of_their_own_is_taken(self, folder):
        text = {"context_length": 16, "hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"clean": "canonicalize"}}
        vision = {"timm_model_name": "vit_base_patch16_siglip_224.webli"}
        description = {"model_cfg": {"embed_dim": 8, "text_cfg": text, "vision_cfg": vision}}
        (folder / "open_clip_config.json").write_text(json.dumps(description))
        (folder / "tokenizer_config.json").write_text('{"vocab_file": "vocab.json", "tokenizer_file": null}')
        (folder / "vocab.json").write_text('{"auto_map": 7, "trust_remote_code": 8}')  # words
        (folder.parent / "alias").symlink_to(folder)
        assert open_folder(f"local-dir:{folder.parent / 'alias'}").key

    def test_its_key_changes_with_its_files(self, folder):
        (folder / "open_clip_model.safetensors").write_bytes(b"weights")
        keys = [open_folder(f"local-dir:{folder}").key]
        os.utime(folder / "open_clip_config.json", (1, 1))
        keys.append(open_folder(f"local-dir:{folder}").key)
        (folder / "open_clip_model.safetensors").write_bytes(b"other weights")
        keys.append(open_folder(f"local-dir:{folder}").key)
        assert keys[0] == keys[1] != keys[2]

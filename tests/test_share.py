"""One file that searches: what `clipcoco share` writes, and what a browser makes of it."""

import base64
import gzip
import json
import os
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from browser import CHROMIUM, Tab, browser
from clipcoco.data.captions import read_captions
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine import quantize
from clipcoco.engine.model_file import ModelFile, open_model
from clipcoco.engine.recall import recall_table
from clipcoco.engine.sentence import SentenceEncoder
from clipcoco.errors import ConfigError, NumericError
from clipcoco.search.models import open_checkpoint
from clipcoco.search.query import nearest
from clipcoco.share import bundle, cost
from clipcoco.share.page import share_page
from conftest import TOY

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> {{ 7 * 7 }}"
TOWERS = {  # beside the toy's layer whose tokens are averaged
    "bag": ("model.text.layers=0", "model.vision.stages=3"),
    "end": ("model.text.layers=2", "model.text.pool=end"),
}
LATIN = os.fsdecode(b"caf\xe9")  # a folder whose name is no UTF-8
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture(scope="module")
def folder(clipcoco, scenes, tmp_path_factory) -> Path:
    """A run called toy, and its page: a caption and a file name are hostile, a picture says where it is from."""
    import shutil

    folder = tmp_path_factory.mktemp("share")
    shutil.copytree(scenes, folder / "data")
    captions = folder / "data/annotations/captions_val2017.json"
    plain = json.loads(captions.read_text())
    plain["annotations"][0]["caption"] = HOSTILE
    captions.write_text(json.dumps(plain))
    first = folder / "data/val2017" / plain["images"][0]["file_name"]
    with Image.open(first) as picture:
        exif = Image.Exif()
        exif[0x010E] = str(folder)
        picture.save(first, "JPEG", exif=exif, comment=str(folder).encode())
    clipcoco("train", "--preset", "demo", "--name", "toy", *TOY, "data.root=data", "train.epochs=1", cwd=folder).ok()
    done = clipcoco("share", "toy", "--json", cwd=folder).ok()
    (folder / "said.json").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def html(folder) -> str:
    return (folder / "runs/toy/search.html").read_text("utf-8")


@pytest.fixture(scope="module")
def toy(folder) -> ModelFile:
    return open_model(folder / "runs/toy/checkpoints/best.pt")


@pytest.fixture(scope="module")
def tab(folder, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        tab.open(folder / "runs/toy/search.html")
        yield tab
        pages = (
            "runs/toy/search.html",
            "shots.html",
            f"{LATIN}/search.html",
            *(f"runs/{name}/search.html" for name in TOWERS),
        )
        assert set(tab.asked) <= {(folder / page).as_uri() for page in pages}, "a request left the page"
        assert not tab.complaints


def unpacked(html: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The header and the arrays of a page, by its own rules."""
    header = json.loads(gzip.decompress(base64.b64decode(re.search('id="header">(.*?)</script>', html)[1])))
    content = b"".join(map(base64.b64decode, re.findall('class="arrays">(.*?)</script>', html)))
    if content.startswith(b"\x1f\x8b\x08\0\0\0"):
        content = gzip.decompress(content)
    assert len(content) == max(at + size * int(kind[1:]) for kind, at, size in header["arrays"].values())
    arrays = {name: np.frombuffer(content, "<" + kind, size, at) for name, (kind, at, size) in header["arrays"].items()}
    return header, arrays


# ---------------------------------------------------------------- numbers of few bits


def test_whole_numbers_are_the_nearest_and_a_row_of_zeros_stays():
    rows = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    for bits, most in ((8, 127), (16, 32767)):
        ints, scales = quantize.quantize(rows, bits)
        assert int(ints.abs().max()) == most
        assert bool(((quantize.dequantize(ints, scales) - rows).abs() <= scales[:, None] * 0.501).all())
        assert not ints[3].any()


# ---------------------------------------------------------------- what is in the file


def test_it_holds_no_place_of_this_machine_and_no_training_caption(folder, html):
    header, arrays = unpacked(html)
    thumbnails = [base64.b64decode(one) for one in re.search('id="thumbnails">(.*?)</script>', html)[1].split(" ")]
    everything = html.encode() + json.dumps(header).encode() + b"".join(thumbnails)
    for place in (str(folder), str(Path.home()), "val2017/", "/runs", "Exif"):
        assert place.encode() not in everything, place
    trained = set(read_captions(folder / "data", "train2017").captions)
    table = read_captions(folder / "data", "val2017")
    assert not {caption for caption in trained - set(table.captions) if json.dumps(caption).encode() in everything}
    assert [caption for some in header["captions"] for caption in some] == table.captions
    assert header["files"] == [Path(file).name for file in table.files]
    assert len(thumbnails) == len(arrays["pictures"]) // 16 == 24


def test_nothing_can_run_but_the_scripts_that_the_policy_names(html):
    import hashlib

    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', html)[1].replace("&#39;", "'")
    kinds = dict(part.split(" ", 1) for part in policy.split("; "))
    assert kinds["default-src"] == kinds["base-uri"] == kinds["form-action"] == "'none'"
    assert kinds["img-src"] == "data:"
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        [inside] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert kinds[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert not re.search(r"<[^>]* on\w+=|https?:|javascript:|@import|url\(", re.sub("<script>.*?</script>", "", html))


def test_the_recall_it_prints_is_that_of_what_it_holds(folder, html, toy):
    said = json.loads((folder / "said.json").read_text())
    header, arrays = unpacked(html)
    tower = quantize.rounded(toy.text, 8).eval()
    table = read_captions(folder / "data", "val2017")
    tokens = torch.from_numpy(toy.tokenizer.encode(table.captions, header["context_length"]))
    with torch.inference_mode():
        texts = F.normalize(tower(tokens), dim=1)
    images = F.normalize(torch.from_numpy(arrays["pictures"].reshape(24, -1).astype(np.float32)), dim=1)
    expected = recall_table(images, texts, torch.from_numpy(table.owners)).to_plain()
    assert said["recall"]["page"] == json.loads(json.dumps(expected))
    assert said["images"] == 24
    assert said["size"] == len(html.encode())
    assert f'<td id="r1">{expected["r1"]:.2f}</td><td>{said["recall"]["model"]["r1"]:.2f}</td>' in html


# ---------------------------------------------------------------- what a browser makes of it


def ask(tab: Tab, words: str) -> dict:
    """Type words; what the page then shows."""
    return tab.run(
        f"""(async () => {{
          const query = byId("query");
          query.value = {json.dumps(words)};
          query.dispatchEvent(new Event("input"));
          await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          const texts = (path) => Array.from(document.querySelectorAll(path), (one) => one.textContent);
          return {{ order: page.order, notes: texts("#notes li"), names: texts("#results .name"),
            scores: texts("#results .score"), captions: texts("#results .caption"), status: texts("#status")[0] }};
        }})()"""
    )


STRANGE = [
    "",
    " \t\n",
    "A dog, isn't it?",
    "CAFE\u0301 caf\u00e9 \u732b <end> <pad> 7\u00bd \u216b _x_",
    "\U0001f415\U0001f3fd\u200d\U0001f9b0 \u05e9\u05dc\u05d5\u05dd \u202ertl\u202c \u0130STANBUL \u03a3\u03a3 \u1e9e",
    "a\x00b\x1cc\x85d\xa0e\ufefff\u2028g\u200bh",
    "lone \ud83d surrogate \udc00",
    "x" * 400,
    "\u1100\u1161\u11a8 \ufb01 \u0345 \u1fb3",
]


@needs_chromium
def test_tokens_are_those_of_python(tab, toy):
    texts = [
        *STRANGE,
        *(chr(code) + "a" for code in range(0x3000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")),
    ]
    ours = toy.tokenizer.encode(texts, 16)
    asked = json.dumps(texts)
    for row, theirs in zip(ours, tab.run(f"{asked}.map((text) => page.tokenizer.encode(text))"), strict=True):
        assert row[row != 0].tolist() == theirs


@needs_chromium
def test_vectors_and_order_are_those_of_python(tab, toy, html, folder):
    captions = read_captions(folder / "data", "val2017").captions
    tokens = torch.from_numpy(toy.tokenizer.encode(captions, 16))
    with torch.inference_mode():
        expected = F.normalize(quantize.rounded(toy.text, 8).eval()(tokens), dim=1)
    found = tab.run(f"{json.dumps(captions)}.map((text) => Array.from(page.tower.encode(page.tokenizer.encode(text))))")
    vectors = torch.tensor(found)
    assert float((vectors - expected).abs().max()) < 1e-5
    header, arrays = unpacked(html)
    images = F.normalize(torch.from_numpy(arrays["pictures"].reshape(24, -1).astype(np.float32)), dim=1)
    best = [nearest(images, vector, 24) for vector in expected]
    ranking = "(text) => ranked(page.gallery.scores(page.tower.encode(page.tokenizer.encode(text))))"
    assert tab.run(f"{json.dumps(captions)}.map({ranking})") == [order for order, _ in best]
    shown = ask(tab, captions[7])
    assert shown["order"] == best[7][0]
    assert shown["scores"] == [f"{score:.3f}" for score in best[7][1]]
    assert shown["names"] == [header["files"][row].lstrip("0") for row in best[7][0]]


@needs_chromium
def test_many_megabytes_come_in_pieces_without_gzip(tab, toy, html, monkeypatch):
    _, arrays = unpacked(html)
    gallery = bundle.Pictures(["a"], [], [], torch.ones(1, 16))
    monkeypatch.setattr(bundle, "LITTLE", 0)
    monkeypatch.setattr(bundle, "PIECE", 3 * 2**10)
    header, pieces = bundle.model_texts(toy, toy.text, gallery, "toy", [], 8)
    given = json.dumps([{"textContent": piece} for piece in pieces])
    found = tab.run(
        f"""unpack({json.dumps(header)}, {given}).then(({{ arrays }}) =>
          Object.fromEntries(Object.entries(arrays).map(([name, some]) => [name, Array.from(some)])))"""
    )
    assert not pieces[0].startswith("H4sI"), "gzip"
    assert len(pieces) > 5
    assert found.pop("pictures") == [127] * 16
    assert found == {name: array.tolist() for name, array in arrays.items() if name != "pictures"}


@needs_chromium
def test_what_is_typed_after_a_word_costs_nothing_of_it(tab, toy):
    """Keys and values are kept from letter to letter, whatever was typed before."""
    words = "a red circle above a blue square"
    typed = [words[:end] for end in (7, 8, 12, 20, 32, 20, 3, 32)] + ["a blue square", words]
    many = tab.run(f"{json.dumps(typed)}.map((text) => Array.from(page.tower.encode(page.tokenizer.encode(text))))")
    with torch.inference_mode():
        tower = quantize.rounded(toy.text, 8).eval()
        expected = F.normalize(tower(torch.from_numpy(toy.tokenizer.encode(typed, 16))), dim=1)
    assert float((torch.tensor(many) - expected).abs().max()) < 1e-5


@needs_chromium
def test_recall_computed_in_the_page_is_the_printed_one(tab, folder):
    printed = json.loads((folder / "said.json").read_text())["recall"]["page"]
    found = tab.run(
        """(() => {
          const owners = page.header.captions.flatMap((some, n) => some.map(() => n));
          const texts = page.header.captions.flat().map((text) => page.tower.encode(page.tokenizer.encode(text)));
          const scores = texts.map((text) => page.gallery.scores(text));
          const t2i = scores.map((row, m) => row.filter((one, n) => n !== owners[m] && one >= row[owners[m]]).length);
          const i2t = page.header.files.map((_, n) => {
            const best = Math.max(...scores.filter((_, m) => owners[m] === n).map((row) => row[n]));
            return scores.filter((row, m) => owners[m] !== n && row[n] >= best).length;
          });
          const share = (ranks, k) => (100 * ranks.filter((rank) => rank < k).length) / ranks.length;
          return [i2t, t2i].map((ranks) => [share(ranks, 1), share(ranks, 5), share(ranks, 10)]);
        })()"""
    )
    assert found == [[printed[way][key] for key in ("r1", "r5", "r10")] for way in ("i2t", "t2i")]


@needs_chromium
@pytest.mark.parametrize("words", ["red zebra, blorp ", "zebra ", "a red circle " * 8, "!?", "a red circle"])
def test_it_says_what_clipcoco_search_says(tab, folder, words):
    model, _ = open_checkpoint(folder / "runs/toy/checkpoints/best.pt")
    assert ask(tab, words)["notes"] == [re.sub("'(.*?)'", r"“\1”", note) for note in model.notes(words)]


@needs_chromium
def test_a_word_that_is_being_typed_is_not_unknown_yet_and_no_word_shows_all(tab):
    assert not ask(tab, "a red tri")["notes"]
    assert ask(tab, "a red trix")["notes"]
    everything = ask(tab, "  ")
    assert (everything["status"], everything["scores"][0], everything["order"]) == ("24 pictures", "", [*range(24)])


@needs_chromium
def test_a_click_looks_for_pictures_like_it_and_back_returns(tab):
    ask(tab, "a red circle")
    before = tab.run("page.order[0]")
    clicked = tab.run(
        """(async () => {
          document.querySelector("#results button").click();
          await new Promise((done) => setTimeout(done, 50));
          return [page.order, byId("asked-name").textContent, document.activeElement.id];
        })()"""
    )
    assert before not in clicked[0]
    assert len(clicked[0]) == 23
    assert clicked[1:] == [tab.run(f"page.header.files[{before}]"), "clear"]
    expected = tab.run(f"ranked(page.gallery.scores(page.gallery.vector({before})))[0]")
    assert expected == before, "a picture is most like itself"
    back = "history.back(); new Promise((done) => addEventListener('hashchange', () => done(byId('query').value)))"
    assert tab.run(back) == "a red circle"


@needs_chromium
def test_a_hostile_caption_stands_there_as_text(tab):
    assert HOSTILE in ask(tab, "a red circle")["captions"]
    assert tab.run("document.querySelectorAll('script:not([type]), #results [onerror]').length") == 1
    assert tab.run("document.title") == "Search 24 pictures"


@needs_chromium
def test_pictures_move_while_an_example_types_itself_unless_motion_is_unwelcome(tab):
    ask(tab, "")
    example = tab.run("page.header.examples[0]")
    typed = """(async () => {
      const seen = new Set();
      let moved = 0;
      document.querySelector("#examples button").click();
      while (byId("query").value !== page.header.examples[0]) {
        seen.add(byId("query").value);
        moved = Math.max(moved, document.getAnimations().length);
        await new Promise(requestAnimationFrame);
      }
      return [seen.size, moved];
    })()"""
    letters, moved = tab.run(typed)
    assert 3 < letters <= len(example), "a busy machine skips some"
    assert moved > 5
    tab("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    ask(tab, "")
    assert tab.run(typed) == [0, 0]
    tab("Emulation.setEmulatedMedia", features=[])


@needs_chromium
def test_keys_do_what_a_mouse_does_and_all_has_a_name(tab):
    def press(key: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            tab("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    ask(tab, "a red circle")
    tab.run("document.activeElement.blur()")
    press("/", "/")
    press("Enter", "\r")
    tab.run(
        "byId('query').dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', isComposing: true, bubbles: true }))"
    )
    assert tab.run("[document.activeElement.id, byId('query').value]") == ["query", "a red circle"]
    for node in tab("Accessibility.getFullAXTree")["nodes"]:
        if node.get("role", {}).get("value") in ("button", "image", "link", "searchbox", "table"):
            assert node["ignored"] or node["name"]["value"], node
    press("Escape")
    assert tab.run("[document.activeElement.id, byId('query').value, page.scores]") == ["query", "", None]


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window_and_notes_leave_room_for_pictures(tab, width):
    tab("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
    ask(tab, "a" * 300)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert len(ask(tab, " ".join(f"zq{n}x" for n in range(99)))["notes"]) == 2
    assert tab.run("document.querySelector('header').offsetHeight") < 400
    assert tab.run("Math.min(...Array.from(document.querySelectorAll('summary'), (one) => one.offsetHeight))") >= 24


@needs_chromium
def test_what_has_the_focus_is_seen(tab):
    """Not below the header, which stays where it is; nor by a shadow alone, which forced colours leave out."""
    tab("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    ask(tab, "a red circle")
    tab.run("document.querySelector('#results li:last-child button').focus()")
    for _ in range(20):
        tab("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9, modifiers=8)
        place = "document.activeElement.getBoundingClientRect().top"
        assert tab.run(f"{place} >= document.querySelector('header').getBoundingClientRect().bottom")
    tab("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    assert tab.run("byId('query').focus(); getComputedStyle(byId('query')).outlineStyle") == "solid"
    tab("Emulation.setEmulatedMedia", features=[])


@needs_chromium
def test_the_browser_refuses_what_the_policy_does_not_name(tab):
    known = len(tab.asked)
    broken, ran = tab.run(
        """(async () => {
          const broken = new Set(), ran = window.ran = [];
          addEventListener("securitypolicyviolation", (event) => broken.add(event.effectiveDirective));
          const place = document.body.appendChild(document.createElement("div"));
          place.innerHTML = `<img src="http://a.example/" onerror="ran.push('onerror')"><p style="color: red"></p>
            <style>p { color: red }</style><iframe src="http://a.example/"></iframe><base href="http://a.example/">
            <form action="http://a.example/"></form><a href="javascript:ran.push('link')"></a>`;
          place.append(make("script", { textContent: "ran.push('script')" }));
          place.querySelector("a").click();
          await new Promise((done) => setTimeout(done, 20)); // from here on it is the page that acts, not the debugger
          place.querySelector("form").submit();
          const acts = [() => eval("ran.push('eval')"), () => new Worker("data:,"), () => new WebSocket("ws://a.example")];
          for (const act of acts) try { act(); } catch {}
          await fetch("http://a.example/").then(() => ran.push("fetch"), () => {});
          for (let i = 0; i < 100 && !broken.has("form-action"); i++) await new Promise((done) => setTimeout(done, 10));
          place.remove();
          return [Array.from(broken), ran];
        })()"""
    )
    assert not ran
    directives = "script-src script-src-elem script-src-attr style-src-elem style-src-attr img-src frame-src base-uri"
    assert {*directives.split(), "form-action", "worker-src", "connect-src"} <= set(broken)
    assert all("Content Security Policy" in one for one in tab.complaints)
    tab.complaints.clear()  # these were asked for
    del tab.asked[known:]


@needs_chromium
@pytest.mark.slow
def test_tokens_of_all_captions_of_coco_are_those_of_python(tab, shared):
    plain = json.loads((shared / "coco-annotations/captions_val2017.json").read_text())
    captions = [row["caption"] for row in plain["annotations"]]
    assert len(captions) == 25_014
    ours = Tokenizer.train(captions, 10_000)
    header = {**ours.to_plain(), "context_length": 32}
    header |= {"vocab": list(header["vocab"]), "merges": [" ".join(pair) for pair in header["merges"]]}
    asked = f"(() => {{ const one = new Tokenizer({json.dumps(header)}); return {json.dumps(captions)}"
    theirs = tab.run(f"{asked}.map((text) => one.encode(text)) }})()")
    assert theirs == [row[row != 0].tolist() for row in ours.encode(captions, 32)]


# ---------------------------------------------------------------- what is refused


def test_too_much_lost_is_an_error_that_names_more_bits(toy, folder, monkeypatch):
    from clipcoco.engine.device import choose_device
    from clipcoco.runs.measure import evaluate_checkpoint

    data = toy.config.data.model_copy(update={"root": str(folder / "data")})
    evaluation = evaluate_checkpoint(toy, "toy", data, "val", None, ("own",), "cpu", lambda event: None)
    tokens = toy.tokenizer.encode(evaluation.table.captions, 16)
    spoilt = quantize.rounded(toy.text, 8)
    torch.nn.init.normal_(spoilt.token_embedding.weight)
    monkeypatch.setattr(cost, "table_of", lambda found, owners: Table(90.0 if found is evaluation.ranks else 80.0))
    with pytest.raises(NumericError, match=r"8 bits lose 10.00 points of mean R@1, 90.00 -> 80.00 .*Take --bits 16"):
        cost.cost_of(evaluation, spoilt, tokens, 8, choose_device("cpu", "float32"))


class Table:
    images, captions = 1000, 5000

    def __init__(self, r1: float) -> None:
        self.r1 = r1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--split", "dev"), 2, "no split 'dev' (--split)"),
        (("--split", "train"), 2, "no training caption leaves in a page (--split)"),
        (("--bits", "4"), 2, "weights have 8 or 16 bits here, not 4 (--bits)"),
        (("--output", "page.jpg"), 2, "does not end in .html"),
        (("--output", "no/where.html"), 2, "(--output). Make it first"),
        (("--output", "mine.html"), 2, "mine.html exists already and was not made by clipcoco share (--output)"),
        (("--images", "nowhere"), 3, "nowhere does not exist (--images)"),
        (("model.text.layers=3",), 2, "Only data.* can be set"),
        (("data.root=elsewhere",), 3, "elsewhere"),
    ],
)
def test_what_can_not_be_is_one_line(clipcoco, folder, words, code, said):
    (folder / "mine.html").write_text("<p>mine</p>")
    done = clipcoco("share", "toy", *words, cwd=folder)
    assert (done.code, done.stderr.count("\n")) == (code, 1)
    assert said in done.stderr
    assert (folder / "mine.html").read_text() == "<p>mine</p>"


def test_the_text_tower_of_others_is_refused(toy, tmp_path):
    file = SimpleNamespace(config=toy.config, text=object.__new__(SentenceEncoder))
    with pytest.raises(ConfigError, match=r"not MiniLM's \(model.text.weights\)"):
        share_page(file, "x", toy.config.data, "val", None, 8, "cpu", tmp_path / "x.html", lambda event: None)


@pytest.fixture(scope="module")
def shots(clipcoco, folder) -> Path:
    """The page of a folder of pictures, one of which has a hostile name."""
    place = folder / "shots" / "summer"
    place.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(place / HOSTILE.replace("/", ""), "PNG")
    Image.new("RGB", (40, 30), "blue").save(folder / "shots/\u202egpj.2\n.jpg")
    (folder / "shots/notes.txt").write_text("none")
    words = ("share", "toy", "--images", "shots", "--bits", "16", "--output", "shots.html", "data.root=far-away")
    done = clipcoco(*words, cwd=folder).ok()
    assert "not measured: no captions at far-away" in done.stdout
    assert "notes.txt" in done.stderr
    return folder / "shots.html"


def test_a_folder_of_pictures_has_names_and_no_captions(shots):
    html = shots.read_text()
    header, arrays = unpacked(html)
    assert header["files"] == ["summer/" + HOSTILE.replace("/", ""), "\ufffdgpj.2\ufffd.jpg"]
    assert header["captions"] == []
    assert arrays["pictures"].dtype == np.int16
    assert "Its recall was not measured" in html
    assert "far-away" not in html


@needs_chromium
def test_a_hostile_name_stands_there_as_text_and_the_report_is_far(tab, shots):
    assert tab.run("byId('report').hidden") is False
    tab.open(shots)
    assert HOSTILE.replace("/", "") in " ".join(ask(tab, "red")["names"])
    assert tab.run("[document.title, byId('report').hidden]") == ["Search 2 pictures", True]
    end = "(name) => { const end = document.createRange(); end.selectNode(name.lastChild); return end"
    inside = ".getBoundingClientRect().right <= name.getBoundingClientRect().right + 1; }"
    assert tab.run(f"Array.from(document.querySelectorAll('.name'), {end}{inside})") == [True, True]


@needs_chromium
def test_it_works_wherever_it_lies(tab, folder, html):
    (folder / LATIN).mkdir()
    (folder / LATIN / "search.html").write_text(html, "utf-8")
    tab.open(folder / LATIN / "search.html")
    tab.open(tab.run(f"URL.createObjectURL(new Blob([{json.dumps(html)}], {{ type: 'text/html' }}))"))
    ask(tab, "a red circle")
    tab.run("page.remember()")
    tab.asked = [url for url in tab.asked if not url.startswith("blob:null/")]
    assert tab.run("location.hash") == "#q=a+red+circle"
    tab.run("byId('clear').click()")
    assert tab.run("[location.hash, byId('query').value]") == ["", ""]


@needs_chromium
@pytest.mark.parametrize("name", TOWERS)
def test_each_kind_of_tower_has_the_vectors_of_python(clipcoco, tab, folder, name):
    words = ["train", "--preset", "demo", "--name", name, *TOY, *TOWERS[name], "data.root=data", "train.epochs=1"]
    clipcoco(*words, cwd=folder).ok()
    clipcoco("share", name, cwd=folder).ok()
    tab.open(folder / f"runs/{name}/search.html")
    model = open_model(folder / f"runs/{name}/checkpoints/best.pt")
    captions = read_captions(folder / "data", "val2017").captions
    with torch.inference_mode():
        tower = quantize.rounded(model.text, 8).eval()
        expected = F.normalize(tower(torch.from_numpy(model.tokenizer.encode(captions, 16))), dim=1)
    found = tab.run(f"{json.dumps(captions)}.map((text) => Array.from(page.tower.encode(page.tokenizer.encode(text))))")
    assert float((torch.tensor(found) - expected).abs().max()) < 1e-5


def test_the_report_leads_there_and_train_says_how(folder):
    report = (folder / "runs/toy/report.html").read_text()
    assert '<a href="search.html">' in report
    assert "clipcoco share toy" in report

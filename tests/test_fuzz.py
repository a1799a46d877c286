"""Whatever stands in a file or on the command line: it is taken, or it is one line with its exit code.

One table, `ROWS`: what makes a case of a seed, and what reads it. `make test` tries some dozens of each row, `make
fuzz` two thousand; a failure names the case's number, and FUZZ_ONLY=number tries that one alone.
"""

import copy
import io
import json
import lzma
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipcoco.cli import run as command
from clipcoco.config.load import config_from_plain, dump, load_config, presets_folder
from clipcoco.config.schema import SETTINGS
from clipcoco.data.captions import read_captions
from clipcoco.data.images import UnreadableImage, decode, evaluation_view
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine.checkpoint import checked
from clipcoco.engine.state import TrainState
from clipcoco.errors import ClipcocoError, ConfigError, ExitCode
from clipcoco.prepare.own_data import adopt
from clipcoco.runs.measure import evaluate_embeddings

CASES = int(os.environ.get("FUZZ_CASES", "40"))
ONLY = os.environ.get("FUZZ_ONLY")
STRANGE = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "\0", "\ud800", "é" * 50, "1", "nan", "../../etc/passwd", "/etc/passwd", "x" * 5000, "\n", "\x1b[2J"),
    *([], {}, [[]], [None], {"a": 1}, [1, "a"]),
)
YAML_BITS = (
    *("a", "train:", "\n  lr: ", "1e-4", "[", "]", "{", "}", ":", "- ", "? ", "&a ", "*a", "!!str ", "|\n", ">\n", "'"),
    *('"', "\\x", "#", "\n", "\t", "---\n", "...\n", "%YAML 1.1\n", "<<: ", "\u2028", "\x85", "é", "0x", "0o9", ".inf"),
    *("~", "extends: tiny\n", "data:\n  crop_scale: ", "@", "`", ","),
)
TABLE_BITS = (
    *(",", '"', "\n", "\r", "\t", "|", ";", "\0", "\x85", "\u2028", "../", "/", "é", "#1", "[", "]", "{", "p1.jpg"),
    *("\ufeff", " ", "\x1b[31m", "\\", "a" * 140_000),
)

Make = Callable[[random.Random], Any]
Read = Callable[[Path, Any], object]


# ---- how a case goes wrong


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places_in(inner, (*path, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """Plain data with one to three entries replaced, removed, repeated or nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [place for place in places_in(value) if place]
        if not places:
            return value
        depth = rng.choice(sorted({len(place) for place in places}))  # or deep leaves would crowd out the rest
        *above, key = rng.choice([place for place in places if len(place) == depth])
        holder = value
        for step in above:
            holder = holder[step]
        act = rng.random()
        if act < 0.6:
            holder[key] = copy.deepcopy(rng.choice(STRANGE))
        elif act < 0.75:
            del holder[key]
        elif act < 0.85 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif isinstance(holder, dict):
            holder[rng.choice(("extra", "", "\ud800", "id", "x\n"))] = rng.choice(STRANGE)
        else:
            holder[key] = [holder[key]]
    return value


def damaged(data: bytes, rng: random.Random, most: int = 8) -> bytes:
    """Bytes with up to `most` places flipped, cut, filled or repeated."""
    content = bytearray(data)
    for _ in range(rng.randint(1, most)):
        act, at = rng.random(), rng.randrange(max(1, len(content)))
        if act < 0.5 and content:
            content[at] ^= 1 << rng.randrange(8)
        elif act < 0.65:
            content[at:at] = rng.randbytes(rng.randint(1, 8))
        elif act < 0.8:
            del content[at : at + rng.randint(1, 16)]
        elif act < 0.9:
            content[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        else:
            other = rng.randrange(max(1, len(content)))
            content[at:at] = content[other : other + rng.randint(1, 64)]
    return bytes(content)


# ---- configuration


def make_yaml(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged(rng.choice(sorted(presets_folder().glob("*.yaml"))).read_bytes(), rng)
    return "".join(rng.choice(YAML_BITS) for _ in range(rng.randint(1, 25))).encode()


def read_yaml(folder: Path, data: bytes) -> None:
    (folder / "mine.yaml").write_bytes(data)
    loaded = load_config(file=folder / "mine.yaml")
    (folder / "again.yaml").write_text(dump(loaded))
    assert load_config(file=folder / "again.yaml").config == loaded.config


def make_setting(rng: random.Random) -> str:
    value = rng.choice([*map(repr, STRANGE), "".join(rng.choice(YAML_BITS) for _ in range(3))])
    return f"{rng.choice([*SETTINGS, 'a', 'train', ''])}={value}"


# ---- captions


def coco(images: int) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n:012}.jpg", "width": 10, "height": 10} for n in range(1, images + 1)],
        "annotations": [{"id": n, "image_id": n // 2, "caption": f"caption {n}"} for n in range(2, 2 * images + 2)],
    }


def make_captions(rng: random.Random) -> bytes:
    if rng.random() < 0.25:
        return damaged(json.dumps(coco(4)).encode(), rng)
    if rng.random() < 0.5:
        return json.dumps(mutated(coco(4), rng)).encode()
    many = coco(150)  # of which a bad one may be dropped
    bad = mutated({key: rows[:3] for key, rows in many.items()}, rng)
    for key, rows in many.items():
        if isinstance(bad.get(key), list):
            bad[key] += rows[3:]
    return json.dumps(bad).encode()


def read_coco(folder: Path, data: bytes) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations/captions_val2017.json").write_bytes(data)
    table = read_captions(folder, "val2017")
    table.fingerprint()
    table.subset(0.5, 0)
    assert all(file.count("/") == 1 and not {".", ".."} & set(file.split("/")) for file in table.files)


TABLES = (
    "image,caption\n" + "".join(f'p{n}.jpg,a "quoted" thing {n}\n' for n in range(6)),
    "image_name| comment_number| comment\n" + "".join(f"p{n}.jpg| 0| a thing {n}\n" for n in range(6)),
    "".join(f"p{n}.jpg#0\ta thing {n}\n" for n in range(6)),
    "".join(json.dumps({"image": f"p{n}.jpg", "captions": ["a", "b"], "split": "train"}) + "\n" for n in range(6)),
    "filename\traw\tsplit\n" + "".join(f'p{n}.jpg\t["a", "b"]\t{"test" if n < 2 else "train"}\n' for n in range(6)),
    json.dumps([{"image": f"p{n}.jpg", "caption": ["a", f"b {n}"]} for n in range(6)], indent=1),
    json.dumps({"images": [{"filename": f"p{n}.jpg", "sentences": [{"raw": "a"}]} for n in range(6)]}),
)


def make_table(rng: random.Random) -> bytes:
    text = rng.choice(TABLES)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(TABLE_BITS) + text[at + rng.choice((0, 0, 1, 3)) :]
    data = text.encode("utf-8", "surrogatepass")
    return damaged(data, rng, 2) if rng.random() < 0.2 else data


def read_table(folder: Path, data: bytes) -> None:
    pictures, root = folder / "pictures", folder / "mine"
    if not pictures.exists():
        pictures.mkdir()
        for n in range(6):
            Image.new("RGB", (8, 8), (n, 0, 0)).save(pictures / f"p{n}.jpg")
    shutil.rmtree(root, ignore_errors=True)
    (folder / "table.csv").write_bytes(data)
    adopt(folder / "table.csv", pictures, root, report=lambda progress: None)
    for split in ("train2017", "val2017"):
        read_captions(root, split)


# ---- pictures


def seeds() -> list[bytes]:
    """A picture in every mode of the two formats."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray((np.arange(480).reshape(24, 20) * 100).astype(np.uint16))
    found = []
    modes = ("RGB", "L", "P", "RGBA", "LA", "1")
    for image, form in [
        *((noise.convert(mode), "PNG") for mode in modes),
        (deep, "PNG"),
        *((noise.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")),
    ]:
        exif = Image.Exif()
        exif[274] = 6  # to be turned by a quarter
        buffer = io.BytesIO()
        image.save(buffer, form, exif=exif)
        found.append(buffer.getvalue())
    return found


SEEDS = seeds()


def chunked(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(rng: random.Random) -> bytes:
    """A PNG whose chunks are damaged, repeated, new or out of order, with right sums."""
    data, chunks, at = SEEDS[0], [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(rng.randint(1, 3)):
        act, n = rng.random(), rng.randrange(len(chunks))
        if act < 0.5:
            chunks[n] = (chunks[n][0], damaged(chunks[n][1], rng, 3) if chunks[n][1] else b"\0")
        elif act < 0.7:
            kinds = (b"iTXt", b"zTXt", b"iCCP", b"eXIf", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"gAMA")
            bodies = (b"", bytes(20), b"x\0\0" + zlib.compress(b"0" * 10**5), rng.randbytes(30))
            chunks.insert(n, (rng.choice(kinds), rng.choice(bodies)))
        elif act < 0.85 and len(chunks) > 1:
            chunks.pop(n)
        else:
            rng.shuffle(chunks)
    return data[:8] + b"".join(chunked(kind, body) for kind, body in chunks)


def read_picture(folder: Path, data: bytes) -> None:
    try:
        image = decode(data)
    except UnreadableImage:
        return
    assert evaluation_view(image, 32).shape == (3, 32, 32)


# ---- embeddings

EYE = np.eye(4, dtype=np.float32)
ARRAYS = {"image_embeddings": EYE, "text_embeddings": EYE} | dict.fromkeys(
    ("image_ids", "caption_image_ids", "caption_ids"), np.arange(4)
)
ODD = (
    *(np.float32(1), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), np.zeros((4, 0), np.float32), np.array(5)),
    *(np.zeros((4, 4), kind) for kind in (np.float64, np.float16, np.longdouble, complex, ">f4", ">f8")),
    *(np.full((4, 4), value) for value in (1e300, 1e-300, np.nan, np.inf)),
    *(np.arange(4, dtype=kind) for kind in (np.int8, ">i8", ">u2", np.float64)),
    *(np.arange(4, dtype=np.uint64) + np.uint64(2**63), np.arange(4) > 1, np.arange(4).reshape(2, 2), np.arange(3)),
    *(np.array([0, 0, 1, 2]), np.array([9] * 4), np.arange(8) % 4, np.array(["a"] * 4), np.array([b"a"] * 4)),
    *(np.zeros((2, 2, 2), np.float32), np.zeros((1, 4), np.float32), np.array([(1, 2.0)] * 4, "i4,f4")),
    *(np.zeros(4, "M8[s]"), np.asfortranarray(EYE[::-1])),
)
HEADERS = tuple(
    {"descr": descr, "fortran_order": False, "shape": shape}
    for descr, shape in (
        *(("<f4", shape) for shape in ((10**9, 10**9), (10**12,), (-1, 4), (2**40, 4), (4, True), (4, 4))),
        *((descr, (4,)) for descr in ("|O", [("a", "<f4")], "<f4" * 100, "|S0", "<U1000000000")),
        ("|V0", (10**6,)),
    )
)


def make_npz(rng: random.Random) -> bytes:
    arrays = dict(ARRAYS)
    for key in rng.sample(list(arrays), rng.randint(1, 2)):
        if rng.random() < 0.15:
            del arrays[key]
        else:
            arrays[key] = rng.choice(ODD)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    act = rng.random()
    if act < 0.6:
        return damaged(buffer.getvalue(), rng) if act < 0.3 else buffer.getvalue()
    buffer = io.BytesIO()  # headers that lie, with right sums
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in ARRAYS.items():
            member = io.BytesIO()
            np.save(member, array)
            raw = member.getvalue()
            if rng.random() < 0.4:
                header = repr(rng.choice(HEADERS)).encode() + b"\n"
                raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + raw[128:]
            elif rng.random() < 0.3:
                raw = damaged(raw, rng, 3)
            archive.writestr(f"{name}.npy", raw)
    return buffer.getvalue()


def read_npz(folder: Path, data: bytes) -> None:
    (folder / "e.npz").write_bytes(data)
    json.dumps(evaluate_embeddings(folder / "e.npz", ("own",)).result, allow_nan=False)


# ---- a checkpoint

PACKED = (Path(__file__).parent / "golden/format-1.pt.xz").read_bytes()
GOLDEN = torch.load(io.BytesIO(lzma.decompress(PACKED)), weights_only=True)
PLAIN = ("state", "config", "tokenizer", "metrics", "versions", "data", "scaler")


def make_parts(rng: random.Random) -> dict[str, Any]:
    """One of the plain parts of a checkpoint, or none of it."""
    part = rng.choice((*PLAIN, "state"))
    return mutated({part: GOLDEN[part]}, rng)


def read_parts(folder: Path, parts: dict[str, Any]) -> None:
    """What opening and resuming do before a model is built."""
    content = checked(GOLDEN | parts, folder / "x.pt")
    config = config_from_plain(content["config"], "x.pt")
    Tokenizer.from_plain(content["tokenizer"]).encode(["a red circle"], config.model.text.context_length)
    state = TrainState.from_plain(content["state"])
    state.is_finished(config.train)
    assert TrainState.from_plain(state.to_plain()) == state


# ---- whole commands

COMMANDS = (
    "train",
    "resume",
    "eval",
    "prepare-data",
    "inspect-config",
    "runs",
    "report",
    "search",
    "share",
    "export",
    "env",
)
WORDS = (
    *("--preset", "tiny", "--config", "x.yaml", "--set", "train.lr=1", "train.lr=", "a=b", "=", "--name", "..", "a/b"),
    *("--device", "gpu", "cuda:99", "--runs-dir", "/dev/null", "--json", "--plain", "--dry-run", "--checkpoint", "-1"),
    *("--from-embeddings", "--fraction", "nan", "2", "--split", "--protocol", "--image", "--images", "--model", "x.pt"),
    *("local-dir:.", "--run", "--format", "onnx", "--output", "--root", "--captions", "--verify", "--help", "-k", "0"),
    *("", "é", "-q", "\x1b[2J"),
)


def make_words(rng: random.Random) -> list[str]:
    return [rng.choice((*COMMANDS, "trian")), *(rng.choice(WORDS) for _ in range(rng.randint(0, 6)))]


def read_words(folder: Path, words: list[str]) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert command(words) != ExitCode.BUG
    finally:
        os.chdir(before)


ROWS: dict[str, tuple[Make, Read]] = {
    "configuration": (make_yaml, read_yaml),
    "setting": (make_setting, lambda folder, text: load_config("tiny", overrides=[text])),
    "captions": (make_captions, read_coco),
    "own table": (make_table, read_table),
    "picture": (lambda rng: damaged(rng.choice(SEEDS), rng, 12), read_picture),
    "png": (make_png, read_picture),
    "embeddings": (make_npz, read_npz),
    "checkpoint": (make_parts, read_parts),
    "command": (make_words, read_words),
}


@pytest.mark.parametrize("row", ROWS)
def test_nothing_but_its_own_errors_comes_out(row, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)  # thousands of them would stall the machine
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    make, read = ROWS[row]
    for number in range(CASES) if ONLY is None else [int(ONLY)]:
        case = make(random.Random(f"{row} {number}"))
        try:
            read(tmp_path, case)
        except Exception as error:
            lines = 1 if isinstance(error, ConfigError) else str(error).count("\n") + 1
            if lines > 1 or not isinstance(error, ClipcocoError):
                raise AssertionError(f"case {number}: {case!r:.500}") from error

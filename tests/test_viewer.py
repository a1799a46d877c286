"""What a picture viewer shows is what training, evaluation, copies, search, pages and the API see.

The oracle is Pillow: ImageOps.exif_transpose, ImageCms and alpha_composite.
"""

import base64
import io
import json
import random
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from clipcoco.api.model import _pixels
from clipcoco.config.load import load_config
from clipcoco.config.schema import Config
from clipcoco.data.captions import read_captions
from clipcoco.data.images import decode, evaluation_view, pixels_of, read, training_view
from clipcoco.data.manifest import copies_manifest
from clipcoco.data.split import Source, choose_source
from clipcoco.data.viewer import UnreadableImage, opened, size_shown, thumbnail
from clipcoco.engine.device import choose_device
from clipcoco.engine.features import feature_key
from clipcoco.prepare.check import verify
from clipcoco.prepare.own_data import Adopted, adopt
from clipcoco.prepare.resize import make_copies, reduced
from clipcoco.runs.plan import read_parts
from clipcoco.runs.saving import changed_versions, versions_of
from clipcoco.search import page, query
from clipcoco.search.galleries import folder_gallery
from clipcoco.search.models import Towers, open_folder

WIDTH, HEIGHT = 96, 64
ACROSS, DOWN = np.linspace(20, 235, WIDTH)[None], np.linspace(235, 20, HEIGHT)[:, None]
COLOURS = np.stack(np.broadcast_arrays(ACROSS, DOWN, 60 + ACROSS / 4), -1).astype(np.uint8)
RGB = Image.fromarray(COLOURS)  # no two corners are alike, in no channel
GREY = RGB.convert("L")

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")  # red is green
LINEAR = SRGB.replace(struct.pack(">I", 0x26666), struct.pack(">I", 0x10000))  # an exponent of 1 for 2.4: lighter
LINEAR_GREY = (LINEAR[:16] + b"GRAY" + LINEAR[20:]).replace(b"rTRC", b"kTRC")


def cmyk_profile() -> bytes:
    """Of a press whose inks are lighter than the formula for no profile says: a table of its 16 corners."""
    corners = []
    for ink in range(16):
        red, green, blue = (1 - 0.7 * (ink >> 3 - n & 1) - 0.1 * (ink & 1) for n in range(3))
        lab = 255 * (red + green + blue) / 3, 128 + 60 * (red - green), 128 + 60 * (green - blue)
        corners += [min(255, max(0, round(value))) for value in lab]
    ramp, identity = bytes(range(256)), b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(corners) + ramp * 3
    white = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    parts = {
        b"A2B0": table,
        b"desc": b"desc" + bytes(3) + b"\0\0\0\0\5cmyk\0" + bytes(79),
        b"wtpt": b"XYZ \0\0\0\0" + white,
    }
    start, listed, body = 132 + 12 * len(parts), b"", b""
    for name, content in parts.items():
        listed += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI", start + len(body), b"lcms", 0x02100000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    return head + bytes(28) + white + bytes(48) + struct.pack(">I", len(parts)) + listed + body


CMYK_PROFILE = cmyk_profile()


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def on_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def assert_alike(seen: Tensor, truth: Image.Image, tolerance: float) -> None:
    """As views of 16 pixels: what seen it is, at any size."""
    assert abs(seen.shape[2] / seen.shape[1] - 1) < 0.05 or (seen.shape[2] > seen.shape[1]) == (
        truth.width > truth.height
    )
    views = [evaluation_view(image, 16).int() for image in (seen, tensor(truth))]
    assert (views[0] - views[1]).abs().max() <= tolerance


# --- every way in ----------------------------------------------------------------------------------------


def searched(path: Path) -> Tensor:
    """As the index of a folder takes it."""
    gallery = folder_gallery(path.parent)
    encoding = query._pictures(gallery, Towers(lambda pixels: pixels, torch.clone, torch.clone))
    data = encoding.read(path.name)
    assert data is not None
    return encoding.prepare(data)


def shown(uri: str | None) -> Tensor:
    assert uri is not None
    return tensor(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def opened_by_pillow(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return _pixels(0, picture)


WAYS: dict[str, Callable[[Path], Tensor]] = {
    "training": lambda path: training_view(read(path), 48, (1, 1), False, random.Random(0)),
    "evaluation": lambda path: evaluation_view(read(path), 48),
    "copy": lambda path: decode(reduced(path.read_bytes(), 48)),
    "copy of a small one": lambda path: decode(reduced(path.read_bytes(), 500)),
    "searched folder": searched,
    "query": lambda path: query._picture(path).pixels,
    "search page": lambda path: shown(page._data_uri(path)),
    "report": lambda path: tensor(Image.open(io.BytesIO(base64.b64decode(thumbnail(path, 160))))),
    "API path": lambda path: _pixels(0, path),
    "API picture": opened_by_pillow,
}
STORED = {
    "JPEG": (RGB, "JPEG", SWAPPED, in_srgb(RGB, SWAPPED)),
    "PNG": (RGB, "PNG", SWAPPED, in_srgb(RGB, SWAPPED)),
    "PNG with alpha": (
        Image.merge("RGBA", (*RGB.split(), Image.fromarray(np.broadcast_to(DOWN, (HEIGHT, WIDTH)).astype(np.uint8)))),
        "PNG",
        SWAPPED,
        None,
    ),
    "CMYK": (RGB.convert("CMYK"), "JPEG", CMYK_PROFILE, in_srgb(RGB.convert("CMYK"), CMYK_PROFILE)),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_sees_what_a_viewer_shows(tmp_path: Path, way: str, stored: str) -> None:
    picture, kind, profile, truth = STORED[stored]
    if truth is None:  # colours first, then what shines through
        truth = in_srgb(picture.convert("RGB"), profile).convert("RGBA")
        truth.putalpha(picture.getchannel("A"))
        truth = on_white(truth)
    for orientation in range(1, 9):
        path = tmp_path / str(orientation) / "p.jpg"  # the content decides, not the name
        path.parent.mkdir()
        path.write_bytes(encoded(picture, kind, exif=exif(orientation), icc_profile=profile))
        turned = Image.open(io.BytesIO(encoded(truth, "PNG", exif=exif(orientation))))
        assert_alike(WAYS[way](path), ImageOps.exif_transpose(turned), 12)


def test_copies_carry_no_metadata() -> None:
    copy = Image.open(io.BytesIO(reduced(encoded(RGB, "JPEG", exif=exif(6), icc_profile=SWAPPED, comment=b"mine"), 48)))
    assert copy.size == (48, 72)
    assert not {"exif", "icc_profile", "xmp", "comment"} & set(copy.info)


def test_arrays_are_pictures_without_metadata() -> None:
    rgba = np.asarray(STORED["PNG with alpha"][0])
    assert torch.equal(_pixels(0, COLOURS), tensor(RGB))
    assert torch.equal(_pixels(0, np.asarray(GREY)), tensor(GREY))
    assert_alike(_pixels(0, rgba), on_white(Image.fromarray(rgba)), 1)


# --- all that a format says ------------------------------------------------------------------------------


def png(
    depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes], behind: tuple[bytes, bytes] | None = None
) -> bytes:
    """One row of pixels; `chunks` stand before them."""
    pixels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind] * depth
    header = struct.pack(">IIBBBBB", len(row) * 8 // pixels, 1, depth, kind, 0, 0, 0)
    body = (b"IDAT", zlib.compress(b"\0" + row))
    every = [(b"IHDR", header), *chunks, body, *([behind] if behind else []), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in every
    )


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


RED, WHITE = (255, 0, 0), (255, 255, 255)
PALETTE = (b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
PIXELS = {
    "alpha 0 hides its colour": (png(8, 6, bytes([0, 0, 0, 0, 255, 0, 0, 255])), [WHITE, RED]),
    "half transparent": (png(8, 6, bytes([255, 0, 0, 128])), [(255, 127, 127)]),
    "grey and alpha": (png(8, 4, bytes([0, 0, 0, 255])), [WHITE, (0, 0, 0)]),
    "a transparent colour": (png(8, 2, bytes([1, 2, 3, 255, 0, 0]), (b"tRNS", words(1, 2, 3))), [WHITE, RED]),
    "a transparent grey": (png(8, 0, bytes([7, 8]), (b"tRNS", words(7))), [WHITE, (8, 8, 8)]),
    "a transparent grey of 4 bits": (png(4, 0, b"\x5a", (b"tRNS", words(5))), [WHITE, (170,) * 3]),
    "a transparent grey of 2 bits": (png(2, 0, b"\x1b", (b"tRNS", words(2))), [(0,) * 3, (85,) * 3, WHITE, WHITE]),
    "a transparent grey of 4 bits, with others above": (png(4, 0, b"\xf5", (b"tRNS", words(0x1F))), [WHITE, (85,) * 3]),
    "transparent black of 1 bit": (png(1, 0, b"\x40", (b"tRNS", words(0))), [WHITE] * 8),
    "1 bit": (png(1, 0, b"\x40"), [(0, 0, 0), WHITE, *[(0, 0, 0)] * 6]),
    "a palette": (png(8, 3, bytes([0, 1]), PALETTE), [RED, (0, 0, 255)]),
    "a palette with alpha": (png(8, 3, bytes([0, 1]), PALETTE, (b"tRNS", bytes([255, 0]))), [RED, WHITE]),
    "16 bits of grey": (png(16, 0, words(0x1234, 0xFFFF)), [(0x12,) * 3, WHITE]),
    "16 bits, a transparent grey": (png(16, 0, words(0x1200, 0x1201), (b"tRNS", words(0x1200))), [WHITE, (0x12,) * 3]),
    "16 bits of grey, alpha": (png(16, 4, words(0x1234, 0xFFFF, 0, 0)), [(0x12,) * 3, WHITE]),
    "16 bits of RGB": (png(16, 2, words(0x1234, 0x5678, 0x9ABC)), [(0x12, 0x56, 0x9A)]),
    "16 bits, a transparent colour": (
        png(16, 2, words(0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0), (b"tRNS", words(0x1234, 0x5678, 0x9ABC))),
        [WHITE, RED],
    ),
    "16 bits, a transparent colour near black": (
        png(16, 2, words(1, 2, 3, 0xFFFF, 0, 0), (b"tRNS", words(1, 2, 3))),
        [WHITE, RED],
    ),
    "16 bits of RGB, alpha": (png(16, 6, words(0xFFFF, 0, 0, 0xFFFF, 0, 0, 0, 0)), [RED, WHITE]),
    "EXIF behind the pixels": (png(8, 0, bytes([7, 8]), behind=(b"eXIf", exif(3).tobytes()[6:])), [(8,) * 3, (7,) * 3]),
    "gAMA, which viewers differ in": (png(8, 0, bytes([90]), (b"gAMA", struct.pack(">I", 100_000))), [(90,) * 3]),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_are_those_that_a_viewer_shows(kind: str) -> None:
    data, truth = PIXELS[kind]
    picture = Image.open(io.BytesIO(data))
    for pixels in (decode(data), pixels_of(picture), pixels_of(picture), pixels_of(picture.copy())):
        assert pixels[:, 0].T.tolist() == [list(colour) for colour in truth]


@pytest.mark.parametrize("kind", ["16 bits, a transparent colour", "16 bits, a transparent grey"])
def test_a_picture_that_was_read_before_is_seen_alike(kind: str) -> None:
    data, truth = PIXELS[kind]
    read_before = Image.open(io.BytesIO(data))
    read_before.load()
    for picture in (read_before, Image.open(io.BytesIO(data)).copy()):
        assert pixels_of(picture)[:, 0].T.tolist() == [list(colour) for colour in truth]


def test_grey_with_alpha_of_16_bits_keeps_its_profile_when_it_was_read_before() -> None:
    values = words(*(part for grey in range(0, 65_536, 4096) for part in (grey, 0xFFFF)))
    data = png(16, 4, values, (b"iCCP", b"grey\0\0" + zlib.compress(LINEAR_GREY)))
    picture = Image.open(io.BytesIO(data))
    truth = tensor(in_srgb(Image.open(io.BytesIO(data)).convert("L"), LINEAR_GREY))
    assert (truth[0, 0, 1:15].int() - torch.arange(16, 240, 16)).min() > 5
    for pixels in (decode(data), pixels_of(picture), pixels_of(picture), pixels_of(picture.copy())):
        assert (pixels.int() - truth.int()).abs().max() <= 1


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILES = {
    "JPEG": (encoded(RGB, "JPEG", icc_profile=LINEAR), in_srgb(RGB, LINEAR)),
    "sRGB's own": (encoded(RGB, "PNG", icc_profile=SRGB), RGB),
    "grey JPEG": (encoded(GREY, "JPEG", icc_profile=LINEAR_GREY), in_srgb(GREY, LINEAR_GREY)),
    "grey PNG with alpha": (encoded(GREY.convert("LA"), "PNG", icc_profile=LINEAR_GREY), in_srgb(GREY, LINEAR_GREY)),
    "grey PNG with an RGB profile": (encoded(GREY, "PNG", icc_profile=SWAPPED), in_srgb(GREY.convert("RGB"), SWAPPED)),
    "palette": (encoded(GREY.convert("P"), "PNG", icc_profile=LINEAR), in_srgb(GREY.convert("RGB"), LINEAR)),
    "16 bits": (
        encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG", icc_profile=LINEAR_GREY),
        in_srgb(GREY, LINEAR_GREY),
    ),
    "CMYK without one": (encoded(RGB.convert("CMYK"), "JPEG"), RGB),
    "none": (encoded(RGB, "JPEG", icc_profile=b"no profile"), RGB),
    "one cut short": (encoded(RGB, "PNG", icc_profile=SWAPPED[:200]), RGB),
    "one of other pixels": (encoded(RGB, "JPEG", icc_profile=CMYK_PROFILE), RGB),
    "XMP that turns": (encoded(RGB, "JPEG", xmp=XMP), RGB.transpose(Image.Transpose.ROTATE_270)),
    "EXIF that turns nowhere": (encoded(RGB, "JPEG", exif=exif(77)), RGB),
    "EXIF cut short": (encoded(RGB, "JPEG", exif=exif(6).tobytes()[:17]), RGB),
}


@pytest.mark.filterwarnings("ignore:.*EXIF")
@pytest.mark.parametrize("kind", PROFILES)
def test_metadata_count_where_a_viewer_heeds_them(kind: str) -> None:
    data, truth = PROFILES[kind]
    for pixels in (decode(data), pixels_of(Image.open(io.BytesIO(data)))):
        assert pixels.shape[1:] == (truth.height, truth.width)
        assert (pixels.int() - tensor(truth).int()).abs().float().mean() < 3


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "YCbCr", "HSV", "RGBX", "CMYK", "PA", "RGBa"])
def test_pictures_of_pillow_in_other_modes(mode: str) -> None:
    if mode.startswith("I;16"):
        values = np.asarray(GREY).astype("<u2" if mode == "I;16" else ">u2") * 257
        given = Image.frombytes(mode, GREY.size, values.astype("<u2" if mode == "I;16" else ">u2").tobytes())
        assert torch.equal(pixels_of(given), tensor(GREY))
    else:
        given = (RGB.convert("RGBA") if mode == "RGBa" else GREY if mode == "PA" else RGB).convert(mode)
        assert_alike(pixels_of(given), GREY if mode == "PA" else RGB, 3)


@pytest.mark.parametrize("given", [GREY.convert("I"), GREY.convert("F"), Image.new("RGB", (0, 5))])
def test_pictures_whose_white_nobody_knows_are_refused(given: Image.Image) -> None:
    with pytest.raises(UnreadableImage, match=r"which value is white|no pixels"):
        pixels_of(given)


def test_the_size_is_that_of_the_picture_as_shown() -> None:
    for orientation in range(1, 9):
        with Image.open(io.BytesIO(encoded(RGB, "JPEG", exif=exif(orientation)))) as picture:
            assert size_shown(picture) == ImageOps.exif_transpose(picture).size


def test_a_thumbnail_is_small_and_absent_for_what_is_not_a_picture(tmp_path: Path) -> None:
    Image.new("RGBA", (1200, 600), (200, 30, 30, 128)).save(tmp_path / "a.png", exif=exif(6))
    with Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path / "a.png", 240) or ""))) as image:
        assert (image.format, image.size) == ("JPEG", (120, 240))
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    Image.new("L", (90, 80)).save(tmp_path / "other.gif")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    for name in ("huge.png", "other.gif", "cut.jpg", "none.jpg"):
        assert thumbnail(tmp_path / name, 240) is None


# --- no bytes let anything through but UnreadableImage ---------------------------------------------------

CHUNKS = tuple(b"iCCP tRNS gAMA cHRM sRGB tEXt zTXt iTXt eXIf pHYs acTL fcTL PLTE".split())


def test_an_empty_profile_behind_the_pixels_is_not_a_bug() -> None:
    """81 bytes that make Pillow raise IndexError."""
    data = png(8, 2, bytes(3), behind=(b"iCCP", b""))
    assert len(data) < 90
    with pytest.raises(UnreadableImage):
        decode(data)


def test_odd_chunks_give_a_picture_or_the_one_error() -> None:
    rng, readable = random.Random(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            depth, kind = rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6))
            odd = [(rng.choice(CHUNKS), rng.randbytes(rng.choice((0, 1, 4, 8, 30)))) for _ in range(rng.randrange(3))]
            behind = (rng.choice(CHUNKS), rng.randbytes(rng.choice((0, 1, 30))))
            try:
                readable += decode(png(depth, kind, bytes(48), *odd, behind=behind)).shape[0] == 3
            except UnreadableImage:
                continue
    assert 50 < readable < 350


def test_a_picture_that_another_thread_has_read_turns_no_warning_into_damage() -> None:
    first, second = opened(encoded(RGB, "JPEG")), opened(encoded(RGB, "JPEG"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("as torchvision's of its plans", DeprecationWarning, stacklevel=1)
    second.__exit__(None, None, None)
    with pytest.raises(DeprecationWarning):  # what was asked for before, and of pytest here
        warnings.warn("of others", DeprecationWarning, stacklevel=1)


def test_a_progressive_picture_has_scans_by_the_dozen_and_no_more() -> None:
    """Each is decoded as if it were the whole picture: a few bytes that are repeated could take hours."""
    whole = encoded(RGB, "JPEG", progressive=True)
    assert decode(whole).shape[0] == 3
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(UnreadableImage, match="at most 100 are read"):
        decode(whole[:-2] + 100 * last + whole[-2:])


def test_damaged_metadata_cost_no_picture() -> None:
    rng = random.Random(0)
    whole = encoded(RGB, "JPEG", exif=exif(6), icc_profile=SWAPPED)
    start, end = whole.index(b"Exif"), whole.index(b"\xff\xdb")
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(3):
            broken[rng.randrange(start + 6, end)] = rng.randrange(256)
        try:
            assert sorted(decode(bytes(broken)).shape) == [3, HEIGHT, WIDTH]
        except UnreadableImage:  # a marker's length was hit
            continue


# --- a view has a number ---------------------------------------------------------------------------------


def settings(root: Path, *changes: str) -> Config:
    whole = ["data.train_fraction=1", "data.val_fraction=1"]
    return load_config("small", overrides=[f"data.root={root}", *whole, *changes]).config


def test_copies_of_an_earlier_view_are_made_again_and_serve_runs_of_their_time_alone(
    scenes: Path, tmp_path: Path
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    data = settings(tmp_path / "data", "data.image_size=32", "data.prepared_size=40").data
    table = read_captions(tmp_path / "data", "val2017")
    copies = make_copies(tmp_path / "data", table.files, 40, lambda progress: None)
    assert choose_source(data, [table])[0].name == "prepared-40"
    manifest = copies_manifest(tmp_path / "data", 40)
    first, *others = manifest.read_text().splitlines(keepends=True)
    earlier = {key: value for key, value in json.loads(first).items() if key not in ("view", "checksum")}
    manifest.write_text("".join([json.dumps(earlier) + "\n", *others]))
    source, _ = choose_source(data, [table])
    assert (source.name, "prepare-data" in source.why) == ("originals", True)
    assert choose_source(data, [table], "prepared-40")[0].name == "prepared-40"
    assert make_copies(tmp_path / "data", table.files, 40, lambda progress: None) == copies
    assert choose_source(data, [table])[0].name == "prepared-40"


def test_features_indexes_and_runs_know_their_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = choose_device("cpu", "float32")
    key = feature_key(settings(tmp_path), "0" * 64, device, Source("originals", "", ""), training=False)
    assert key.path(tmp_path, "val2017") != replace(key, view=1).path(tmp_path, "val2017")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8, "text_cfg": {}}}')
    now = open_folder(f"local-dir:{tmp_path}").key
    monkeypatch.setattr("clipcoco.search.models.VIEW", 1)
    assert open_folder(f"local-dir:{tmp_path}").key != now
    versions = versions_of(device)
    assert changed_versions({"versions": versions}, device) == []
    del versions["view"]
    assert changed_versions({"versions": versions}, device) == ["view 1 -> 2"]


# --- one's own pictures ----------------------------------------------------------------------------------


def adopted(tmp_path: Path, names: list[str], **options: bool) -> Adopted:
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{name},picture {name}\n" for name in names))
    where = tmp_path / "captions.csv", tmp_path / "mine", tmp_path / "root"
    return adopt(*where, report=lambda progress: None, **options)


def test_own_pictures_have_the_size_that_a_viewer_shows_and_pass_the_check(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for orientation in range(1, 9):
        RGB.save(tmp_path / "mine" / f"{orientation}.{'png' if orientation % 2 else 'jpg'}", exif=exif(orientation))
    adopted(tmp_path, sorted(path.name for path in (tmp_path / "mine").iterdir()))
    for split in ("train2017", "val2017"):
        table = read_captions(tmp_path / "root", split)
        for file, size in zip(table.files, table.sizes.tolist(), strict=True):
            lies = int(Path(file).stem) >= 5
            assert size == ([HEIGHT, WIDTH] if lies else [WIDTH, HEIGHT])
        assert verify(table, table, (0, 0), 256, lambda progress: None).problems == 0


def test_pictures_that_use_a_corner_of_their_16_bits_are_told_and_counted(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    names = [f"{number}.png" for number in range(7)]
    for number, name in enumerate(names):
        white, black = (4080, 0) if number < 3 else (31_000, 29_000) if number == 4 else (65_000, 0)  # 12 bits, or heat
        deep = Image.fromarray((np.asarray(GREY) / 255 * (white - black) + black).astype(np.uint16))
        (deep if number < 6 else GREY).save(tmp_path / "mine" / name)
    (tmp_path / "mine" / names[3]).write_bytes(png(16, 6, words(4080, 0, 0, 0xFFFF, 0, 4000, 0, 0xFFFF)))
    said = "5 of 7 pictures looked at have 16 bits a channel, and use 6 % of the range from black to white at most"
    assert [note for note in adopted(tmp_path, names).notes if said in note]
    told = read_parts(settings(tmp_path / "root", "train.batch_size=2"), "cpu", "float32", None).warnings
    assert [note for note in told if "have 16 bits a channel" in note]


HELPERS = [
    *("@eaDir/p.jpg", "#recycle", "$RECYCLE.BIN/S-1-5", "System Volume Information", "__MACOSX/a", "lost+found"),
    *("2024/LOST.DIR", "@Recycle", "Lightroom Previews.lrdata/0", "FOUND.000"),
    "My.photoslibrary/resources/derivatives",
]


def test_helper_folders_of_systems_hold_no_pictures_of_the_person(tmp_path: Path) -> None:
    mine = ["a.jpg", "recycle/a.jpg", "@home/a.jpg", "My.photoslibrary/originals/a.jpg", "previews/a.jpg"]
    theirs = [f"{folder}/a.jpg" for folder in HELPERS]
    for number, name in enumerate((*mine, *theirs)):  # no two of the same bytes
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        RGB.resize((40 + number, 30)).save(tmp_path / "mine" / name)
    gallery = folder_gallery(tmp_path / "mine")
    assert [item.name for item in gallery.items] == sorted(mine)
    assert gallery.notes == (f"{len(HELPERS)} of the system's own folders left out: first #recycle",)
    assert [item.name for item in folder_gallery(tmp_path / "mine/#recycle").items] == ["a.jpg"]  # asked for by name
    notes = adopted(tmp_path, [*mine, *theirs[:4]], allow_missing=True).notes
    assert [note for note in notes if note.startswith("4 of 9 images are in folders that a system keeps")]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_thumbnail_tells_nothing_that_stands_beside_the_pixels(tmp_path: Path, kind: str) -> None:
    exif, secret = Image.Exif(), b"taken at home"
    exif[0x010E] = secret.decode()
    beside = {"comment": secret, "exif": exif, "xmp": b"<x>" + secret + b"</x>", "icc_profile": secret}
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.jpg", **beside)
    assert secret in (tmp_path / "a.jpg").read_bytes()
    assert secret not in base64.b64decode(thumbnail(tmp_path / "a.jpg", 40, kind) or "")

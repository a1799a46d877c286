"""A JPEG or PNG file, or a picture of Pillow's -> the pixels that a picture viewer shows. Needs no torch.

A picture is untrusted data: its content decides, never its name, and only the parsers of JPEG and PNG are let
near a file. What they raise is caught here, and nowhere else.
"""

import base64
import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from clipcoco.shared import Shared

# What is made of a picture's bytes. Features, copies and indexes that were made under another number are recomputed.
# 1: pixels as they are stored (metadata, profile and transparency ignored). 2: as a viewer shows them.
VIEW = 2
MAX_PIXELS, MAX_SIDE = 64_000_000, 100_000  # Pillow takes half a minute for a column of 64 megapixels
MAX_SCANS = 100  # of a progressive JPEG; encoders write a dozen
_ORIENTATION = 274  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # orientations that swap width and height
_GREY = ("1", "L", "LA")
_STEPS = {"L;2": 85, "L;4": 17}  # between the greys that Pillow makes of few bits
# By the colour space of a profile: the mode that it takes, and others that it can be meant for.
_SPACES = {"RGB ": ("RGB", "L"), "GRAY": ("L",), "CMYK": ("CMYK",)}
_SAME = 1  # step of 255 by which a profile that says sRGB may differ from ours
_NARROW = 64  # of 256: a picture of 16 bits that spans less needs 14 of them at most


class UnreadableImage(ValueError):  # no error of the program: such an image is replaced
    """The bytes can't be decoded as an image."""


# Bombs are refused below; malformed metadata and torchvision's plans do not concern who trains.
_silence = Shared(lambda: warnings.catch_warnings(action="ignore"))


@contextmanager
def _parsing() -> Iterator[None]:
    with _silence:
        try:
            yield
        except UnreadableImage:
            raise
        except UnidentifiedImageError:
            raise UnreadableImage("neither a JPEG nor a PNG image") from None
        except Exception as error:  # on damaged files Pillow raises nearly anything
            raise UnreadableImage(f"a damaged image: {error or type(error).__name__}") from error


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """A JPEG or PNG picture of which the header alone is read, and what is done with it.

    Whatever is raised inside becomes UnreadableImage: there should be nothing else in such a block.
    """
    with _parsing():
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                most = f"at most {MAX_PIXELS:,}, {MAX_SIDE:,} a side, are read"
                raise UnreadableImage(f"{width} x {height} pixels, {most}")
            scans = 0 if picture.format == "PNG" else data.count(b"\xff\xda")
            if scans > MAX_SCANS:  # each as long as a decoding
                raise UnreadableImage(f"{scans:,} scans, at most {MAX_SCANS} are read")
            yield picture


def shown(picture: Image.Image) -> Image.Image:
    """RGB: a JPEG, a PNG or any other picture of Pillow's as a viewer shows it.

    Turned as its EXIF says, colours in sRGB by its ICC profile, what is transparent on white, and the upper 8 of
    16 bits. Metadata that are damaged, or don't fit the pixels, count for nothing. PNG's gAMA and cHRM don't either:
    viewers differ in them, and Pillow applies neither. Raises UnreadableImage for damaged pixels, and for modes I
    and F, which don't say which value is white.
    """
    with _parsing():
        _fit_key(picture, _stored_mode(picture))
        picture.load()  # also what stands behind the pixels of a PNG
        if 0 in picture.size:
            raise UnreadableImage("it has no pixels")
        colours, alpha = _parts(picture)
        transform = _to_srgb(picture.info.get("icc_profile"), colours.mode)
        seen = transform.apply(colours.convert(transform.input_mode)) if transform else colours.convert("RGB")
        if alpha is not None:
            white = Image.new("RGB", seen.size, "white")
            white.paste(seen, mask=alpha)
            seen = white
        orientation = _orientation(picture)
        return seen.transpose(_TURNS[orientation]) if orientation in _TURNS else seen


def is_plain(picture: Image.Image) -> bool:
    """Whether the pixels of a JPEG, of which the header is read, are shown as any decoder gives them."""
    return (
        picture.format != "PNG"
        and picture.mode in ("RGB", "L")
        and _orientation(picture) not in _TURNS
        and _to_srgb(picture.info.get("icc_profile"), picture.mode) is None
    )


def size_shown(picture: Image.Image) -> tuple[int, int]:
    """Width and height as a viewer shows them, of a picture of which the header is read or more."""
    width, height = picture.size
    return (height, width) if _orientation(picture) in _LYING else (width, height)


def thumbnail(path: Path, side: int, kind: str = "JPEG") -> str | None:
    """What a viewer shows as a JPEG (or WEBP, a third smaller) in base64, its longer side `side` pixels at most, and
    nothing that the file says beside; None of what can't be read."""
    try:
        with opened(path) as picture:
            picture.draft(None, (side, side))  # a JPEG is decoded at an eighth of its size, or so
            small = shown(picture)
    except UnreadableImage:
        return None
    small.thumbnail((side, side))
    small.info.clear()  # a comment would be written again
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=80 if kind == "JPEG" else 75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def narrow(paths: Iterable[Path]) -> str | None:
    """A sentence on pictures of 16 bits that use little of them: of cameras and scanners, of heat and of depth."""
    count, spans = 0, []
    for path in paths:
        count += 1
        try:
            with opened(path) as picture:
                if ";16" in _stored_mode(picture):
                    values = np.asarray(_parts(picture)[0])
                    spans.append(int(values.max()) - int(values.min()))
        except UnreadableImage:
            continue
    few = [span for span in spans if span < _NARROW]
    if not few:
        return None
    return (
        f"{len(few):,} of {count:,} pictures looked at have 16 bits a channel, and use {max(few) / 2.55:.0f} % of the "
        "range from black to white at most: to viewers and to the model they are nearly black, or one tone. "
        "Stretch them to 8 bits"
    )


def _stored_mode(picture: Image.Image) -> str:
    """Before the pixels are read: "RGB;16B" of a PNG that Pillow will give 8 bits, else the mode."""
    tiles = getattr(picture, "tile", [])
    packed = tiles[0][3] if tiles else None
    return packed if isinstance(packed, str) else picture.mode


def _fit_key(picture: Image.Image, stored: str) -> None:
    """The colour that is transparent, in 8 bits as its pixels: Pillow leaves it in the bits of the file.

    Changed in the picture itself, which no longer says how many they were once it is read: it is seen alike when it
    is given again. Of one that was read before, a key of 2 or 4 bits, or of 16 below 256, can't be told from one of 8.
    """
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and (stored == "RGB;16B" or max(key) > 255):
        # The lower 8 bits of the pixels are lost: all colours that differ from it in them alone are transparent too.
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and (step := _STEPS.get(stored)):
        picture.info["transparency"] = key % (255 // step + 1) * step


def _parts(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits of L, RGB or CMYK, and the alpha channel if there is one."""
    key = picture.info.get("transparency")
    if picture.mode in ("I", "F"):
        raise UnreadableImage(f"mode {picture.mode} does not say which value is white: make it L, RGB or I;16")
    if picture.mode.startswith("I;16"):  # convert() would clip all above 255
        values = np.asarray(picture)
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.fromarray((values >> 8).astype(np.uint8)), alpha
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode == "CMYK":
        return picture, alpha
    return picture.convert("L" if picture.mode in _GREY or _is_deep_grey(picture) else "RGB"), alpha


def _is_deep_grey(picture: Image.Image) -> bool:
    """Grey with alpha of 16 bits, which Pillow makes RGBA: it matters to a profile of greys alone."""
    profile = picture.info.get("icc_profile")
    if picture.mode != "RGBA" or not isinstance(profile, bytes) or profile[16:20] != b"GRAY":
        return False
    red, green, blue, _ = picture.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _orientation(picture: Image.Image) -> int:
    """From 1 to 8; 1 of what says nothing, or nothing that makes sense."""
    try:
        # Not PngImageFile's own method, which first decodes all pixels to see what stands behind them.
        value = Image.Image.getexif(picture).get(_ORIENTATION)
        return int(value) if value in _TURNS else 1
    except Exception:  # as with pixels; the picture can do without
        return 1


def _to_srgb(profile: Any, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the pixels stay as they are: without a profile, with sRGB's, and with one that can't be used."""
    return _transform(profile, mode) if isinstance(profile, bytes) else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        taken, *others = _SPACES[source.profile.xcolor_space]
        if mode not in (taken, *others):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), taken, "RGB")
        if taken == "CMYK":
            return transform
        steps = np.linspace(0, 255, 18, dtype=np.uint8)  # 0, 15, 30 ...
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)
        before = Image.fromarray(colours).convert(taken)
        moved = np.asarray(transform.apply(before)).astype(int) - np.asarray(before.convert("RGB"))
    except Exception:  # as with pixels; viewers show such a picture as if it had no profile
        return None
    return transform if np.abs(moved).max() > _SAME else None

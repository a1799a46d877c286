"""Bytes -> uint8 images, and the square views of them that the model sees.

An image file is untrusted data: its content decides, never its name, and only the parsers of JPEG and PNG are
let near it. Letters: H, W height and width in pixels.
"""

import io
import math
import random
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # its removal is announced; Pillow gives the same pixels more slowly
    decode_jpeg = None

MAX_PIXELS = 64_000_000
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# What Pillow raises on damaged files, beside OSError and ValueError.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    MemoryError,
    Image.DecompressionBombError,
)

Box = tuple[int, int, int, int]  # top, left, height, width


class UnreadableImage(ValueError):  # no error of the program: such an image is replaced
    """The bytes are no image that can be decoded."""


def decode(data: bytes) -> Tensor:
    """The content of a JPEG or PNG file, of any colour mode, as uint8 RGB (3, H, W).

    EXIF orientation is not applied: COCO's images are meant as stored. Raises UnreadableImage for all that
    cannot be decoded, truncated files and images of more than 64 megapixels included.
    """
    with warnings.catch_warnings():
        # Bombs are refused below; malformed metadata and torchvision's plans do not concern who trains.
        warnings.simplefilter("ignore")
        try:
            return _pixels(data)
        except UnidentifiedImageError:
            raise UnreadableImage("neither a JPEG nor a PNG image") from None
        except _DAMAGED as error:
            raise UnreadableImage(str(error)) from error


def _pixels(data: bytes) -> Tensor:
    picture: Image.Image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))  # the header only
    if picture.width * picture.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
    if picture.format != "PNG" and picture.mode in ("RGB", "L") and decode_jpeg is not None:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            pixels: Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
            return pixels
        except RuntimeError:
            pass  # damaged, or a torchvision built without its decoder: Pillow has the last word
    if picture.mode == "I;16":  # convert() would clip all above 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def read(path: Path) -> Tensor:
    """`decode` of a file. Raises UnreadableImage, also when the file is missing or may not be read."""
    try:
        return decode(path.read_bytes())
    except (OSError, UnreadableImage) as error:
        raise UnreadableImage(f"{path}: {error}") from error


def sample_rng(seed: int, epoch: int, image_id: int, purpose: str) -> random.Random:
    """The generator of one image in one epoch: the same in every process, whatever was drawn before."""
    return random.Random(f"{seed}:{epoch}:{image_id}:{purpose}")


def training_view(image: Tensor, size: int, crop_scale: tuple[float, float], flip: bool, rng: random.Random) -> Tensor:
    """A random crop of a uint8 image (3, H, W), resized to (3, size, size); with `flip`, half are mirrored.

    The crop's area is `crop_scale` of the image's, its aspect ratio between 3/4 and 4/3, as in Inception's
    training (Szegedy et al. 2015, section 6). A `crop_scale` of (1, 1) gives the largest centred square.
    """
    height, width = image.shape[1:]
    view = _resized(image, _random_box(height, width, crop_scale, rng), size)
    return view.flip(-1) if flip and rng.random() < 0.5 else view


def evaluation_view(image: Tensor, size: int) -> Tensor:
    """The largest centred square of a uint8 image (3, H, W), resized to (3, size, size).

    The same field of view as resizing the shorter side and cropping the centre, but without the long resized
    image in between, which an extreme aspect ratio would make gigabytes large.
    """
    height, width = image.shape[1:]
    return _resized(image, _centred_box(height, width, 1.0), size)


def _random_box(height: int, width: int, crop_scale: tuple[float, float], rng: random.Random) -> Box:
    smallest, largest = crop_scale
    if smallest == 1:
        return _centred_box(height, width, 1.0)
    low, high = map(math.log, _ASPECT_RATIOS)
    for _ in range(_ATTEMPTS):
        area = height * width * (smallest + (largest - smallest) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.random() * (height - box_height + 1))
            left = int(rng.random() * (width - box_width + 1))
            return top, left, box_height, box_width
    # No such crop fits a long strip: the centre, as near to its shape as allowed.
    return _centred_box(height, width, min(max(width / height, _ASPECT_RATIOS[0]), _ASPECT_RATIOS[1]))


def _centred_box(height: int, width: int, ratio: float) -> Box:
    box_width = max(1, min(width, round(height * ratio)))
    box_height = max(1, min(height, round(width / ratio)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _resized(image: Tensor, box: Box, size: int) -> Tensor:
    top, left, height, width = box
    # Decoders write channels last: the view keeps that, and interpolate then is nearly twice as fast.
    crop = image[:, top : top + height, left : left + width].unsqueeze(0)
    return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)[0]

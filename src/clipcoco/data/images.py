"""Bytes -> uint8 images as a viewer shows them, and the square views of them that the model sees.

Letters: H, W height and width in pixels.
"""

import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipcoco.data.viewer import UnreadableImage, is_plain, opened, shown

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10

Box = tuple[int, int, int, int]  # top, left, height, width


def decode(data: bytes) -> Tensor:
    """What a viewer shows of a JPEG or PNG file, of any colour mode, as uint8 RGB (3, H, W).

    Raises UnreadableImage for all that cannot be decoded, truncated files and images of more than 64 megapixels
    included.
    """
    from clipcoco.data import vision

    with opened(data) as picture:
        if vision.decode_jpeg is not None and is_plain(picture):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                pixels: Tensor = vision.decode_jpeg(encoded, vision.ImageReadMode.RGB)
                return pixels
            except RuntimeError:
                pass  # damaged, or a torchvision built without its decoder: Pillow has the last word
        return pixels_of(picture)


def pixels_of(picture: Image.Image) -> Tensor:
    """The same of a picture of Pillow's. Raises UnreadableImage."""
    return torch.from_numpy(np.array(shown(picture))).permute(2, 0, 1)


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

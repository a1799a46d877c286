"""Pretrained encoders, torchvision's and one of sentences, as far as a configuration knows them: without torch."""

import os
from pathlib import Path
from typing import NamedTuple

WEIGHTS_HOST = "https://download.pytorch.org/models"


class Facts(NamedTuple):
    width: int  # of its features
    parameters: int  # without the classifier
    published: dict[str, str]  # ImageNet weights; the names of their files end in the first digits of their SHA-256
    # The parts whose outputs are 1/8, 1/16 and 1/32 of the image, and their channels. Of a ResNet the last is the
    # trunk's own output, of the others what their last convolution reads.
    stages: dict[str, int]


_RESNET = {"layer2": 128, "layer3": 256}
_BOTTLENECK = {"layer2": 512, "layer3": 1024}
BACKBONES = {
    "resnet18": Facts(512, 11_176_512, {"imagenet-v1": "resnet18-f37072fd.pth"}, _RESNET),
    "resnet34": Facts(512, 21_284_672, {"imagenet-v1": "resnet34-b627a593.pth"}, _RESNET),
    "resnet50": Facts(
        2048,
        23_508_032,
        {"imagenet-v1": "resnet50-0676ba61.pth", "imagenet-v2": "resnet50-11ad3fa6.pth"},
        _BOTTLENECK,
    ),
    "resnet101": Facts(
        2048,
        42_500_160,
        {"imagenet-v1": "resnet101-63fe2227.pth", "imagenet-v2": "resnet101-cd907fc2.pth"},
        _BOTTLENECK,
    ),
    "mobilenet_v3_large": Facts(
        960,
        2_971_952,
        {"imagenet-v1": "mobilenet_v3_large-8738ca79.pth", "imagenet-v2": "mobilenet_v3_large-5c1a4163.pth"},
        {"features.6": 40, "features.12": 112, "features.15": 160},
    ),
    "efficientnet_b0": Facts(
        1280,
        4_007_548,
        {"imagenet-v1": "efficientnet_b0_rwightman-7f5810bc.pth"},
        {"features.3": 40, "features.5": 112, "features.7": 320},
    ),
}


def hub_folder() -> Path:
    """Where torch.hub keeps published weights."""
    home = os.environ.get("TORCH_HOME", os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/torch")
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


class SentenceFacts(NamedTuple):
    """Of the sentence encoder that model.text.weights names, known without torch."""

    vocabulary: int = 30_522
    positions: int = 512
    layers: int = 6
    width: int = 384  # of its vectors, too
    heads: int = 12
    hidden: int = 1_024  # of the head, which is ours


MINILM = SentenceFacts()  # all-MiniLM-L6-v2
# By its card it has learnt from 828,395 pairs of captions of COCO and 317,695 of Flickr30k, and so from those that
# recall is measured on: this stands in every table, page and card that shows such a recall.
CAUTION = "text encoder has seen COCO captions: not held out"

"""Train a CLIP-style image-text model on COCO captions, and measure its retrieval honestly."""

__version__ = "0.1.0"

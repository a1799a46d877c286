"""Train a CLIP-style image-text model on COCO captions, and measure its retrieval honestly.

In Python: `load` a trained model, `train` one, `resume` a run, `evaluate`, `load_config`, `recall_at_k` of any
model's embeddings. See `clipcoco.api`; errors are those of `clipcoco.errors`.
"""

from typing import TYPE_CHECKING

from clipcoco.version import __version__

__all__ = ["__version__", "evaluate", "load", "load_config", "recall_at_k", "resume", "train"]

if TYPE_CHECKING:
    from clipcoco.api import evaluate, load, recall_at_k, resume, train
    from clipcoco.config.load import load_config
else:

    def __getattr__(name: str) -> object:
        # On first use: the command line imports this package too, and torch takes seconds.
        if name not in __all__:
            raise AttributeError(f"module 'clipcoco' has no attribute {name!r}")
        if name == "load_config":
            from clipcoco.config import load as module
        else:
            from clipcoco import api as module
        return getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

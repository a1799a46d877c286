"""clipcoco in Python: `load` a model, `train` one, `resume` a run, `evaluate`, `load_config`, `recall_at_k`.

>>> from clipcoco import load
>>> model = load("first")  # a run, by what names it on the command line, or a checkpoint file
>>> model.encode_images(["dog.jpg", "cat.png"]).shape
(2, 16)
>>> model.encode_texts("a dog on a sofa").shape
(16,)
>>> [hit.image for hit in model.search("a red circle", ["dog.jpg", "cat.png"], k=1)] in (["dog.jpg"], ["cat.png"])
True

Nothing is printed, no signal handler is installed, and what is set for the whole process (random state,
determinism, default dtype) is afterwards as it was, but for the modules that multiprocessing is to preload.
Meanwhile other threads see it: train in one thread at a time.

Errors: a ClipcocoError of `clipcoco.errors` for what is wrong with a file, a setting, data or the machine;
TypeError or ValueError for an argument of the wrong kind.
"""

from clipcoco.api.measuring import evaluate
from clipcoco.api.model import Hit, Model, load
from clipcoco.api.recall import Recalls, recall_at_k
from clipcoco.api.training import TrainedRun, resume, train
from clipcoco.config.load import load_config

__all__ = ["Hit", "Model", "Recalls", "TrainedRun", "evaluate", "load", "load_config", "recall_at_k", "resume", "train"]

"""clipcoco in Python: `load` a model, `train` one, `resume` a run, `load_config`, `recall_at_k` of any embeddings.

>>> from clipcoco import load
>>> model = load("first")  # a run, by what names it on the command line, or a checkpoint file
>>> model.encode_images(["dog.jpg", "cat.png"]).shape
(2, 16)
>>> model.encode_texts(["a dog on a sofa"]).shape
(1, 16)

Nothing is printed, no signal handler is installed, and what is set for the whole process (random state,
determinism, default dtype) is afterwards as it was, but for the modules that multiprocessing is to preload.
Meanwhile other threads see it: train in one thread at a time.

Errors: a ClipcocoError of `clipcoco.errors` for what is wrong with a file, a setting, data or the machine;
TypeError or ValueError for an argument of the wrong kind.
"""

from clipcoco.api.model import Model, load
from clipcoco.api.recall import Recalls, recall_at_k
from clipcoco.api.training import TrainedRun, resume, train
from clipcoco.config.load import load_config

__all__ = ["Model", "Recalls", "TrainedRun", "load", "load_config", "recall_at_k", "resume", "train"]

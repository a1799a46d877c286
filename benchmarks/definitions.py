"""R@1, 5, 10 of the same embeddings by the definitions of others, side by side.

    PYTHONPATH=FOLDER python benchmarks/definitions.py

1,000 images with five captions each, drawn. FOLDER holds the peers that pip has (clip-benchmark, eccv_caption,
torchmetrics, sentence-transformers, open_clip_torch[training]), whose own functions count; what is not there is left
out. big_vision (4cf5c02) and NVIDIA TAO (d99ff77) are on no index: their definitions are written again here.
"""

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable

import numpy as np
import torch

from clipcoco import recall_at_k

IMAGES, EACH, WIDTH, KS = 1000, 5, 64, (1, 5, 10)
OWNERS = np.arange(IMAGES).repeat(EACH)
OWN = np.arange(IMAGES)[:, None] == OWNERS  # (images, captions)
Six = tuple[list[float], list[float]]  # image to text, text to image, as shares
warnings.simplefilter("ignore")


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(IMAGES, WIDTH))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = images[OWNERS] + 0.36 * rng.normal(size=(len(OWNERS), WIDTH))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return images.astype(np.float32), texts.astype(np.float32)


def ours(images: np.ndarray, texts: np.ndarray) -> Six:
    found = recall_at_k(images, texts, OWNERS)
    return [found.i2t[k] / 100 for k in KS], [found.t2i[k] / 100 for k in KS]


def clip_benchmark(images: np.ndarray, texts: np.ndarray) -> Six:
    from clip_benchmark.metrics.zeroshot_retrieval import batchify
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as share

    scores = torch.tensor(texts @ images.T)
    own = torch.zeros_like(scores, dtype=torch.bool)
    own[torch.arange(len(texts)), torch.tensor(OWNERS)] = True
    ways = (scores.T, own.T), (scores, own)
    found = [[float((batchify(share, s, o, 64, "cpu", k=k) > 0).float().mean()) for k in KS] for s, o in ways]
    return found[0], found[1]


def big_vision(images: np.ndarray, texts: np.ndarray) -> Six:
    distance = -images @ texts.T
    by_image, by_text = distance.argsort(1), distance.argsort(0)
    i2t = [(OWNERS[by_image[:, :k]] == np.arange(IMAGES)[:, None]).any(1).mean() for k in KS]
    return i2t, [(by_text[:k] == OWNERS).any(0).mean() for k in KS]


def eccv_caption(images: np.ndarray, texts: np.ndarray) -> Six:
    from eccv_caption._metrics import compute_r_at_k

    scores, found = images @ texts.T, []
    for matrix, right in ((scores, OWN), (scores.T, OWN.T)):
        own = [np.flatnonzero(row).tolist() for row in right]
        lists = dict(enumerate((-matrix).argsort(1)[:, :50].tolist()))
        found.append([float(compute_r_at_k(lists, dict(enumerate(own)), K=k)) for k in KS])
    return found[0], found[1]


def torchmetrics(name: str) -> Callable[[np.ndarray, np.ndarray], Six]:
    def measure(images: np.ndarray, texts: np.ndarray) -> Six:
        from torchmetrics.functional import retrieval

        scores, function = torch.tensor(images @ texts.T), getattr(retrieval, name)
        own = torch.tensor(OWN)
        ways = (scores, own), (scores.T, own.T)
        found = [
            [float(np.mean([function(s, o, top_k=k) for s, o in zip(*way, strict=True)])) for k in KS] for way in ways
        ]
        return found[0], found[1]

    return measure


def sentence_transformers(name: str) -> Callable[[np.ndarray, np.ndarray], Six]:
    def measure(images: np.ndarray, texts: np.ndarray) -> Six:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

        scores, found = images @ texts.T, []
        for matrix, right in ((scores, OWN), (scores.T, OWN.T)):
            queries, corpus = ({f"{n}": "" for n in range(size)} for size in matrix.shape)
            relevant = {f"{n}": {f"{at}" for at in np.flatnonzero(row)} for n, row in enumerate(right)}
            judge = InformationRetrievalEvaluator(queries, corpus, relevant, accuracy_at_k=KS, precision_recall_at_k=KS)
            best = (-matrix).argsort(1)[:, :100]
            hits = [
                [{"corpus_id": f"{at}", "score": float(row[at])} for at in first]
                for row, first in zip(matrix, best, strict=True)
            ]
            found.append([float(judge.compute_metrics(hits)[name][k]) for k in KS])
        return found[0], found[1]

    return measure


def open_clip(images: np.ndarray, texts: np.ndarray) -> Six:
    from open_clip_train.train import get_clip_metrics

    found = get_clip_metrics(torch.tensor(images[OWNERS]), torch.tensor(texts), torch.tensor(1.0))
    return [found[f"image_to_text_R@{k}"] for k in KS], [found[f"text_to_image_R@{k}"] for k in KS]


def tao(images: np.ndarray, texts: np.ndarray) -> Six:
    """Recall of a query: how many of its positives are among the first K, of all its positives."""
    scores, found = images @ texts.T, []
    for matrix, right in ((scores, OWN), (scores.T, OWN.T)):
        order = np.argsort(-matrix, axis=1)
        hits = np.take_along_axis(right, order, axis=1)
        found.append([float((hits[:, :k].sum(1) / right.sum(1)).mean()) for k in KS])
    return found[0], found[1]


METHODS = {
    "clipcoco": (ours, "clipcoco"),
    "CLIP_benchmark": (clip_benchmark, "clip_benchmark"),
    "big_vision (written again)": (big_vision, ""),
    "eccv_caption": (eccv_caption, "eccv_caption"),
    "torchmetrics RetrievalHitRate": (torchmetrics("retrieval_hit_rate"), "torchmetrics"),
    "torchmetrics RetrievalRecall": (torchmetrics("retrieval_recall"), "torchmetrics"),
    "sentence-transformers accuracy@k": (sentence_transformers("accuracy@k"), "sentence-transformers"),
    "sentence-transformers recall@k": (sentence_transformers("recall@k"), "sentence-transformers"),
    "open_clip, in training": (open_clip, "open_clip_torch"),
    "NVIDIA TAO (written again)": (tao, ""),
}


def main() -> None:
    given = embeddings()
    for name, (method, package) in METHODS.items():
        try:
            version = importlib.metadata.version(package) if package else ""
            with contextlib.redirect_stderr(io.StringIO()):
                ways = method(*given)
        except ImportError as error:
            print(f"{name:40} not here: {error}")
            continue
        cells = "  ".join("/".join(f"{100 * share:.2f}" for share in way) for way in ways)
        print(f"{f'{name} {version}':40} {cells}")


if __name__ == "__main__":
    main()

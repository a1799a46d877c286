"""Recall with the matches that COCO's own captions leave out, as people judged them, by the package eccv_caption.

CxC: Parekh et al., Crisscrossed Captions, EACL 2021. ECCV Caption: Chun et al., ECCV 2022, where mean average precision
at R (R is a query's number of positives) is the main figure. Both are of Karpathy's test split alone.
"""

import contextlib
import importlib.util
import io
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipcoco.data.karpathy import coco_ids
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.nearest import BLOCK, nearest
from clipcoco.engine.recall import CUTOFFS, chance
from clipcoco.errors import ConfigError, EnvironmentProblem

NAMES = {"cxc": "CxC", "eccv": "ECCV Caption"}
EXTRA = "pip install 'clipcoco[eccv]'"
Positives = Mapping[int, list[int]]  # by the query's id


def installed() -> bool:
    return importlib.util.find_spec("eccv_caption") is not None


def is_karpathys(embeddings: Embeddings) -> bool:
    """Whether these are all images of the split with the captions that are counted there, known by COCO's ids."""
    known = coco_ids()
    pairs = (embeddings.image_ids, known["test"]), (embeddings.caption_ids, known["test_captions"])
    return all(np.array_equal(np.sort(here), np.sort(there)) for here, there in pairs)


def extended(embeddings: Embeddings) -> dict[str, Any]:
    """By "cxc" and "eccv", in percent: figures and what chance gives, by direction, and the number of queries.

    Equal scores count against us. Two of ECCV's 22,550 positives of images are no captions of the split and are never
    found. Raises ConfigError for embeddings of anything else, EnvironmentProblem without the
    package.
    """
    if not is_karpathys(embeddings):
        needed = "its 5,000 images with five captions each, by COCO's image and caption ids"
        raise ConfigError(f"CxC and ECCV Caption are of Karpathy's test split: {needed} (--protocol). Use own")
    if not installed():
        raise EnvironmentProblem(f"CxC and ECCV Caption need eccv_caption, not installed here (--protocol). {EXTRA}")
    with warnings.catch_warnings(action="ignore"):  # of packages that it can do without
        from eccv_caption import Metrics
    package = Metrics()
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        truth: dict[str, Positives] = getattr(package, f"{name}_gts")
        lists = {way: _lists(embeddings, truth[way], way) for way in ("i2t", "t2i")}
        by_name: dict[str, Any]
        with contextlib.redirect_stderr(io.StringIO()):  # it shows its progress
            if name == "cxc":
                by_name = {f"r{k}": package.cxc_recalls(lists, "all", K=k) for k in CUTOFFS}
            else:
                by_name = {
                    key.removeprefix("eccv_"): value for key, value in package.eccv_metrics(lists, "all").items()
                }
        found[name] = {way: {key: 100 * float(value[way]) for key, value in by_name.items()} for way in lists}
        found[name]["chance"] = {
            way: _chance(name, truth[way], gallery) for way, gallery in (("i2t", 25_000), ("t2i", 5_000))
        }
        found[name]["queries"] = {way: len(truth[way]) for way in lists}
    return found


def _lists(embeddings: Embeddings, truth: Positives, way: str) -> dict[int, list[int]]:
    """The ids that each query finds first, as many as its longest list of positives has: what the figures look at."""
    sides = [(embeddings.images, embeddings.image_ids), (embeddings.texts, embeddings.caption_ids)]
    (queries, query_ids), (gallery, gallery_ids) = sides if way == "i2t" else sides[::-1]
    place = {number: row for row, number in enumerate(gallery_ids.tolist())}
    rows = [row for row, number in enumerate(query_ids.tolist()) if number in truth]
    own = [[place[number] for number in truth[int(query_ids[row])] if number in place] for row in rows]
    depth = max(CUTOFFS[-1], *map(len, truth.values()))

    def foreign(start: int) -> Tensor:
        """1 where a match would be wrong, so that of equal scores the wrong one comes first."""
        block = torch.ones(min(BLOCK, len(own) - start), len(gallery), dtype=torch.int64)
        for row, positives in zip(block, own[start:], strict=False):
            row[positives] = 0
        return block

    found = gallery_ids[nearest(queries[rows], gallery, depth, foreign).numpy()]
    assert found.shape == (len(truth), depth), "a query of the package is not in the split"
    return dict(zip(query_ids[rows].tolist(), found.tolist(), strict=True))


def _chance(name: str, truth: Positives, gallery: int) -> dict[str, float]:
    """What a random order gives in expectation."""
    many = [len(set(positives)) for positives in truth.values()]
    if name == "cxc":
        return {key: value for key, value in chance(gallery, many).items() if key != "median_rank"}
    # At place r a positive is seen with probability R/G; then each of the places before has one with (R-1)/(G-1).
    precision = [sum((1 + (r - 1) * (n - 1) / (gallery - 1)) / r for r in range(1, n + 1)) / gallery for n in many]
    share = 100 * statistics.fmean(many) / gallery
    return {"map_at_r": 100 * statistics.fmean(precision), "rprecision": share, "r1": share}

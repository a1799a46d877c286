"""What a search finds among the drawn scenes: every plain query of their grammar that has an answer there.

    clipcoco train --preset demo
    python benchmarks/queries.py runs/RUN

Of "a COLOUR SHAPE" the precision of the first five pictures, of "a COLOUR SHAPE RELATION a COLOUR SHAPE" how often the
first one is right; in the 500 unseen scenes alone, and in all 6,500, which `clipcoco search` looks through.
"""

import sys
from pathlib import Path

import numpy as np

from clipcoco import load
from clipcoco.api.model import Model
from clipcoco.data.annotations import SPLITS
from clipcoco.prepare.composition import Scene, scenes
from clipcoco.prepare.drawing import COLOURS, SHAPES
from clipcoco.prepare.scenes import FIRST_ID
from clipcoco.prepare.wording import facts

Kind = tuple[str, str]
Asked = Kind | tuple[Kind, str, Kind]
KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def named(kind: Kind) -> str:
    return f"{'an' if kind[0][0] in 'aeiou' else 'a'} {kind[0]} {kind[1]}"


def singles() -> dict[str, Asked]:
    return {named(kind): kind for kind in KINDS}


def relations(word: str) -> dict[str, Asked]:
    return {f"{named(a)} {WORDS[word]} {named(b)}": (a, word, b) for a in KINDS for b in KINDS if a != b}


def answers(gallery: list[Scene], queries: dict[str, Asked]) -> dict[str, set[int]]:
    """The scenes of which each query is true, by their place; queries without one are left out."""
    holding: dict[Asked, set[int]] = {}
    for index, scene in enumerate(gallery):
        for thing in scene.things:
            holding.setdefault((thing.colour, thing.shape), set()).add(index)
        for one, relation, other in facts(scene):
            fact = ((one.colour, one.shape), relation, (other.colour, other.shape))
            holding.setdefault(fact, set()).add(index)
    return {text: holding[asked] for text, asked in queries.items() if asked in holding}


def precision(
    model: Model, images: np.ndarray, gallery: list[Scene], queries: dict[str, Asked], k: int
) -> tuple[int, float]:
    """How many queries have an answer among the `images` of `gallery`, and the mean precision in percent of their first
    `k`, or of as many as there are answers."""
    right = answers(gallery, queries)
    texts = model.encode_texts(list(right))
    best = np.argsort(-(texts @ images.T), axis=1, kind="stable")[:, :k]
    scores = []
    for row, true in zip(best, right.values(), strict=True):
        most = min(k, len(true))
        scores.append(len(true.intersection(row[:most].tolist())) / most)
    return len(right), 100 * float(np.mean(scores))


def main() -> None:
    model = load(sys.argv[1])
    root = Path(model.config.data.root)
    embedded, drawn = {}, {}
    for split in FIRST_ID:
        files = sorted((root / SPLITS[split]).glob("*.jpg"))
        embedded[split], drawn[split] = model.encode_images(files), scenes(len(files), split)
    both = drawn["val"] + drawn["train"]
    galleries = {
        f"the {len(drawn['val']):,} unseen": (embedded["val"], drawn["val"]),
        f"all {len(both):,}": (np.concatenate([embedded["val"], embedded["train"]]), both),
    }
    for name, (images, gallery) in galleries.items():
        many, score = precision(model, images, gallery, singles(), 5)
        print(f"{name}: a C S: precision@5 {score:.1f} %, {many} queries")
        for word, told in WORDS.items():
            many, score = precision(model, images, gallery, relations(word), 1)
            print(f"{name}: a C S {told} a C S: first right {score:.1f} %, {many} queries")


if __name__ == "__main__":
    main()

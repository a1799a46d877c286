"""`clipcoco eval --from-embeddings FILE --audit [NUMBER ...]`: which definition of recall prints these numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from clipcoco.cli.compare import indented
from clipcoco.cli.options import print_json
from clipcoco.console import RunConsole, open_terminal, say_half, show, table
from clipcoco.errors import ConfigError, ExitCode

COUNTS = {
    1: "any",
    2: "R@K image to text and text to image",
    3: "R@1, 5, 10 of one direction",
    6: "R@1, 5, 10 of both",
    7: "these and their sum",
}
WAYS = {"i2t": "image to text", "t2i": "text to image", "mean": "mean of both", "rsum": "sum of all six"}


def audit(path: Path, words: Sequence[str], json_: bool) -> int:
    """Show what each definition prints, and which prints the numbers `words`. Raises ConfigError for other words."""
    numbers = [word.removesuffix("%") for word in words]
    if wrong := [word for word in numbers if not re.fullmatch(r"\d{1,3}(\.\d{1,12})?|\.\d{1,12}", word)]:
        example = "as in --audit 58.4 37.8"
        raise ConfigError(f"'{wrong[0]:.40}' is not a recall (--audit). Give figures in percent, {example}")
    if len(numbers) not in (0, *COUNTS):
        choices = "; ".join(f"{count}: {which}" for count, which in COUNTS.items())
        raise ConfigError(f"nobody reports {len(numbers)} figures (--audit). Give so many: {choices}")
    from clipcoco.runs.measure import audit_embeddings

    terminal = open_terminal()
    with RunConsole(terminal) as console:
        found = audit_embeddings(path, numbers, console)
    if json_:
        print_json(found)
    else:
        show(terminal.out, *_lines(found, terminal.out.width))
    return ExitCode.OK


def _lines(found: dict[str, Any], width: int) -> list[str | Text]:
    every = found["definitions"]
    columns = {"": [one["name"] for one in every]}
    for way, gap in (("i2t", ""), ("t2i", " ")):
        heads = (f"{way} R@1", f"{gap}R@5", f"{gap}R@10")
        names = (f"{way} r{k}" for k in (1, 5, 10))
        columns |= {
            head: [f"{one['figures'][name]:.2f}" for one in every] for head, name in zip(heads, names, strict=True)
        }
    said = [*_verdict(found), *_about(found)]
    return [
        f"  {found['file']} · {found['images']:,} images, {found['captions']:,} captions · {found['source']}",
        "",
        *table(columns, width, right=list(columns)[1:]),
        *[line for text in said for line in [Text(), *indented(text, width)]],
    ]


def _verdict(found: dict[str, Any]) -> list[str]:
    by_name = {one["name"]: one for one in found["definitions"]}
    given, matches = " ".join(found["numbers"]), found["matches"]
    said = []
    for match in matches:
        one = by_name[match["definition"]]
        what = f"{one['name']}: {_figures(one, match)}. That is {one['meaning']}."
        if not match["exact"]:
            return [f"{given}: no definition prints this. The nearest, {match['off']:.2f} off, is {what}"]
        swapped = " The directions stand the other way round: some name them by what is retrieved." * match["swapped"]
        said.append(f"{given} is {what}{swapped}")
    if len(matches) > 1:
        said.insert(0, f"{given}: {len(matches)} definitions print this. These embeddings can't tell which was meant.")
    whole = found["definitions"][0]
    if matches and whole["name"] not in (match["definition"] for match in matches):
        said.append(f"Counted as {whole['name']} it is {_figures(whole, matches[0])}.")
    return said


def _figures(one: dict[str, Any], match: dict[str, Any]) -> str:
    parts = []
    for name in match["reading"]:
        way, _, cutoff = name.partition(" r")
        parts.append(f"{WAYS[way]}{' R@' * bool(cutoff)}{cutoff} {one['figures'][name]:.2f}")
    return ", ".join(parts)


def _about(found: dict[str, Any]) -> list[str]:
    """Interval and ties, what makes no difference here, and who may have been trained on these images."""
    own = found["own"]
    halves = " and ".join(f"± {say_half(own['interval'][way]['r1'])}" for way in ("i2t", "t2i"))
    ties = f"{own['ties']:,} queries tie and are misses"
    said = [f"Of {found['definitions'][0]['name']} R@1 is {halves}, the 95 % interval over images; {ties}."]
    if found["same"]:
        said.append(f"The same on these embeddings: {', '.join(found['same'])}.")
    if coco := found["coco"]:
        text = f"By their ids {coco['val2017']:,} images are of val2017, {coco['karpathy_test']:,} of Karpathy's test."
        for split, trained in (("train2017", "train2017"), ("karpathy_train", "Karpathy's split, restval included,")):
            if coco[split]:
                text += f" Whoever trained on {trained} has seen {coco[split]:,} of them."
        said.append(text)
    return said + [f"{found['caution']}."] * bool(found["caution"])

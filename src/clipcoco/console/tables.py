"""What was measured, as lines: recalls, accuracies on false captions, CxC and ECCV Caption."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from clipcoco.console.terminal import printable, table, wrapped
from clipcoco.say import say_half, say_order

RECALLS = ("r1", "r5", "r10")
_Row = tuple[str, Mapping[str, float], Mapping[str, Sequence[float]] | None, str]  # label, recalls, intervals, rank


def recall_tables(
    title: str,
    protocols: dict[str, Any],
    *notes: str | None,
    closed_form: Mapping[str, Any] | None = None,
    width: int = 80,
) -> list[Text]:
    """The recall tables of the `protocols` of `eval --json`, as lines of at most 80 columns for usual titles.

    Where `width` is less, of 36: intervals then stand below their recalls, and median ranks below the table.

    `notes` go into the lines below each table, the row `closed_form` into that of protocol `own`. The end of a
    training run and `eval` both print this, hence the same digits. A gallery of just 1,000 images is not shown
    once more as its only fold.
    """
    lines: list[Text] = []
    for protocol, recalls in protocols.items():
        if not (lines and (recalls["folds"], recalls["dropped"]) == (1, 0)):
            beside = closed_form if protocol == "own" else None
            lines += [*_recall_table(title, protocol, recalls, notes, beside, width), Text()]
    return lines


def _recall_table(
    title: str,
    protocol: str,
    recalls: dict[str, Any],
    notes: Sequence[str | None],
    closed_form: Mapping[str, Any] | None,
    width: int,
) -> list[Text]:
    i2t, t2i, chance = recalls["i2t"], recalls["t2i"], recalls["chance"]
    interval = recalls.get("interval") or {}
    medians = [f"{r['median_rank']:,g}" for r in (chance["i2t"], chance["t2i"]) if "median_rank" in r]
    ranks = [f"{i2t['median_rank']:,g}", f"{t2i['median_rank']:,g}", " / ".join(dict.fromkeys(medians))]
    rows = [
        ("image -> text", i2t, interval.get("i2t"), ranks[0]),
        ("text -> image", t2i, interval.get("t2i"), ranks[1]),
        ("mean", _mean(recalls), None, ""),
        *([("closed form", _mean(closed_form), None, "")] if closed_form else []),
        ("chance", _mean(chance), None, ranks[2]),
    ]
    lines = _wide(title, rows)
    if max(line.cell_len for line in lines) > width:
        ranks = [
            f"{label} {rank}" for label, rank in zip(("image -> text", "text -> image", "chance"), ranks, strict=True)
        ]
        lines = [*_narrow(title, rows), Text(), Text(f"  median rank: {', '.join(ranks)}", "dim")]
    lines.append(Text())
    if closed_form:
        i2t, t2i = ("/".join(f"{closed_form[way][key]:.2f}" for key in RECALLS) for way in ("i2t", "t2i"))
        lines.append(Text(f"  closed form: CCA, no training; i2t {i2t}, t2i {t2i}", "dim"))
    return lines + [Text(line, "dim") for line in _about_recalls(protocol, recalls, notes)]


def _wide(title: str, rows: Sequence[_Row]) -> list[Text]:
    width = max(13, len(title))
    lines = [Text(f"  {title:<{width}}{'R@1':>13}{'R@5':>14}{'R@10':>14}{'median rank':>15}", "dim")]
    for label, recalls, interval, median in rows:
        cells = ""
        for key, gap in zip(RECALLS, (2, 3, 3), strict=True):
            half = f" ±{say_half(interval[key]):>4}" if interval else ""
            cells += f"{recalls[key]:>{gap + 5}.2f}{half:<6}"
        line = Text(f"  {label:<{width}}{cells}{median:>15}".rstrip(), "dim" if label == "chance" else "")
        if label == "mean":
            line.stylize("bold", width + 2, width + 9)
        lines.append(line)
    return lines


def _narrow(title: str, rows: Sequence[_Row]) -> list[Text]:
    lines = [Text(f"  {title}"), Text(f"{'R@1':>22}{'R@5':>7}{'R@10':>7}", "dim")]
    for label, recalls, interval, _ in rows:
        cells = "".join(f"{recalls[key]:>7.2f}" for key in RECALLS)
        lines.append(Text(f"  {label:<13}{cells}", "dim" if label == "chance" else ""))
        if interval:
            halves = "".join(f"{say_half(interval[key]):>7}" for key in RECALLS)
            lines.append(Text(f"{'±':>15}{halves}", "dim"))
    return lines


def composition_table(composition: Mapping[str, Any] | None, width: int = 80) -> list[Text]:
    """The accuracies on false captions that `eval --json` has, as lines; none where there is none."""
    if not composition:
        return []
    kinds = {printable(kind): found for kind, found in composition["kinds"].items()}
    first, wide = max(13, *map(len, kinds)), width >= 54
    lines = [Text(f"  {'false captions':<{first}}{'right':>12}" + f"{'pairs':>14}{'ties':>8}" * wide, "dim")]
    for kind, found in kinds.items():
        half = f" ± {say_half(found['interval']):>4}"
        more = f"{half}{found['pairs']:>7,}{found['ties']:>8,}" * wide
        lines.append(Text(f"  {kind:<{first}}{found['accuracy']:>12.2f}{more}"))
    lines.append(Text(f"  {'chance':<{first}}{composition['chance']:>12.2f}", "dim"))
    said = (
        "  right: the image is nearer to its caption than to the one made false",
        f"  {printable(composition['source'])}; ties are wrong; ± 95 % interval over images",
    )
    return [*lines, Text(), *(line for one in said for line in wrapped(Text(one, "dim"), width).split("\n")), Text()]


def extended_tables(extended: Mapping[str, Any], *notes: str | None) -> list[Text]:
    """CxC and ECCV Caption of `eval --json`, as lines."""
    lines: list[Text] = []
    for title, found, keys in (
        ("CxC", extended["cxc"], {"R@1": "r1", "R@5": "r5", "R@10": "r10"}),
        ("ECCV Caption", extended["eccv"], {"mAP@R": "map_at_r", "R-Precision": "rprecision", "R@1": "r1"}),
    ):
        rows = {"image -> text": found["i2t"], "text -> image": found["t2i"]}
        rows |= {f"chance, {way}": found["chance"][way] for way in ("i2t", "t2i")}
        columns = {title: list(rows)} | {
            head: [f"{row[key]:.2f}" for row in rows.values()] for head, key in keys.items()
        }
        queries = f"{found['queries']['i2t']:,} images and {found['queries']['t2i']:,} captions ask, ties are misses"
        said = "; ".join(filter(None, (queries, *notes)))
        lines += [*table(columns, 80, right=list(keys)), Text(), Text(f"  {said}", "dim"), Text()]
    return lines


def _mean(ways: Mapping[str, Any]) -> dict[str, float]:
    return {key: (ways["i2t"][key] + ways["t2i"][key]) / 2 for key in RECALLS}


def _about_recalls(protocol: str, recalls: dict[str, Any], notes: Sequence[str | None]) -> list[str]:
    ties = f" ({recalls['ties']:,})" if recalls.get("ties") else ""
    parts = [f"{recalls['images']:,} images, {recalls['captions']:,} captions, ties are misses{ties}"]
    if protocol == "1k":
        many = "one fold" if recalls["folds"] == 1 else f"mean of {recalls['folds']} folds"
        folds = f"1k: {many} of 1,000 images {say_order(recalls['order'])}"
        parts = [folds, f"{recalls['dropped']:,} left out", *parts]
    parts += filter(None, notes)
    if recalls.get("interval"):
        parts.append("± 95 % interval over images")
    lines = [f"  {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 2 <= 80:
            lines[-1] += f"; {part}"
        else:
            lines.append(f"  {part}")
    return lines

"""`clipcoco prepare-data`."""

import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcoco.cli.options import Debug, Json, Preset, Set, print_json
from clipcoco.cli.own import PRESET, OwnPictures, prepare_own
from clipcoco.cli.verify import show_verified, working
from clipcoco.config.load import LoadedConfig, load_config, preset_names
from clipcoco.config.text import expanded, written
from clipcoco.console import Terminal, open_terminal, say_bytes, say_seconds, show, summary_rows
from clipcoco.data.annotations import SPLITS
from clipcoco.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from clipcoco.data.captions import CaptionTable
    from clipcoco.prepare.plan import Part, Plan, Request

LICENCE = "COCO's annotations are CC BY 4.0 (cocodataset.org), its images keep their Flickr terms."


_ROOT = "The folder; else the preset's data.root, or data/NAME of your own pictures."
_LINKS = "Let links below --root lead into this folder."
_MISSING = "Leave out even more than 5 % of your own pictures or rows."
_IMAGES = (
    "Your own pictures, and in that folder captions: a .txt beside each picture (a caption a line), metadata.csv, "
    "metadata.jsonl, other tables, img2dataset's folders and tar shards, COCO's, Karpathy's and LAVIS's JSON, Parquet."
)
_CAPTIONS = (
    "Your own captions, where --images finds others; names are relative to --images or to FILE. A column split (train, "
    "val, test) says which pictures are for validation, else --val-fraction."
)


def prepare_data(
    preset: Preset = None,
    train_fraction: Annotated[float | None, typer.Option(help="Of train2017's images.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Of val2017's images, or of your own pictures.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All images of both splits: 20 GB.")] = False,
    root: Annotated[Path | None, typer.Option(help=_ROOT)] = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Take archives or unpacked folders from here."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Fetch from here; the layout of COCO's host.")
    ] = None,
    only_prepared: Annotated[
        bool, typer.Option("--only-prepared", help="Keep the smaller copies alone, about 4 GB for all of COCO.")
    ] = False,
    captions: Annotated[Path | None, typer.Option(metavar="FILE", help=_CAPTIONS)] = None,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help=_IMAGES)] = None,
    image_column: Annotated[str, typer.Option(metavar="NAME", help="The column that names your pictures.")] = "",
    caption_column: Annotated[str, typer.Option(metavar="NAME", help="The column with their captions.")] = "",
    allow_links: Annotated[Path | None, typer.Option(metavar="DIR", help=_LINKS)] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help=_MISSING)] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare; fetches nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    changes: Set = None,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Get COCO onto the disk, resumable and verified; or your own pictures.

    [bold]clipcoco prepare-data --preset small[/bold]

    [bold]clipcoco prepare-data --images photos[/bold]
    """
    terminal = open_terminal()
    if allow_links is not None:
        return _allow(terminal, root, allow_links)
    if captions is not None or images is not None:
        _refuse((verify, only_prepared, everything, source, mirror, train_fraction is not None))
        columns = image_column, caption_column
        own = OwnPictures(captions, images, root, columns, val_fraction, allow_missing, dry_run)
        return prepare_own(terminal, own, preset, changes or [], json_)
    if preset == PRESET:
        raise ConfigError("preset own is for your own pictures. Name their folder: clipcoco prepare-data --images DIR")
    if not (preset or everything or verify) and train_fraction is None and val_fraction is None:
        raise ConfigError(
            f"which images? Give --preset NAME ({', '.join(preset_names())}), --train-fraction F or --all (20 GB)"
        )
    overrides = [*(changes or []), *_fractions(train_fraction, val_fraction, everything)]
    loaded = load_config(preset=preset or "full", overrides=overrides)
    request = _request(loaded, root, mirror, source, only_prepared)
    if verify:
        return show_verified(terminal, request, json_)
    get = _draw if "demo" in loaded.chain else _fetch
    return get(terminal, request, _again(loaded, preset, request), dry_run, json_)


def _fractions(train: float | None, val: float | None, everything: bool) -> list[str]:
    """As settings."""
    given = {"train_fraction": train, "val_fraction": val}
    return [
        f"data.{key}={1 if value is None else value}" for key, value in given.items() if everything or value is not None
    ]


_NOT_FOR_OWN = ("--verify", "--only-prepared", "--all", "--source", "--mirror", "--train-fraction")


def _refuse(unused: tuple[object, ...]) -> None:
    if given := [name for name, value in zip(_NOT_FOR_OWN, unused, strict=True) if value]:
        raise ConfigError(f"--images takes your pictures as they are. Leave out {', '.join(given)}")


def _allow(terminal: Terminal, root: Path | None, folder: Path) -> int:
    from clipcoco.disk.links import allow

    if root is None or not expanded(folder).is_dir():
        raise ConfigError(f"links below which folder may lead into {folder}? Give --root DIR --allow-links DIR")
    allow(expanded(root), [expanded(folder)])
    show(terminal.out, f"Links below {root} may lead into {folder}: noted for you alone, not in that folder.")
    return ExitCode.OK


def _request(
    loaded: LoadedConfig, root: Path | None, mirror: str | None, source: Path | None, only_prepared: bool
) -> "Request":
    from clipcoco.prepare.plan import Request

    data = loaded.config.data
    source = expanded(source) if source else None
    if source is not None and not source.is_dir():
        raise ConfigError(f"{source} is not a folder (--source). It should hold COCO's archives, or their content")
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"'{mirror}' is not an http or https address (--mirror)")
    if only_prepared and data.prepared_size == 0:
        raise ConfigError("--only-prepared keeps copies alone, and data.prepared_size is 0. Set it, as to 256")
    return Request(
        root=expanded(root or data.root),
        fractions={SPLITS["train"]: data.train_fraction, SPLITS["val"]: data.val_fraction},
        subset_seed=data.subset_seed,
        exclude=data.exclude,
        prepared_size=data.prepared_size,
        only_prepared=only_prepared,
        mirror=mirror,
        source=source,
    )


def _again(loaded: LoadedConfig, preset: str | None, request: "Request") -> str:
    """The command that trains on what was prepared."""
    words = ["clipcoco", "train", "--preset", preset or "full"]
    given = load_config(preset=preset or "full").config.data
    for key in ("train_fraction", "val_fraction", "exclude", "subset_seed", "prepared_size"):
        if (value := getattr(loaded.config.data, key)) != getattr(given, key):
            words.append(f"data.{key}={str(value).removesuffix('.0')}")
    if str(request.root) != given.root:
        words.append(f"data.root={written(str(request.root))}")
    return shlex.join(words)


def _fetch(terminal: Terminal, request: "Request", again: str, dry_run: bool, json_: bool) -> int:
    from clipcoco.data.captions import overlap
    from clipcoco.prepare.coco import allow_source, prepare
    from clipcoco.prepare.plan import make_plan

    if request.source:
        allow_source(request.source, request.root)
    began, plan = time.monotonic(), make_plan(request)
    nothing = plan.copies == 0 and all(part.way == "there" for part in plan.parts)
    if dry_run and json_:
        print_json({"schema": 1, "root": str(request.root), **asdict(plan)})
        return ExitCode.OK
    if dry_run or not nothing:
        show(terminal.out if dry_run else terminal.err, *summary_rows(_say_plan(plan, request)), "")
    if dry_run:
        return ExitCode.OK
    with working(terminal) as report:
        prepared = prepare(request, plan, report)
    train, val = (prepared.tables[SPLITS[split]] for split in ("train", "val"))
    for note in filter(None, (prepared.note, prepared.without, *train.notes, *val.notes)):
        show(terminal.err, f"note: {note}")
    if both := overlap(train, val):
        show(terminal.err, f"warning: {both:,} images are in both splits: recall on them says little")
    seconds = time.monotonic() - began
    if json_:
        made: dict[str, float] = {"copies_made": prepared.copies, "bytes_before": prepared.bytes_before}
        made |= {"bytes_after": prepared.bytes_after, "seconds": seconds}
        print_json({**_counts(request, train, val), **made})
        return ExitCode.OK
    if prepared.copies:
        show(
            terminal.out,
            f"Copies of {request.prepared_size} px: {prepared.copies:,} images, {say_bytes(prepared.bytes_before)} "
            f"before, {say_bytes(prepared.bytes_after)} after.",
        )
    ready = _ready(train, val)
    show(
        terminal.out,
        f"Nothing to do: {ready} are in {request.root}." if nothing else f"Ready: {ready}, {say_seconds(seconds)}.",
        *([] if nothing else [LICENCE]),
        f"Next: {again}",
    )
    return ExitCode.OK


def _draw(terminal: Terminal, request: "Request", again: str, dry_run: bool, json_: bool) -> int:
    from clipcoco.data.split import check_files
    from clipcoco.prepare.scenes import draw_scenes, is_drawn

    drawn = is_drawn(request.root)
    if dry_run and json_:
        print_json({"schema": 1, "root": str(request.root), "drawn": drawn})
        return ExitCode.OK
    if dry_run:
        show(terminal.out, f"Nothing to do: the scenes are in {request.root}." if drawn else "6,500 scenes to draw.")
        return ExitCode.OK
    if not drawn:
        with working(terminal, "The same command draws them again."):
            draw_scenes(request.root)
    train, val = (request.table(SPLITS[split]) for split in ("train", "val"))
    check_files(train)
    check_files(val)
    if json_:
        print_json(_counts(request, train, val))
        return ExitCode.OK
    begins = "Nothing to do" if drawn else "Ready"
    show(terminal.out, f"{begins}: {_ready(train, val)} in {request.root}.", f"Next: {again}")
    return ExitCode.OK


def _counts(request: "Request", train: "CaptionTable", val: "CaptionTable") -> dict[str, object]:
    counts: dict[str, object] = {"schema": 1, "root": str(request.root)}
    for name, split in (("train", train), ("val", val)):
        counts |= {f"{name}_images": len(split.files), f"{name}_captions": len(split.captions)}
    return counts


def _ready(train: "CaptionTable", val: "CaptionTable") -> str:
    images = f"{len(train.files):,} train and {len(val.files):,} val images"
    return f"{images}, {len(train.captions) + len(val.captions):,} captions"


def _say_plan(plan: "Plan", request: "Request") -> list[tuple[str, str]]:
    labels = {SPLITS["val"]: "val images", SPLITS["train"]: "train images"}
    rows = [(labels.get(part.name, part.name), _say_part(part, request)) for part in plan.parts]
    if plan.copies:
        originals = ", the originals are not kept" if request.only_prepared else ""
        rows.append(("copies", f"{plan.copies:,} images, shorter side {request.prepared_size} px{originals}"))
    room = f"{request.root.absolute()} · needs {say_bytes(plan.room)}, {say_bytes(plan.free)} free"
    return [*rows, ("to", room)]


def _say_part(part: "Part", request: "Request") -> str:
    fetched = part.missing if part.way == "source" else part.missing - part.carried
    images = f"{fetched:,} of {part.images:,} images" if 0 < fetched < part.images else f"{part.images:,} images"
    if part.way == "there":
        return "there" + (f", {images}" if part.images else "")
    if part.way == "source":
        return f"from {request.source}" + (f", {images}" if part.images else "")
    others = f", after {part.carried:,} from {request.source}" if part.carried else ""
    size = f"{say_bytes(part.fetched):>7}"
    if part.name == "false captions":
        return f"{size}  SugarCrepe, which eval asks beside recall"
    archive = request.coco.annotations if part.name == "captions" else request.coco.images[part.name]
    if part.way == "archive":
        return f"{size}  {archive.name}" + (f", {images}" if part.images else "") + others
    percent = f"{100 * request.fractions[part.name]:g} %"
    images = images.replace(" images", " single images")
    return f"{size}  {images} ({percent}; all of them: {say_bytes(archive.size)})" + others

"""What `prepare-data` is about to do, as rows for a person."""

from clipcoco.console import say_bytes
from clipcoco.data.annotations import SPLITS
from clipcoco.prepare.plan import COCO, Part, Plan, Wish


def say_plan(plan: Plan, wish: Wish) -> list[tuple[str, str]]:
    rows = [(_LABELS[part.name], _say_part(part, wish)) for part in plan.parts]
    if plan.copies:
        originals = ", the originals are not kept" if wish.only_prepared else ""
        rows.append(("copies", f"{plan.copies:,} images, shorter side {wish.prepared_size} px{originals}"))
    room = f"{wish.root.absolute()} · needs {say_bytes(plan.room)}, {say_bytes(plan.free)} free"
    return [*rows, ("to", room)]


_LABELS = {"captions": "captions", SPLITS["val"]: "val images", SPLITS["train"]: "train images"}


def _say_part(part: Part, wish: Wish) -> str:
    fetched = part.missing if part.way == "source" else part.missing - part.carried
    images = f"{fetched:,} of {part.images:,} images" if 0 < fetched < part.images else f"{part.images:,} images"
    if part.way == "there":
        return "there" + (f", {images}" if part.images else "")
    if part.way == "source":
        return f"from {wish.source}" + (f", {images}" if part.images else "")
    others = f", after {part.carried:,} from {wish.source}" if part.carried else ""
    size = f"{say_bytes(part.fetched):>7}"
    archive = COCO.annotations if part.name == "captions" else COCO.images[part.name]
    if part.way == "archive":
        return f"{size}  {archive.name}" + (f", {images}" if part.images else "") + others
    percent = f"{100 * wish.fractions[part.name]:g} %"
    images = images.replace(" images", " single images")
    return f"{size}  {images} ({percent}; all of them: {say_bytes(archive.size)})" + others

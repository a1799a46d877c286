"""What `prepare-data` is about to do, as rows for a person."""

from clipcoco.console import say_bytes
from clipcoco.data.annotations import SPLITS
from clipcoco.prepare.plan import Part, Plan, Request


def say_plan(plan: Plan, request: Request) -> list[tuple[str, str]]:
    labels = {SPLITS["val"]: "val images", SPLITS["train"]: "train images"}
    rows = [(labels.get(part.name, part.name), _say_part(part, request)) for part in plan.parts]
    if plan.copies:
        originals = ", the originals are not kept" if request.only_prepared else ""
        rows.append(("copies", f"{plan.copies:,} images, shorter side {request.prepared_size} px{originals}"))
    room = f"{request.root.absolute()} · needs {say_bytes(plan.room)}, {say_bytes(plan.free)} free"
    return [*rows, ("to", room)]


def _say_part(part: Part, request: Request) -> str:
    fetched = part.missing if part.way == "source" else part.missing - part.carried
    images = f"{fetched:,} of {part.images:,} images" if 0 < fetched < part.images else f"{part.images:,} images"
    if part.way == "there":
        return "there" + (f", {images}" if part.images else "")
    if part.way == "source":
        return f"from {request.source}" + (f", {images}" if part.images else "")
    others = f", after {part.carried:,} from {request.source}" if part.carried else ""
    size = f"{say_bytes(part.fetched):>7}"
    archive = request.coco.annotations if part.name == "captions" else request.coco.images[part.name]
    if part.way == "archive":
        return f"{size}  {archive.name}" + (f", {images}" if part.images else "") + others
    percent = f"{100 * request.fractions[part.name]:g} %"
    images = images.replace(" images", " single images")
    return f"{size}  {images} ({percent}; all of them: {say_bytes(archive.size)})" + others

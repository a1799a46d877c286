"""A whole COCO in miniature: a folder in the layout of its host, with archives, single images and pinned sums."""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from clipcoco.data.captions import read_captions
from clipcoco.data.false_captions import SUGAR_CREPE
from clipcoco.prepare.download import Archive
from clipcoco.prepare.plan import Coco

COUNTS = {"train2017": 40, "val2017": 24}


def build(folder: Path, real: Path | None) -> Coco:
    """From real COCO images below `real` where they are there, from drawn scenes otherwise."""
    if real is None:
        from clipcoco.prepare.scenes import draw_scenes

        real = folder.parent / "drawn"
        draw_scenes(real, train=40, val=24, size=300)
    (folder / "annotations").mkdir(parents=True)
    (folder / "zips").mkdir()
    annotations = io.BytesIO()
    counts, images, captions_bytes = {}, {}, 0
    with zipfile.ZipFile(annotations, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_val2017.json", "{}")
        for split, count in COUNTS.items():
            content, pictures = _split(real, split, count)
            counts[split] = (len(content["images"]), len(content["annotations"]))
            text = json.dumps(content)
            captions_bytes += len(text)
            archive.writestr(f"annotations/captions_{split}.json", text)
            images[split] = _images(folder, split, pictures)
    data = annotations.getvalue()
    (folder / "annotations" / "annotations_trainval2017.zip").write_bytes(data)
    path = "annotations/annotations_trainval2017.zip"
    (folder / "sugar-crepe").mkdir()
    pairs = {"filename": "000000000000.jpg", "caption": "a", "negative_caption": "b"}
    false = [_archive(f"sugar-crepe/{name}", json.dumps({name: pairs}).encode()) for name in SUGAR_CREPE]
    for file in false:
        (folder / file.path).write_text(json.dumps({file.name: pairs}))
    nowhere = "http://127.0.0.1:9"
    return Coco((nowhere,), _archive(path, data), images, counts, captions_bytes, tuple(false), nowhere)


def _split(root: Path, split: str, count: int) -> tuple[dict, dict[str, bytes]]:
    table = read_captions(root, split)
    pictures, rows, annotations = {}, [], []
    for row in range(count):
        image_id = int(table.image_ids[row])
        name = f"{image_id:012}.jpg"
        with Image.open(root / table.files[row]) as picture:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=95)
            width, height = picture.size
        pictures[name] = buffer.getvalue()
        rows.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for position in range(table.offsets[row], table.offsets[row + 1]):
            caption = {"id": int(table.caption_ids[position]), "image_id": image_id}
            annotations.append(caption | {"caption": table.captions[position]})
    return {"info": {}, "images": rows, "annotations": annotations}, pictures


def _images(folder: Path, split: str, pictures: dict[str, bytes]) -> Archive:
    (folder / split).mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir(split)
        for name, data in pictures.items():
            (folder / split / name).write_bytes(data)
            archive.writestr(f"{split}/{name}", data)
    (folder / "zips" / f"{split}.zip").write_bytes(buffer.getvalue())
    return _archive(f"zips/{split}.zip", buffer.getvalue())


def _archive(path: str, data: bytes) -> Archive:
    return Archive(path, len(data), hashlib.sha256(data).hexdigest())


def to_json(coco: Coco) -> str:
    return json.dumps(asdict(coco))


def from_json(text: str) -> Coco:
    plain = json.loads(text)
    return Coco(
        tuple(plain["hosts"]),
        Archive(**plain["annotations"]),
        {split: Archive(**archive) for split, archive in plain["images"].items()},
        {split: tuple(count) for split, count in plain["counts"].items()},
        plain["captions_bytes"],
        tuple(Archive(**archive) for archive in plain["false_captions"]),
        plain["false_host"],
    )

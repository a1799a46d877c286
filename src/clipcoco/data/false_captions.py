"""False captions beside true ones of a split: what they are, and SugarCrepe's of COCO's val2017, read and checked."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipcoco.data.annotations import clean
from clipcoco.data.captions import CaptionTable, Ids
from clipcoco.disk.files import read_own
from clipcoco.errors import DataError

FOLDER = "sugar-crepe"  # in data.root
# SugarCrepe (Hsieh et al. 2023, MIT licence) as of its last commit: bytes and SHA-256 of each file, one a kind.
SUGAR_CREPE = {
    "add_att.json": (158_863, "012d88d729693d193760e6f3393b06a1cf874380a9db0062e937201199fe044d"),
    "add_obj.json": (484_593, "1b9d76b93139a937b8dc1ada92a4f05ecc821bb3c291d752428bafadd4bb0682"),
    "replace_att.json": (176_843, "9fe55fd4c0a9ad1f85d486d9f6d0215b41f867eb025026e7f7b5ce44352545ee"),
    "replace_obj.json": (361_126, "9d299600639947e9d15281a9ded1382b376cf4ea088a8d08a1314bfe76e81898"),
    "replace_rel.json": (312_629, "356bcc2fc4c6aed3f4d9fd50acc58489bb1fe70c28791f9368d4cbf9ea39cdc9"),
    "swap_att.json": (154_665, "7a7ce04e5c4c80412b48c6f0c1347fb1a2f5d54c0be6aa429b64d390e442f8d0"),
    "swap_obj.json": (57_569, "073cdb8e253d053614e80710834d9773b09dbc1dd0a412f6f9492262caa1dcad"),
}
_MOST = 2**24  # bytes of a file
Encode = Callable[[Sequence[str]], npt.NDArray[np.int32]]  # n texts -> (n, context)


@dataclass(frozen=True)
class FalseTexts:
    """What training shows of captions made false."""

    count: int  # beside a caption, at most
    of: Callable[[int], Sequence[str]]  # a caption, by its place in the table -> all that are made of it
    encode: Encode


@dataclass(frozen=True, eq=False)
class FalseCaptions:
    """P pairs of a true caption and a false one of the same image, so that to tell them apart takes more than words."""

    source: str  # for a person: "drawn scenes", "SugarCrepe"
    kinds: list[str]  # P: what was changed
    true: Ids  # (P,): the positions of the true captions among those of the table
    false: list[str]  # P

    @classmethod
    def of(cls, source: str, table: CaptionTable, pairs: Iterable[tuple[str, int, str, str]]) -> "FalseCaptions":
        """From (kind, position of the image, true caption, false caption). A pair whose true caption is none of its
        image's in `table` is left out."""
        kinds, rows, false = [], [], []
        for kind, image, true, other in pairs:
            start, end = table.offsets[image : image + 2].tolist()
            if true in (own := table.captions[start:end]):
                kinds.append(kind)
                rows.append(start + own.index(true))
                false.append(other)
        return cls(source, kinds, np.array(rows, dtype=np.int64), false)

    def fingerprint(self, table: CaptionTable) -> str:
        """SHA-256, in hexadecimal, of all pairs: two models that were asked the same have the same."""
        rows = self.true.tolist()
        ids = table.caption_ids[rows].tolist()
        lines = (
            "\t".join((kind, str(caption), table.captions[row], false))
            for kind, caption, row, false in zip(self.kinds, ids, rows, self.false, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_sugar_crepe(folder: Path, table: CaptionTable, *, links: bool = False) -> FalseCaptions | None:
    """SugarCrepe's pairs on the images of `table`, from its seven JSON files; None where they are not all in `folder`,
    or none of their images and captions is in the table. `links`: they may be such. Raises DataError for a file of
    another form."""
    if not all((folder / name).is_file() for name in SUGAR_CREPE):
        return None
    places = {file: row for row, file in enumerate(table.files)}
    pairs, published = [], True
    for name, (_, sha256) in SUGAR_CREPE.items():
        try:
            content = read_own((folder / name).resolve() if links else folder / name, _MOST)
            published &= hashlib.sha256(content).hexdigest() == sha256
            for one in json.loads(content).values():
                file, true, false = (one[key] for key in ("filename", "caption", "negative_caption"))
                row, true, false = places.get("val2017/" + file), clean(true), clean(false)
                if row is not None:
                    pairs.append((Path(name).stem, row, true, false))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = " ".join(f"{error}".split())[:100]
            raise DataError(
                f"{folder / name} is none of SugarCrepe's files, or damaged: {said}. Get it again"
            ) from None
    found = FalseCaptions.of("SugarCrepe" if published else "SugarCrepe, another edition", table, pairs)
    return found if found.kinds else None

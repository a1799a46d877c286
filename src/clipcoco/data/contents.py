"""Which bytes the pictures of a table have: so that a later look can say which of them are others now."""

import numpy as np
import numpy.typing as npt

from clipcoco.data.captions import CaptionTable
from clipcoco.data.split import ORIGINALS, Source
from clipcoco.disk.sums import sums_of
from clipcoco.errors import DataError
from clipcoco.events import Report

Digests = npt.NDArray[np.uint8]
WIDTH = 16  # bytes of a SHA-256: no two pictures share them by chance


def contents_of(table: CaptionTable, source: Source, report: Report = lambda event: None) -> Digests:
    """(N, 16): the first bytes of the SHA-256 of each image; of copies, that of their originals, unread.

    A file that can't be read has zeros. Raises DataError for copies that are not those that were made.
    """
    if source.name == ORIGINALS:
        digests = sums_of(table.folder, table.files, "pictures", report)
    else:
        root, name = table.folder.parent, table.folder.name
        copies = sums_of(root, [f"{name}/{file}" for file in table.files], "pictures", report)
        held = dict(zip(table.files, copies, strict=True))
        if altered := [file for file, sha256 in held.items() if sha256 not in ("", source.copies[file])]:
            raise DataError(
                f"{len(altered):,} copies in {table.folder} are not those that were made, first {altered[0]} "
                f"(data.prepared_size). Remove them, and make them again: clipcoco prepare-data; its --verify names all"
            )
        digests = [held[file] and (source.originals[file] or held[file]) for file in table.files]
    joined = bytearray().join(bytes.fromhex(digest)[:WIDTH].ljust(WIDTH, b"\0") for digest in digests)
    return np.frombuffer(joined, np.uint8).reshape(len(digests), WIDTH)

"""torch's files are zip archives whose sums torch does not check: one flipped bit in four would pass it unseen."""

import zipfile
from pathlib import Path

from clipcoco.errors import CheckpointError


def check_sums(path: Path, kind: str) -> None:
    """Raise CheckpointError unless every part of the file is there and as it was written.

    torch stores the parts as they are. Compressed ones are not read: few bytes could become any number of them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise zipfile.BadZipFile("its parts are compressed")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise zipfile.BadZipFile("its parts overlap")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a {kind}, or damaged or cut off: {error}. Use another one") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the sum of {damaged!r} is wrong. Use another one")

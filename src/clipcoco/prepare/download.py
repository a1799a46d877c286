"""Fetch a file of known size and SHA-256: resumed after any interruption, under its name only when verified.

The network is not trusted: no reply touches what has arrived before its length fits, and what has the right
length still has to have the right SHA-256.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from clipcoco.disk.files import need_room, open_to_append, read_own, sync_folder, write_json
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare.network import (
    MOST_REDIRECTS,
    Failure,
    Patience,
    Tries,
    as_failure,
    network_errors,
    new_client,
    next_hop,
    paced,
    refusal,
    shown,
)
from clipcoco.prepare.single_images import RemoteImage, fetch_images

if TYPE_CHECKING:
    from httpx2 import Client, Response

__all__ = ["Patience", "RemoteFile", "RemoteImage", "download", "fetch_images"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RemoteFile:
    name: str  # its name on disk and for a person: "val2017.zip"
    urls: tuple[str, ...]  # tried in order
    size: int  # bytes
    sha256: str


def download(file: RemoteFile, folder: Path, report: ReportTask, patience: Patience = Patience()) -> Path:  # noqa: B008
    """Fetch `file` to folder/name, whole and verified; gives its path. Without a request when it is there.

    What has arrived is in `name.part`, and where it came from in `name.part.json`: after an interruption at any
    moment the same call goes on there. Raises DataError when the content is wrong, which is kept as `name.bad`,
    and EnvironmentProblem when network or disk stand in the way. One process at a time: the caller holds a lock.
    """
    assert len(file.sha256) == 64, "plain http is good enough only because the content is pinned"
    path = folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size != file.size:
        os.replace(path, folder / f"{file.name}.bad")
    note = "already here"
    if not path.exists():  # only verified content is ever given this name
        try:
            with _Part(file, folder) as part:
                part.read_again(report)
                if part.size < file.size:
                    _fetch(file, part, report, patience)
                part.finish(path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise EnvironmentProblem(
                f"{file.name} can't be written any further: {error.strerror} ({folder}). Make room and run the same "
                f"command again: it goes on from here. {_by_hand(file)}"
            ) from error
        note = "SHA-256 verified"
    report(TaskProgress(file.name, file.size, file.size, "bytes", note))
    return path


def _by_hand(file: RemoteFile) -> str:
    return f"Or fetch it by hand: {shown(file.urls[0])}, then --source DIR"


class _Part:
    """What has arrived of a file: `name.part`, and `name.part.json`."""

    def __init__(self, file: RemoteFile, folder: Path) -> None:
        self.file, self.path = file, folder / f"{file.name}.part"
        self.origin_path = folder / f"{file.name}.part.json"
        self.afresh = False  # ask for the whole file next, whatever is here
        self.mark = self.furthest = 0  # bytes that were here before this attempt, and before any of them
        self.size, self.hash = 0, hashlib.sha256()
        self.url = self.etag = ""

    def __enter__(self) -> Self:
        self._disk = open_to_append(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._disk.close()

    def read_again(self, report: ReportTask) -> None:
        """Take up what an earlier call left. Bytes of unknown origin, or of another version, are dropped."""
        try:
            origin = json.loads(read_own(self.origin_path))
            self.url, self.etag, size = str(origin["url"]), str(origin["etag"]), origin["size"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            size = None
        if size != self.file.size or self.path.stat().st_size > self.file.size:
            self._disk.truncate(0)
        slowly = paced(report)
        self._disk.seek(0)
        while chunk := self._disk.read(1 << 20):
            self.hash.update(chunk)
            self.size += len(chunk)
            slowly(TaskProgress(self.file.name, self.size, self.file.size, "bytes", "reading what is here"))

    def begin(self, url: str, etag: str) -> None:
        """Drop all: the whole file comes from `url`."""
        self.furthest = max(self.furthest, self.size)
        self.mark, self.size, self.afresh = self.furthest, 0, False
        self.hash = hashlib.sha256()
        # On the disk before the new origin is: old bytes must never be taken for the new content's.
        self._disk.truncate(0)
        os.fsync(self._disk.fileno())
        self.note_origin(url, etag)

    def note_origin(self, url: str, etag: str) -> None:
        self.url, self.etag = shown(url), etag
        write_json(self.origin_path, {"url": self.url, "etag": etag, "size": self.file.size})

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = self._disk.write(left)
            self.hash.update(left[:written])
            self.size += written
            left = left[written:]

    def finish(self, path: Path) -> None:
        os.fsync(self._disk.fileno())
        wrong = self.hash.hexdigest() != self.file.sha256
        os.replace(self.path, path.with_name(f"{path.name}.bad") if wrong else path)
        self.origin_path.unlink(missing_ok=True)
        sync_folder(path.parent)
        if wrong:
            raise DataError(
                f"{self.file.name} arrived with wrong content: SHA-256 {self.hash.hexdigest()[:16]}, not "
                f"{self.file.sha256[:16]} ({path}.bad, from {self.url}). Delete that file and run the same command "
                f"again, from another mirror if it stays so. {_by_hand(self.file)}"
            )


def _fetch(file: RemoteFile, part: _Part, report: ReportTask, patience: Patience) -> None:
    import httpx2

    to_come, what = file.size - part.size, f"{file.name} still needs"
    need_room(part.path.parent, to_come, what, "--root", "choose another disk: --root DIR")
    tries, slowly = Tries(file.urls, patience), paced(report)
    with new_client(httpx2.Client, patience) as client:
        while part.size < file.size:
            part.mark = part.size
            try:
                _attempt(client, tries.url, file, part, slowly)
            except network_errors() as error:
                failure = as_failure(error, patience)
                pause = tries.failed(failure, brought=part.size > part.mark)
                if pause is None:
                    raise EnvironmentProblem(
                        f"{file.name} could not be fetched ({tries}). Check the network and run the same command "
                        f"again: it goes on after {part.size / 1e6:,.1f} MB. {_by_hand(file)}"
                    ) from error
                slowly(TaskProgress(file.name, part.size, file.size, "bytes", f"{failure}; trying again"))
                time.sleep(pause)


def _attempt(client: "Client", url: str, file: RemoteFile, part: _Part, report: ReportTask) -> None:
    start = 0 if part.afresh else part.size
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and part.etag and shown(url) == part.url:  # an etag means nothing to another server
        headers["If-Range"] = part.etag
    with _reply(client, url, headers) as response:
        etag = response.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not promise the same bytes
        if response.status_code == 206 and start:
            here = response.headers.get("Content-Range", "")
            part.afresh = here != f"bytes {start}-{file.size - 1}/{file.size}" or (
                "If-Range" in headers and etag not in ("", part.etag)
            )
            if part.afresh:
                raise Failure(f"what it has does not continue what is here ({here or 'no Content-Range'})")
        elif response.status_code == 200:
            start = 0
        else:
            part.afresh = part.afresh or response.status_code == 416
            raise Failure("no such range") if response.status_code == 416 else refusal(response)
        length = response.headers.get("Content-Length", "unknown")
        if length != str(file.size - start):
            raise Failure(f"a reply of length {length} where {file.size - start} bytes were to come")
        if start == 0:
            part.begin(url, etag)
        elif (shown(url), etag) != (part.url, part.etag):
            part.note_origin(url, etag)
        for chunk in response.iter_raw():
            if part.size + len(chunk) > file.size:
                raise Failure(f"more than the {file.size} bytes that were to come")
            part.append(chunk)
            report(TaskProgress(file.name, part.size, file.size, "bytes"))
        if part.size < file.size:
            raise Failure(f"the reply ended after {part.size} of {file.size} bytes")


@contextlib.contextmanager
def _reply(client: "Client", url: str, headers: dict[str, Any]) -> "Iterator[Response]":
    request = client.build_request("GET", url, headers=headers)
    for _ in range(MOST_REDIRECTS + 1):
        with contextlib.closing(client.send(request, stream=True)) as response:
            following = next_hop(response)
            if following is None:
                yield response
                return
            request = following
    raise Failure("too many redirects", final=True)

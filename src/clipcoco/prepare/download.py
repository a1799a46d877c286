"""Fetch a file of known size and SHA-256: resumed after any interruption, under its name only when verified.

The network is not trusted: no reply touches what has arrived before its length fits, and what has the right
length still has to have the right SHA-256.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcoco.disk.files import FULL, need_room, open_to_append, read_own, sync_folder, write_json
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare import network
from clipcoco.prepare.network import RETRIES, Failure, RetryPolicy, shown

if TYPE_CHECKING:
    from httpx2 import AsyncClient


@dataclass(frozen=True)
class Archive:
    path: str  # below the host: "zips/val2017.zip"
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def download(
    file: Archive, urls: Sequence[str], folder: Path, report: ReportTask, retries: RetryPolicy = RETRIES
) -> Path:
    """Fetch `file` from the first of `urls` that has it to folder/name, whole and verified; gives its path.

    Without a request when it is there. What has arrived is in `name.part`, and where it came from in
    `name.part.json`: after an interruption at any moment the same call goes on there. Raises DataError when the
    content is wrong, which is kept as `name.bad`, and EnvironmentProblem when network or disk stand in the way. One
    process at a time: the caller holds a lock.
    """
    assert len(file.sha256) == 64, "plain http is good enough only because the content is pinned"
    path = folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and not is_published(path, file, report):  # the folder may be a stranger's
        os.replace(path, folder / f"{file.name}.bad")
    note = "already here"
    if not path.exists():
        by_hand = f"Or fetch it by hand: {shown(urls[0])}, then --source DIR"
        try:
            with contextlib.closing(_Part(file, path, by_hand)) as part:
                part.read_again(report)
                if part.size < file.size:
                    what = f"{file.name} still needs"
                    need_room(folder, file.size - part.size, what, "--root", "choose another disk: --root DIR")
                    network.run_beside(part.fetch(urls, retries), lambda: report(part.progress()))
                part.finish(path)
        except OSError as error:
            if error.errno not in {*FULL, errno.EFBIG}:
                raise
            raise EnvironmentProblem(
                f"{file.name} can't be written any further: {error.strerror} ({folder}). Make room and run the same "
                f"command again: it goes on from here. {by_hand}"
            ) from error
        note = "SHA-256 verified"
    report(TaskProgress(file.name, file.size, file.size, "bytes", note))
    return path


def is_published(path: Path, file: Archive, report: ReportTask) -> bool:
    """Whether all of the content at `path` is that of `file`, which is read to its end."""
    digest, done = hashlib.sha256(), 0
    if path.stat().st_size != file.size:
        return False
    with open(path, "rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            report(TaskProgress(f"checking {file.name}", done, file.size, "bytes"))
    return digest.hexdigest() == file.sha256


class _Part:
    """What has arrived of a file: `name.part`, and `name.part.json`."""

    def __init__(self, file: Archive, path: Path, by_hand: str) -> None:
        self.file, self.path, self.by_hand = file, path.with_name(f"{path.name}.part"), by_hand
        self.origin_path = path.with_name(f"{path.name}.part.json")
        self.whole = False  # ask for the whole file next, whatever is here
        self.mark = self.furthest = 0  # bytes that were here before this attempt, and before any of them
        self.size, self.hash = 0, hashlib.sha256()
        self.url = self.etag = self.note = ""
        self._disk = open_to_append(self.path)

    def close(self) -> None:
        self._disk.close()

    def progress(self) -> TaskProgress:
        return TaskProgress(self.file.name, self.size, self.file.size, "bytes", self.note)

    def read_again(self, report: ReportTask) -> None:
        """Take up what an earlier call left. Bytes of unknown origin, or of another version, are dropped."""
        try:
            origin = json.loads(read_own(self.origin_path))
            self.url, self.etag, size = str(origin["url"]), str(origin["etag"]), origin["size"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            size = None
        if size != self.file.size or self.path.stat().st_size > self.file.size:
            self._disk.truncate(0)
        self.note = "reading what is here"
        self._disk.seek(0)
        while chunk := self._disk.read(1 << 20):
            self.hash.update(chunk)
            self.size += len(chunk)
            report(self.progress())
        self.note = ""

    async def fetch(self, urls: Sequence[str], retries: RetryPolicy) -> None:
        """Attempts until all is here. Raises EnvironmentProblem after the last one."""
        tries = network.Tries(urls, retries)
        async with network.new_client(retries) as client:
            while self.size < self.file.size:
                self.mark = self.size
                try:
                    await self._attempt(client, tries.url)
                except network.network_errors() as error:
                    pause = tries.failed(error, brought=self.size > self.mark)
                    if pause is None:
                        raise EnvironmentProblem(
                            f"{self.file.name} could not be fetched ({tries}). Check the network and run the same "
                            f"command again: it goes on after {self.size / 1e6:,.1f} MB. {self.by_hand}"
                        ) from error
                    self.note = f"{tries.failure}; trying again"
                    await asyncio.sleep(pause)

    async def _attempt(self, client: "AsyncClient", url: str) -> None:
        # As much as is here is not asked for; an etag means nothing to another server.
        start, size = 0 if self.whole else self.size, self.file.size
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self.etag and shown(url) == self.url:
            headers["If-Range"] = self.etag
        async with network.reply(client, url, headers) as response:
            # Nothing is written before the reply is known to be the rest of the file, or all of it.
            etag = response.headers.get("ETag", "")
            etag = "" if etag.startswith("W/") else etag  # a weak one does not promise the same bytes
            if response.status_code == 206 and start:
                here = response.headers.get("Content-Range", "")
                self.whole = here != f"bytes {start}-{size - 1}/{size}" or (
                    "If-Range" in headers and etag not in ("", self.etag)
                )
                if self.whole:
                    raise Failure(f"what it has does not continue what is here ({here or 'no Content-Range'})")
            elif response.status_code == 200:
                start = 0
            else:
                self.whole = self.whole or response.status_code == 416
                raise Failure("no such range") if response.status_code == 416 else network.refusal(response)
            length = response.headers.get("Content-Length", "unknown")
            if length != str(size - start):
                raise Failure(f"a reply of length {length} where {size - start} bytes were to come")
            if start == 0:
                self._begin(url, etag)
            elif (shown(url), etag) != (self.url, self.etag):
                self._note_origin(url, etag)
            self.note = ""
            async for chunk in response.aiter_raw():
                if self.size + len(chunk) > size:
                    raise Failure(f"more than the {size} bytes that were to come")
                self._append(chunk)
            if self.size < size:
                raise Failure(f"the reply ended after {self.size} of {size} bytes")

    def _begin(self, url: str, etag: str) -> None:
        """Drop all: the whole file comes from `url`."""
        self.furthest = max(self.furthest, self.size)
        self.mark, self.size, self.whole = self.furthest, 0, False
        self.hash = hashlib.sha256()
        # On the disk before the new origin is: old bytes must never be taken for the new content's.
        self._disk.truncate(0)
        os.fsync(self._disk.fileno())
        self._note_origin(url, etag)

    def _note_origin(self, url: str, etag: str) -> None:
        self.url, self.etag = shown(url), etag
        write_json(self.origin_path, {"url": self.url, "etag": etag, "size": self.file.size})

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = self._disk.write(left)
            self.hash.update(left[:written])
            self.size += written
            left = left[written:]

    def finish(self, path: Path) -> None:
        """Give what is here its name, `path`, or `name.bad`: then it raises DataError."""
        os.fsync(self._disk.fileno())
        wrong = self.hash.hexdigest() != self.file.sha256
        os.replace(self.path, path.with_name(f"{path.name}.bad") if wrong else path)
        self.origin_path.unlink(missing_ok=True)
        sync_folder(path.parent)
        if wrong:
            raise DataError(
                f"{self.file.name} arrived with wrong content: SHA-256 {self.hash.hexdigest()[:16]}, not "
                f"{self.file.sha256[:16]} ({path}.bad, from {self.url}). Delete that file and run the same command "
                f"again, from another mirror if it stays so. {self.by_hand}"
            )

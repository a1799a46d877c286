"""Fetch images one by one, many at a time, each checked before it is stored. Both happen in worker threads."""

import asyncio
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from clipcoco.data.viewer import UnreadableImage, opened, size_shown
from clipcoco.errors import ClipcocoError, DataError
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare import network
from clipcoco.prepare.network import RETRIES, Failure, RetryPolicy, shown

if TYPE_CHECKING:
    from httpx2 import AsyncClient

MOST_BYTES = 32 << 20  # of one image; COCO's largest has less than a megabyte
MOST_IN_A_ROW = 10  # lost images without a good one between them: it is not the images


@dataclass(frozen=True)
class RemoteImage:
    file: str  # "train2017/000000000009.jpg"
    urls: tuple[str, ...]  # tried in order
    width: int  # pixels, as annotated
    height: int  # 0 where it is not annotated, as with width


Store = Callable[[RemoteImage, bytes], None]


def fetch_images(
    images: Sequence[RemoteImage],
    store: Store,
    report: ReportTask,
    retries: RetryPolicy = RETRIES,
    connections: int = 16,
) -> None:
    """Fetch each image and `store(image, bytes)` what is a whole JPEG or PNG of the annotated size.

    `store` is called in worker threads, up to `connections` at a time; what it raises stops all and is raised
    here. Images that can't be fetched are left out and told together at the end: DataError when content is wrong
    or missing, EnvironmentProblem when the network fails. Ten in a row end it early.
    """
    fetching = _Fetching(images, store, connections, retries)
    task, total = " and ".join(sorted({posixpath.dirname(image.file) for image in images})), len(images)
    network.run_beside(fetching.run(), lambda: report(TaskProgress(task, fetching.stored, total, "images")))
    if fetching.lost:
        raise fetching.problem()
    report(TaskProgress(task, total, total, "images"))


class _Lost(NamedTuple):
    """An image that can't be fetched."""

    image: RemoteImage
    reason: str
    kind: type[ClipcocoError]  # of the error that tells it to the user with all others


class _Fetching:
    def __init__(self, images: Sequence[RemoteImage], store: Store, connections: int, retries: RetryPolicy) -> None:
        self.images, self.store, self.connections, self.retries = images, store, connections, retries
        self.waiting = iter(images)
        self.stored = self.lost_in_a_row = 0
        self.lost: list[_Lost] = []

    async def run(self) -> None:
        with ThreadPoolExecutor(self.connections) as self._threads:  # its end waits for what is being stored
            async with network.new_client(self.retries, self.connections) as client:
                workers = [asyncio.create_task(self._work(client)) for _ in range(self.connections)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    def problem(self) -> ClipcocoError:
        """One line for all that is lost."""
        kinds = [lost.kind for lost in self.lost]
        kind = kinds[-1] if self.lost_in_a_row >= MOST_IN_A_ROW else DataError if DataError in kinds else kinds[-1]
        named = ", ".join(f"{lost.image.file} ({lost.reason})" for lost in self.lost[:3])
        others = f" and {len(self.lost) - 3} others" if len(self.lost) > 3 else ""
        return kind(
            f"{len(self.lost)} of {len(self.images)} images can't be fetched: {named}{others}. {self.stored} are here. "
            "Run the same command again to fetch the rest, from another mirror if it stays so. "
            f"Or fetch them by hand: {shown(self.lost[0].image.urls[0])}, then --source DIR"
        )

    async def _work(self, client: "AsyncClient") -> None:
        for image in self.waiting:  # one iterator for all workers
            if self.lost_in_a_row >= MOST_IN_A_ROW:
                return
            if lost := await self._fetch(client, image):
                self.lost.append(lost)
                self.lost_in_a_row += 1
            else:
                self.stored += 1
                self.lost_in_a_row = 0

    async def _fetch(self, client: "AsyncClient", image: RemoteImage) -> _Lost | None:
        """None when it is stored. Wrong content is asked for twice."""
        tries, wrong = network.Tries(image.urls, self.retries), 0
        while True:
            try:
                data = await _body(client, tries.url)
                await asyncio.get_running_loop().run_in_executor(self._threads, self._keep, image, data)
                return None
            except network.network_errors() as error:
                wrong += isinstance(error, _WrongImage)
                pause = tries.failed(error)
                if pause is None or wrong == 2:
                    return _Lost(image, str(tries), tries.failure.kind)
                await asyncio.sleep(pause)

    def _keep(self, image: RemoteImage, data: bytes) -> None:
        """Store what is a whole JPEG or PNG of the annotated size, whatever its name says; else raise _WrongImage."""
        try:
            with opened(data) as picture:
                found, annotated = picture.size, (image.width, image.height)
                fits = 0 in annotated or annotated in (found, size_shown(picture))  # COCO has the size as stored
                if fits:  # so nobody's claim of a huge image is decoded
                    picture.load()
        except UnreadableImage as error:
            raise _WrongImage(str(error)) from error
        if not fits:
            raise _WrongImage("{} x {} pixels, annotated {} x {}".format(*found, *annotated))
        self.store(image, data)


class _WrongImage(Failure):
    def __init__(self, reason: str) -> None:
        super().__init__(reason, kind=DataError)


async def _body(client: "AsyncClient", url: str) -> bytes:
    """All bytes of a reply. Fewer than announced are an error of httpx2's."""
    async with network.reply(client, url) as response:
        if response.status_code != 200:
            raise network.refusal(response)
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MOST_BYTES:
                raise _WrongImage(f"more than {MOST_BYTES >> 20} MiB")
        return bytes(body)

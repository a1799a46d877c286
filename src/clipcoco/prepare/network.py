"""What both ways of fetching share: the client, what a failed attempt means, which attempt comes next.

The network runs in an event loop in a thread of its own: waiting for a slow server, it can be stopped at once,
and progress, errors and Ctrl-C stay with the caller's thread.
"""

import asyncio
import contextlib
import email.utils
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.version import __version__

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

_MOST_REDIRECTS = 5
_LONGEST_CONNECT = 15.0  # seconds; a host that takes no connection gets less time than a slow one
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 120.0


@dataclass(frozen=True)
class RetryPolicy:
    attempts: int = 6  # in a row without a new byte, over all urls together
    pause: float = 0.5  # seconds before the second attempt, then doubling; a server may ask for more
    timeout: float = 60.0  # seconds without a byte


RETRIES = RetryPolicy()


class Failure(Exception):  # becomes a line for the user after the last attempt
    """One attempt failed. `final`: this url will not do better. `kind`: the error when no other url does."""

    def __init__(
        self, reason: str, final: bool = False, wait: float = 0.0, kind: type[ClipcocoError] = EnvironmentProblem
    ) -> None:
        super().__init__(reason)
        self.final, self.wait, self.kind = final, wait, kind


class Tries:
    """Which url comes next, after which pause, and when to give up."""

    def __init__(self, urls: Sequence[str], retries: RetryPolicy) -> None:
        self.urls, self.retries, self.failures = list(urls), retries, 0
        self.reasons: dict[str, str] = {}  # by url, the latest

    @property
    def url(self) -> str:
        return self.urls[0]

    def failed(self, error: Exception, brought: bool = False) -> float | None:
        """Seconds to wait before the next attempt after one of `network_errors`, or None when there is none.

        `brought`: there are new bytes. What went wrong is then in `failure`.
        """
        self.failure = failure = _as_failure(error, self.retries)
        self.reasons[self.url] = str(failure)
        pause = self.retries.pause * 2.0**self.failures
        if brought:  # this url works: stay with it
            self.failures, pause = 0, self.retries.pause
        elif failure.final:
            del self.urls[0]
            pause = 0.0
        else:
            self.failures += 1
            self.urls.append(self.urls.pop(0))
        if not self.urls or self.failures >= self.retries.attempts:
            return None
        return max(min(pause, _LONGEST_PAUSE), failure.wait if len(self.urls) == 1 else 0.0)

    def __str__(self) -> str:
        return "; ".join(f"{shown(url)}: {reason}" for url, reason in self.reasons.items())


def shown(url: str) -> str:
    """The url without a user's name and password, for messages and files."""
    return re.sub(r"//[^/@]*@", "//", url, count=1)


def run_beside(work: Coroutine[Any, Any, None], tell: Callable[[], None]) -> None:
    """Run `work` to its end in another thread, and call `tell` ten times a second meanwhile.

    Raises what `work` raises. Whatever is raised here, as by Ctrl-C, cancels it wherever it waits.
    """
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def run() -> None:
        task = asyncio.create_task(work)
        begun.set_result((asyncio.get_running_loop(), task))
        await task

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, run())
        running.add_done_callback(lambda _: begun.cancel())  # where it failed before it began
        try:
            while wait([running], timeout=0.1).not_done:
                tell()
        except BaseException:
            with contextlib.suppress(RuntimeError, CancelledError):  # it has ended by itself meanwhile
                loop, task = begun.result()
                loop.call_soon_threadsafe(task.cancel)
            raise
        running.result()


def new_client(retries: RetryPolicy, connections: int = 1) -> "AsyncClient":
    """A client of httpx2 that heeds the proxies of the environment and leaves redirects to `reply`."""
    import httpx2

    try:
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(retries.timeout, connect=min(retries.timeout, _LONGEST_CONNECT)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"Accept-Encoding": "identity", "User-Agent": f"clipcoco/{__version__}"},
        )
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        raise EnvironmentProblem(
            f"the network settings of the environment can't be used ({error}). "
            "Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"
        ) from error


@contextlib.asynccontextmanager
async def reply(client: "AsyncClient", url: str, headers: Mapping[str, str] | None = None) -> "AsyncIterator[Response]":
    """The answer, with its body still to come. Of redirects only https and the same host are followed."""
    request = client.build_request("GET", url, headers=headers)
    for _ in range(_MOST_REDIRECTS + 1):
        async with contextlib.aclosing(await client.send(request, stream=True)) as response:
            if response.next_request is None:
                yield response
                return
            request = response.next_request
            here, there = response.url, request.url
            if there.scheme != "https" and (there.scheme, there.host) != (here.scheme, here.host):
                raise Failure(f"sent on to {there} without https", final=True)
    raise Failure("too many redirects", final=True)


def network_errors() -> tuple[type[Exception], ...]:
    import httpx2

    return (Failure, httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OverflowError, ExceptionGroup)


def _as_failure(error: Exception, retries: RetryPolicy) -> Failure:
    """The reason in words."""
    import httpx2

    match error:
        case Failure():
            return error
        case ExceptionGroup():  # of connections that were tried side by side
            return _as_failure(error.exceptions[-1], retries)
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol() | OverflowError():  # a port of 99999
            return Failure(f"no address ({error})", final=True)
        case httpx2.ConnectTimeout():
            return Failure(f"no connection within {min(retries.timeout, _LONGEST_CONNECT):g} s")
        case httpx2.TimeoutException():
            return Failure(f"no byte for {retries.timeout:g} s")
    return Failure(" ".join(_words(error).split()))


def _words(error: Exception) -> str:
    """What the system said: libraries on the way sum it up, and lose why."""
    words = str(error) or type(error).__name__
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper.exceptions[-1] if isinstance(deeper, BaseExceptionGroup) else deeper  # of addresses of a host
        match cause:
            case ssl.SSLError() | socket.gaierror():
                words = cause.strerror or words
            case OSError(errno=int(code)):
                words = os.strerror(code)
    return words


def refusal(response: "Response") -> Failure:
    """What a status that is not the wanted one means."""
    code = response.status_code
    wait = response.headers.get("Retry-After", "")
    try:
        seconds = float(wait) if wait.isdigit() else email.utils.parsedate_to_datetime(wait).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        seconds = 0.0
    return Failure(
        f"{code} {response.reason_phrase}".strip(),
        final=code < 500 and code not in (408, 425, 429),
        wait=min(max(seconds, 0.0), _LONGEST_RETRY_AFTER),
        kind=DataError if code in (404, 410) else EnvironmentProblem,
    )

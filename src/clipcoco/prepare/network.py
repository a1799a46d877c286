"""What both ways of fetching share: the client, what a failed attempt means, which attempt comes next."""

import email.utils
import os
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.version import __version__

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Client, Request, Response

    AnyClient = TypeVar("AnyClient", Client, AsyncClient)

MOST_REDIRECTS = 5
_LONGEST_CONNECT = 15.0  # seconds; a host that takes no connection is not worth the patience for a slow one
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 120.0


@dataclass(frozen=True)
class Patience:
    attempts: int = 6  # in a row without a new byte, over all urls together
    pause: float = 0.5  # seconds before the second attempt, then doubling; a server may ask for more
    timeout: float = 60.0  # seconds without a byte


class Failure(Exception):  # becomes a line for the user once patience ends
    """One attempt failed. `final`: this url will not do better. `kind`: the error when no other url does."""

    def __init__(
        self, reason: str, final: bool = False, wait: float = 0.0, kind: type[ClipcocoError] = EnvironmentProblem
    ) -> None:
        super().__init__(reason)
        self.final, self.wait, self.kind = final, wait, kind


class Tries:
    """Which url comes next, after which pause, and when to give up."""

    def __init__(self, urls: Sequence[str], patience: Patience) -> None:
        self.urls, self.patience, self.failures = list(urls), patience, 0
        self.reasons: dict[str, str] = {}

    @property
    def url(self) -> str:
        return self.urls[0]

    def failed(self, failure: Failure, brought: bool = False) -> float | None:
        """Seconds to wait before the next attempt, or None when there is none. `brought`: there are new bytes."""
        self.reasons[self.url] = str(failure)
        pause = self.patience.pause * 2.0**self.failures
        if brought:  # this url works: stay with it
            self.failures, pause = 0, self.patience.pause
        elif failure.final:
            del self.urls[0]
            pause = 0.0
        else:
            self.failures += 1
            self.urls.append(self.urls.pop(0))
        if not self.urls or self.failures >= self.patience.attempts:
            return None
        return max(min(pause, _LONGEST_PAUSE), failure.wait if len(self.urls) == 1 else 0.0)

    def __str__(self) -> str:
        return "; ".join(f"{shown(url)}: {reason}" for url, reason in self.reasons.items())


def shown(url: str) -> str:
    """The url without a user's name and password, for messages and files."""
    return re.sub(r"//[^/@]*@", "//", url, count=1)


def new_client(kind: "type[AnyClient]", patience: Patience, connections: int = 1) -> "AnyClient":
    """A client of httpx2 that heeds the proxies of the environment and leaves redirects to `next_hop`."""
    import httpx2

    try:
        return kind(
            timeout=httpx2.Timeout(patience.timeout, connect=min(patience.timeout, _LONGEST_CONNECT)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"Accept-Encoding": "identity", "User-Agent": f"clipcoco/{__version__}"},
        )
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        raise EnvironmentProblem(
            f"the network settings of the environment can't be used ({error}). "
            "Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"
        ) from error


def next_hop(response: "Response") -> "Request | None":
    """Where a redirect leads, None when `response` is the answer. Only https and the same host are followed."""
    request = response.next_request
    if request is None:
        return None
    here, there = response.url, request.url
    if there.scheme != "https" and (there.scheme, there.host) != (here.scheme, here.host):
        raise Failure(f"sent on to {there} without https", final=True)
    return request


def network_errors() -> tuple[type[Exception], ...]:
    import httpx2

    return (Failure, httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError)


def as_failure(error: Exception, patience: Patience) -> Failure:
    """The reason in words, of one of `network_errors`."""
    import httpx2

    match error:
        case Failure():
            return error
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return Failure(f"no address ({error})", final=True)
        case httpx2.ConnectTimeout():
            return Failure(f"no connection within {min(patience.timeout, _LONGEST_CONNECT):g} s")
        case httpx2.TimeoutException():
            return Failure(f"no byte for {patience.timeout:g} s")
    return Failure(" ".join(_words(error).split()))


def _words(error: Exception) -> str:
    """What the system said: libraries on the way sum it up, and lose why."""
    words = str(error) or type(error).__name__
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
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


def paced(report: ReportTask) -> ReportTask:
    """`report`, but at most ten times a second."""
    due = 0.0

    def slowly(progress: TaskProgress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            report(progress)
            due = time.monotonic() + 0.1

    return slowly

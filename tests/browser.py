"""A headless Chromium, driven by the DevTools protocol through its pipe: no package, no port."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")


class Tab:
    """One page. What it asked of any network, and what went wrong in it, stand in `asked` and `complaints`."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._last, self._unread = send, receive, 0, b""
        self._session: str | None = None
        self.asked: list[str] = []
        self.complaints: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and read until the answer is there."""
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._last, "method": method, "params": parameters, **session}
        with open(self._send, "wb", closefd=False) as pipe:
            pipe.write(json.dumps(message).encode() + b"\0")
        for found in self._messages():
            if found.get("id") == self._last:
                assert "error" not in found, found["error"]
                return found["result"]
            self._hear(found.get("method"), found.get("params", {}))
        raise AssertionError("the browser has gone")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            message, ended, rest = self._unread.partition(b"\0")
            if ended:
                self._unread = rest
                yield json.loads(message)
            elif part := os.read(self._receive, 2**20):
                self._unread += part
            else:
                return

    def _hear(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked += [url for url in [about["request"]["url"]] if not url.startswith("data:")]
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])

    def open(self, place: Path | str, search: str = "") -> None:
        """A file, or an address, until it has answered for the first time."""
        self("Page.navigate", url=(place if isinstance(place, str) else place.absolute().as_uri()) + search)
        ready = "new Promise((ready) => { const wait = () => window.ready ? ready() : setTimeout(wait, 5); wait(); })"
        self.run(ready.replace("window.ready", "performance.getEntriesByName('first result').length"))

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")


# A process has its pipe at 3 and 4, whatever it is called here.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """With one tab; `profile` is a new folder for its files."""
    (read, send), (receive, write) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", _START, str(read), str(write), CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(
        [*command, "--remote-debugging-pipe"], pass_fds=(read, write), stderr=subprocess.DEVNULL
    ) as process:
        os.close(read)
        os.close(write)
        try:
            yield Tab(send, receive)
        finally:
            process.terminate()
            os.close(send)
            os.close(receive)

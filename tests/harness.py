"""What tests say again and again: wait for what can be seen, run Python, kill it at its n-th step, leave no room on
the disk, and read what is there."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn, Protocol

from clipcoco.disk.seal import unsealed, write_sealed


class Running(Protocol):
    def poll(self) -> int | None: ...


def until(there: Callable[[], object], process: Running | None = None, seconds: float = 120) -> None:
    """Wait until `there()` is true, never by the clock, for as long as a very busy machine may need.

    It may look at files that the process moves or writes meanwhile: what goes while it is looked at, or is half
    written, is not there yet. Fails when the process ends before.
    """
    end = time.monotonic() + seconds
    while not _holds(there):
        if process is not None and process.poll() is not None and not _holds(there):
            raise AssertionError(f"the process ended before that:\n{getattr(process, 'stderr', '')}")
        assert time.monotonic() < end, f"not within {seconds:g} s:\n{getattr(process, 'stderr', '')}"
        time.sleep(0.002)


def _holds(there: Callable[[], object]) -> bool:
    try:
        return bool(there())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def python(code: str, *arguments: object, exits: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter to its end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == exits, done.stderr
    return done


# What counts its changes of the disk from `begin()` on, and dies at one of them: in a fork for each line it is given.
_KILLED = """
import json, os, signal, sys
from pathlib import Path

left = 0

def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def changes(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
    if writes or event in ("os.link", "os.rename", "os.mkdir", "os.rmdir", "os.remove"):
        count()

def begin():
    global left
    for line in sys.stdin:
        left, *sys.argv[1:] = json.loads(line)
        if not (pid := os.fork()):
            return sys.addaudithook(changes)
        print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)
"""


@contextmanager
def killable(code: str) -> Iterator[Callable[..., int]]:
    """`killed(step, *arguments)` runs `code`, which calls `begin()` after its imports, until SIGKILL at its `step`-th
    change of the disk or call of `count()`; at step 0 to its end, and gives the number of steps."""
    command = [sys.executable, "-c", _KILLED + code + "print(-left)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def killed(step: int, *arguments: object) -> int:
            process.stdin.write(json.dumps([step, *map(str, arguments)]) + "\n")
            process.stdin.flush()
            steps = process.stdout.readline() if not step else "0"
            assert process.stdout.readline() == f"code {-signal.SIGKILL if step else 0}\n"
            return step or int(steps)

        yield killed


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does, with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    """Of the byte at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 4
    path.write_bytes(content)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def tree(root: Path) -> dict[str, bytes]:
    """The content of every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def one_line(error: BaseException) -> str:
    """Its message, which is to be shown in one line."""
    assert str(error).isprintable(), str(error)
    return str(error)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run without what comes from a clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "clock"} for line in lines]


_HISTOGRAM = {"edges": [-1.0, 1.0], "matched": [1], "unmatched": [0], "matched_mean": 0.5}
_CLOCK = {"seconds": 1e308, "images_per_second": 5e-324, "data_wait": 1e308}
# What a file may say: the steps in metrics.jsonl, and parts of evaluation.json.
EXTREMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "step": ([{"step": 10**399}], {}),
    "lr": ([{"lr": 5e-324}], {}),
    "losses": ([{"loss": 1e308}, {"loss": -1e308}], {}),
    "clock": ([{"clock": _CLOCK}, {"clock": _CLOCK}], {}),
    "no pairs": ([], {"similarities": {**_HISTOGRAM, "unmatched": [-1]}}),
    "pairs": ([], {"similarities": {**_HISTOGRAM, "matched": [10**400]}}),
    "rank": ([], {"ranks": {key: {"upper": [10**400], "counts": [1]} for key in ("i2t", "t2i")}}),
    "ranks": ([], {"ranks": {key: {"upper": [1], "counts": [10**400]} for key in ("i2t", "t2i")}}),
}


def at_the_limits(run: Path, steps: list[dict[str, Any]], parts: dict[str, Any]) -> None:
    """Give the records of `run` one of EXTREMES, with a seal, and no other steps."""
    step = {"epoch": 1, "loss": 1.0, "lr": 1e-4, "temperature": 1.0, "grad_norm": 1.0, "event": "step"}
    rows = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"evaluation"' in line]
    rows += [json.dumps({"step": number, **step, **change}) for number, change in enumerate(steps)]
    (run / "metrics.jsonl").write_text("\n".join(rows))
    record = unsealed(json.loads((run / "evaluation.json").read_text()))
    write_sealed(run / "evaluation.json", {**record, **parts})


class Page(HTMLParser):
    """Sees that tags close in order; keeps tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.cells: list[list[str]] = []  # of the tables of recalls, row by row
        self.images_in_text: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

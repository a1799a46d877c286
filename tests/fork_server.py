"""Runs clipcoco commands in forks of one process that has torch imported: real processes, exit codes and signals.

Importing torch and torchvision costs seconds; hundreds of command lines would pay it hundreds of times.
"""

import fcntl
import gc
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_FLAGS = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict:
        return json.loads(self.stdout)

    def ok(self) -> Self:
        assert self.code == 0, self.stderr
        return self


class Process:
    def __init__(self, server: "ForkServer", pid: int, stdout: Path, stderr: Path) -> None:
        self.server, self.pid, self._stdout, self._stderr = server, pid, stdout, stderr

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def poll(self) -> int | None:
        return self.server.ask({"poll": self.pid})

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until stderr holds `text`."""
        end = time.monotonic() + seconds
        while text not in self.stderr:
            assert self.poll() is None, f"ended before {text!r}:\n{self.stderr}"
            assert time.monotonic() < end, f"no {text!r} in {seconds} s:\n{self.stderr}"
            time.sleep(0.005)

    def wait(self, seconds: float = 240) -> Finished:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.signal_group(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.stderr}")
            time.sleep(0.01)
        return Finished(code, self.stdout, self.stderr)


class ForkServer:
    """`server("eval", "--json", cwd=...)` runs a command to its end; `server.start(...)` lets it run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        (folder / "figures").mkdir()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "80",
            "OMP_NUM_THREADS": "1",  # toys gain nothing from more, and lose when tests run side by side
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, folder / "figures"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def ask(self, request: dict) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        *arguments: object,
        cwd: Path,
        env: dict[str, str] | None = None,
        prelude: str = "",
        streams: tuple[str, str, str] | None = None,
    ) -> Process:
        """`prelude` is Python that the process runs before the command, or alone where there is no command. `streams`
        are the files that it reads and writes; a terminal among them becomes its own, as if it had been started there.
        """
        self.count += 1
        if streams is None:
            stdin, (stdout, stderr) = os.devnull, (str(self.folder / f"{self.count}.{name}") for name in ("out", "err"))
            Path(stdout).touch()
            Path(stderr).touch()
        else:
            stdin, stdout, stderr = streams
        pid = self.ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "cwd": str(cwd),
                "env": {name: "1" for name in ("EVERY_FIGURE",) if name in os.environ} | (env or {}),
                "prelude": prelude,
                "streams": (stdin, stdout, stderr),
            }
        )
        read = (Path(name if os.path.isfile(name) else os.devnull) for name in (stdout, stderr))
        return Process(self, pid, *read)

    def __call__(self, *arguments: object, cwd: Path, **more) -> Finished:
        return self.start(*arguments, cwd=cwd, **more).wait()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def draw_once(folder: Path) -> None:
    """Keep figures in `folder`, which runs draw again and again. Of figures alike but for their numbers the first one
    stands for all, where nobody looks at them: without EVERY_FIGURE in the environment."""
    import clipcoco.report.plots as plots

    def kept(draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*given: object, **more: object) -> Any:
            key = repr((draw.__name__, given, more))
            if "EVERY_FIGURE" not in os.environ:
                key = re.sub(r"([\[(]*(#|None)[\])]*,? ?)+", "#", re.sub(r"-?[\d.,]+(e[-+]?\d+)?", "#", key))
            path = folder / hashlib.sha256(key.encode()).hexdigest()
            if not path.exists():
                part = path.with_suffix(f".{os.getpid()}")
                part.write_bytes(pickle.dumps(draw(*given, **more)))
                part.rename(path)
            return pickle.loads(path.read_bytes())

        return drawn

    for name in ("curve", "similarity_histogram", "rank_histogram"):
        setattr(plots, name, kept(getattr(plots, name)))


def compile_once() -> None:
    """Keep what jinja makes of the pages' templates: each page compiles its own again."""
    from jinja2 import Environment

    compiled, known = Environment.compile, {}

    def kept(environment: Environment, source: str, name: str, *more: object) -> Any:
        if (source, name) not in known:
            known[source, name] = compiled(environment, source, name, *more)
        return known[source, name]

    Environment.compile = kept


def parse_once() -> None:
    """Keep what YAML's parser makes of our presets: a run reads them seven times."""
    import yaml

    from clipcoco.config.load import presets_folder

    texts = [path.read_text() for path in presets_folder().glob("*.yaml")]
    known, parse = {text: [*yaml.parse(text, yaml.SafeLoader)] for text in texts}, yaml.parse
    yaml.parse = lambda text, Loader: iter(known[text]) if text in known else parse(text, Loader)  # noqa: N803


def _serve() -> None:
    # What the commands need, and what takes longest to import.
    import matplotlib.backends.backend_svg
    import matplotlib.figure
    import matplotlib.style  # noqa: F401
    import pycocotools.coco  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401
    import torch.fx.experimental.symbolic_shapes  # by the first backward, with sympy
    import torch.utils.serialization  # noqa: F401
    from PIL import Image
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # noqa: F401

    import clipcoco.cli
    import clipcoco.cli.evaluate
    import clipcoco.cli.report
    import clipcoco.cli.search
    import clipcoco.cli.train
    import clipcoco.engine.extended
    import clipcoco.report.live
    import clipcoco.report.page
    import clipcoco.report.plots
    import clipcoco.report.strips
    import clipcoco.report.together
    import clipcoco.runs.follow
    import clipcoco.runs.go
    import clipcoco.runs.measure
    import clipcoco.runs.rehearse
    import clipcoco.runs.resume
    import clipcoco.search.page
    from clipcoco.report.figures import Line
    from clipcoco.runs.directory import RunDir

    Image.init()
    # What is slow the first time in a process, and would be so in each fork: fonts, expressions, templates.
    clipcoco.report.plots.curve("", "title", "", "x", [Line([(1, 1.0), (2, 3.0)], "end")], levels=[2], level_label="l")
    compile_once()
    parse_once()
    with tempfile.TemporaryDirectory() as nothing:
        clipcoco.report.page.write_report(RunDir(Path(nothing)))
    draw_once(Path(sys.argv[1]))
    gc.freeze()  # so that no fork walks through all of that, and copies its pages

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:  # opened here, so that they are when the caller has its answer
            files = [os.open(name, flags | os.O_NOCTTY) for name, flags in zip(request["streams"], _FLAGS, strict=True)]
            answer = os.fork()
            if answer == 0:
                _become(request, files)
            for file in files:
                os.close(file)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(request: dict, files: list[int]) -> None:
    from clipcoco.cli import run

    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that a typed Ctrl-C is a signal
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", buffering=1, errors=errors, closefd=False)
            for number, errors in ((1, "strict"), (2, "backslashreplace"))
        )
    prelude = request["prelude"]
    exec(prelude, {})
    sys.argv = ["clipcoco", *request["arguments"]]
    alone = prelude and not request["arguments"]
    code = 0 if alone else run(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()

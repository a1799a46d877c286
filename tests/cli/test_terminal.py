"""A person at a terminal: the panel, Ctrl-C typed, and what is left on the screen."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from pathlib import Path

import pyte
import pytest

from conftest import LIGHT
from fork_server import ForkServer

COLOURS = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Terminal:
    """A command on a pseudo-terminal of its own; `text()` is the screen."""

    def __init__(
        self, server: ForkServer, *words: str, cwd: Path, columns: int = 80, prelude: str = "", **env: str
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, 40, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {"TERM": "xterm-256color", "COLUMNS": "", **env}
        self.process = server.start(*words, cwd=cwd, env=env, prelude=prelude, streams=(os.ttyname(slave),) * 3)
        os.close(slave)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds: float) -> bool:
        """Feed the screen for so long; False when the command has closed it."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return False
            self.written += data
            self.stream.feed(data)
        return True

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.text():
            assert self.read(0.1), f"ended without {text!r}:\n{self.text()}"
            assert time.monotonic() < end, f"no {text!r}:\n{self.text()}"

    def wait(self) -> int:
        while self.read(0.1):
            pass
        os.close(self.master)
        return self.process.wait(60).code


def test_the_panel_ctrl_c_and_a_resume_to_the_table(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=5"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path)
    terminal.wait_for("╭─ run · epoch")
    terminal.wait_for("Ctrl-C saves and stops")
    terminal.wait_for("t2i R@1")
    os.write(terminal.master, b"\x03")
    assert terminal.wait() == 75
    assert "Go on with: clipcoco resume run" in terminal.text()
    assert not terminal.screen.cursor.hidden
    again = Terminal(clipcoco, "resume", cwd=tmp_path)
    again.wait_for("run: stopped by Ctrl-C at step")
    assert again.wait() == 0
    assert "image -> text" in again.text()
    assert "runs/run/report.html" in again.text()
    assert not again.screen.cursor.hidden


def test_a_narrow_terminal_gets_plain_lines(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "train.epochs=1"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, columns=50)
    assert terminal.wait() == 0
    assert "╭" not in terminal.text()
    assert "saved checkpoints/last.pt" in terminal.text()


def test_an_ascii_terminal_gets_a_panel_in_ascii(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=1"]
    ascii_ = "import sys; [stream.reconfigure(encoding='ascii') for stream in (sys.stdout, sys.stderr)]"
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, NO_COLOR="1", prelude=ascii_)
    terminal.wait_for("+- run - epoch")
    assert terminal.wait() == 0
    assert terminal.written.isascii()
    assert not COLOURS.search(terminal.written)
    assert "image -> text" in terminal.text()


@pytest.mark.parametrize("changes", [{"CI": "true"}, {"TERM": "dumb", "FORCE_COLOR": "1"}])
def test_nothing_moves_in_ci_and_on_a_dumb_terminal(clipcoco, scenes, tmp_path, changes):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "train.epochs=1"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, **changes)
    assert terminal.wait() == 0
    assert "saved checkpoints/last.pt" in terminal.text()
    assert set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", terminal.written)) <= (set() if "TERM" in changes else {b"m"})


@pytest.mark.parametrize(
    ("changes", "coloured", "styled"),
    [
        ({}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, True),  # which forbids colour, not bold
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, False),
    ],
)
def test_colour_in_a_pipe_is_asked_for(clipcoco, tmp_path, changes, coloured, styled):
    environment = {"TERM": "xterm-256color", **changes}
    for words in (["eval", "nothing"], ["resume"]):
        said = clipcoco(*words, cwd=tmp_path, env=environment).stderr
        assert said.replace("\x1b[1;31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "").startswith("error: ")
        assert bool(COLOURS.search(said.encode())) == coloured
        assert ("\x1b" in said) == styled

"""A person at a terminal: the panel, Ctrl-C typed, and what is left on the screen."""

import os
import re
from pathlib import Path

import pytest

from conftest import LIGHT
from fork_server import ForkServer
from screen import COLOURS, Screen


class Terminal(Screen):
    """A command on a pseudo-terminal of its own."""

    def __init__(
        self, server: ForkServer, *words: str, cwd: Path, columns: int = 80, prelude: str = "", **env: str
    ) -> None:
        super().__init__(columns)
        env = {"TERM": "xterm-256color", "COLUMNS": "", **env}
        self.process = server.start(*words, cwd=cwd, env=env, prelude=prelude, streams=(os.ttyname(self.slave),) * 3)
        os.close(self.slave)

    def wait(self) -> int:
        while self.read():
            pass
        os.close(self.master)
        return self.process.wait(60).code


def test_the_panel_ctrl_c_and_a_resume_to_the_table(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=5"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path)
    terminal.wait_for("╭─ run · epoch")
    terminal.wait_for("Ctrl-C saves and stops")
    terminal.wait_for("t2i R@1")
    terminal.wait_for("Ctrl-C saves and stops · page runs/run/report.html")
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


def test_an_ascii_terminal_gets_a_panel_in_ascii(clipcoco, scenes, tmp_path):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=1"]
    ascii_ = "import sys; [stream.reconfigure(encoding='ascii') for stream in (sys.stdout, sys.stderr)]"
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, NO_COLOR="1", prelude=ascii_)
    terminal.wait_for("+- run - epoch")
    assert terminal.wait() == 0
    assert terminal.written.isascii()
    assert not COLOURS.search(terminal.written)
    assert "image -> text" in terminal.text()


@pytest.mark.parametrize("changes", [{"columns": 50}, {"CI": "true"}, {"TERM": "dumb", "FORCE_COLOR": "1"}])
def test_plain_lines_where_nothing_may_move(clipcoco, scenes, tmp_path, changes):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=1"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, **changes)
    assert terminal.wait() == 0
    assert "saved checkpoints/last.pt" in terminal.text()
    assert "╭" not in terminal.text()
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

"""A person at a terminal: the panel, Ctrl-C typed, and what is left on the screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pyte

from conftest import TOY


class Terminal:
    """A command on a pseudo-terminal of its own; `text()` is the screen."""

    def __init__(self, *words: str, cwd, columns: int = 80) -> None:
        self.screen = pyte.HistoryScreen(columns, 40, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        gone = ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        env = {key: value for key, value in os.environ.items() if key not in gone}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clipcoco", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**env, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that a typed Ctrl-C is a signal
        )
        os.close(slave)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds: float) -> bool:
        """Feed the screen for so long; False when the command has closed it."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.stream.feed(os.read(self.master, 65536))
            except OSError:
                return False
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
        return self.process.wait(60)


def test_the_panel_ctrl_c_and_a_resume_to_the_table(scenes, tmp_path):
    words = ["train", "--preset", "demo", *TOY, f"data.root={scenes}", "--name", "run", "train.epochs=8"]
    terminal = Terminal(*words, cwd=tmp_path)
    terminal.wait_for("╭─ run · epoch")
    terminal.wait_for("Ctrl-C saves and stops")
    terminal.wait_for("t2i R@1")
    os.write(terminal.master, b"\x03")
    assert terminal.wait() == 75
    assert "Go on with: clipcoco resume run" in terminal.text()
    assert not terminal.screen.cursor.hidden
    again = Terminal("resume", cwd=tmp_path)
    again.wait_for("run: stopped by Ctrl-C at step")
    assert again.wait() == 0
    assert "image -> text" in again.text()
    assert "runs/run/report.html" in again.text()
    assert not again.screen.cursor.hidden


def test_a_narrow_terminal_gets_plain_lines(scenes, tmp_path):
    words = ["train", "--preset", "demo", *TOY, f"data.root={scenes}", "train.epochs=1"]
    terminal = Terminal(*words, cwd=tmp_path, columns=50)
    assert terminal.wait() == 0
    assert "╭" not in terminal.text()
    assert "saved checkpoints/last.pt" in terminal.text()

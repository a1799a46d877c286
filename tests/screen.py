"""A pseudo-terminal that a terminal emulator reads: the screen as a person sees it."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

import pyte

COLOURS = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Screen:
    """`slave` is for the process that writes, to be closed here once it has it; `written` is all it wrote."""

    def __init__(self, columns: int = 80, lines: int = 40) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def shows(self, text: str) -> bool:
        return text in self.text()

    def read(self, seconds: float = 0.05) -> bool:
        """Feed the screen with what comes within so long; False when the other end is closed."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux reports the other end's close so
            return False
        self.written += data
        self.stream.feed(data)
        return bool(data)

    def wait_for(self, text: str, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while not self.shows(text):
            assert self.read(), f"ended without {text!r}:\n{self.text()}"
            assert time.monotonic() < end, f"no {text!r}:\n{self.text()}"
        return self.text()

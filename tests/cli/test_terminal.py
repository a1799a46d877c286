"""A person at a terminal: the panel, Ctrl-C typed, and what is left on the screen."""

import os
import re
import time
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

    def wait(self, again: bytes = b"") -> int:
        """Until it has ended; every few seconds `again` is pressed."""
        pressed = time.monotonic()
        while self.read():
            if again and time.monotonic() - pressed > 5:
                os.write(self.master, again)
                pressed = time.monotonic()
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


@pytest.mark.parametrize("changes", [{"CI": "true"}, {"TERM": "dumb", "FORCE_COLOR": "1"}])
def test_plain_lines_where_nothing_may_move(clipcoco, scenes, tmp_path, changes):
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "run", "train.epochs=1"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, **changes)
    assert terminal.wait() == 0
    assert "saved checkpoints/last.pt" in terminal.text()
    assert "╭" not in terminal.text()
    assert set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", terminal.written)) <= (set() if "TERM" in changes else {b"m"})


@pytest.fixture(scope="module")
def narrow(clipcoco, scenes, tmp_path_factory) -> tuple[Path, Terminal]:
    """A run that was trained on a terminal of 40 columns, and that terminal."""
    folder = tmp_path_factory.mktemp("narrow")
    words = ["train", "--preset", "demo", *LIGHT, f"data.root={scenes}", "--name", "a-run-with-a-long-name"]
    terminal = Terminal(clipcoco, *words, "train.epochs=1", cwd=folder, columns=40)
    assert terminal.wait() == 0
    return folder, terminal


def lines_of(terminal: Terminal, columns: int) -> list[str]:
    """What was written, line by line, as it can be copied; longer than the terminal is only what has no gap."""
    lines = re.sub(rb"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x1b]*\x1b\\)", b"", terminal.written).decode().split("\r\n")
    for line in lines:
        assert len(line) <= columns or re.fullmatch(r" *(clipcoco [^.,;]*[.,;]?|[a-z_]+: \S+|\S+)", line), line
    return lines


def test_a_run_on_a_narrow_terminal(clipcoco, narrow):
    folder, terminal = narrow
    lines = lines_of(terminal, 40)
    [search, *_] = clipcoco("runs", "a-run-with-a-long-name", "--json", cwd=folder).json["next"][-1:]
    assert search.startswith("clipcoco search ")
    assert len(search) > 40
    assert f"    {search}" in lines
    assert any(re.fullmatch(r"\d\d:\d\d:\d\d step 1/6 epoch 1/1 loss \d\.\d{3}", line) for line in lines)
    assert any("saved checkpoints/last.pt" in line for line in lines)
    assert "╭" not in terminal.text()
    assert set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", terminal.written)) <= {b"m"}


@pytest.mark.parametrize("columns", [40, 60])
def test_recalls_on_a_narrow_terminal_are_those_of_a_wide_one(clipcoco, narrow, columns):
    own = clipcoco("eval", "--json", cwd=narrow[0]).json["protocols"]["own"]
    terminal = Terminal(clipcoco, "eval", cwd=narrow[0], columns=columns)
    assert terminal.wait() == 0
    lines = lines_of(terminal, columns)
    head = next(number for number, line in enumerate(lines) if line.split() == ["R@1", "R@5", "R@10"])
    for way, name, row in (("i2t", "image -> text", lines[head + 1]), ("t2i", "text -> image", lines[head + 3])):
        assert row.startswith(f"  {name} ")
        ends = [lines[head].index(title) + len(title) for title in ("R@1", "R@5", "R@10")]
        assert [row[end - 6 : end].strip() for end in ends] == [f"{own[way][key]:.2f}" for key in ("r1", "r5", "r10")]
        assert f"{name} {own[way]['median_rank']:g}" in " ".join(" ".join(lines).split())
    assert lines[head + 2].split()[0] == lines[head + 4].split()[0] == "±"


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize(
    "command",
    ["runs", "runs a-run", "runs a-run a-run", "env", "search red -k 2", "train small", "prepare-data --all --dry-run"],
)
def test_what_people_copy_is_whole_on_a_narrow_terminal(clipcoco, narrow, columns, command):
    words = command.split()
    terminal = Terminal(clipcoco, *words, cwd=narrow[0], columns=columns)
    assert terminal.wait() == (3 if words[0] == "train" else 0)
    lines = lines_of(terminal, columns)
    whole = clipcoco(*words, cwd=narrow[0])
    copied = r"clipcoco [a-z-]+(?: [^\s(,]+)*(?<![.:])|\S+/\S+/\S*[^\s,.:…]"  # a command, a path that is not cut
    pieces = set(re.findall(copied, whole.stdout + whole.stderr))
    assert pieces - {piece for piece in pieces if any(piece in line for line in lines)} == set()


@pytest.mark.parametrize("columns", [40, 60])
def test_a_configuration_copied_from_a_narrow_terminal_is_the_same(clipcoco, tmp_path, columns):
    words = ["inspect-config", "medium", "data.root=/a/folder/with/a/path/that/is/long"]
    terminal = Terminal(clipcoco, *words, cwd=tmp_path, columns=columns)
    assert terminal.wait() == 0
    (tmp_path / "mine.yaml").write_text("\n".join(lines_of(terminal, columns)))
    copied, ours = (clipcoco(*one, "--json", cwd=tmp_path).json for one in (["inspect-config", "mine.yaml"], words))
    assert copied["config"] == ours["config"]


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

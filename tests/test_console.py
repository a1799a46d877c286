"""What a person sees: in a real pseudo-terminal read by a terminal emulator, in a pipe, and in the log."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from rich.console import Console
from rich.text import Text

from clipcoco.console import (
    RunConsole,
    open_terminal,
    panel,
    printable,
    recall_tables,
    say_bytes,
    say_half,
    say_seconds,
    summary_rows,
    table,
    wrapped,
)
from clipcoco.events import Progress
from screen import COLOURS, Screen

# Feeds a run to the console. `pause` waits for the test, which looks at the screen meanwhile.
STORY = r"""
import math, os, sys, time
from pathlib import Path
from clipcoco.console import RunConsole, TaskConsole, open_terminal
from clipcoco.events import *
from clipcoco.runs.metrics import LogFile

def pause():
    if "GATE" in os.environ:
        os.read(int(os.environ["GATE"]), 1)

def step(number, loss):
    show(Progress("train", number, 310))
    clock = {"seconds": 1.0, "images_per_second": 65.2, "data_wait": 0.03}
    show(StepDone(number, 1 + (number - 1) // 62, loss, 3.1e-4, 0.069, 1.5, clock))

def evaluation(epoch, r1, best):
    i2t = {"r1": r1, "r5": 3 * r1, "r10": 4 * r1, "median_rank": 30.0}
    t2i = {"r1": r1 / 2, "r5": r1, "r10": 2 * r1, "median_rank": 40.0}
    return Evaluated(62 * epoch, epoch, 3.0, i2t, t2i, 0.75 * r1, 9.0, "00", best, {"seconds": 2.0})

story, folder = sys.argv[1:]
chance = {"r1": 0.2, "r5": 1.0, "r10": 2.0, "median_rank": 250.0}
header = (("", "clipcoco 0.1.0 · cpu, 2 threads"),
          ("data", "2,000 + 500 images, 10,000 + 2,500 captions; originals; 0 workers (on a CPU the step needs them)"),
          ("run", "runs/demo-1"))
rows = ()
if story == "resumed":
    rows = ({"event": "step", "loss": 3.0}, {"event": "step", "loss": 2.0}, vars(evaluation(1, 4.4, True)))
run = RunStarted(62 * bool(rows), 1, "demo-1", "demo-1", Path("runs/demo-1"), 310, 62, 5, 32, header,
                 {"i2t": chance, "t2i": chance}, math.log(32), rows)
log = LogFile(Path(folder) / "log.txt")
if story == "tasks":
    with TaskConsole(open_terminal()) as show:
        for done in (0, 200):
            show(TaskProgress("annotations_trainval2017.zip", 253_000_000, 253_000_000, "bytes", "SHA-256 verified"))
            show(TaskProgress("val2017.zip", 408_000_000 + 1_000 * done, 816_000_000, "bytes"))
            show(TaskProgress("copies of [red] pictures\x1b[2J with a long name", 10_000 + done, 118_287, "images"))
            show(TaskProgress("train2017", 0, 118_287, "images", "the connection was reset; trying again"))
            time.sleep(0.6)
        pause()
    raise SystemExit
with RunConsole(open_terminal(plain=story == "plain"), log) as show:
    if story == "eval":
        show(Progress("evaluate", 100, 500))
        pause()
        raise SystemExit
    show(run)
    if story == "features":
        for done in (0, 64):
            show(Progress("features", done, 11829))
            time.sleep(0.2)
        pause()
        raise SystemExit
    if story == "closed form":
        show(Progress("closed form", 2048, 11829))
        pause()
        given = evaluation(0, 3.6, False)
        show(ClosedForm(0, 1, given.i2t, given.t2i, given.r1))
        show(evaluation(1, 4.4, True))
        pause()
        raise SystemExit
    if story == "resumed":
        pause()
        raise SystemExit
    for number in range(10, 70, 10):
        step(number, 3.4 - number / 100)
    show(evaluation(1, 4.4, True))
    show(evaluation(2, 3.2, False))
    show(CheckpointSaved(124, 2, Path("runs/demo-1/checkpoints/last.pt"), 346_000_000, 0.4))
    show(ImageReplaced(125, 3, "a\x1b[2Jb.jpg"))
    show(StepSkipped(126, 3, "the loss is not finite"))
    step(190, 1.842)
    pause()
    if story == "crash":
        raise RuntimeError("a bug")
    show.stopping("Ctrl-C")
    show(CheckpointSaved(190, 4, Path("runs/demo-1/checkpoints/last.pt"), 346_000_000, 0.9))
    show(RunEnded(190, 4, "stopped", "Ctrl-C", 101.0))
"""
FRAME_ENDS = ("╰─", "+-", "━━")  # of the panel, in ASCII, of the bar
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
SURROUNDINGS = ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")


def surroundings(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in SURROUNDINGS}
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **changes}


def script(story: str, folder: Path) -> list[str]:
    (folder / "story.py").write_text(STORY, encoding="utf-8")
    return [sys.executable, str(folder / "story.py"), story, str(folder)]


class OnTerminal(Screen):
    """A story in a pseudo-terminal, halted at its first pause."""

    def __init__(self, story: str, folder: Path, columns: int = 80, lines: int = 40, **changes: str) -> None:
        super().__init__(columns, lines)
        gate, self.gate = os.pipe()
        self.process = subprocess.Popen(
            script(story, folder),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=surroundings(GATE=str(gate), **changes),
            pass_fds=[gate],
            start_new_session=True,
        )
        os.close(self.slave)
        os.close(gate)

    def shows(self, text: str) -> bool:
        """In a whole frame: the cursor then stands below it."""
        cursor = self.screen.cursor
        return text in self.text() and not cursor.x and self.screen.display[cursor.y - 1][:2] in FRAME_ENDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def go_on(self) -> str:
        """Lift the pause and read to the end."""
        os.close(self.gate)
        while self.read():
            pass
        self.process.wait()
        return self.text()


def in_pipe(story: str, folder: Path, **changes: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(script(story, folder), capture_output=True, env=surroundings(**changes))


def test_the_panel_at_80_columns(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path) as terminal:
        lines = terminal.wait_for("1.842").splitlines()
        assert lines[:4] == [
            "clipcoco 0.1.0 · cpu, 2 threads",
            "",
            "  data    2,000 + 500 images, 10,000 + 2,500 captions; originals; 0 workers (on",
            "          a CPU the step needs them)",
        ]
        assert "warning: step 126 is skipped, the weights stay: the loss is not finite" in lines
        top = next(number for number, line in enumerate(lines) if line.startswith("╭"))
        panel = lines[top:]
        assert all(len(line) == 80 for line in panel), "the frame is torn"
        assert re.match(r"╭─ demo-1 · epoch 4 of 5 · \d+ s ─+╮", panel[0])
        assert re.match(r"│ ━+╸?─+   step 190 of 310   61 % │", panel[1])
        assert re.match(r"│ about .* left, done at \d\d:\d\d:\d\d +│", panel[2])
        assert "loss   1.842  ██▇▇▆▆▁" in panel[4]
        assert "chance          3.466" in panel[4]
        assert "lr      3.1e-04" in panel[4]
        assert "65 images/s" in panel[5]
        assert "waiting for data  3 %" in panel[5]
        assert "temp      0.069" in panel[5]
        assert panel[8] == "│  chance    3.466    0.20      0.20    1.00    2.00      0.20   1.00    2.00  │"
        assert panel[9] == "│       1    3.000    3.30      4.40   13.20   17.60      2.20   4.40    8.80* │"
        assert panel[10].startswith("│       2    3.000    2.40      3.20")
        assert "Ctrl-C saves and stops" in panel[11]
        end = terminal.go_on()
        assert end.endswith("Saved step 190 of 310 in 0.9 s.\nGo on with: clipcoco resume demo-1")
        assert end.count("╭") == 1, "a frame is left behind"
        assert "Ctrl-C saves" not in end
        assert not terminal.screen.cursor.hidden


def test_best_epoch_is_green_and_marked(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path) as terminal:
        terminal.wait_for("1.842")
        marked = [line for line, text in enumerate(terminal.screen.display) if "*" in text]
        assert [terminal.screen.buffer[line][30].fg for line in marked] == ["green"]
        terminal.go_on()


def test_the_panel_fits_a_narrow_and_low_terminal(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path, columns=62, lines=14) as terminal:
        panel = terminal.wait_for("1.842")
        rows = panel[panel.index("╭") :].splitlines()
        assert all(len(line) == 62 for line in rows)
        assert any("chance    3.466    0.20      0.20      0.20" in line for line in rows)
        assert "Go on with: clipcoco resume demo-1" in terminal.go_on()


@pytest.mark.parametrize("width", [80, 60, 50])
def test_a_panel_cuts_the_name_not_the_time_and_shows_the_page_whole(width: int) -> None:
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.0}
    step = {"loss": 1.2, "lr": 1e-3, "temperature": 0.07, "clock": {"images_per_second": 33.0, "data_wait": 0.01}}
    page = "runs/small-20261124-021502/report.html"
    view = panel.View(
        *("small-20261124-021502", "epoch 2 of 4 · 1 min 22 s", "Ctrl-C saves and stops", page, 10, 20, "3 min left"),
        *([3.0, 1.2], 4.1, {"i2t": recalls, "t2i": recalls}, None, step, []),
    )
    console = Console(width=width, file=io.StringIO())
    console.print(panel.draw(view, width, 40))
    lines = console.file.getvalue().splitlines()
    assert {len(line) for line in lines} == {width}
    assert lines[0].startswith("╭─ small-2")
    assert re.search(r"[0-9…] · epoch 2 of 4 · 1 min 22 s ─+╮$", lines[0])
    assert f"page {page}" in (lines[-1] if width == 80 else lines[3])
    assert "Ctrl-C saves and stops" in lines[-1]
    for figure in ("chance +4.100", "lr +1.0e-03", "speed +33 images/s", "waiting for data +1 %", "temp +0.070"):
        assert any(re.search(figure, line) for line in lines), figure  # on one line


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("error: no file. Get it: clipcoco prepare-data --root 'a b, c d', or use yours: --set data.root=DIR", 3),
        ("  a sentence of which the end, at 40 columns, is on the second line", 2),
        ("03:19:23 eval epoch 1 R@1 2.50 i2t 4.17/8.33/20.83", 2),
        ("名" * 30, 1),
        ("", 1),
    ],
)
def test_lines_are_broken_between_words_alone(line: str, shown: int) -> None:
    lines = wrapped(Text(line), 40).plain.split("\n")
    assert len(lines) == shown
    assert " ".join(part.strip() for part in lines) == line.strip()
    assert all(len(part) <= 40 or "clipcoco" in part or " " not in part for part in lines)
    assert all("clipcoco" not in part or part.endswith("'a b, c d',") for part in lines)
    indent = {"0": 9, " ": 2}.get(line[:1], 0)
    assert all(part.startswith(" " * indent) for part in lines[1:])


def test_below_60_columns_lines_not_a_panel(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path, columns=50) as terminal:
        end = terminal.go_on()
        assert "step 10/310 epoch 1/5 loss 3.300" in end
        assert "saved checkpoints/last.pt" in end
        assert "╭" not in end
        assert b"\x1b[?25l" not in terminal.written


def test_ascii_locale(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path, **ASCII_LOCALE) as terminal:
        panel = terminal.wait_for("1.842")
        assert "clipcoco 0.1.0 - cpu, 2 threads" in panel
        assert "+- demo-1 - epoch 4 of 5" in panel
        assert "loss   1.842  ##**++_" in panel
        terminal.go_on()
        assert terminal.written.isascii()
        assert b"?" not in re.sub(rb"\x1b\[\?", b"", terminal.written)
        assert terminal.process.returncode == 0


def test_resumed_panel_starts_with_what_was(tmp_path: Path) -> None:
    with OnTerminal("resumed", tmp_path) as terminal:
        panel = terminal.wait_for("step 62 of 310")
        assert "█▁" in panel
        assert "      1    3.000    3.30      4.40" in panel
        terminal.go_on()


@pytest.mark.parametrize("columns", [80, 60])
def test_the_features_of_a_frozen_backbone(tmp_path: Path, columns: int) -> None:
    with OnTerminal("features", tmp_path, columns=columns) as terminal:
        panel = terminal.wait_for("features of 64")
        rows = panel[panel.index("╭") :].splitlines()
        assert all(len(row) == columns for row in rows)
        inside = " ".join(row.strip("│ ") for row in rows)
        assert re.search(r"features of 64 of 11,829 images, about .* left, then the training", inside)
        assert "step 0 of 310    0 %" in rows[1]
        terminal.go_on()


def test_the_closed_form_stands_beside_the_epochs(tmp_path: Path) -> None:
    with OnTerminal("closed form", tmp_path) as terminal:
        terminal.wait_for("closed form of 2,048 of 11,829 images, then the training")
        os.write(terminal.gate, b"x")
        rows = terminal.wait_for("4.40").splitlines()
        [place] = [number for number, row in enumerate(rows) if row.startswith("│     CCA")]
        assert rows[place].split()[1:6] == ["CCA", "-", "2.70", "3.60", "10.80"]
        assert "chance" in rows[place - 1]
        assert rows[place + 1].split()[1] == "1"
        terminal.go_on()
    told = (tmp_path / "log.txt").read_text()
    assert "closed form (CCA, no training) R@1 2.70 i2t 3.60/10.80/14.40 t2i 1.80/3.60/7.20" in told


@pytest.mark.parametrize(
    ("columns", "name", "changes"),
    [
        (100, "copies of [red] pictures\\x1…", {}),
        (80, "copies of [red] pictures\\x1…", {}),
        (60, "copies of [red…", {}),
        (80, "copies of [red] pictures\\x1.", ASCII_LOCALE),
    ],
)
def test_bars_of_tasks(tmp_path: Path, columns: int, name: str, changes: dict[str, str]) -> None:
    with OnTerminal("tasks", tmp_path, columns=columns, **changes) as terminal:
        rows = terminal.go_on().splitlines()
        done, left = ("=", "-") if changes else ("━", "─")
        assert len(rows) == 4
        assert re.fullmatch(rf"  annotations_t\S+ {done}+ +253 MB  SHA-256 verified", rows[0])
        assert re.fullmatch(rf"  val2017.zip +{done}+[╸=]?{left}+ +408/816 MB  \S+ .B/s  \S+", rows[1])
        assert rows[2].startswith(f"  {name} ")
        assert re.search(r" 10,200/118,287  [\d,]+ img/s  \S+$", rows[2])
        assert "0/118,287  the connection " in rows[3]
        assert not terminal.screen.cursor.hidden
        assert not changes or terminal.written.isascii()


@pytest.mark.parametrize(("columns", "changes"), [(50, {}), (80, {"CI": "1"}), (80, {"TERM": "dumb"})])
def test_tasks_in_lines_where_nothing_may_move(tmp_path: Path, columns: int, changes: dict[str, str]) -> None:
    with OnTerminal("tasks", tmp_path, columns=columns, **changes) as terminal:
        told = " ".join(terminal.go_on().split())
        assert re.fullmatch(r"\d\d:\d\d:\d\d annotations_trainval2017.zip 253 MB SHA-256 verified", told)
        assert set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", terminal.written)) <= {b"m"}


def test_evaluation_alone_shows_a_bar_that_vanishes(tmp_path: Path) -> None:
    with OnTerminal("eval", tmp_path) as terminal:
        terminal.wait_for("encoding 100 of 500")
        assert terminal.go_on() == ""


def test_cursor_comes_back_after_a_crash(tmp_path: Path) -> None:
    with OnTerminal("crash", tmp_path) as terminal:
        terminal.wait_for("1.842")
        assert terminal.screen.cursor.hidden
        assert "RuntimeError: a bug" in terminal.go_on()
        assert not terminal.screen.cursor.hidden


def test_typed_ctrl_c_does_not_tear_the_frame(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path) as terminal:
        terminal.wait_for("1.842")
        terminal.screen.draw("^C")  # as the terminal echoes it, where the cursor stands
        end = terminal.go_on()
        assert end.count("╭") == end.count("╰") == 1
        assert "^C" not in end


@pytest.mark.parametrize("changes", [{"TERM": "dumb"}, {"TERM": "dumb", "FORCE_COLOR": "1"}, {"CI": "true"}])
def test_terminals_that_must_not_be_animated(tmp_path: Path, changes: dict[str, str]) -> None:
    with OnTerminal("run", tmp_path, **changes) as terminal:
        assert "Go on with: clipcoco resume demo-1" in terminal.go_on()
        moves = set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", terminal.written))
        assert moves <= (set() if "TERM" in changes else {b"m"})


def test_no_color_still_animates(tmp_path: Path) -> None:
    with OnTerminal("run", tmp_path, NO_COLOR="1") as terminal:
        terminal.wait_for("1.842")
        terminal.go_on()
        assert b"\x1b[?25l" in terminal.written
        assert not COLOURS.search(terminal.written)


def test_plain_lines_in_a_pipe(tmp_path: Path) -> None:
    done = in_pipe("run", tmp_path)
    assert done.stdout == b""
    text = done.stderr.decode()
    assert "\x1b" not in text
    assert "\r" not in text
    clock = r"\d\d:\d\d:\d\d "
    expected = [
        "clipcoco 0.1.0 · cpu, 2 threads",
        "",
        r"  data    2,000 \+ 500 images, 10,000 .* the step needs them\)",
        "  run     runs/demo-1",
        "",
        clock + r"step 10/310 epoch 1/5 loss 3.300 lr 3.1e-04 img/s 65 wait 3%",
        clock + r"eval epoch 1 R@1 3.30 i2t 4.40/13.20/17.60 t2i 2.20/4.40/8.80 best",
        clock + r"eval epoch 2 R@1 2.40 i2t 3.20/9.60/12.80 t2i 1.60/3.20/6.40",
        clock + r"saved checkpoints/last.pt \(346 MB, 0.4 s\)",
        r"warning: a\\x1b\[2Jb.jpg cannot be read; another image takes its place",
        r"warning: step 126 is skipped, the weights stay: the loss is not finite",
        r"Ctrl-C: stopping after this step, then saving. One more Ctrl-C stops now.",
        clock + r"saved checkpoints/last.pt \(346 MB, 0.9 s\)",
        r"Saved step 190 of 310 in 0.9 s.",
        r"Go on with: clipcoco resume demo-1",
    ]
    lines = text.splitlines()
    assert len(lines) == len(expected), text
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_the_time_left_for_features_is_of_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("clipcoco.console.run.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("clipcoco.console.run.LINE_SECONDS", 0.0)
    lines: list[str] = []
    with RunConsole(open_terminal(plain=True), lines.append) as show:
        for done, total in ((128, 256), (256, 256), (128, 512), (256, 512)):
            clock[0] += 10
            show(Progress("features", done, total))
    assert lines == ["features 128/256", "features 256/256", "features 128/512", "features 256/512 eta 20s"]


def test_log_holds_the_same_lines_with_panel_and_without(tmp_path: Path) -> None:
    logs = []
    for name in ("pipe", "terminal"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "pipe":
            in_pipe("run", folder)
        else:
            with OnTerminal("run", folder) as terminal:
                terminal.go_on()
        lines = (folder / "log.txt").read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line) for line in lines)
        logs.append([line[20:] for line in lines])
    assert logs[0] == logs[1]
    assert "saved checkpoints/last.pt (346 MB, 0.9 s)" in logs[0]


def test_force_color_colours_a_pipe_but_never_moves_its_cursor(tmp_path: Path) -> None:
    text = in_pipe("run", tmp_path, FORCE_COLOR="1").stderr
    assert b"\x1b[33mwarning: " in text
    assert set(re.findall(rb"\x1b\[[0-9;?]*([A-Za-z])", text)) == {b"m"}
    assert b"\x1b" not in in_pipe("run", tmp_path, FORCE_COLOR="1", TERM="dumb").stderr
    both = in_pipe("run", tmp_path, FORCE_COLOR="1", NO_COLOR="1").stderr
    assert b"warning: " in both
    assert not COLOURS.search(both)


def test_lines_in_a_pipe_stay_whole_in_colour(tmp_path: Path) -> None:
    code = "from clipcoco.console import open_terminal, show; show(open_terminal().err, 'word ' * 60 + 'end')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=surroundings(FORCE_COLOR="1")
    )
    assert done.stderr == "word " * 60 + "end\n"


def test_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    process = subprocess.Popen(script("run", tmp_path), stderr=subprocess.PIPE, env=surroundings())
    assert process.stderr
    process.stderr.close()
    assert process.wait(60) == 0
    assert "Go on with: clipcoco resume demo-1" in (tmp_path / "log.txt").read_text()


def test_error_line_is_one_line_a_mistake(tmp_path: Path) -> None:
    code = r"from clipcoco.console import error_line; error_line('no \x1b[2J setting', 'no\n\xb7 file' + ' x' * 99)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=surroundings(**ASCII_LOCALE))
    assert done.stderr.decode() == f"error: no \\x1b[2J setting\nerror: no\\n- file{' x' * 99}\n"
    assert done.stdout == b""


def test_console_imports_no_torch() -> None:
    modules = "clipcoco.console, clipcoco.runs.metrics, clipcoco.runs.tensorboard"
    code = f"import sys, {modules}; print({{'torch', 'tensorboard'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_recall_table_at_80_columns() -> None:
    half = {"r1": [27.3, 35.5], "r5": [64.1, 72.3], "r10": [79.3, 85.9]}
    recalls = {
        "i2t": {"r1": 31.4, "r5": 68.2, "r10": 82.6, "median_rank": 3.0},
        "t2i": {"r1": 100.0, "r5": 100.0, "r10": 100.0, "median_rank": 1.5},
        "chance": {
            direction: {"r1": 0.2, "r5": 1.0, "r10": 2.0, "median_rank": rank}
            for direction, rank in (("i2t", 324.0), ("t2i", 250.5))
        },
        "interval": {"i2t": half, "t2i": {**half, "r1": [60.0, 90.0]}},
        "images": 5014,
        "captions": 25082,
        "ties": 0,
        "folds": 1,
        "dropped": 0,
    }
    table = [line.plain for line in recall_tables("shapes val", {"own": recalls}, "epoch 5 is the best")]
    assert table == [
        "  shapes val             R@1           R@5          R@10    median rank",
        "  image -> text  31.40 ± 4.1   68.20 ± 4.1   82.60 ± 3.3              3",
        "  text -> image 100.00 ±15.0  100.00 ± 4.1  100.00 ± 3.3            1.5",
        "  mean           65.70         84.10         91.30",
        "  chance          0.20          1.00          2.00          324 / 250.5",
        "",
        "  5,014 images, 25,082 captions, ties are misses; epoch 5 is the best",
        "  ± 95 % interval over images",
        "",
    ]
    folds = {**recalls, "folds": 5, "dropped": 14, "ties": 3, "order": "hashed ids"}
    both = [line.plain for line in recall_tables("val2017", {"own": recalls, "1k": folds})]
    assert both[14:16] == [
        "  1k: mean of 5 folds of 1,000 images in the order of their hashed ids",
        "  14 left out; 5,014 images, 25,082 captions, ties are misses (3)",
    ]
    assert max(map(len, both)) <= 80


def test_no_recall_is_shown_as_certain() -> None:
    halves = [say_half([100 - width, 100]) for width in (30.0, 3.8, 0.2, 0.08, 0.02, 0.001, 0.0)]
    assert halves == ["15.0", "1.9", "0.1", "0.04", "0.01", "0.01", "0.01"]


def test_a_gallery_of_a_thousand_is_shown_once() -> None:
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.0, "median_rank": 4.0}
    ways = {"i2t": recalls, "t2i": recalls}
    entry = {**ways, "chance": ways, "images": 1000, "captions": 5000, "folds": 1, "dropped": 0, "order": "ids"}
    once = recall_tables("val2017", {"own": entry})
    assert recall_tables("val2017", {"own": entry, "1k": entry}) == once
    assert len(recall_tables("val2017", {"own": entry, "1k": {**entry, "dropped": 500}})) == 2 * len(once) + 1
    assert "one fold of 1,000" in str(recall_tables("val2017", {"1k": entry})[6])  # asked for by itself


def test_a_table_shows_what_it_is_given_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")  # of which rich thinks that it has 80 columns
    columns = {"name": ["x" * 100, "[red]名"], "[b]": ["1", "22"]}
    cut, whole = ([line.plain for line in table(columns, width, ["[b]"], {"name": 6})] for width in (0, 120))
    assert cut == ["  name    [b]", "  xxxxx…    1", "  [red]…   22"]
    assert whole[1:] == [f"  {'x' * 100}    1", f"  {'[red]名':<99}   22"]


def test_summary_rows_align() -> None:
    rows = summary_rows([("report", "runs/a/report.html"), ("next", "clipcoco eval a")])
    assert [row.plain for row in rows] == ["  report  runs/a/report.html", "  next    clipcoco eval a"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0.4 s"),
        (2.0, "2 s"),
        (59.6, "1 min"),
        (101, "1 min 41 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, said: str) -> None:
    assert say_seconds(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"), [(12, "12 B"), (346e6, "346 MB"), (999.9e6, "1.0 GB"), (19.3e9, "19.3 GB"), (1500, "1.5 kB")]
)
def test_sizes(count: float, said: str) -> None:
    assert say_bytes(count) == said


def test_printable_writes_out_what_would_steer_a_terminal() -> None:
    assert printable("a\x1b]0;x\x07\n\u202e\udcff é日") == "a\\x1b]0;x\\x07\\n\\u202e\\udcff é日"

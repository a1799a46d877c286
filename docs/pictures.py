"""Pictures of the terminal for the README, drawn from recorded output of real commands.

`python docs/pictures.py` draws docs/pictures/NAME.svg from docs/pictures/NAME.txt; `--check` only says whether
they are what the recordings give; `--record` first runs the commands again, which trains a demo: some minutes.
"""

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from clipcoco.console.terminal import wrapped

FOLDER = Path(__file__).with_suffix("")
COLUMNS = 88
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
SEARCH = 'clipcoco search "a blue star above a red square"'
# In this order, in an empty folder; the last of each name is what the picture shows.
STEPS = (
    ("", "clipcoco prepare-data --preset demo"),
    ("train", "clipcoco train --preset demo"),
    ("search", SEARCH),  # encodes the pictures
    ("search", SEARCH),
    ("", "clipcoco train --preset demo --name one-epoch train.epochs=1"),
    ("runs", "clipcoco runs"),
)
COMMANDS = {name: command for name, command in STEPS if name}
THEME = TerminalTheme(
    (27, 31, 36),
    (222, 226, 230),
    [
        (27, 31, 36),
        (240, 113, 120),
        (127, 200, 130),
        (229, 192, 100),
        (120, 170, 240),
        (200, 150, 220),
        (110, 190, 200),
        (222, 226, 230),
    ],
)
# As rich's own, but with the reader's fonts: nothing is fetched from anywhere.
FORMAT = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
# What differs from run to run, and the word that stands for it where shapes are compared.
MASKS = (
    (r"^clipcoco .*", "versions and device"),
    (r"^  (data|model|train) .*", r"\1"),
    (r" best$", ""),
    (r"^ +\d+ +-?0\.\d{3}  \S+  .*", "rank score file caption"),
    (r"^  \S+( +(?:finished|stopped) +\S+ +\S+ +\S+) +\S+ +(?:just now|\d+ \w+ ago)$", r"run\1 took when"),
    (r"± *", "± "),
    (r"ties are misses \([\d,]+\)", "ties are misses"),
    (r"\d[\d.,]*", "0"),
    (r"\b0 (min 0 s|min|ms|s)\b", "duration"),
    (r"runs/\S+", "path"),
)


def record(folder: Path) -> dict[str, str]:
    """Run all commands in `folder`; what a terminal would show, as text with styles."""
    shown = {}
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI")} | TERMINAL
    for name, command in STEPS:
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
        shown[name] = done.stdout.decode()
    return {name: shown[name] for name in COMMANDS}


def picked(text: str) -> list[str]:
    """The lines of a picture: of a run's progress only the evaluations."""
    lines = text.strip("\n").split("\n")
    return [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (step|saved|encoding) ", line)]


def shape(text: str) -> set[str]:
    """The lines of a picture without styles, spacing, and what differs from run to run."""
    shapes = set()
    for line in picked(text):
        plain = Text.from_ansi(line).plain
        for pattern, word in MASKS:
            plain = re.sub(pattern, word, plain)
        shapes.add(" ".join(plain.split()))
    return shapes


def draw(name: str, text: str) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in picked(text):
        console.print(wrapped(Text.from_ansi(line), COLUMNS))
    console.print()
    return console.export_svg(title=COMMANDS[name], theme=THEME, code_format=FORMAT, unique_id=name)


def main() -> None:
    if "--record" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in record(Path(folder)).items():
                (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
    for name in COMMANDS:
        file = FOLDER / f"{name}.svg"
        picture = draw(name, file.with_suffix(".txt").read_text(encoding="utf-8"))
        if "--check" not in sys.argv:
            file.write_text(picture, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != picture:
            sys.exit(f"{file} is not what its recording gives. Run: make docs")


if __name__ == "__main__":
    main()

"""How long commands take to begin, against another commit: CPU seconds, in turn, medians.

    git worktree add /tmp/other COMMIT
    python benchmarks/startup.py /tmp/other RUN [--rounds 7] [--data DIR]

RUN is a run directory whose index both may write; --data is where its pictures are. `first line` is what a person at a
terminal waits for, in CPU and in clock seconds; open_clip's help is the peer's, where it is installed with what it
trains with; `eval` measures one image in fifty, so that its start is most of it.
"""

import argparse
import importlib.util
import os
import pty
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert not process.returncode, said.decode()
    return used.ru_utime + used.ru_stime


def until_first_line(command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of the process when its first line is on the terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        os.read(master, 1)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
    os.close(master)
    return (int(fields[11]) + int(fields[12])) / TICK


def commands_of(run: str, data: Path | None) -> dict[str, list[str]]:
    """What is measured, by name."""
    changes = ["--set", f"data.root={data.absolute()}"] if data else []
    program = [sys.executable, "-m", "clipcoco"]
    words = [*program, "search", "a red star", "--run", run, *changes]
    return {
        **(
            {"open_clip --help": [sys.executable, "-m", "open_clip_train.main", "--help"]}
            if _has("open_clip_train")
            else {}
        ),
        "--help": [*program, "--help"],
        "train --help": [*program, "train", "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "search, with words": words,
        "search, first line": words,
        "eval --fraction 0.02": [*program, "eval", run, "--fraction", "0.02", *changes],
        "clipcoco.load": [sys.executable, "-c", f"import clipcoco; clipcoco.load({run!r})"],
    }


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    commands = commands_of(str(given.run), given.data)
    checkouts = {"other": given.other, "this": Path(__file__).parents[1]}
    taken: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as bytecode:
        for turn in range(given.rounds + 1):
            for what, command in commands.items():
                for name, checkout in checkouts.items():
                    environment = os.environ | {
                        "PYTHONPATH": os.pathsep.join((str(checkout / "src"), os.environ.get("PYTHONPATH", ""))),
                        "PYTHONPYCACHEPREFIX": f"{bytecode}/{name}",
                        "PYTHONDONTWRITEBYTECODE": "",
                        "OMP_NUM_THREADS": "1",
                        "TERM": "xterm",
                    }
                    measure = until_first_line if what.endswith("first line") else cpu_seconds
                    seconds = measure(command, environment)
                    if turn:  # the first writes bytecode and the index
                        taken.setdefault((what, name), []).append(seconds)
    print("| CPU seconds, median (least to most) | other | this | this / other |")
    print("| --- | --- | --- | --- |")
    for what in commands:
        cells, middle = [], []
        for name in checkouts:
            seconds = taken[what, name]
            middle.append(statistics.median(seconds))
            cells.append(f"{middle[-1]:.2f} ({min(seconds):.2f} to {max(seconds):.2f})")
        print(f"| {what} | {' | '.join(cells)} | {middle[1] / middle[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()

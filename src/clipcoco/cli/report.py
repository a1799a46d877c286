"""`clipcoco report`."""

from collections.abc import Callable
from contextlib import suppress

from clipcoco.cli.evaluate import measure_best
from clipcoco.cli.options import RUNS, Debug, Device, Json, Run, RunsDir, print_json, split_words
from clipcoco.config.load import load_config
from clipcoco.console import Terminal, open_terminal, printable, show, summary_rows
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError, ExitCode, broken_package
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import find_run


def report(
    words: Run = None,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Write the page of a run, report.html; measures its best checkpoint first, unless that is done.

    [bold]clipcoco report[/bold]

    [bold]clipcoco report small --device cpu[/bold]
    """
    from clipcoco.report.page import is_measured, write_report

    word, bare = split_words(words)
    if bare:
        raise ConfigError(f"a report changes no setting: {bare[0]} (command line). Leave it out")
    found = find_run(runs_dir, word)
    if found.run is None:
        raise CheckpointError(f"{found.checkpoint} is not in a run directory, and a report is of a run. Name a run")
    run, terminal = found.run, open_terminal()
    measured = (run.checkpoints / "best.pt").exists() and not is_measured(run) and _measure(run, device, terminal)
    path = write_report(run)
    if json_:
        print_json({"schema": 1, "run": run.name, "report": str(path), "measured": measured})
    else:
        show(terminal.out, *summary_rows([("report", str(path)), ("figures", str(run.figures))]))
    return ExitCode.OK


def _measure(run: RunDir, device: str | None, terminal: Terminal) -> bool:
    """Whether that was possible; if not, a line says why, and the page will do without."""
    data = None
    with suppress(ConfigError):  # where config.yaml says that the data are: a resume may have noted a new place there
        data = load_config(file=run.config).config.data
    try:
        measure_best(run, data, device, terminal)
    except ClipcocoError as error:
        show(terminal.err, f"note: {run.name} is not measured: {printable(str(error))}")
        return False
    return True


def write_or_warn(run: RunDir, tell: Callable[[str], object]) -> None:
    """What was trained and measured is not lost on a page that can't be drawn or written."""
    try:
        from clipcoco.report.page import write_report

        write_report(run)
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) else broken_package(error)
        if not why:
            raise
        tell(f"warning: no report: {why} ({run.report})")

"""What a person sees of a command. No torch in here: `--help` must answer at once."""

from clipcoco.console.run import RunConsole
from clipcoco.console.tables import composition_table, extended_tables, recall_tables
from clipcoco.console.tasks import TaskConsole
from clipcoco.console.terminal import (
    Terminal,
    error_line,
    open_terminal,
    printable,
    show,
    summary_rows,
    table,
    table_or_blocks,
    wrapped,
)
from clipcoco.say import say_bytes, say_half, say_seconds, short_seconds

__all__ = ["RunConsole", "TaskConsole", "Terminal", "composition_table", "error_line", "extended_tables"]
__all__ += ["open_terminal", "printable", "recall_tables", "say_bytes", "say_half", "say_seconds", "short_seconds"]
__all__ += ["show", "summary_rows", "table", "table_or_blocks", "wrapped"]

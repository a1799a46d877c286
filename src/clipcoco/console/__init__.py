"""What a person sees of a command. No torch in here: `--help` must answer at once."""

from clipcoco.console.run import RunConsole
from clipcoco.console.tasks import TaskConsole
from clipcoco.console.terminal import (
    Terminal,
    composition_table,
    error_line,
    open_terminal,
    printable,
    recall_tables,
    show,
    summary_rows,
    table,
    table_or_blocks,
    wrapped,
)
from clipcoco.say import say_bytes, say_half, say_seconds, short_seconds

<<<<<<< HEAD
__all__ = ["RunConsole", "TaskConsole", "Terminal", "error_line", "open_terminal", "printable", "recall_tables"]
__all__ += ["composition_table", "say_bytes", "say_half", "say_seconds", "short_seconds", "show", "summary_rows"]
__all__ += ["table", "table_or_blocks", "wrapped"]
=======
__all__ = ["RunConsole", "TaskConsole", "Terminal", "composition_table", "error_line", "open_terminal", "printable"]
__all__ += ["recall_tables", "say_bytes", "say_half", "say_seconds", "short_seconds", "show", "summary_rows", "table"]
>>>>>>> 94ffa74 (Accuracies on false captions of a damaged or stranger's record pair only what is the same)

"""`python -m clipcoco` and the `clipcoco` command."""

import gc
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # of what was ignored, as by nohup, we hear nothing
            # During the imports, which turn what is raised in them into errors; then the command line decides.
            signal.signal(number, lambda *_: os._exit(143))
    _open_streams()
    gc.set_threshold(10_000)  # what imports and tables make stays: by default Python looks through all of it six times
    if "WORLD_SIZE" in os.environ:  # what torch's libraries say of a process that is gone, clipcoco says in one line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from clipcoco.cores import openmp
        from clipcoco.errors import broken_package

        os.environ.update(openmp())  # torch reads it when it is loaded

        try:
            from clipcoco.cli import run
        except Exception as error:  # the command line's own packages: they raise anything
            problem = broken_package(error)
            if problem is None:
                raise
            sys.stderr.write(f"error: {problem}\n")
            sys.exit(problem.exit_code)
        code = run(sys.argv[1:])
        gc.freeze()  # what is there now stays to the end: without it Python looks through all of torch before it leaves
    except KeyboardInterrupt:  # during the imports, before the command line has its own answer
        code = 130
    sys.exit(code)


def _open_streams() -> None:
    """A daemon may have none: the first files to be opened would take their numbers, and be written into."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


if __name__ == "__main__":
    main()

"""`python -m clipcoco`, `torchrun -m clipcoco` and the `clipcoco` command."""

import sys


def main() -> None:
    try:
        from clipcoco.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # during the imports, before the command line has its own answer
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()

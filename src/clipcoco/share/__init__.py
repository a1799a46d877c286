"""A model and its pictures as one HTML file, which searches in any browser, offline. No torch in here."""

from pathlib import Path

from clipcoco.errors import ConfigError

MARK = b'<meta name="generator" content="clipcoco share">'


def check_output(path: Path) -> None:
    """Raise ConfigError for a file that can't be made, or that is there and is no page of ours."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path} does not end in .html, by which a browser knows it (--output). Name it so")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.absolute().parent} is not a folder (--output). Make it first")
    if path.exists() and not (path.is_file() and _is_ours(path)):
        raise ConfigError(f"{path} exists already and was not made by clipcoco share (--output). Take another name")


def _is_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        return MARK in file.read(4096)

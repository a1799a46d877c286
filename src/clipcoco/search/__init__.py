"""A sentence or a picture -> the nearest pictures, of a run's validation set or of any folder."""

from pathlib import Path

from clipcoco.errors import ConfigError, DataError


def check_words(words: str) -> None:
    """Raise ConfigError for a query that says nothing."""
    if not any(character.isprintable() and not character.isspace() for character in words):
        raise ConfigError('the query is empty (command line). Say what is in the picture: clipcoco search "a dog"')


def check_picture(path: Path) -> None:
    """Raise DataError unless it is a file; a pipe would be waited for."""
    if not path.is_file():
        raise DataError(f"{path} is not a file (--image). Give a JPEG or PNG file")


def check_folder(folder: Path) -> None:
    """Raise DataError for what is not a folder."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what} (--images). Give a folder of pictures")

"""A sentence or a picture -> the nearest pictures, of a run's validation set or of any folder."""

from pathlib import Path

from clipcoco.errors import ConfigError, DataError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # how their files begin


def check_words(words: str) -> None:
    """Raise ConfigError for a query that says nothing."""
    if not any(character.isprintable() and not character.isspace() for character in words):
        raise ConfigError('the query is empty (command line). Say what is in the picture: clipcoco search "a dog"')


def check_picture(path: Path) -> None:
    """Raise DataError unless it is a file, which a pipe is not, that begins as a JPEG or a PNG does."""
    if not path.is_file():
        raise DataError(f"{path} is not a file (--image). Give a JPEG or PNG file")
    try:
        with open(path, "rb") as file:
            head = file.read(len(PNG))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror} (--image). Give a JPEG or PNG file") from error
    if not head.startswith((JPEG, PNG)):
        what = "neither a JPEG nor a PNG image"
        raise DataError(f"{path} can't be read: {what} (--image). Give a whole JPEG or PNG file")


def check_folder(folder: Path) -> None:
    """Raise DataError for what is not a folder."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what} (--images). Give a folder of pictures")

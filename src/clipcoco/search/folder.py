"""A folder of open_clip's kind, which a stranger may have made: whether it stays within itself.

No code of its own, no link, no file and no model from elsewhere; decided on what its JSON files say, not on how they
spell it.
"""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipcoco.config.text import expanded
from clipcoco.disk.files import read_own
from clipcoco.disk.links import refuse_links
from clipcoco.errors import CheckpointError, ConfigError, EnvironmentProblem

LOCAL = "local-dir:"
HOW = (
    "Make a folder of it once, where there is a network: hf download OWNER/NAME --local-dir FOLDER, "
    "then --model local-dir:FOLDER"
)
_LISTS = ("tokenizer.json", "vocab.json", "added_tokens.json")  # words and their numbers: any word may be among them
_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
_OWN_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_CLEANING = ("clean", "strip_sep_token")  # what open_clip itself takes of tokenizer_kwargs; SigLIP needs it


def named_folder(words: str) -> Path:
    """What --model names. Raises ConfigError for anything but a folder."""
    if not words.startswith(LOCAL):
        raise ConfigError(f"'{words}' is not a folder, and search downloads nothing (--model). {HOW}")
    return expanded(words.removeprefix(LOCAL))


def check_model(words: str) -> None:
    """What can be told of --model without torch.

    Raises ConfigError, CheckpointError for what no model of open_clip can be, and EnvironmentProblem without open_clip.
    """
    sizes(read_description(named_folder(words)))
    try:
        there = importlib.util.find_spec("open_clip") is not None
    except ValueError:  # somebody has put another in its place
        there = False
    if not there:
        raise needs("open_clip")


def needs(package: str) -> EnvironmentProblem:
    get = "'clipcoco[export]'" if package == "open_clip" else package
    return EnvironmentProblem(
        f"this model needs {package}, which is not installed (--model). Get it: pip install {get}"
    )


def sizes(description: Any) -> tuple[int, int]:
    """D, and the tokens of a text."""
    try:
        model = description["model_cfg"]
        width, length = model["embed_dim"], model["text_cfg"].get("context_length", 77)
    except (KeyError, TypeError, AttributeError):
        width = length = None
    if not (type(width) is type(length) is int and 1 <= width <= 2**16 and 3 <= length <= 4096):
        raise CheckpointError(f"open_clip_config.json has no usable model_cfg.embed_dim or .text_cfg (--model). {HOW}")
    return width, length


def read_description(folder: Path) -> Any:
    """What open_clip_config.json says. Raises CheckpointError for a folder that reaches beyond itself."""
    config = folder / "open_clip_config.json"
    description = _read(config)
    refuse_links(folder.resolve(), CheckpointError)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".json" and path.name.lower() not in _LISTS and path.is_file():
            found = list(_pairs(_read(path)))
            code = any(key.casefold() in _CODE for key, _ in found)
            problems = ["asks to run code of its own"] if code else [_reaches(folder, *pair) for pair in found]
            if any(problems):
                raise CheckpointError(f"{path} {max(problems)} (--model). Use another model")
    return description


def _reaches(folder: Path, key: str, value: Any) -> str:
    """Half a sentence on what makes `key` reach beyond the folder; "" when nothing does."""
    name = key.casefold()
    if name == "tokenizer_kwargs" and value:
        known = isinstance(value, dict) and all(
            option in _CLEANING and isinstance(given, str | bool) for option, given in value.items()
        )
        return "" if known else "sets options of its tokenizer, tokenizer_kwargs"
    if name == "hf_tokenizer_name" and value and not any((folder / own).is_file() for own in _OWN_TOKENIZER):
        return f"names a tokenizer that the folder does not hold, {value!r:.80}"
    if name == "hf_model_name" and value and not Path(str(value)).resolve().is_relative_to(folder.resolve()):
        return f"names a model that the folder does not hold, {value!r:.80}"
    if name == "timm_model_name" and value and not (isinstance(value, str) and re.fullmatch(r"[\w.-]+", value)):
        return f"names a model that the folder does not hold, {value!r:.80}"
    if name.endswith(("_file", "_files")):  # of a tokenizer
        names = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and ("/" in one or "\\" in one) for one in names):
            return f"names a file elsewhere, {value!r:.80}"
    return ""


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of all objects in a JSON value, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _read(path: Path) -> Any:
    try:
        return json.loads(read_own(path), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} can't be read: {why.splitlines()[0][:200]} (--model). {HOW}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two entries of one name they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found

"""HTML from a template: whatever a caption or a name says, it stands there as text, and turns nothing around."""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any


def template(package: str, name: str = "page.html.j2", filters: Mapping[str, Callable[..., Any]] = {}) -> Any:
    """The template `name` of `package`. Raises jinja2.UndefinedError when it is rendered with a name missing."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # slow to import

    files = resources.files(package)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
        loader=FunctionLoader(lambda part: files.joinpath(part).read_text("utf-8")),
    )
    environment.filters |= filters
    return environment.get_template(name)


def _plain(value: object) -> object:
    """Texts without characters that steer: controls, overrides of the direction, halves of others."""
    if type(value) is not str or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in value)

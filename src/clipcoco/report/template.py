"""HTML from a template: whatever a caption or a name says, it stands there as text, and turns nothing around."""

from importlib import resources
from typing import Any


def template(package: str, **filters: Any) -> Any:
    """page.html.j2 of `package`. Raises jinja2.UndefinedError when it is rendered with a name missing."""
    from jinja2 import Environment, StrictUndefined  # slow to import

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_plain
    )
    environment.filters |= filters
    return environment.from_string(resources.files(package).joinpath("page.html.j2").read_text("utf-8"))


def _plain(value: object) -> object:
    """Texts without characters that steer: controls, overrides of the direction, halves of others."""
    if type(value) is not str or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in value)

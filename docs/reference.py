"""Writes docs/reference.md from the program itself; `--check` only says whether it is as it should be."""

import re
import sys
from pathlib import Path

import typer

from clipcoco.cli import app
from clipcoco.config.load import presets_folder
from clipcoco.config.schema import Config, Section
from clipcoco.errors import ExitCode

PAGE = Path(__file__).with_suffix(".md")
EXITS = {
    ExitCode.OK: "done",
    ExitCode.BUG: "a bug of ours",
    ExitCode.CONFIG: "usage or configuration",
    ExitCode.DATA: "data",
    ExitCode.CHECKPOINT: "a checkpoint",
    ExitCode.ENVIRONMENT: "disk, device, permission, lock or network",
    ExitCode.NUMERIC: "numbers that are not finite",
    ExitCode.DISTRIBUTED: "several processes",
    ExitCode.STOPPED: "stopped by a signal, saved; `clipcoco resume` goes on",
    ExitCode.INTERRUPTED: "Ctrl-C with nothing to save",
    ExitCode.TERMINATED: "SIGTERM with nothing to save",
}


def commands() -> list[str]:
    lines = []
    for name, command in typer.main.get_command(app).commands.items():
        told = re.sub(r"\[/?bold\]", "`", command.help or "").strip()
        first, *rest = (part.strip() for part in told.split("\n\n"))
        lines += [f"### {name}", "", first, "", *[f"    {part.strip('`')}" for part in rest], ""]
        lines += ["| option | meaning |", "|---|---|"]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            meaning, words = parameter.help or "", f"`{parameter.metavar}`"
            if parameter.opts[0].startswith("-"):
                words = ", ".join(f"`{option}`" for option in parameter.opts)
                if not parameter.is_flag:
                    words += f" {parameter.metavar or parameter.opts[0].strip('-').replace('-', ' ').upper()}"
                    if parameter.show_default and parameter.default not in (None, ""):
                        meaning += f" Default: `{parameter.default}`."
            lines.append(f"| {words} | {meaning} |")
        lines.append("")
    return lines


def settings() -> list[str]:
    """The file of all defaults, with what the schema allows: each setting's home is there."""
    lines = ["| setting | default | allowed | |", "|---|---|---|---|"]
    path: list[str] = []
    for line in (presets_folder() / "base.yaml").read_text().splitlines():
        found = re.fullmatch(r"( *)(\w+):(?: +([^#]*?))?(?: *# *(.*))?", line)
        if not found or line.startswith("#"):
            continue
        indent, key, value, comment = found.groups()
        path = [*path[: len(indent) // 2], key]
        if value:
            allowed = _allowed(path).replace("|", "\\|")
            lines.append(f"| `{'.'.join(path)}` | `{value}` | {allowed} | {comment or ''} |")
    return lines


def _allowed(path: list[str]) -> str:
    section: type[Section] = Config
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    schema = section.model_json_schema()["properties"][path[-1]]
    return _say(schema)


def _say(schema: dict) -> str:
    if "anyOf" in schema:
        return " or ".join(_say(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "array":
        return f"{schema['minItems']} values, each {_say(schema['items'])}"
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}[schema["type"]]
    limits = [
        f"{sign} {schema[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([kind, ", ".join(limits)]).strip()


def page() -> str:
    return "\n".join(
        [
            "# Reference",
            "Written by `make docs` from the program itself; `make lint` fails when the two differ.",
            "",
            "## Commands",
            *commands(),
            "## Settings",
            "Every setting there is, with its default from [presets/base.yaml](../presets/base.yaml). "
            "`clipcoco inspect-config NAME` shows where each value of a preset comes from; "
            "`--set KEY=VALUE` changes one.",
            "",
            *settings(),
            "",
            "## Exit codes",
            "| code | meaning |",
            "|---|---|",
            *[f"| {int(code)} | {meaning} |" for code, meaning in EXITS.items()],
            "",
        ]
    )


if __name__ == "__main__":
    assert set(EXITS) == set(ExitCode)
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.is_file() or PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the program says. Run: make docs")

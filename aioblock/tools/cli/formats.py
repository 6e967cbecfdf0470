"""`formats`: which formats there are, and what options they take."""

from typing import TYPE_CHECKING, Any

import click

from .failures import Failure
from .format_choice import creatable, format_names
from .parameters import FormatName
from .quantities import human
from .subcommand import subcommand

if TYPE_CHECKING:
    from aioblock import CreateOption

    from .terminal import Terminal

__all__ = ["command"]

_VALUES = {"size": "size", "int": "number", "bool": "on, off", "str": "text"}


@subcommand("formats", short_help="what formats there are, and their options")
@click.argument("format", type=FormatName(), metavar="[FORMAT]", required=False)
def command(terminal: "Terminal", format: str | None) -> None:
    """List the formats that are known here, or the options of one FORMAT.

    The options are those of 'create' and 'convert' (-o), and of 'amend'.
    """
    if format is None:
        _list(terminal)
        return
    import aioblock

    if format not in format_names():
        raise Failure(f"Format '{format}' is not known here", hint="'aioblock formats' lists those that are.")
    driver = aioblock.find_driver(format)
    terminal.result(
        {
            "format": format,
            "create_options": [_as_json(option) for option in driver.create_options],
            "amend_options": [_as_json(option) for option in driver.amend_options],
        }
    )
    for title, options in (
        (f"Options of new {format} images", driver.create_options),
        (f"Options of {format} images that can be changed later (aioblock amend)", driver.amend_options),
    ):
        if options:
            terminal.heading(title)
            rows = [(option.name, _VALUES[option.kind], _default(option), option.help) for option in options]
            terminal.table(("Option", "Value", "Default", "What it is"), rows)


def _list(terminal: "Terminal") -> None:
    import aioblock

    rows, documents = [], []
    for name in format_names():
        driver = aioblock.find_driver(name)
        can = {
            "create": creatable(name),
            "backing_file": driver.supports_backing,
            "amend": bool(driver.amend_options),
        }
        documents.append({"format": name, **can})
        rows.append((name, *("yes" if value else "no" for value in can.values())))
    terminal.result({"formats": documents})
    terminal.table(("Format", "Can be made", "Backing files", "Can be amended"), rows)


def _default(option: "CreateOption") -> str:
    value = option.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return human(value) if option.kind == "size" else str(value)


def _as_json(option: "CreateOption") -> dict[str, Any]:
    return {"name": option.name, "kind": option.kind, "default": option.default, "help": option.help}

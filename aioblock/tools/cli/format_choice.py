"""Which format a new image has: what the suffix of its name means, which formats there are, and their options."""

import os
from typing import TYPE_CHECKING, Any

from .failures import Failure

if TYPE_CHECKING:
    from aioblock import CreateOption

    from .terminal import Terminal

__all__ = ["creatable", "format_names", "guessed_format", "option_values", "suffix_format"]

_SUFFIXES = {
    ".bin": "raw",
    ".dd": "raw",
    ".hdd": "parallels",
    ".hds": "parallels",
    ".img": "raw",
    ".luks": "luks",
    ".qcow2": "qcow2",
    ".qed": "qed",
    ".raw": "raw",
    ".vdi": "vdi",
    ".vhd": "vpc",
    ".vhdx": "vhdx",
    ".vmdk": "vmdk",
    ".vpc": "vpc",
}


def suffix_format(name: str) -> str | None:
    """The format that people mean by the suffix of a name."""
    return _SUFFIXES.get(os.path.splitext(name)[1].lower())


def format_names() -> list[str]:
    """The formats that this build knows."""
    import aioblock

    return [name for name in aioblock.driver_names() if aioblock.find_driver(name).kind == "format"]


def creatable(format: str) -> bool:
    """Whether images of a format can be made."""
    import aioblock

    return format in format_names() and bool(aioblock.find_driver(format).create_options)


def guessed_format(terminal: "Terminal", target: str, given: str | None) -> str:
    """The format of a new image: the one given, else what its suffix means, which is said. Raises: Failure."""
    format = given or suffix_format(target)
    makes = ", ".join(name for name in format_names() if creatable(name))
    if format is None:
        raise Failure(
            f"{target}: its suffix does not say which format it shall have", hint=f"Name one of: {makes} (see --help)."
        )
    if not creatable(format):
        what = "cannot be made yet" if format in format_names() else "is not known here"
        raise Failure(f"{target}: format '{format}' {what}", hint=f"These can be made: {makes}.")
    if given is None:
        terminal.note(f"{target}: format {format}, as its suffix says")
    return format


def option_values(known: "tuple[CreateOption, ...]", given: tuple[str, ...], format: str) -> dict[str, Any]:
    """The options given as NAME=VALUE, as values. Raises: Failure."""
    import aioblock

    kinds = {option.name: option.kind for option in known}
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"'{text}' is no option", hint="Options are written NAME=VALUE, each with an -o of its own.")
        if name not in kinds:
            raise Failure(
                f"Format '{format}' has no option '{name}'", hint=f"'aioblock formats {format}' lists those it has."
            )
        try:
            values[name] = _value(kinds[name], value)
        except (ValueError, aioblock.OptionError) as error:
            raise Failure(f"Option {name}: {error}", hint=f"'aioblock formats {format}' says what it takes.") from error
    return values


def _value(kind: str, text: str) -> Any:
    import aioblock

    if kind == "size":
        return aioblock.parse_size(text)
    if kind == "int":
        return int(text, 0)
    if kind == "bool":
        if text not in ("on", "off", "yes", "no", "true", "false"):
            raise ValueError(f"'{text}' is neither on nor off")
        return text in ("on", "yes", "true")
    return text

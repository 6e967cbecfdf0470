"""--trace: the events that a pattern names. There are none yet, so all there is to do is to say so."""

import os

from ..program import ProgramError, print_error

__all__ = ["check_trace"]


def check_trace(text: str) -> None:
    """Warn of the events that are named and do not exist. Raises: ProgramError."""
    from aioblock import OptionError, message_of, parse_keyval

    try:
        options = parse_keyval(text, implied="enable")
    except OptionError as error:
        raise ProgramError(message_of(error)) from None
    for name in options:
        if name not in ("enable", "events", "file"):
            raise ProgramError(f"Invalid parameter '{name}'")
    patterns = [options["enable"]] if "enable" in options else []
    if "events" in options:
        patterns += _patterns_in(options["events"])
    for pattern in patterns:
        if pattern != "help" and "*" not in pattern:
            print_error(f"warning: trace event '{pattern}' does not exist")


def _patterns_in(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise ProgramError(f"{path}: {os.strerror(error.errno or 0)}") from None
    return [line.removeprefix("-") for line in lines if line and not line.startswith("#")]

"""-T, --trace: the events that a pattern names. There are none here, so all there is to do is to say so."""

import os
import sys

from .program import ProgramError, error_text, print_error, program_name

__all__ = ["check_trace"]

_HELP = ("help", "?")


def check_trace(text: str) -> None:
    """Warn of the events that are named and do not exist. Raises: ProgramError, with status 0 where it was for help."""
    from aioblock import OptionError, parse_keyval

    try:
        options = parse_keyval(text, implied="enable")
    except OptionError as error:
        raise ProgramError(error_text(error)) from None
    for name in options:
        if name in _HELP:
            print("trace options:\n  enable=<str>\n  events=<str>\n  file=<str>")
            raise ProgramError("")
        if name not in ("enable", "events", "file"):
            raise ProgramError(f"Invalid parameter '{name}'")
    wanted = options.get("enable", "")
    if wanted in _HELP:  # the list of all events, which is empty
        raise ProgramError("", 0)
    if wanted and "*" not in wanted:
        print_error(f"warning: trace event '{wanted}' does not exist")
    if "events" in options:
        _check_file(options["events"])


def _check_file(path: str) -> None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except IsADirectoryError:
        return
    except OSError as error:
        _say(path, os.strerror(error.errno or 0))
        raise ProgramError("") from None
    for number, line in enumerate(lines, 1):
        pattern = line.removeprefix("-")
        if pattern and "*" not in pattern and not line.startswith("#"):
            _say(f"{path}:{number}", f"warning: trace event '{pattern}' does not exist")


def _say(place: str, message: str) -> None:
    """An error that tells a place is shown with that right behind the program's name."""
    print(f"{program_name()}:{place}: {message}", file=sys.stderr, flush=True)

"""What the subcommands share: options and their errors, numbers, opening images."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..arguments import ArgumentError, Arguments
from ..program import ProgramError, error_text, open_image, program_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioblock import BlockBackend

__all__ = [
    "MAX_LENGTH",
    "SECTOR",
    "HelpAsked",
    "Options",
    "check_image_opts",
    "opened",
    "parse_number",
    "parse_output",
    "parse_size_argument",
    "usage_error",
]

SECTOR = 512
"""QEMU's programs count the length of every image in whole sectors."""

MAX_LENGTH = (1 << 63) - 1
"""The largest size or offset that an argument may have."""


class HelpAsked(Exception):
    """`-h` or `--help` stood among the options of a subcommand."""


def usage_error(message: str) -> ProgramError:
    """The error for a wrong command line: points to `--help`."""
    return ProgramError(f"{message}\nTry '{program_name()} --help' for more information")


class Options:
    """The command line of a subcommand: iterate over the options, then look at `operands`.

    `getopt`: a wrong option is told as getopt itself does, under this name, and help is shown: so QEMU's `measure`.
    Raises, while it is iterated over: ProgramError; HelpAsked.
    """

    def __init__(self, argv: Sequence[str], short: str, long: Mapping[str, str], getopt: str | None = None) -> None:
        self._getopt = getopt
        self._arguments = Arguments(argv, "h" + short, {"help": "h", **long})

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            for option, value in self._arguments:
                if option == "h":
                    raise HelpAsked
                yield option, value
        except ArgumentError as error:
            if self._getopt is not None:
                print(f"{self._getopt}: {error}", file=sys.stderr, flush=True)
                raise HelpAsked from None
            if error.kind == "missing":
                raise usage_error(f"missing argument for option '{error.word}'") from None
            raise usage_error(f"unrecognized option '{error.word}'") from None

    @property
    def operands(self) -> list[str]:
        """What is no option, in order."""
        return self._arguments.operands

    def one_image(self) -> str:
        """The only operand. Raises: ProgramError."""
        if len(self.operands) != 1:
            raise usage_error("Expecting one image file name")
        return self.operands[0]


def parse_output(value: str) -> bool:
    """Whether `--output` asks for JSON. Raises: ProgramError."""
    if value not in ("human", "json"):
        raise ProgramError("--output must be used with human or json as argument.")
    return value == "json"


def parse_size_argument(what: str, text: str, maximum: int = MAX_LENGTH) -> int:
    """A size with an optional suffix; `what` names it in the message. Raises: ProgramError."""
    from aioblock import OptionError, parse_size

    try:
        value = parse_size(text, limit=1 << 200)
    except OptionError:
        raise ProgramError(
            f"Invalid {what} specified. You may use k, M, G, T, P or E suffixes for\n"
            f"{program_name()}: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
        ) from None
    if value > maximum:
        raise ProgramError(f"Invalid {what} specified. Must be between 0 and {maximum}.")
    return value


def parse_number(text: str, message: str, maximum: int = (1 << 31) - 1, minimum: int = 0) -> int:
    """A whole number in C's notation. Raises: ProgramError with `message`."""
    body = text.strip().removeprefix("+")
    try:
        if body.startswith(("0x", "0X")):
            value = int(body, 16)
        elif body.startswith("0") and body.isdigit():
            value = int(body, 8)
        else:
            value = int(body)
    except ValueError:
        raise ProgramError(message) from None
    if not minimum <= value <= maximum:
        raise ProgramError(message)
    return value


def check_image_opts(image_opts: bool, format: str | None, status: int = 1) -> None:
    """`--image-opts` names the format itself. Raises: ProgramError."""
    if image_opts and format is not None:
        raise ProgramError("--image-opts and --format are mutually exclusive", status)


@asynccontextmanager
async def opened(name: str, *, status: int = 1, **how: Any) -> "AsyncIterator[BlockBackend]":
    """An open image; `how` as in `open_image`. Closed at the end. Raises: ProgramError where it cannot be opened."""
    from aioblock import BlockError

    try:
        disk = await open_image(name, **how)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Could not open '{name}': {error_text(error)}", status) from error
    async with disk:
        yield disk

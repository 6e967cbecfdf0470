"""What a command is, and how its own options are read."""

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..arguments import Arguments
from .failures import CommandFailed, WrongUsage
from .numbers import MAX_REQUEST, parse_bytes
from .session import Session

__all__ = ["Command", "Words", "failure_text", "operands", "parse_lengths", "read_options"]

Words = list[str]
"""A command line cut at its spaces; the first is the name that the command was called by."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the table."""

    name: str
    run: Callable[[Session, Words], Awaitable[None]]
    summary: str
    arguments: str | None = None
    alias: str = ""
    least: int = 0
    """The fewest words behind the name, options included."""
    most: int | None = 0
    """The most; None: any number."""
    needs_image: bool = True
    writes: bool = False
    """It is refused where the image is read-only."""
    help: str = ""
    """More about it, with line ends, or nothing."""

    def usage(self, called: str | None = None) -> str:
        """The line that says how it is called."""
        arguments = "" if self.arguments is None else f" {self.arguments}"
        return f"{called or self.name}{arguments} -- {self.summary}"

    def count_complaint(self, called: str, given: int) -> str | None:
        """What is wrong with the number of words, if anything."""
        if given >= self.least and (self.most is None or given <= self.most):
            return None
        if self.most is None:
            expected = f"at least {self.least}"
        elif self.most == self.least:
            expected = f"{self.least}"
        else:
            expected = f"between {self.least} and {self.most}"
        return f"bad argument count {given} to {called}, expected {expected} arguments"


def read_options(words: Words, letters: str) -> Arguments:
    """The options of a command, one by one, and then its operands. Iterating raises: ArgumentError."""
    return Arguments(words[1:], letters)


def operands(options: Arguments, least: int, most: int | None) -> list[str]:
    """The operands, once the options have been read. Raises: WrongUsage where there are too few or too many."""
    found = options.operands
    if len(found) < least or (most is not None and len(found) > most):
        raise WrongUsage
    return found


def parse_lengths(texts: list[str]) -> int:
    """The sum of the lengths of a request's buffers. Raises: CommandFailed."""
    total = 0
    for text in texts:
        nbytes = parse_bytes(text)
        if nbytes > MAX_REQUEST:
            raise CommandFailed(f"Argument '{text}' exceeds maximum size {MAX_REQUEST}")
        if nbytes > MAX_REQUEST - total:
            raise CommandFailed(f"The total number of bytes exceed the maximum size {MAX_REQUEST}")
        total += nbytes
    return total


def failure_text(error: BaseException) -> str:
    """What a failed request says: the text of its errno, else its message."""
    from aioblock import VerifyError, message_of

    if isinstance(error, VerifyError):
        # Images that must be the same are not. Nothing after that means anything, so the program ends, as QEMU's does.
        sys.stdout.flush()
        print(message_of(error), file=sys.stderr, flush=True)
        os._exit(1)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return message_of(error)

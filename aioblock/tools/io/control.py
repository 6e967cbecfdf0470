"""The commands that are not about an image: help, quit, sleep, and those that end the program like a crash."""

import asyncio
import contextlib
import os
import signal
import sys

from .command import Words
from .failures import CommandFailed
from .numbers import parse_bytes, parse_integer
from .session import Session

__all__ = ["abort", "quit_", "sigraise", "sleep"]


async def quit_(session: Session, words: Words) -> None:
    """End the program."""
    session.over = True


async def sleep(session: Session, words: Words) -> None:
    """Wait; requests that were begun go on meanwhile."""
    milliseconds = parse_integer(words[1])
    if milliseconds is None or milliseconds < 0:
        raise CommandFailed(f"{words[1]} is not a valid number")
    sys.stdout.flush()
    await asyncio.sleep(milliseconds / 1000)


async def sigraise(session: Session, words: Words) -> None:
    """Send the program a signal, with the effect it has on a program that knows nothing of it."""
    number = parse_bytes(words[1])
    if number > signal.NSIG:
        raise CommandFailed(f"signal argument '{words[1]}' is too large to be a valid signal")
    sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):  # some cannot be handled, so have their effect anyway
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # there is no such signal
        os.kill(os.getpid(), number)


async def abort(session: Session, words: Words) -> None:
    """End the program at once: nothing is flushed, nothing closed."""
    os.abort()

"""The commands about breakpoints: requests that stop at a step of the driver `blkdebug`'s parents, and go on."""

import os
import sys
from typing import TYPE_CHECKING

from .command import Words
from .failures import CommandFailed
from .session import Session

if TYPE_CHECKING:
    from aioblock import Debugger

__all__ = ["break_", "remove_break", "resume", "wait_break"]


def _say(line: str) -> None:
    print(line, flush=True)


def _debugger(session: Session) -> "Debugger":
    """The debugger of the topmost filter that has one. Raises: NotSupported."""
    from aioblock import NotSupported

    node = session.disk.node
    while node.debugger is None:
        if node.file is None:
            raise NotSupported
        node = node.file.node
    node.debugger.announce = _say
    return node.debugger


def _failed(what: str, error: OSError) -> CommandFailed:
    return CommandFailed(f"{what}: {os.strerror(error.errno or 0)}")


async def break_(session: Session, words: Words) -> None:
    """Suspend the next request that comes to an event. Raises: CommandFailed."""
    try:
        _debugger(session).set_break(words[1], words[2])
    except OSError as error:
        raise _failed("Could not set breakpoint", error) from None


async def remove_break(session: Session, words: Words) -> None:
    """Forget a breakpoint, and let go what it holds. Raises: CommandFailed."""
    try:
        _debugger(session).remove_break(words[1])
    except OSError as error:
        raise _failed(f"Could not remove breakpoint {words[1]}", error) from None


async def resume(session: Session, words: Words) -> None:
    """Let a suspended request go on. Raises: CommandFailed."""
    try:
        _debugger(session).resume(words[1])
    except OSError as error:
        raise _failed("Could not resume request", error) from None


async def wait_break(session: Session, words: Words) -> None:
    """Wait until a request is suspended. Without a debugger that never happens, and it is an error here."""
    sys.stdout.flush()
    try:
        debugger = _debugger(session)
    except OSError as error:
        raise _failed("Could not wait for a breakpoint", error) from None
    await debugger.suspended(words[1])

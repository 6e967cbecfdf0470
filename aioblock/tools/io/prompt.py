"""The prompt: commands come from standard input, a line each, whatever it is: a terminal, a pipe, a file."""

import asyncio
import os

from ..program import program_name
from .interpreter import execute
from .session import Session

__all__ = ["converse"]

_CHUNK = 1 << 16


class _Lines:
    """The lines of a file descriptor. Requests go on while one is awaited."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self._ended = False

    async def next(self) -> str | None:
        """The next line without its end, or None."""
        while b"\n" not in self._held and not self._ended:
            await self._readable()
            try:
                chunk = os.read(self._fd, _CHUNK)
            except OSError:  # closed, or the terminal is gone
                chunk = b""
            self._ended = not chunk
            self._held += chunk
        if not self._held:
            return None
        line, _, self._held = self._held.partition(b"\n")
        return os.fsdecode(line)

    async def _readable(self) -> None:
        """Wait until a read does not block. A regular file never does, and cannot be waited for."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)


async def converse(session: Session) -> None:
    """Ask for commands until there are no more, or one says `quit`."""
    lines = _Lines(0)
    while not session.over:
        print(f"{program_name()}> ", end="", flush=True)
        session.waiting = True
        line = await lines.next()
        session.waiting = False
        if line is None:
            return
        await execute(session, line)

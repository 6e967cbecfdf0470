"""What both sides of the handshake have in common: a script that asks for bytes, and pauses for answers.

A handshake is written as a generator, from top to bottom as the specification tells it. It yields how many bytes it
wants next, or PAUSE where its owner must do something first; `Handshake` keeps the bytes meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, Final, Generic, TypeVar

from aioblock.base.errors import LocalProtocolError, RemoteProtocolError
from aioblock.nbd.constants import MAX_STRING

__all__ = ["PAUSE", "Handshake", "Script", "text_of"]

PAUSE: Final = -1
_MAX_WAITING: Final = 1 << 18
"""Bytes that may wait while the script is paused: no honest peer sends more before it has its answer."""

E = TypeVar("E")
Script = Generator[int, Any, Any]
"""Yields the number of bytes that it wants, and is sent them; or yields PAUSE, and is sent the answer."""


class Handshake(ABC, Generic[E]):
    """Bytes in, events and bytes out. After an error it is of no use any more."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._output = bytearray()
        self._events: list[E] = []
        self._script = self._run()
        self._wanted: int | None = next(self._script)

    @property
    def done(self) -> bool:
        """Whether it is over; what the other side sent behind it is in `leftover`."""
        return self._wanted is None

    @property
    def paused(self) -> bool:
        """Whether an answer is awaited."""
        return self._wanted == PAUSE

    @property
    def leftover(self) -> bytes:
        """What was received and not used."""
        return bytes(self._input)

    def feed(self, data: bytes | bytearray | memoryview) -> list[E]:
        """Take what was received; the events that follow from it. Raises: NbdError."""
        self._input += data
        if self.paused and len(self._input) > _MAX_WAITING:
            raise RemoteProtocolError("The other side sends on, without waiting for an answer")
        return self._advance()

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def _advance(self) -> list[E]:
        while self._wanted is not None and 0 <= self._wanted <= len(self._input):
            data = bytes(self._input[: self._wanted])
            del self._input[: self._wanted]
            self._step(data)
        events, self._events = self._events, []
        return events

    def _answer(self, answer: Any) -> list[E]:
        """End the pause."""
        if not self.paused:
            raise LocalProtocolError("An answer that nobody waits for")
        self._step(answer)
        return self._advance()

    def _step(self, value: Any) -> None:
        try:
            self._wanted = self._script.send(value)
        except StopIteration:
            self._wanted = None

    def _nothing_waits(self) -> None:
        """Before TLS begins: whatever came already came in the open. Raises: RemoteProtocolError."""
        if self._input:
            raise RemoteProtocolError("The other side sends unencrypted data behind the option that begins TLS")

    @abstractmethod
    def _run(self) -> Script:
        """The script."""


def text_of(data: bytes, what: str) -> str:
    """A string of the protocol. Raises: RemoteProtocolError where it is none, or is too long."""
    if len(data) > MAX_STRING:
        raise RemoteProtocolError(f"{what} of {len(data)} bytes, more than {MAX_STRING}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"{what} that is not UTF-8") from None
    if "\0" in text:
        raise RemoteProtocolError(f"{what} that has a NUL in it")
    return text

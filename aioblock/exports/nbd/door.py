"""Door: the share of the loop's time that clients have who have not opened an export yet.

To come in costs a server far more than to be sent away costs the client. So what comes before the first request
(accepting, options) is done piece by piece, and while others are served takes a quarter of the time.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Door"]

_SHARE: Final = 0.25
_BURST: Final = 0.001
"""Seconds at a time: what a timer of the loop can measure, and others notice least."""


class Door:
    """A queue of pieces of work, each of which takes much less than a millisecond."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock`: in seconds."""
        self.served = False
        """To be set whenever a client that is in sends something."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Callable[[], None]] = deque()
        self._allowance = _BURST
        self._at = clock()
        self._next: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<Door {len(self._queue)} waiting>"

    def enter(self, work: Callable[[], None]) -> None:
        """Do this piece when it is its turn: in the next turn of the loop, where nobody else is there."""
        self._queue.append(work)
        if self._next is None:
            self._next = self._loop.call_soon(self._work)

    def close(self) -> None:
        """What waits is not done."""
        self._queue.clear()
        if self._next is not None:
            self._next.cancel()

    def _work(self) -> None:
        self._next = None
        now = self._clock()
        earned = (now - self._at) * _SHARE if self.served else _BURST
        self.served = False
        self._allowance = min(self._allowance + earned, _BURST)
        self._at = now
        queue = self._queue
        while queue and self._allowance > 0:
            queue.popleft()()
            now = self._clock()
            self._allowance -= now - self._at
            self._at = now
        if queue:
            wait = -self._allowance / _SHARE
            self._next = self._loop.call_later(wait, self._work)

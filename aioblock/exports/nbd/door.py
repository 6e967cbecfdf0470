"""Door: the share of the loop's time that clients have who have not opened an export yet.

To come in costs the server far more than it costs the client. So what comes before the first request (accepting,
options) is done piece by piece, and while others are served takes a bounded share of the time. Clients come back here
whose requests are all refused.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Door"]

_SHARE: Final = 0.07
"""Of the time that passes. What a connection costs outside of its pieces (its transport, its end) is twice as much."""
_BURST: Final = 0.0005
"""Seconds at a time: as little as the loop's timers, which count milliseconds, let that share be."""
_REST: Final = 0.001
"""Seconds until the next time at least: a loop that never sleeps lets no thread have the interpreter: writes wait."""
_QUIET: Final = 0.01
"""Seconds after which nobody is served any more. Between two requests of one client, nobody is for less."""


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
        self._at = self._served_at = clock()
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
        now = self._clock()
        if self.served:
            self.served, self._served_at = False, now
        alone = now - self._served_at >= _QUIET
        self._allowance = _BURST if alone else min(self._allowance + (now - self._at) * _SHARE, _BURST)
        self._at = now
        queue = self._queue
        while queue and self._allowance > 0:
            queue.popleft()()
            now = self._clock()
            self._allowance -= now - self._at
            self._at = now
        if queue and alone:
            self._next = self._loop.call_soon(self._work)
        elif queue:
            self._next = self._loop.call_later(max(-self._allowance / _SHARE, _REST), self._work)
        else:
            self._next = None

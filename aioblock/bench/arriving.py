"""Arriving: hands the moments at which requests are due to the workers of an open loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from .pacing import Pace

__all__ = ["Arriving"]


class Arriving:
    """Moments in ascending order, in nanoseconds of `clock`, each given to one worker when it has come.

    A worker that asks late gets the next one at once; of those that wait, who came first. All that are due are handed
    out in one turn of the loop: however busy that is, it does not decide how many requests begin.
    """

    def __init__(self, moments: Iterator[int], clock: Callable[[], int], pace: Pace) -> None:
        self._moments = moments
        self._clock = clock
        self._pace = pace
        self._idle: deque[asyncio.Future[int | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ahead: int | None = next(moments, None)
        self.taken = 0
        """How many moments were handed out."""

    def __repr__(self) -> str:
        return f"<Arriving {self.taken} handed out, {len(self._idle)} workers waiting>"

    async def next(self) -> int | None:
        """The next moment, when it has come; None if there is none any more. Cancelled: it may be lost."""
        due = self._ahead
        if due is None:
            return None
        if due <= self._clock():
            self._advance()
            return due
        waiting: asyncio.Future[int | None] = self._loop.create_future()
        self._idle.append(waiting)
        if len(self._idle) == 1:
            self._pace.ring_at(due, self._ring)
        return await waiting

    def end(self) -> None:
        """No more."""
        self._ahead = None
        for waiting in self._idle:
            if not waiting.done():
                waiting.set_result(None)
        self._idle.clear()

    def _advance(self) -> None:
        self._ahead = next(self._moments, None)
        self.taken += 1

    def _ring(self) -> None:
        now = self._clock()
        while self._idle and self._ahead is not None and self._ahead <= now:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(self._ahead)
                self._advance()
        if self._ahead is None:
            self.end()
        elif self._idle:
            self._pace.ring_at(self._ahead, self._ring)

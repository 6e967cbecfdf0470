"""The requests in flight on one node, and how overlapping ones wait for each other.

Every request is here from its beginning to its end, on whatever way it ends; `len(queue)` is the node's in-flight
counter. A request has the byte range that it really touches after padding.

A *serialising* request (read-modify-write of a partial block, copy-on-read, discard) and one that overlaps it never run
at the same time: who comes later waits until the other has ended. A request that waits itself holds nobody up, because
it touches nothing yet: later ones pass it, but no more than `PASSED_AT_MOST` of them, so that its turn comes. Those
that run wait for nobody, and those that wait wait for running or earlier ones, so nobody can wait in a circle. While
none is serialising, a request costs one dict entry and no scan.
"""

import asyncio

__all__ = ["PASSED_AT_MOST", "RequestQueue"]

PASSED_AT_MOST = 16
"""How many later requests may go before one that waits."""


class RequestQueue:
    """Tracked requests of one node, in order of arrival."""

    __slots__ = ("_idle", "_next", "_passed", "_ranges", "_waiting", "serialising")

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[int, int]] = {}
        self._next = 0
        self.serialising: set[int] = set()
        """The tickets of the serialising requests in flight."""
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        """Who waits for whom: for each ticket those that its end wakes."""
        self._passed: dict[int, int] = {}
        """The requests that wait, and how many later ones went before each."""
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def __repr__(self) -> str:
        return f"<RequestQueue in_flight={len(self._ranges)} serialising={len(self.serialising)}>"

    def begin(self, offset: int = 0, end: int = 0) -> int:
        """Enter a request that touches bytes `offset` up to `end`; returns its ticket. Then see `must_wait`."""
        ticket = self._next
        self._next = ticket + 1
        self._ranges[ticket] = (offset, end)
        return ticket

    def end(self, ticket: int) -> None:
        """The request is over, done or failed."""
        del self._ranges[ticket]
        if self.serialising:
            self.serialising.discard(ticket)
        if self._waiting and (waiters := self._waiting.pop(ticket, None)):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self._idle and not self._ranges:
            idle, self._idle = self._idle, []
            for waiter in idle:
                if not waiter.done():
                    waiter.set_result(None)

    def begin_serialising(self, offset: int, end: int) -> int:
        """As `begin`, and later overlapping requests will wait for it. Then `await wait(ticket)`."""
        ticket = self.begin(offset, end)
        self.serialising.add(ticket)
        return ticket

    async def wait(self, ticket: int) -> None:
        """Wait until no overlapping request stands in the way, as far as it or this one is serialising. Once only.

        Cancelled: the request is still entered; `end` it.
        """
        if (other := self._conflict(ticket)) is None:
            return
        self._passed[ticket] = 0
        try:
            while other is not None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.setdefault(other, []).append(waiter)
                await waiter
                other = self._conflict(ticket)
        finally:
            del self._passed[ticket]

    def _conflict(self, ticket: int) -> int | None:
        """A request that this one must wait for. None: it runs now, and counts as gone before those it has passed."""
        offset, end = self._ranges[ticket]
        serialising = self.serialising
        mine = ticket in serialising
        passed = []
        for other, (start, stop) in self._ranges.items():
            if other == ticket or start >= end or offset >= stop or not (mine or other in serialising):
                continue
            count = self._passed.get(other)
            if count is None or (other < ticket and count >= PASSED_AT_MOST):
                return other
            if other < ticket:
                passed.append(other)
        for other in passed:
            self._passed[other] += 1
        return None

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self._ranges:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

"""Budget: the bytes that all clients together may hold, and how much of them one may have."""

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["RESERVE", "Budget"]

RESERVE: Final = 1 << 20
"""What a client may hold in any case, in bytes: small requests never wait for what others do."""


class Budget:
    """The bytes that clients hold. Beyond RESERVE, one may hold half of what all others leave.

    So those who take all that they get, and give nothing back, never have everything: n of them hold n/(n+1) of it, as
    queues in a switch do (Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998). Longer requests wait longer.
    """

    __slots__ = ("_highest", "_waiting", "held", "total")

    def __init__(self, total: int) -> None:
        """`total` in bytes. RESERVE for each client may come on top of it."""
        self.total = total
        self.held = 0
        self._waiting: dict[Callable[[], None], int] = {}
        """Whom to call when no more than so much is held."""
        self._highest = 0
        """The most of these, or more."""

    def __repr__(self) -> str:
        return f"<Budget held={self.held} of {self.total}, {len(self._waiting)} waiting>"

    def fits(self, held: int, nbytes: int) -> bool:
        """Whether a client that holds `held` may have `nbytes` more. Alone, it may have one request of any size."""
        wanted = held + nbytes
        return wanted <= RESERVE or 2 * wanted <= self.total - self.held + held or not self.held

    def wait(self, again: Callable[[], None], held: int, nbytes: int) -> None:
        """Call back once, when that would fit."""
        level = max(self.total + held - 2 * (held + nbytes), 0)
        self._waiting[again] = level
        self._highest = max(self._highest, level)

    def forget(self, again: Callable[[], None]) -> None:
        """Do not call back."""
        self._waiting.pop(again, None)

    def give_back(self, nbytes: int) -> None:
        """Let others have it."""
        self.held -= nbytes
        if self._waiting and self.held <= self._highest:
            self._call_back()

    def _call_back(self) -> None:
        now = [again for again, level in self._waiting.items() if self.held <= level]
        for again in now:
            del self._waiting[again]
            asyncio.get_running_loop().call_soon(again)
        self._highest = max(self._waiting.values(), default=0)

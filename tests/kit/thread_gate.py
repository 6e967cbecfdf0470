"""A gate for code that runs in threads: the test sees a call arrive, and lets it go on when it wants."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["ThreadGate"]

TIMEOUT = 20.0


class ThreadGate:
    """Wraps a function so that each call waits. `open` lets all calls through, now and later."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls: list[tuple[Any, ...]] = []
        self._arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        self._arrived.release()
        if not self._open.wait(TIMEOUT):
            raise AssertionError("the test never opened the gate")
        return self.function(*args)

    async def arrival(self, count: int = 1) -> None:
        """Wait until that many further calls stand at the gate; the event loop goes on."""
        for _ in range(count):
            assert await asyncio.to_thread(self._arrived.acquire, True, TIMEOUT), "nobody came"

    def open(self) -> None:
        self._open.set()

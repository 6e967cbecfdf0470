"""Pace: waiting for a moment to within some tens of microseconds.

The timers of an event loop are rounded up to a millisecond, which an open loop would take for slow requests. Linux has
`timerfd`; `os.timerfd_create` is there from Python 3.13 on, the C library's functions always.
"""

import asyncio
import ctypes
import os
import sys
import time
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Pace", "TimerPace"]

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_FLAGS = 0o2004000
"""TFD_NONBLOCK | TFD_CLOEXEC."""


class Pace(Protocol):
    """How an open loop waits. One at a time."""

    async def until(self, due: int) -> None:
        """Return at `due`, in nanoseconds of `time.perf_counter_ns`, or a little later. May be cancelled."""


class TimerPace:
    """`with TimerPace() as pace:`; elsewhere than on Linux with the loop's timers. Raises: OSError."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._rung: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            self._settime = libc.timerfd_settime
            self._time = (ctypes.c_long * 4)()  # the interval, then the moment: each seconds and nanoseconds
            self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
            if self._fd < 0:
                code = ctypes.get_errno()
                raise OSError(code, f"timerfd_create: {os.strerror(code)}")
            self._loop.add_reader(self._fd, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def until(self, due: int) -> None:
        """See `Pace`."""
        left = due - time.perf_counter_ns()
        if left <= 0:
            return
        if self._fd < 0:
            await asyncio.sleep(left / 1e9)
            return
        self._rung = self._loop.create_future()
        self._time[2], self._time[3] = divmod(due, 1_000_000_000)
        if self._settime(self._fd, _TFD_TIMER_ABSTIME, self._time, None) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"timerfd_settime: {os.strerror(code)}")
        try:
            await self._rung
        finally:
            self._rung = None

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # of a wait that was cancelled, and whose moment was set anew
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)

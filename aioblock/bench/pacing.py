"""Pace: being called at a moment, to within some tens of microseconds.

The timers of an event loop are rounded up to a millisecond, which an open loop would take for slow requests. Linux has
`timerfd`; `os.timerfd_create` is there from Python 3.13 on, the C library's functions always.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Pace", "TimerPace"]

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_FLAGS = 0o2004000
"""TFD_NONBLOCK | TFD_CLOEXEC."""


class Pace(Protocol):
    """How an open loop waits."""

    def ring_at(self, due: int, call: Callable[[], None]) -> None:
        """Call at `due`, in nanoseconds of the clock, or a little later; in place of what was asked for before."""


class TimerPace:
    """`with TimerPace() as pace:`, by `time.perf_counter_ns`. Nothing rings after the end. Raises: OSError.

    Elsewhere than on Linux it takes the loop's timers.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._call: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            self._settime = libc.timerfd_settime
            self._time = (ctypes.c_long * 4)()  # the interval, then the moment: each seconds and nanoseconds
            self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
            if self._fd < 0:
                raise _failed("timerfd_create")
            self._loop.add_reader(self._fd, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def ring_at(self, due: int, call: Callable[[], None]) -> None:
        """See `Pace`."""
        self._call = call
        if self._fd >= 0:
            self._time[2], self._time[3] = divmod(due, 1_000_000_000)
            if self._settime(self._fd, _TFD_TIMER_ABSTIME, self._time, None) < 0:
                raise _failed("timerfd_settime")
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(due - time.perf_counter_ns(), 0) / 1e9, call)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew after the loop had seen it
        call, self._call = self._call, None
        if call is not None:
            call()


def _failed(function: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{function}: {os.strerror(code)}")

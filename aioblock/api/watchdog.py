"""LoopWatchdog: how late the callbacks of an event loop run, and what keeps it when they are late."""

import asyncio
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

__all__ = ["BlockedLoop", "LagHistogram", "LoopWatchdog"]

_BUCKETS = 256
"""Enough for an hour and more: see `LagHistogram`."""


class BlockedLoop(NamedTuple):
    """A loop that is blocked now."""

    seconds: float
    """How long a callback has been due; it may go on."""
    stack: traceback.StackSummary
    """What the thread of the loop does, the innermost call last; `"".join(stack.format())` is for people."""


class LagHistogram:
    """Times in whole microseconds, with an error of at most an eighth; one more costs a shift and an addition.

    Up to 16 us each value has its own bucket, above that each power of two has eight.
    """

    __slots__ = ("counts", "maximum")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.maximum = 0.0
        """The longest, in seconds; exact."""

    def __len__(self) -> int:
        return sum(self.counts)

    def __repr__(self) -> str:
        return f"<LagHistogram {len(self)} values, p99 {self.percentile(99):.6f} s, maximum {self.maximum:.6f} s>"

    def record(self, seconds: float) -> None:
        """Count one; a negative one is 0."""
        if seconds > self.maximum:
            self.maximum = seconds
        value = int(seconds * 1e6) if seconds > 0 else 0
        shift = max(value.bit_length() - 4, 0)
        self.counts[min((shift << 3) + (value >> shift), _BUCKETS - 1)] += 1

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the values do not exceed; 0 where there is none."""
        wanted = max(len(self) * percent / 100, 1)
        seen = 0
        for upper, count in self.buckets():
            seen += count
            if seen >= wanted:
                return min(upper, self.maximum)
        return self.maximum

    def buckets(self) -> list[tuple[float, int]]:
        """The longest time, in seconds, and the count of each bucket that holds anything, ascending."""
        return [(_upper(index) / 1e6, count) for index, count in enumerate(self.counts) if count]

    def add(self, other: "LagHistogram") -> None:
        """Take in what another one has counted."""
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.maximum = max(self.maximum, other.maximum)


def _upper(index: int) -> int:
    """The first value above a bucket; below 16 the value itself."""
    if index < 16:
        return index
    shift = (index >> 3) - 1
    return (8 + (index & 7) + 1) << shift


class LoopWatchdog:
    """`with LoopWatchdog() as watchdog:` in a coroutine: notes how late a callback every `interval` seconds runs.

    A lag is what any other callback, or a request's answer, would have waited. Timers of asyncio and uvloop are rounded
    up to a millisecond, so less than that says nothing. A tick costs some 3 us: at the default interval 0.03 % of a
    processor.

    `on_blocked` is called, once for each time, when a tick is `bound` seconds late and has not come yet, in a thread
    that exists for this alone: it must not touch the loop other than by `call_soon_threadsafe`. What it raises goes to
    `threading.excepthook`, and nothing is reported any more.

    No task is made. `stop`, or the end of the block, leaves neither timer nor thread; `lags` stays readable.
    """

    def __init__(
        self,
        *,
        interval: float = 0.01,
        bound: float = 0.05,
        on_blocked: Callable[[BlockedLoop], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if interval <= 0 or bound <= 0:
            raise ValueError("interval and bound are seconds above 0")
        self.interval = interval
        self.bound = bound
        self.lags = LagHistogram()
        self.blocked = 0
        """How many ticks came later than `bound`."""
        self._on_blocked = on_blocked
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._reported = math.inf
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "running" if self._timer is not None else "stopped"
        return f"<LoopWatchdog {state} blocked={self.blocked} lags={self.lags!r}>"

    def start(self) -> None:
        """Watch the running loop. Raises: RuntimeError where it is watching already, or no loop runs."""
        if self._timer is not None:
            raise RuntimeError("this watchdog is watching a loop already")
        self._loop = asyncio.get_running_loop()
        self._due = math.inf
        if self._on_blocked is not None:
            self._stopping.clear()
            thread = threading.get_ident()
            self._watcher = threading.Thread(target=self._watch, args=(thread,), name="aioblock-watchdog", daemon=True)
            self._watcher.start()
        self._schedule()

    def stop(self) -> None:
        """Watch no more; waits for an `on_blocked` that runs. A second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._stopping.set()
            self._watcher.join()
            self._watcher = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _schedule(self) -> None:
        assert self._loop is not None
        self._due = self._clock() + self.interval
        self._timer = self._loop.call_later(self.interval, self._tick)

    def _tick(self) -> None:
        lag = self._clock() - self._due
        self.lags.record(lag)
        if lag > self.bound:
            self.blocked += 1
        self._schedule()

    def _watch(self, thread: int) -> None:
        """In the thread: look often enough to see every lag that is longer than the bound by half of it."""
        while not self._stopping.wait(self.bound / 2):
            if self._loop is None or self._loop.is_closed():
                return  # nobody called stop
            self._look(thread)

    def _look(self, thread: int) -> None:
        due = self._due
        late = self._clock() - due
        if late <= self.bound or due == self._reported or self._on_blocked is None:
            return
        self._reported = due
        frame = sys._current_frames().get(thread)
        if frame is not None:
            self._on_blocked(BlockedLoop(late, traceback.extract_stack(frame)))

"""Bench: any number of jobs at a time on the running loop."""

import asyncio
import contextlib
import datetime
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import aioblock
from aioblock import BlockBackend, BlockError, LoopWatchdog, message_of, with_context

from .job import Job, check_together
from .latencies import need_histograms
from .machine import ProcessorTime, describe_machine, peak_memory, processor_time
from .pacing import Pace, TimerPace
from .results import Result, Usage
from .workers import JobRun

__all__ = ["INTERVAL", "Bench", "to_end"]

T = TypeVar("T")

INTERVAL = 0.1
"""Seconds between two looks at what the workers have noted."""


class Bench:
    """Jobs to be run once, at the same time, on the running loop: `result = await Bench(jobs).run()`.

    Cancelled or failed: every image that was opened is closed, nothing is under way any more, and `result` gives what
    was measured until then.

    `interval`: seconds of a sample of throughput. `progress` is called that often with the part that is done, 0 to 1.
    `clock` (nanoseconds) and `pace` replace the time in tests. `part`: which of so many processes this is.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        interval: float = INTERVAL,
        progress: Callable[[float], object] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        pace: Pace | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.jobs = list(jobs)
        check_together(self.jobs)
        need_histograms()
        self._interval = interval
        self._progress = progress
        self._clock = clock
        self._pace = pace
        self._part = part
        self._runs: list[JobRun] = []
        self._watchdog = LoopWatchdog()
        self._before: ProcessorTime | None = None
        self._result: Result | None = None
        self._started = datetime.datetime.now(datetime.UTC)

    def __repr__(self) -> str:
        return f"<Bench {', '.join(job.name for job in self.jobs)}>"

    async def run(self, ready: Callable[[], Awaitable[None]] | None = None) -> Result:
        """Open the images, run all jobs to their end, close. `ready` is awaited before the first request.

        Raises: OSError (VerifyError where content was wrong), OptionError, and what `aioblock.open` raises.
        """
        async with contextlib.AsyncExitStack() as stack:
            pace = self._pace if self._pace is not None else stack.enter_context(TimerPace())
            for job in self.jobs:
                disks = [await _opened(job, stack) for _ in range(1 if job.sharing else job.clients)]
                if len(disks) < job.clients:
                    disks *= job.clients
                run = JobRun(job, disks, clock=self._clock, pace=pace, interval=self._interval, part=self._part)
                self._runs.append(run)
            if ready is not None:
                await ready()
            stack.callback(self._watchdog.stop)
            if self._progress is not None:
                stack.enter_context(_Ticks(self._interval, self._tick))
            try:
                async with asyncio.TaskGroup() as group:
                    for run in self._runs:
                        group.create_task(run.run(self._measuring))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                self._result = self._measured()
        self._result.complete = True
        return self._result

    @property
    def begun(self) -> bool:
        """Whether requests count already: there is something in the result."""
        return self._before is not None

    def result(self) -> Result:
        """What was measured, or what there is so far. To be called while the loop runs."""
        return self._result if self._result is not None else self._measured()

    def _measuring(self) -> None:
        """The first job has begun to count: from here on what it costs counts too."""
        if self._before is None:
            self._before = processor_time()
            self._watchdog.start()

    def _measured(self) -> Result:
        now = processor_time()
        before = self._before if self._before is not None else now
        return Result(
            jobs=[run.result() for run in self._runs],
            usage=Usage(now.user - before.user, now.system - before.system, peak_memory(), self._watchdog.lags),
            machine=describe_machine(),
            started=self._started.isoformat(timespec="seconds"),
            complete=False,
        )

    def _tick(self) -> None:
        assert self._progress is not None
        self._progress(min(run.done for run in self._runs))


class _Ticks:
    """`with _Ticks(seconds, call):` calls now and then."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds = seconds
        self._call = call

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self.__enter__()
        self._call()


async def _opened(job: Job, stack: contextlib.AsyncExitStack) -> BlockBackend:
    """The image of a job, which the stack closes; one that was open already stays so."""
    if isinstance(job.image, BlockBackend):
        return job.image
    try:
        disk = await aioblock.open(job.image, **job.opening())
    except (OSError, BlockError) as error:
        if job.name not in message_of(error):
            with_context(error, f"{job.name}: ")
        raise
    stack.push_async_callback(_closed, disk)
    return disk


async def _closed(disk: BlockBackend) -> None:
    await to_end(asyncio.ensure_future(disk.close()))


async def to_end(future: "asyncio.Future[T]") -> T:
    """Wait for what cannot be left half done: who is cancelled meanwhile waits for its end all the same."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()

"""Workers: what sends a job's requests, and what its images have to answer.

One request costs the worker some 0.4 us beside the request itself: what is sent was made in batches, and of each the
worker looks up what to call, reads the clock twice, and appends to an array.
"""

import asyncio
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat, takewhile
from operator import itemgetter
from typing import Any, NamedTuple

from aioblock import BlockBackend, BlockError, OptionError, aligned_buffer, with_context

from .arriving import Arriving
from .content import Content
from .job import Job
from .pacing import Pace
from .requests import arrivals, requests, slots
from .results import Interval, JobResult, KindResult

__all__ = ["JobRun"]

_NEVER = 1 << 62
"""Nanoseconds: later than any clock says."""

_READ_BACK = 1 << 20


class _Action(NamedTuple):
    """How one worker sends requests of a slot: `await call(offset, argument)`, then `record(nanoseconds)`."""

    call: Callable[[int, Any], Any]
    argument: Any
    record: Callable[[int], None]


class JobRun:
    """One job over open images, one for each client or one for all. `run` once; `result` at any time.

    `clock` in nanoseconds; `part` of so many that each verify a part of the image of their own.
    Raises: OptionError where the job does not fit the image.
    """

    def __init__(
        self,
        job: Job,
        disks: list[BlockBackend],
        *,
        clock: Callable[[], int],
        pace: Pace,
        interval: float,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.job = job
        self._clock = clock
        self._pace = pace
        self._interval = interval
        self._disks = disks
        self._slots = slots(job)
        self._columns = [array("q") for _ in self._slots]
        self._process = part[0]
        begin, end = self._region(part)
        self._content: Content | None = None
        if job.verify:
            self._content = Content(job.name, begin, end, list(job.sizes), job.seed)
        self._clients = [
            (disk, requests(job, begin, end, client=number, process=part[0])) for number, disk in enumerate(disks)
        ]
        self._failed = False
        self._result = JobResult(job.as_dict(), kinds={slot.kind: KindResult() for slot in self._slots})
        self._begin: int | None = None
        self._end: int | None = None
        self._tick_begin = 0
        self._ticks: asyncio.TimerHandle | None = None
        self._base: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<JobRun {self.job.name} {self._result.operations} operations>"

    def _region(self, part: tuple[int, int]) -> tuple[int, int]:
        job, length = self.job, min(disk.length for disk in self._disks)
        end = length if job.length is None else job.offset + job.length
        if end > length or job.offset > length:
            key = "offset" if job.length is None else "length"
            raise OptionError(
                f"{key}: '{job.name}' ends at {length}, which is before {max(end, job.offset)}", option=key
            )
        if not job.verify:
            return job.offset, end
        largest = max(job.sizes)
        width = (end - job.offset) // part[1] // largest * largest
        return job.offset + part[0] * width, job.offset + (part[0] + 1) * width

    async def run(self, measuring: Callable[[], None] = lambda: None) -> None:
        """Warm up, call `measuring`, measure, verify. Raises: OSError, with image, request and offset."""
        job = self.job
        if job.warmup:
            await self._phase(job.warmup, None)
            for column in self._columns:
                del column[:]
            self._result.unsent = 0
        measuring()
        self._base = self._statistics()
        self._begin = self._tick_begin = self._clock()
        self._schedule()
        try:
            await self._phase(job.seconds, job.count)
        finally:
            self._end = self._clock()
            if self._ticks is not None:
                self._ticks.cancel()
            self._collect()
            self._result.statistics = self._grown()
        if self._content is not None:
            await self._read_back(self._content)

    def result(self) -> JobResult:
        """What there is so far."""
        if self._begin is not None:
            if self._end is None:
                self._collect()
                self._result.statistics = self._grown()
            self._result.seconds = ((self._clock() if self._end is None else self._end) - self._begin) / 1e9
        return self._result

    @property
    def done(self) -> float:
        """Which part of the job is done, from 0 to 1."""
        if self._begin is None or self._end is not None:
            return 0.0 if self._begin is None else 1.0
        parts = []
        if self.job.seconds is not None:
            parts.append((self._clock() - self._begin) / 1e9 / self.job.seconds)
        if self.job.count is not None:
            parts.append(self._result.operations / self.job.count)
        return min(max(parts), 1.0)

    # -- sending -----------------------------------------------------------------------------------------------------

    async def _phase(self, seconds: float | None, count: int | None) -> None:
        begin = self._clock()
        deadline = begin + round(seconds * 1e9) if seconds is not None else _NEVER
        if self.job.rate is not None:
            due = (begin + after for after in islice(arrivals(self.job, process=self._process), count))
            arriving = Arriving(takewhile(lambda moment: moment < deadline, due), self._clock, self._pace)
            workers = [self._open(disk, sent, arriving, deadline) for disk, sent in self._users()]
        else:
            tickets = repeat(None, count) if count is not None else None
            workers = [self._closed(disk, _while(tickets, sent), deadline) for disk, sent in self._users()]
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _users(self) -> Iterator[tuple[BlockBackend, Iterator[tuple[int, int]]]]:
        """For each worker the image, and the requests of its client, which the workers of that one share."""
        for client in self._clients:
            yield from repeat(client, self.job.depth)

    async def _closed(self, disk: BlockBackend, sent: Iterator[tuple[int, int]], deadline: int) -> None:
        """The next request as soon as the last one has ended."""
        clock, content = self._clock, self._content
        actions = self._actions(disk)
        begun: Any = None
        for slot, offset in sent:
            call, argument, record = actions[slot]
            if content is not None:
                begun = self._begins(content, slot, offset, argument)
            begin = clock()
            try:
                await call(offset, argument)
            except (OSError, BlockError) as error:
                raise self._failure(error, slot, offset) from None
            end = clock()
            record(end - begin)
            if content is not None:
                self._ends(content, slot, offset, argument, begun)
            if end >= deadline:
                return

    async def _open(
        self, disk: BlockBackend, sent: Iterator[tuple[int, int]], arriving: Arriving, deadline: int
    ) -> None:
        """A request when it is due, or later where all workers were busy: its time is counted from when it was due."""
        clock, content = self._clock, self._content
        actions = self._actions(disk)
        begun: Any = None
        while (due := await arriving.next()) is not None:
            if clock() >= deadline:
                arriving.end()
                self._result.unsent += self._left(deadline - due, arriving.taken)
                return
            slot, offset = next(sent)
            call, argument, record = actions[slot]
            if content is not None:
                begun = self._begins(content, slot, offset, argument)
            try:
                await call(offset, argument)
            except (OSError, BlockError) as error:
                raise self._failure(error, slot, offset) from None
            record(clock() - due)
            if content is not None:
                self._ends(content, slot, offset, argument, begun)

    def _left(self, nanoseconds: int, taken: int) -> int:
        """How many requests come in a time, the one at its begin included: as many as usual, for nobody waits."""
        assert self.job.rate is not None
        usual = max(round(nanoseconds * self.job.rate / 1e9), 1)
        return usual if self.job.count is None else min(usual, self.job.count - taken + 1)

    def _actions(self, disk: BlockBackend) -> list[_Action]:
        """For one worker, with buffers of its own."""

        async def flush(offset: int, argument: None) -> None:
            await disk.flush()

        calls: dict[str, Callable[[int, Any], Any]] = {
            "read": disk.readinto,
            "write": disk.pwrite,
            "zeroes": disk.pwrite_zeroes,
            "discard": disk.pdiscard,
            "status": partial(disk.block_status_above, None),
            "flush": flush,
        }
        memory = aligned_buffer(max(slot.nbytes for slot in self._slots))
        if "write" in self.job.mix:
            memory[:] = (b"\xa5\x5a" * (len(memory) // 2 + 1))[: len(memory)]  # zeroes might be taken as such
        return [
            _Action(
                calls[slot.kind],
                memory[: slot.nbytes] if slot.kind in ("read", "write") else slot.nbytes,
                column.append,
            )
            for slot, column in zip(self._slots, self._columns, strict=True)
        ]

    def _failure(self, error: OSError | BlockError, slot: int, offset: int) -> OSError | BlockError:
        """The error with what failed; only the first gets words, for some are one error to many requests."""
        if not self._failed:
            self._failed = True
            kind, nbytes, _ = self._slots[slot]
            what = f"{kind} of {nbytes} bytes at offset {offset}" if nbytes else kind
            with_context(error, f"{self.job.name}: {what}: ")
        return error

    # -- verifying ---------------------------------------------------------------------------------------------------

    def _begins(self, content: Content, slot: int, offset: int, argument: Any) -> Any:
        kind, nbytes, _ = self._slots[slot]
        return content.begins(kind, offset, nbytes, argument if kind == "write" else None)

    def _ends(self, content: Content, slot: int, offset: int, argument: Any, begun: Any) -> None:
        kind, nbytes, _ = self._slots[slot]
        content.ends(kind, offset, nbytes, argument if kind == "read" else None, begun)
        if kind == "read":
            self._result.verified += nbytes

    async def _read_back(self, content: Content) -> None:
        """Read what was written once more: also what no request of the job has read."""
        disk = self._disks[0]
        step = max(_READ_BACK // content.block, 1) * content.block
        memory = aligned_buffer(step)
        for start, length in content.written():
            for offset in range(start, start + length, step):
                view = memory[: min(step, start + length - offset)]
                begun = content.begins("read", offset, len(view), None)
                await disk.readinto(offset, view)
                content.ends("read", offset, len(view), view, begun)
                self._result.verified += len(view)

    # -- counting ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._ticks = asyncio.get_running_loop().call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._collect()
        self._schedule()

    def _collect(self) -> None:
        """Take in what the workers have noted since the last time, as an interval."""
        now = self._clock()
        operations = dict.fromkeys(self._result.kinds, 0)
        for slot, column in zip(self._slots, self._columns, strict=True):
            kind = self._result.kinds[slot.kind]
            taken = kind.latencies.take(column)
            kind.bytes += taken * slot.nbytes
            operations[slot.kind] += taken
        if now > self._tick_begin:
            self._result.intervals.append(Interval((now - self._tick_begin) / 1e9, operations))
            self._tick_begin = now

    def _statistics(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for disk in set(self._disks):
            for name, value in disk.statistics.as_dict().items():
                found[name] = found.get(name, 0) + value
        return found

    def _grown(self) -> dict[str, int]:
        return {name: value - self._base.get(name, 0) for name, value in self._statistics().items()}


def _while(tickets: Iterator[None] | None, sent: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Requests as long as there are tickets, which all workers share; None: without end."""
    return sent if tickets is None else map(itemgetter(1), zip(tickets, sent, strict=False))

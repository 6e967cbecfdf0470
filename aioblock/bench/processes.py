"""The same jobs in several processes: they begin together, and what they measured becomes one result.

Each process is a fresh interpreter (spawn) with a loop of its own. Over its pipe the parent says "go", once all have
opened their images, and "stop"; a child says "ready", ("progress", part), ("result", document) or ("failed", error). A
child whose parent is gone stops. Signals of the terminal reach children too: they leave them to the parent.
"""

import asyncio
import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from aioblock import BlockError, JobError

from .job import Job, check_together
from .latencies import need_histograms
from .results import Result, merged
from .running import INTERVAL, Bench, to_end

__all__ = ["ProcessBench"]


class ProcessBench:
    """Jobs to be run once, by several processes at the same time: `result = await ProcessBench(jobs, 4).run()`.

    Each runs all the jobs with all their clients; rate and count are divided among them, and so is the part of the
    image where content is verified. Cancelled: the processes end, with their images closed, and `result` gives what
    they had measured until then. Raises: OptionError where a job cannot be divided.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        processes: int,
        *,
        interval: float = INTERVAL,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self.jobs = list(jobs)
        check_together(self.jobs)
        need_histograms()
        shares = [job.shares(processes) for job in self.jobs]
        self._progress = progress
        self._children = [
            _Child([share[part] for share in shares], (part, processes), interval, self._moved)
            for part in range(processes)
        ]

    def __repr__(self) -> str:
        return f"<ProcessBench {len(self._children)} processes: {', '.join(job.name for job in self.jobs)}>"

    @property
    def begun(self) -> bool:
        """Whether a process has measured something: there is something in the result."""
        return any(child.result is not None for child in self._children)

    async def run(self) -> Result:
        """Start the processes, wait for them, put together what they measured. Raises: as `Bench.run`; JobError."""
        try:
            for child in self._children:
                await to_end(asyncio.ensure_future(asyncio.to_thread(child.start)))
                child.listen()
            await self._all([child.ready for child in self._children])
            for child in self._children:
                child.say("go")
            await self._all([child.ended for child in self._children])
        finally:
            await self._end()
        return self.result()

    def result(self) -> Result:
        """What was measured, also by processes that were stopped. Raises: JobError where there is nothing yet."""
        found = [child.result for child in self._children if child.result is not None]
        if not found:
            raise JobError("No process has measured anything yet")
        result = merged(found)
        for made, job in zip(result.jobs, self.jobs, strict=True):
            made.job = job.as_dict()
        return result

    async def _all(self, waited: "list[asyncio.Future[None]]") -> None:
        """Until all are done, or one has failed."""
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()

    async def _end(self) -> None:
        """Let all processes stop, and wait until they have, also when the caller is cancelled meanwhile."""
        for child in self._children:
            child.say("stop")
        await to_end(asyncio.gather(*(child.end() for child in self._children)))

    def _moved(self) -> None:
        if self._progress is not None:
            self._progress(min(child.done for child in self._children))


class _Child:
    """A process, seen from the parent."""

    def __init__(self, jobs: list[Job], part: tuple[int, int], interval: float, moved: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._moved = moved
        self._arguments = (jobs, part, interval, type(self._loop).__module__.partition(".")[0])
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.listening = False
        self.done = 0.0
        self.result: Result | None = None

    def start(self) -> None:
        """Start it; takes some milliseconds."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()

    def listen(self) -> None:
        """Hear what it says from now on."""
        assert self._pipe is not None
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        self.listening = True

    def say(self, word: str) -> None:
        """Tell it; one that is gone does not hear it."""
        if self.listening and self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(word)

    async def end(self) -> None:
        """Wait until it has closed its pipe, which is the last that it does, and forget it."""
        if self.listening:
            await self.gone
        for future in (self.ready, self.ended):
            if future.done() and not future.cancelled():
                future.exception()  # of several that failed, one is raised
            future.cancel()
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.join)
            self._process.close()

    def _hear(self) -> None:
        assert self._pipe is not None
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            self.listening = False
            self._fail(JobError("A process of the benchmark ended before it was done"))
            self.gone.set_result(None)
            return
        match said:
            case "ready":
                if not self.ready.done():
                    self.ready.set_result(None)
            case "progress", float() as done:
                self.done = done
                self._moved()
            case "result", document:
                self.result = Result.from_dict(document)
                if not self.ended.done():
                    self.ended.set_result(None)
            case "failed", error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_exception(error)


# In the process


def _child(pipe: Connection, jobs: list[Job], part: tuple[int, int], interval: float, loop: str) -> None:
    """What the process does."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    factory: Callable[[], Any] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner, contextlib.suppress(BrokenPipeError):
        runner.run(_work(pipe, jobs, part, interval))
    pipe.close()


async def _work(pipe: Connection, jobs: list[Job], part: tuple[int, int], interval: float) -> None:
    loop = asyncio.get_running_loop()
    go = loop.create_future()

    async def ready() -> None:
        pipe.send("ready")
        await go

    bench = Bench(jobs, interval=interval, part=part, progress=lambda done: pipe.send(("progress", done)))
    running = loop.create_task(bench.run(ready))

    def hear() -> None:
        try:
            word = pipe.recv()
        except (EOFError, OSError):
            word = "stop"
            loop.remove_reader(pipe.fileno())
        if word == "go" and not go.done():
            go.set_result(None)
        elif word == "stop":
            running.cancel()

    loop.add_reader(pipe.fileno(), hear)
    try:
        await asyncio.wait([running])
    finally:
        loop.remove_reader(pipe.fileno())
    if running.cancelled():
        if bench.begun:
            pipe.send(("result", bench.result().as_dict()))
    elif (error := running.exception()) is not None:
        pipe.send(("failed", _sendable(error)))
    else:
        pipe.send(("result", running.result().as_dict()))


def _sendable(error: BaseException) -> Exception:
    """The error, or its words where it cannot be sent to another process as it is."""
    from multiprocessing.reduction import ForkingPickler

    try:
        again = ForkingPickler.loads(ForkingPickler.dumps(error))
        if type(again) is type(error) and str(again) == str(error) and isinstance(error, Exception):
            return error
    except Exception:  # whatever an error's own constructor raises
        pass
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror)
    return JobError(error.message if isinstance(error, BlockError) else f"{type(error).__name__}: {error}")

"""A file descriptor that threads use: it is closed when nobody uses it any more, and not before.

A call in a thread cannot be cancelled: when its awaiter goes away, it goes on, and it goes on with the *number* of the
descriptor. Closed too early, the number may already mean another file. So a Descriptor knows its jobs, on whatever way
they end, and the last one out closes.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from aioblock.drivers.protocols.posix.threads import DevicePools, in_thread

__all__ = ["Descriptor"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_close = os.close
_fdatasync = os.fdatasync if hasattr(os, "fdatasync") else os.fsync


class Descriptor:
    """An open file descriptor, the jobs in threads that use it, and the operations that the kernel does without one."""

    __slots__ = ("_begun", "_gone", "_held", "_io", "_jobs", "_lock", "_pools", "fd", "sync_error")

    def __init__(self, fd: int, device: int) -> None:
        """Takes over `fd`. `device` says whose threads work on it (`st_dev`)."""
        self.fd = fd
        self._pools = DevicePools.acquire(device)
        self._jobs: set[Future[Any]] = set()
        self._lock = threading.Lock()  # guards `_jobs` and `_gone`; nothing else is locked inside
        self._gone: Future[None] | None = None
        self._begun = 0
        self._held: Future[None] | None = None
        """Where somebody waits: the job that stands for all operations that are begun."""
        self._io = _Tracked(self, self._pools.io)
        self.sync_error: OSError | None = None
        """The first failure of `sync`."""

    def __repr__(self) -> str:
        state = "open" if self._gone is None else "closed" if self._gone.done() else "closing"
        return f"Descriptor({self.fd}, {state}, jobs={len(self._jobs) + self._begun})"

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call `function` in a thread for data. Cancelled: a call that has begun goes on, and its result is dropped."""
        result: _T = await in_thread(function)(*args, executor=self._io, **kwargs)
        return result

    def hold(self) -> "Future[None]":
        """A job that is done by setting its result: so long the descriptor stays open."""
        held: Future[None] = Future()
        with self._lock:
            if self._gone is not None:
                raise ValueError("the file is closed")
            self._jobs.add(held)
        held.add_done_callback(self._finished)
        return held

    def begin(self) -> None:
        """Begin an operation of the kernel's own, until `end`: so long the descriptor stays open.

        Both are for the thread of the event loop alone, and cost next to nothing; a job costs several microseconds.
        """
        if self._gone is not None:
            raise ValueError("the file is closed")
        self._begun += 1

    def end(self) -> None:
        """The reverse of one `begin`."""
        self._begun -= 1
        if not self._begun and self._held is not None:
            held, self._held = self._held, None
            self._pools.sync.submit(held.set_result, None)  # it may close the descriptor: a thread shall

    def _hold_begun(self) -> None:
        if self._begun and self._held is None:
            self._held = self.hold()

    async def run_sync(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """As `run`, in a thread that reads and writes never take."""
        return await asyncio.wrap_future(self.submit(partial(function, *args, **kwargs), self._pools.sync))

    async def idle(self) -> None:
        """Wait until no thread uses the descriptor, nor the kernel by itself, also for jobs whose awaiter is gone."""
        loop = asyncio.get_running_loop()
        self._hold_begun()
        while jobs := tuple(self._jobs):
            done: asyncio.Future[None] = loop.create_future()
            jobs[0].add_done_callback(lambda _, done=done: _wake(loop, done))  # type: ignore[misc]
            await done

    def submit(self, function: Callable[[], _T], executor: Executor | None = None) -> "Future[_T]":
        """Hand `function` to a thread (of `run`), and count it until it has ended or was cancelled unbegun."""
        with self._lock:
            if self._gone is not None:
                raise ValueError("the file is closed")
            job = (executor or self._pools.io).submit(function)
            self._jobs.add(job)
        job.add_done_callback(self._finished)
        return job

    def _finished(self, job: "Future[Any]") -> None:
        with self._lock:
            self._jobs.discard(job)
            if self._gone is None or self._jobs:
                return
        self._give_up()

    # -- flush and close ---------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Put what was written on stable storage. The first failure stays: the kernel reports it only once."""
        await self.run_sync(_sync, self)

    async def close(self) -> None:
        """Close the descriptor when its last job has ended, in a thread; the close happens even if this is cancelled.

        Raises: OSError, what close(2) said; the descriptor is gone then too.
        """
        gone: Future[None] = Future()
        if self._gone is None:
            self._hold_begun()
        with self._lock:
            if self._gone is not None:
                raise ValueError("the file is closed already")
            last = self._pools.sync.submit(_nothing)  # so that it is a thread that closes
            self._jobs.add(last)
            self._gone = gone
        last.add_done_callback(self._finished)
        await asyncio.shield(asyncio.wrap_future(gone))

    def _give_up(self) -> None:
        assert self._gone is not None
        fd, self.fd = self.fd, -1
        try:
            _close(fd)
        except OSError as error:
            self._pools.release()
            self._gone.set_exception(error)
        else:
            self._pools.release()
            self._gone.set_result(None)


class _Tracked(Executor):
    """An executor whose jobs count as users of a descriptor."""

    __slots__ = ("_descriptor", "_executor")

    def __init__(self, descriptor: Descriptor, executor: Executor) -> None:
        self._descriptor = descriptor
        self._executor = executor

    def submit(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> "Future[_T]":
        return self._descriptor.submit(
            partial(function, *args, **kwargs) if args or kwargs else function, self._executor
        )


def _sync(descriptor: Descriptor) -> None:
    if (before := descriptor.sync_error) is not None:
        raise OSError(before.errno, before.strerror)
    try:
        _fdatasync(descriptor.fd)
    except OSError as error:
        descriptor.sync_error = OSError(error.errno, error.strerror)
        raise


def _nothing() -> None:
    pass


def _set_done(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _wake(loop: asyncio.AbstractEventLoop, done: "asyncio.Future[None]") -> None:
    try:
        loop.call_soon_threadsafe(_set_done, done)
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass

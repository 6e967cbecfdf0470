"""Starting a coroutine at once: it costs a task only if it suspends.

The heart of two promises. *Block status over a chain*: a layer that answers from memory costs no task, one that has
to wait lets the next layers be asked meanwhile. *Changing requests*: once begun they run to their end although their
caller is cancelled, and those that never wait do not pay for it.

The part of the coroutine before its first suspension runs inside the caller's task, so it must not use what binds
itself to the current task (`asyncio.timeout`, `asyncio.TaskGroup`); afterwards it may.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

__all__ = [
    "Finished",
    "cancelled_once",
    "outcome",
    "run_to_end",
    "settle",
    "settled_or_cancelled",
    "start",
    "to_end",
]

T = TypeVar("T")


class Finished(Generic[T]):
    """A coroutine that ended before it ever suspended: `result()` gives its value or raises its error."""

    __slots__ = ("_error", "_value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self._value = value
        self._error = error

    def result(self) -> T:
        """The value, or the error raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]


def start(coro: Coroutine[Any, Any, T]) -> "Finished[T] | asyncio.Task[T]":
    """Run `coro` up to its first suspension; a Task that goes on from there, or what it came to."""
    try:
        waits_for = coro.send(None)
    except StopIteration as stop:
        return Finished(stop.value)
    except Exception as error:
        return Finished(error=error)
    return asyncio.get_running_loop().create_task(_Rest(coro, waits_for))


class _Rest(Coroutine[Any, Any, T]):
    """The rest of a coroutine that was started elsewhere and waits for `waits_for`: what its task drives.

    Not a generator: one that has not begun cannot pass on the CancelledError of a task cancelled before its first step.
    """

    __slots__ = ("_coro", "_waits_for")

    def __init__(self, coro: Coroutine[Any, Any, T], waits_for: "asyncio.Future[Any] | None") -> None:
        self._coro = coro
        self._waits_for = waits_for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)  # for asyncio's repr and stacks of tasks: cr_code, cr_frame, __qualname__

    def send(self, value: Any) -> Any:
        waits_for, self._waits_for = self._waits_for, None
        return self._coro.send(value) if waits_for is None else waits_for

    def throw(self, *error: Any) -> Any:
        waits_for, self._waits_for = self._waits_for, None
        if waits_for is not None and isinstance(error[0], asyncio.CancelledError) and waits_for.cancel():
            return waits_for  # what it waits for is cancelled first, as for every task
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        raise TypeError("it belongs to its task")


async def outcome(begun: "Finished[T] | asyncio.Task[T]") -> T:
    """What a coroutine that was started comes to. Cancelled: so is the coroutine."""
    return begun.result() if isinstance(begun, Finished) else await begun


async def run_to_end(coro: Coroutine[Any, Any, T], owned: "set[asyncio.Task[Any]]") -> T:
    """Await `coro`; a cancelled caller leaves, the coroutine goes on. Its task is in `owned` until it ends.

    An error that comes after the caller has left is dropped here: the verb itself has counted it.
    """
    begun = start(coro)
    if isinstance(begun, Finished):
        return begun.result()
    owned.add(begun)
    begun.add_done_callback(owned.discard)
    await settled_or_cancelled(begun)
    return begun.result()


async def settled_or_cancelled(task: "asyncio.Task[Any]") -> None:
    """Wait until `task` is done, whatever its outcome; cancelling this wait does not touch the task."""
    if not task.done():
        await _Shield(task)


class _Shield:
    """What a task waits for instead of another one, so that it wakes when that is done, and is cancelled alone.

    A future as `asyncio.isfuture` knows them. `asyncio.shield` and a future of one's own wake the waiter two turns of
    the loop later, which costs more than a small write to the page cache.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_task", "_wake")

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._task = task
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Any, Any, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._task.get_loop()

    def add_done_callback(self, wake: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._wake, self._context = wake, context
        self._task.add_done_callback(self._done, context=context)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        _look_at(task)
        self._wake(self)

    def cancel(self, msg: object = None) -> bool:
        """The waiter goes, unless it is about to wake anyway; what the task may raise has nobody to be told to."""
        if not self._task.remove_done_callback(self._done):
            return False
        self._task.add_done_callback(_look_at)
        self._task.get_loop().call_soon(self._wake, _Cancelled(), context=self._context)
        return True

    def result(self) -> None:
        """Nothing: the waiter looks at the task."""


class _Cancelled:
    """A future that was cancelled, as far as a task looks at one that wakes it."""

    __slots__ = ()

    def result(self) -> None:
        raise asyncio.CancelledError


def _look_at(task: "asyncio.Task[Any]") -> None:
    """Somebody has seen the error: nothing is logged when its task goes."""
    if not task.cancelled():
        task.exception()


async def settle(tasks: "list[asyncio.Task[Any]]") -> None:
    """Cancel tasks and wait until each has ended, also when the caller itself is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    for task in tasks:
        while not task.done():
            try:
                await settled_or_cancelled(task)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled


async def cancelled_once(coro: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
    """Await `coro` in a task of its own: however often the caller is cancelled, `coro` is once, and can clean up.

    What `coro` came to nevertheless is given to `undo`. Returns only when nothing of both runs any more.
    """
    begun = asyncio.get_running_loop().create_task(coro)
    try:
        await settled_or_cancelled(begun)
    except asyncio.CancelledError:
        undoing = asyncio.get_running_loop().create_task(_undo(begun, undo))
        while not undoing.done():
            try:
                await settled_or_cancelled(undoing)
            except asyncio.CancelledError:
                continue
        raise
    return begun.result()


async def _undo(begun: "asyncio.Task[T]", undo: Callable[[T], Awaitable[None]]) -> None:
    await settle([begun])
    if not begun.cancelled() and begun.exception() is None:
        await undo(begun.result())


async def to_end(coro: Coroutine[Any, Any, T]) -> T:
    """Await `coro`, which is never cancelled: a caller that is cancelled meanwhile waits for its end all the same.

    What it came to is dropped then. For what cannot stop anyway, such as a call in a thread.
    """
    begun = asyncio.get_running_loop().create_task(coro)
    cancelled: asyncio.CancelledError | None = None
    while not begun.done():
        try:
            await settled_or_cancelled(begun)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return begun.result()

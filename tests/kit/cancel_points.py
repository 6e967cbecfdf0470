"""Cancelling a coroutine at each of its awaits, one run after the other.

    number = 1
    while (run := await cancelled_at(verb(), number)).reached:
        assert ...  # what a cancelled call may leave behind
        number += 1

An await counts where it suspends, in the coroutine or in a task that it made.
"""

import asyncio
import os
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NamedTuple

__all__ = ["Run", "cancelled_at", "open_files", "settled"]


class Run(NamedTuple):
    """What became of one run."""

    reached: bool
    """Whether it came to that await; if not, there are no more."""
    cancelled: bool
    """It ended with CancelledError; else with `result` or `error`."""
    result: Any = None
    error: BaseException | None = None


@types.coroutine
def _watched(coro: Coroutine[Any, Any, Any], suspended: Callable[[], None]) -> Generator[Any, Any, Any]:
    """`coro`, telling each time before it suspends."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            waits_for = coro.send(value) if error is None else coro.throw(error)
        except StopIteration as stop:
            return stop.value
        suspended()
        value = error = None
        try:
            value = yield waits_for
        except BaseException as thrown:
            error = thrown


async def cancelled_at(coro: Coroutine[Any, Any, Any], number: int, *, again: bool = False) -> Run:
    """Run `coro` in a task, and cancel it at its suspension number `number`; with `again` at each later one too."""
    loop = asyncio.get_running_loop()
    seen = 0

    def suspended() -> None:
        nonlocal seen
        seen += 1
        if seen == number or (again and seen > number):
            loop.call_soon(task.cancel)

    def factory(loop: asyncio.AbstractEventLoop, made: Any, **how: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(_watched(made, suspended), loop=loop, **how)

    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        task = loop.create_task(coro)
        await asyncio.wait([task])
    finally:
        loop.set_task_factory(before)
    if task.cancelled():
        return Run(seen >= number, True)
    if (error := task.exception()) is not None:
        return Run(seen >= number, False, error=error)
    return Run(seen >= number, False, task.result())


def open_files(under: os.PathLike[str]) -> list[str]:
    """The files in or below a directory that this process has open, one entry a descriptor."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if name.startswith(os.fspath(under)):
            found.append(name)
    return sorted(found)


async def settled(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for what threads do. Fails the test where it does not come."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never came to that"
        await asyncio.sleep(0.001)

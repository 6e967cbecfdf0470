"""Every point at which an operation waits, one after the other: cancel it there, or let the request fail there.

    for point in every_await("driver"):
        ...                                   # a fresh graph each time
        script.before = point.wait            # each call of a driver waits twice, and notes that
        await point.run(disk.pwrite(0, b"x"))

The loop ends when an operation came to its end before its point.
"""

import asyncio
import types
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from typing import Any

__all__ = ["CancelPoint", "FailPoint", "every_await", "every_failure"]


class CancelPoint:
    """Cancels the operation when the drivers below have waited `number` times; `insistent`: at each later one too."""

    def __init__(self, number: int, *, insistent: bool = False) -> None:
        self.number, self.insistent = number, insistent
        self.passed = 0
        self.reached = False
        self._victim: asyncio.Task[Any] | None = None

    async def wait(self, call: object) -> None:
        """The `before` of a script."""
        for _ in range(2):
            if self._victim is not None:
                self.passed += 1
                if self.passed == self.number or (self.reached and self.insistent):
                    self.reached = True
                    self._victim.cancel()
            await asyncio.sleep(0)

    async def run(self, operation: Coroutine[Any, Any, Any]) -> bool:
        """Run the operation as a task of its own; True: it was cancelled. Its errors are raised."""
        self._victim = asyncio.create_task(operation)
        try:
            await asyncio.wait([self._victim])
            if self._victim.cancelled():
                return True
            self._victim.result()
            return False
        finally:
            self._victim = None


class CallerPoint(CancelPoint):
    """Cancels the operation at the `number`-th time that its own task suspends, whatever it waits for."""

    async def wait(self, call: object) -> None:
        await asyncio.sleep(0)

    async def run(self, operation: Coroutine[Any, Any, Any]) -> bool:
        async def watched() -> None:
            await self._count(operation)

        return await super().run(watched())

    @types.coroutine
    def _count(self, operation: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        value = None
        while True:
            try:
                waits_for = operation.send(value) if error is None else operation.throw(error)
            except StopIteration as stop:
                return stop.value
            self.passed += 1
            if self.passed == self.number:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value, error = (yield waits_for), None
            except BaseException as thrown:
                error = thrown


def every_await(how: str) -> Iterator[CancelPoint]:
    """A point for each time that something waits. `how`: "driver", "insistent" or "caller"."""
    for number in range(1, 2000):
        point = CallerPoint(number) if how == "caller" else CancelPoint(number, insistent=how == "insistent")
        yield point
        if not point.reached:
            assert number > 1, "it never waited"
            return
    raise AssertionError("it never came to its end")


class FailPoint:
    """Fails the `number`-th call of these verbs."""

    def __init__(self, number: int, verbs: tuple[str, ...], error: OSError) -> None:
        self.number, self.verbs, self.error = number, verbs, error
        self.passed = 0
        self.armed = False
        self.verb = ""
        """The verb that failed, once one has."""

    async def wait(self, call: Any) -> None:
        """The `before` of a script."""
        await asyncio.sleep(0)
        if self.armed and call.verb in self.verbs:
            self.passed += 1
            if self.passed == self.number:
                self.verb = call.verb
                raise self.error

    async def run(self, operation: Awaitable[Any]) -> OSError | None:
        """Run the operation; the OSError that it raised."""
        self.armed = True
        try:
            await operation
        except OSError as error:
            return error
        finally:
            self.armed = False
        return None


def every_failure(verbs: tuple[str, ...], code: int) -> Iterator[FailPoint]:
    """Fail the first call, then the second, and so on until the operation needs no more of them."""
    for number in range(1, 2000):
        point = FailPoint(number, verbs, OSError(code, "it was told to fail"))
        yield point
        if not point.verb:
            assert number > 1, f"it never called any of {verbs}"
            return
    raise AssertionError("it never came to its end")

"""ImageVerbs: what is done to the image of a backend as a whole. Every verb drains first, and lets go on afterwards.

A verb that changes the image goes on to its end where its caller is cancelled; the backend waits for it at its close.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from aioblock.core.eager import run_to_end
from aioblock.core.images import CheckResult

if TYPE_CHECKING:
    import asyncio

    from aioblock.core.node import BlockNode

__all__ = ["ImageVerbs"]

T = TypeVar("T")


class ImageVerbs(ABC):
    """The part of `BlockBackend` that concerns whole images."""

    node: "BlockNode"
    _tasks: "set[asyncio.Task[Any]]"

    @abstractmethod
    def _check_open(self) -> None: ...

    @abstractmethod
    def drained(self) -> AbstractAsyncContextManager[None]:
        """Keep requests out, and wait for those in flight."""

    async def _alone(self, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a verb of the driver while nothing else is in flight; to its end, also where the caller is cancelled."""
        self._check_open()
        return await run_to_end(self._drained(verb), self._tasks)

    async def _drained(self, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self.drained():
            try:
                return await verb()
            finally:  # the disk may have another size now
                self.node.length = await self.node.driver.getlength()

    async def check(self, *, fix_leaks: bool = False, fix_errors: bool = False) -> CheckResult:
        """Check the metadata of the top layer against itself, and repair it where asked.

        Cancelled: a repair that has begun goes on to its end. Raises: NotSupported, OSError.
        """
        driver = self.node.driver
        if fix_leaks or fix_errors:
            return await self._alone(lambda: driver.check(fix_leaks=fix_leaks, fix_errors=fix_errors))
        self._check_open()
        async with self.drained():
            return await driver.check()

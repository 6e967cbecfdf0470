"""What lasts from one command to the next: the open image, the requests that run meanwhile, and whether one failed."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self

from ..program import print_error

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["Session"]


class Session:
    """One run of the program. As a context manager it ends with the image closed and no request left."""

    def __init__(self, *, image_opts: bool = False) -> None:
        self.image_opts = image_opts
        """Images are named by option strings, in `open` too."""
        self.failed = False
        """A command failed."""
        self.over = False
        """`quit` was said."""
        self.waiting = False
        """Somebody sits at the prompt: what a request prints is to be seen at once."""
        self._disk: BlockBackend | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether there is an image."""
        return self._disk is not None

    @property
    def disk(self) -> "BlockBackend":
        """The open image; ask `is_open` first."""
        assert self._disk is not None
        return self._disk

    def adopt(self, disk: "BlockBackend") -> None:
        """Take an image that was just opened; there is no other."""
        assert self._disk is None
        self._disk = disk

    async def start(self, request: Coroutine[Any, Any, None]) -> None:
        """Let a request run beside the commands; it has begun when this returns."""
        task = asyncio.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._ended)
        await asyncio.sleep(0)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if self.waiting:
            sys.stdout.flush()

    async def settle(self) -> None:
        """Wait for the requests beside the commands. Raises: what one raised that it did not report itself."""
        while self._requests:
            await asyncio.gather(*self._requests)

    async def close(self) -> None:
        """Wait for the requests, and give the image up; it is gone also where this raises. Raises: OSError."""
        try:
            await self.settle()
        finally:
            disk, self._disk = self._disk, None
            if disk is not None:
                await disk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            for task in self._requests:
                task.cancel()
            await asyncio.gather(*self._requests, return_exceptions=True)
        try:
            await self.close()
        except OSError as failure:
            from aioblock import message_of

            print_error(message_of(failure))
            self.failed = True

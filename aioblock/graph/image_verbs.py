"""ImageVerbs: what is done to the image of a backend as a whole. Every verb drains first, and lets go on afterwards.

A verb that changes the image goes on to its end where its caller is cancelled; the backend waits for it at its close.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from aioblock.base.buffers import as_view
from aioblock.base.errors import NotSupported
from aioblock.blockio.flush import flush
from aioblock.blockio.request import request_error
from aioblock.core.eager import run_to_end
from aioblock.core.images import CheckResult, SnapshotInfo

if TYPE_CHECKING:
    import asyncio

    from aioblock.core.driver import BlockDriver
    from aioblock.core.io import Buffer
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
        """Run a verb while nothing is in flight, nor another verb; to its end, also where the caller is cancelled."""
        self._check_open()
        return await run_to_end(self._drained(verb), self._tasks)

    async def _drained(self, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self.node.alone, self.drained():
            try:
                return await verb()
            finally:  # the disk may have another size now, and there may be something to flush
                self.node.flush_state.written += 1
                self.node.length = await self.node.driver.getlength()

    async def check(
        self,
        *,
        fix_leaks: bool = False,
        fix_errors: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckResult:
        """Check the metadata of the top layer against itself, and repair it where asked.

        `progress` is called now and then with the bytes of metadata that are done, and of all that are known by then.
        Cancelled: a repair that has begun goes on to its end. Raises: NotSupported, OSError.
        """
        driver = self.node.driver
        if fix_leaks or fix_errors:
            return await self._alone(
                lambda: driver.check(fix_leaks=fix_leaks, fix_errors=fix_errors, progress=progress)
            )
        self._check_open()
        async with self.node.alone, self.drained():
            return await driver.check(progress=progress)

    async def amend(
        self,
        options: Mapping[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Change the image as a whole: a value, or a string, for each of its driver's `amend_options` that is given.

        `force`: also where data may be lost. `progress` is told how much is done, of how much. On stable storage when
        done. Failed: some of it may be changed.
        Raises: OptionError and NotSupported before anything is written; OSError.
        """
        driver = self._for_change()
        if not driver.amend_options:
            raise NotSupported(f"Format driver '{driver.name}' does not support option amendment")
        from aioblock.graph.creating import typed_options  # here, because most programs amend nothing

        values = typed_options(driver.amend_options, options)
        await self._alone(lambda: driver.amend(values, force=force, progress=progress))

    async def make_empty(self, *, unchanged_since: int | None = None) -> None:
        """Let the top layer hold nothing any more, so that the disk is what its backing file says; stable when done.

        `unchanged_since`: only where `node.flush_state.written`, which counts changes, still has this value.
        Failed: a part is still there. Raises: NotSupported; OSError (EBUSY: it was changed meanwhile).
        """
        driver = self._for_change()

        async def verb() -> None:
            if unchanged_since is not None and self.node.flush_state.written != unchanged_since:
                raise request_error(errno.EBUSY, self.node, "The disk was written meanwhile")
            try:
                await driver.make_empty()
            finally:
                self.node.flush_state.written += 1
            await flush(self.node)

        await self._alone(verb)

    async def change_backing_file(self, filename: str | None, format: str | None = None) -> None:
        """Write another name of the backing file into the image; None: none. What they hold must be the same.

        What is open as the backing file stays open. On stable storage when done.
        Raises: NotSupported; OptionError where the name cannot be stored; OSError.
        """
        driver = self._for_change()
        await self._alone(lambda: driver.change_backing_file(filename, format))

    # -- internal snapshots ------------------------------------------------------------------------------------------

    def snapshots(self) -> Sequence[SnapshotInfo]:
        """The internal snapshots of the image, in the order of its table. No I/O."""
        return self.node.driver.snapshots()

    async def snapshot_create(
        self, name: str, *, vm_state_size: int = 0, vm_clock_nsec: int = 0, icount: int | None = None
    ) -> SnapshotInfo:
        """Keep the disk as it is now under a name; its id is the next number. On stable storage when done.

        `vm_state_size`: how many bytes of the VM state area belong to it. Failed: there is no such snapshot.
        Raises: NotSupported; OSError.
        """
        driver = self._for_change()
        return await self._alone(
            lambda: driver.snapshot_create(
                name, vm_state_size=vm_state_size, vm_clock_nsec=vm_clock_nsec, icount=icount
            )
        )

    async def snapshot_apply(self, id_or_name: str) -> None:
        """Make the disk what a snapshot holds, its size too. On stable storage when done.

        Failed: the disk is as it was, or as the snapshot. Raises: NotSupported; OSError (ENOENT: there is none).
        """
        driver = self._for_change()
        await self._alone(lambda: driver.snapshot_apply(id_or_name))

    async def snapshot_delete(self, id_or_name: str) -> None:
        """Forget a snapshot, and free what it alone used. On stable storage when done.

        Failed: it may be gone all the same. Raises: NotSupported; OSError (ENOENT: there is none).
        """
        driver = self._for_change()
        await self._alone(lambda: driver.snapshot_delete(id_or_name))

    async def vm_state_read(self, offset: int, nbytes: int) -> bytearray:
        """Bytes of the VM state area, which begins at offset 0; zeroes where nothing was written.

        Raises: NotSupported; OSError.
        """
        return await self._alone(lambda: self.node.driver.vm_state_read(offset, nbytes))

    async def vm_state_write(self, offset: int, data: "Buffer") -> None:
        """Write into the VM state area, which grows as needed; `snapshot_create` keeps it. Stable after a flush.

        `data` must not change before the call is done. Raises: NotSupported; OSError.
        """
        driver, view = self._for_change(), as_view(data)
        await self._alone(lambda: driver.vm_state_write(offset, view))

    def _for_change(self) -> "BlockDriver":
        if self.node.read_only:
            raise request_error(errno.EACCES, self.node)
        return self.node.driver

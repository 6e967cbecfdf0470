"""BlockBackend: the user's handle on a graph. Bounds, back-pressure, statistics, the shield of changing requests."""

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any, Self

from aioblock.base.buffers import as_view
from aioblock.base.errors import BlockError, NotSupported, message_of
from aioblock.base.flags import REQ_COMPRESSED, REQ_COPY_ON_READ, REQ_FUA
from aioblock.blockio.child import Child
from aioblock.blockio.copy import copy_range
from aioblock.blockio.discard import discard
from aioblock.blockio.flush import flush
from aioblock.blockio.prefetch import prefetch
from aioblock.blockio.read import read, read_now
from aioblock.blockio.request import refresh_length, request_error
from aioblock.blockio.status import WINDOW, layers
from aioblock.blockio.truncate import truncate
from aioblock.blockio.write import require_compressed, write, write_soon
from aioblock.blockio.zeroes import write_zeroes
from aioblock.core.eager import run_to_end, settled_or_cancelled
from aioblock.core.images import DriverInfo, Prealloc
from aioblock.core.io import Buffer, Done, wakes
from aioblock.core.node import BlockNode
from aioblock.core.statistics import Statistics
from aioblock.graph.bitmap_verbs import BitmapVerbs
from aioblock.graph.drain import drained, subtree
from aioblock.graph.opening import close_edge
from aioblock.graph.reopen import reopen
from aioblock.graph.status_verbs import StatusVerbs

__all__ = ["BlockBackend"]

YIELD_AFTER = 64
"""How many requests in a row may complete without suspending before the loop gets a turn: 0.3 ms of cached reads."""
LONG_TURN = 0.005
"""Seconds that a turn of the loop may take before each gives way sooner: a thousand that do 64 each take 0.25."""


class BlockBackend(StatusVerbs, BitmapVerbs):
    """An open image: every verb a coroutine, each may be cancelled, many at a time.

    A cancelled read or status leaves nothing behind. A cancelled write, zeroes, discard, truncate or flush is as if it
    had never begun if it was still waiting its turn; else it runs to its end, counted in flight, and `drained` and
    `close` wait for it: its buffer must not change before that.
    """

    def __init__(
        self, root: Child, *, max_in_flight: int = 1024, window: int = WINDOW, copy_on_read: bool = False
    ) -> None:
        self._root = root
        self.node: BlockNode = root.node
        self.statistics = Statistics()
        self.in_flight = 0
        """Requests that came through the queue and have not ended."""
        self._max = max(max_in_flight, 1)
        self._window = window
        self._read_flags = REQ_COPY_ON_READ if copy_on_read else 0
        self._stopped = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._in_a_row = 0
        self._stretch = 2
        """After how many it gives way: few at first, until it has seen how long a turn of the loop takes."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self.node.gates.append(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"in_flight={self.in_flight} queued={len(self._queue)}"
        return f"<BlockBackend {self.node.filename or self.node.name} length={self.length} {state}>"

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Length in bytes."""
        return self.node.length

    @property
    def writable(self) -> bool:
        """Whether it may be written."""
        return not self.node.read_only

    @property
    def name(self) -> str:
        """The file name, as it is shown in messages."""
        return self.node.filename

    def layers(self) -> tuple[BlockNode, ...]:
        """The layers of the chain, from the top down. No I/O."""
        return tuple(layers(self.node, None, False))

    def info(self) -> DriverInfo:
        """What the image tells about itself, beyond its length. No I/O."""
        return self.node.driver.info()

    async def getlength(self) -> int:
        """Length in bytes, asked anew where it may change by itself (a device). Raises: OSError."""
        return await refresh_length(self.node)

    async def allocated_size(self) -> int | None:
        """How many bytes of storage the image file takes; None where nobody knows. Raises: OSError."""
        node = self.node
        while not node.is_protocol and node.file is not None:
            node = node.file.node
        return await node.driver.allocated_size()

    # -- the queue ---------------------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        """Wait for a turn: first come, first served, while others are at the limit or the graph is drained.

        Cancelled: as if it had not come.
        """
        self._check_open()
        if self.in_flight < self._max and not self._stopped and not self._queue:
            self.in_flight += 1
            return
        turn = self._loop.create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._leave()  # the turn had come already: hand it on
            raise

    async def _give_way(self) -> None:
        """Let others have the loop, the sooner the more there are: requests that never wait would keep it."""
        self._in_a_row += 1
        if self._in_a_row >= self._stretch:
            self._in_a_row = 0
            began = monotonic()
            await asyncio.sleep(0)
            turn = monotonic() - began
            if turn > LONG_TURN:
                self._stretch = max(int(self._stretch * LONG_TURN / turn), 1)
            elif turn < LONG_TURN / 4 and self._stretch < YIELD_AFTER:
                self._stretch *= 2

    def _check_open(self) -> None:
        if self._closed:
            raise request_error(errno.EBADF, self.node, "The image is closed")
        self._check_loop()

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(f"{self!r} belongs to another event loop")

    def _leave(self) -> None:
        self.in_flight -= 1
        if self._queue:
            self._admit()
        if self._idle and not self.in_flight:
            idle, self._idle = self._idle, []
            for waiter in idle:
                if not waiter.done():
                    waiter.set_result(None)

    def _admit(self) -> None:
        while self._queue and not self._stopped and self.in_flight < self._max:
            turn = self._queue.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def stop(self) -> None:
        """New requests wait (see `graph.drain`)."""
        self._stopped += 1

    def go_on(self) -> None:
        """The reverse of one `stop`."""
        self._stopped -= 1
        self._admit()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self.in_flight:
            waiter = self._loop.create_future()
            self._idle.append(waiter)
            await waiter

    def drained(self) -> AbstractAsyncContextManager[None]:
        """`async with disk.drained():` nothing is in flight inside, here or below; new requests wait."""
        return drained(self.node)

    # -- read --------------------------------------------------------------------------------------------------------

    async def readinto(self, offset: int, buffer: bytearray | memoryview, flags: int = 0) -> None:
        """Fill `buffer` from `offset`. Cancelled or failed: its content is undefined. Raises: OSError."""
        if type(buffer) is memoryview and buffer.format == "B" and buffer.ndim == 1 and buffer.c_contiguous:
            view = buffer
        else:
            view = as_view(buffer)
        nbytes = len(view)
        node = self.node
        flags |= self._read_flags
        if self._thread != get_ident() or self._stopped or self._queue or self._closed or self.in_flight >= self._max:
            await self._enter()  # the thread stands for the loop: to ask for that costs a system call
        else:
            self.in_flight += 1
        try:
            if flags or not read_now(node, offset, view):
                if offset < 0 or offset + nbytes > node.length:
                    await self._check(offset, nbytes)
                await read(node, offset, view, flags)
        except (OSError, BlockError):
            self.statistics.failed += 1
            raise
        finally:
            self._leave()
        statistics = self.statistics
        statistics.reads += 1
        statistics.bytes_read += nbytes
        self._in_a_row += 1
        if self._in_a_row >= self._stretch:
            await self._give_way()

    def readinto_now(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` (flat, of bytes) if that takes no waiting, or return False: then use `readinto`.

        The short way for who serves many small reads from memory; it is up to the caller to let others have the loop.
        Raises: OSError.
        """
        if self._read_flags or self._stopped or self._queue or self._closed or self.in_flight >= self._max:
            return False
        if not read_now(self.node, offset, buffer):
            return False
        statistics = self.statistics
        statistics.reads += 1
        statistics.bytes_read += len(buffer)
        return True

    async def pread(self, offset: int, nbytes: int, flags: int = 0) -> bytearray:
        """`nbytes` at `offset`, as a new bytearray. Raises: as `readinto`."""
        if nbytes < 0 or offset + nbytes > self.node.length:
            await self._check_early(offset, nbytes)  # before memory is taken for it
        data = bytearray(nbytes)
        await self.readinto(offset, memoryview(data), flags)
        return data

    async def prefetch(self, offset: int, nbytes: int) -> None:
        """Have a range brought to where the next read is fast: a server is asked to (NBD), else it is read and dropped.

        With copy-on-read it is copied. Cancelled or failed: some of it is there. Raises: OSError.
        """
        await self._enter()
        try:
            await prefetch(self.node, offset, nbytes, self._read_flags)
        except (OSError, BlockError):
            self.statistics.failed += 1
            raise
        finally:
            self._leave()
        await self._give_way()

    async def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > await refresh_length(self.node):
            raise request_error(errno.EIO, self.node)

    # -- change ------------------------------------------------------------------------------------------------------

    async def _change(self, verb: Callable[..., Coroutine[Any, Any, None]], *args: Any, **kwargs: Any) -> None:
        """Run a changing verb to its end, whatever becomes of the caller."""
        await self._enter()
        await run_to_end(self._changing(verb, args, kwargs), self._tasks)
        await self._give_way()

    async def _changing(
        self, verb: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            await verb(self.node, *args, **kwargs)
        except (OSError, BlockError):
            self.statistics.failed += 1
            raise
        finally:
            self._leave()

    async def _check_early(self, offset: int, nbytes: int) -> None:
        """Bounds, before the request takes a turn."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.node.length:
            try:
                await self._check(offset, nbytes)
            except OSError:
                self.statistics.failed += 1
                raise

    async def pwrite(self, offset: int, data: Buffer, flags: int = 0) -> None:
        """Write all of `data` at `offset`. REQ_FUA: on stable storage when done. REQ_COMPRESSED: whole clusters.

        `data` must not change before the call is done. Failed: the range holds old data, new data, or some of each.
        Raises: OSError (EACCES read-only, EIO past the end, ENOSPC ...).
        """
        view = as_view(data)
        nbytes = len(view)
        if not flags:
            waiter: asyncio.Future[None] = self._loop.create_future()
            if self.pwrite_soon(offset, view, wakes(waiter)):
                await waiter
                await self._give_way()
                return
        await self._check_early(offset, nbytes)
        if flags & REQ_COMPRESSED:
            require_compressed(self.node, offset, nbytes)
        await self._enter()
        await run_to_end(self._writing(offset, view, flags), self._tasks)
        await self._give_way()

    def pwrite_soon(self, offset: int, data: memoryview, done: Done) -> bool:
        """Begin to write `data` (flat, of bytes), or return False: then use `pwrite`.

        The short way for who has many writes under way, and awaits none of them: over data that is there, in small
        pieces, with nothing to wait for. When it has ended, `done` is called with its error, or None.
        """
        if (
            self._thread != get_ident()
            or self._stopped
            or self._queue
            or self._closed
            or self.in_flight >= self._max
            or not self.node.cache.writeback
            or not write_soon(self.node, offset, data, partial(self._written, len(data), done))
        ):
            return False
        self.in_flight += 1
        return True

    def _written(self, nbytes: int, done: Done, error: Exception | None) -> None:
        self._leave()
        if error is None:
            self.statistics.writes += 1
            self.statistics.bytes_written += nbytes
        else:
            self.statistics.failed += 1
        done(error)

    async def _writing(self, offset: int, view: memoryview, flags: int) -> None:
        statistics = self.statistics
        try:
            await write(self.node, offset, view, self._with_fua(flags))
        except (OSError, BlockError):
            statistics.failed += 1
            raise
        finally:
            self._leave()
        statistics.writes += 1
        statistics.bytes_written += len(view)

    def _with_fua(self, flags: int) -> int:
        return flags if self.node.cache.writeback else flags | REQ_FUA

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> None:
        """Make a range read as zeroes, allocating nothing where that can be helped.

        REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_FUA: see `base.flags`.
        Raises: as `pwrite`; NotSupported with REQ_NO_FALLBACK.
        """
        await self._check_early(offset, nbytes)
        await self._change(write_zeroes, offset, nbytes, self._with_fua(flags))
        self.statistics.zeroes += 1
        self.statistics.bytes_zeroed += nbytes

    async def copy_range(self, offset: int, nbytes: int, target: "BlockBackend", target_offset: int) -> None:
        """Let the storage copy a range into another open image; filesystems that can, share the blocks.

        Failed, cancelled: the target is as after such a `pwrite`. Raises: NotSupported where drivers or files on the
        way cannot, also when a part is copied: then read and write; OSError.
        """
        await self._check(offset, nbytes)
        await target._check_early(target_offset, nbytes)
        if self._read_flags or set(subtree(self.node)) & set(subtree(target.node)):
            raise NotSupported("The storage copies only between images that share no file, and never on read")
        await target._enter_from(self)
        copy = partial(copy_range, self.node, offset, nbytes, target._root, target_offset)
        await run_to_end(target._copying(copy, self), target._tasks)
        self.statistics.reads += 1
        self.statistics.bytes_read += nbytes
        target.statistics.writes += 1
        target.statistics.bytes_written += nbytes
        await self._give_way()

    async def _enter_from(self, source: "BlockBackend") -> None:
        """Have a turn here, while the source lets requests through: its limit does not count, ours bounds both.

        Who waits for the one keeps no turn of the other: else two that copy into each other, or a drain, would stick.
        """
        while True:
            await self._enter()
            if not source._stopped and not source._closed:
                source.in_flight += 1
                return
            self._leave()
            await source._enter()
            source._leave()

    async def _copying(self, copy: Callable[[int], Awaitable[None]], source: "BlockBackend") -> None:
        try:
            await copy(self._with_fua(0))
        except (OSError, BlockError) as error:
            if not isinstance(error, NotSupported):
                self.statistics.failed += 1
            raise
        finally:
            source._leave()
            self._leave()

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Tell that a range is not needed any more. Advisory. Raises: OSError."""
        await self._check_early(offset, nbytes)
        await self._change(discard, offset, nbytes)
        self.statistics.discards += 1
        self.statistics.bytes_discarded += nbytes

    async def flush(self) -> None:
        """Put every write that was done before this call on stable storage.

        Raises: OSError; after one failure every later flush fails too, until the image is reopened.
        """
        if not self.writable:
            return
        await self._change(flush)
        self.statistics.flushes += 1

    async def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        """Set the length in bytes; what is grown reads as zeroes. Raises: OSError, NotSupported."""
        await self._change(truncate, length, exact=exact, prealloc=prealloc)

    # -- the image as a whole ----------------------------------------------------------------------------------------

    async def reopen(
        self,
        *,
        writable: bool | None = None,
        cache: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Change the mode of the open image; drained and flushed meanwhile. Failed: the old mode holds.

        `options`: `discard`, `detect-zeroes` and runtime options of its driver, laid over those that it was opened
        with; others cannot change.
        Cancelled: it goes on to its end. Raises: OSError, GraphError, OptionError.
        """
        self._check_open()
        await run_to_end(reopen(self._root, writable=writable, cache=cache, options=options), self._tasks)

    async def close(self) -> None:
        """Wait for what is in flight, flush, and give everything up. A second call only waits for the first.

        Cancelled: it goes on in the background. Everything is given up also where something fails; the first error is
        raised at the end. Raises: OSError.
        """
        self._check_loop()
        if self._closed:
            if self._closing is not None:
                await settled_or_cancelled(self._closing)
            return
        self._closed = True
        for turn in self._queue:
            if not turn.done():
                turn.set_exception(request_error(errno.EBADF, self.node, "The image was closed"))
        self._queue.clear()
        self._closing = self._loop.create_task(self._close_now())
        await settled_or_cancelled(self._closing)
        self._closing.result()

    async def _close_now(self) -> None:
        await self.idle()
        for task in tuple(self._tasks):  # a reopen or a repair whose caller has left
            await settled_or_cancelled(task)
        self.node.gates.remove(self)
        await close_edge(self._root)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close. What ends the block is more than what the close then meets, which becomes a note of it."""
        try:
            await self.close()
        except (OSError, BlockError) as failed:
            if error is None:
                raise
            error.add_note(f"Closing the image failed too: {message_of(failed)}")

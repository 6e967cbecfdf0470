"""BlockIO: how anyone above a node reaches it. Drivers get their children as such.

Offsets come first, in bytes; lengths are `nbytes`. A request is in range, or fails: see each verb. All verbs are
coroutines except the properties; every one may be cancelled. What a cancelled call leaves behind:

- read, status: nothing.
- write, zeroes, discard, truncate, flush through a *backend*: nothing if it had not begun, else the request runs to
  its end, counted in flight, although its caller is gone. Below a backend nobody is cancelled.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aioblock.base.errors import NotSupported
from aioblock.core.images import Prealloc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Sequence

    from aioblock.core.driver import BlockDriver
    from aioblock.core.extents import ExtentBatch
    from aioblock.core.node import BlockNode

__all__ = ["BlockIO", "Buffer", "ChainStatus", "ContextRuns", "Done", "Status", "StoredData", "wakes"]

Buffer = bytes | bytearray | memoryview

Done = Callable[[Exception | None], None]
"""Told what became of a request: its error, or None."""


def wakes(waiter: "asyncio.Future[None]") -> Done:
    """What passes it on to a future, unless that was cancelled."""
    return partial(_wake, waiter)


def _wake(waiter: "asyncio.Future[None]", error: Exception | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)


class Status(NamedTuple):
    """What one layer says of a run of bytes. `flags`: see `base.flags`."""

    flags: int
    pnum: int
    """Length of the run in bytes."""
    map: int = 0
    """Offset of the raw bytes in `file`; counts only with OFFSET_VALID."""
    file: "BlockIO | None" = None


class ChainStatus(NamedTuple):
    """What a chain says of a run of bytes: as `Status`, and which layer decided (1 = the top, 0 = none did)."""

    flags: int
    pnum: int
    map: int
    file: "BlockNode | None"
    depth: int


class ContextRuns(NamedTuple):
    """What one metadata context says: runs that follow each other, as long as these, each with these flags.

    The flags are the context's own: those of NBD, not of `base.flags`.
    """

    lengths: "Sequence[int]"
    """In bytes; none is 0."""
    flags: "Sequence[int]"


class StoredData:
    """Bytes that lie in a protocol node: given in place of a buffer to who can have the storage copy them.

    It can be sliced as a buffer can; what is in it nobody here sees.
    """

    __slots__ = ("driver", "nbytes", "offset")

    def __init__(self, driver: "BlockDriver", offset: int, nbytes: int) -> None:
        self.driver = driver
        self.offset = offset
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return f"<StoredData {self.offset}+{self.nbytes} in {self.driver!r}>"

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> "StoredData":
        begin, end, step = part.indices(self.nbytes)
        if step != 1:
            raise ValueError("only what lies together can be copied")
        return StoredData(self.driver, self.offset + begin, max(end - begin, 0))


class BlockIO(ABC):
    """The verbs of a node, as its users see them: any offset, any length, bounds checked, errors as OSError."""

    __slots__ = ()

    node: "BlockNode"

    @property
    @abstractmethod
    def length(self) -> int:
        """Length of the node in bytes, as last known."""

    @abstractmethod
    def readinto(self, offset: int, buffer: bytearray | memoryview, flags: int = 0) -> "Awaitable[None]":
        """Fill `buffer` (contiguous bytes) from `offset`. What lies behind the end of the node reads as zeroes."""

    def readinto_now(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` without waiting, or return False: then use `readinto`. Raises: OSError."""
        return False

    async def pread(self, offset: int, nbytes: int, flags: int = 0) -> bytearray:
        """Read `nbytes` at `offset` into a new bytearray."""
        data = bytearray(nbytes)
        await self.readinto(offset, memoryview(data), flags)
        return data

    @abstractmethod
    def pwrite(self, offset: int, data: Buffer, flags: int = 0) -> "Awaitable[None]":
        """Write `data` at `offset`; `data` must not change before the call is done. A protocol that can grow, grows."""

    def pwrite_soon(self, offset: int, data: memoryview, done: Done) -> bool:
        """Begin to write `data`, and have `done` called when that has ended, or return False: then use `pwrite`."""
        return False

    def copy_range(
        self, offset: int, nbytes: int, target: "BlockIO", target_offset: int, flags: int = 0
    ) -> "Awaitable[None]":
        """Let the storage copy a range into another graph. Raises: NotSupported, also half way: then read and write."""
        raise NotSupported

    def pwrite_stored(self, offset: int, data: "StoredData", flags: int = 0) -> "Awaitable[None]":
        """As `pwrite`, of data that lies in the storage of another graph. Raises: NotSupported, also half way."""
        raise NotSupported

    @abstractmethod
    def pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> "Awaitable[None]":
        """Make a range read as zeroes, the cheapest way that `flags` allow."""

    @abstractmethod
    def pdiscard(self, offset: int, nbytes: int) -> "Awaitable[None]":
        """Tell that a range is not needed any more. Advisory: what it reads as afterwards is the driver's business."""

    @abstractmethod
    def flush(self) -> "Awaitable[None]":
        """Put every write that was done before this call on stable storage."""

    @abstractmethod
    def truncate(
        self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF, flags: int = 0
    ) -> "Awaitable[None]":
        """Set the length. Not `exact`: longer will do (a block device). A grown range reads as zeroes where it can."""

    @abstractmethod
    def block_status(self, offset: int, nbytes: int, want_zero: bool = True) -> "Awaitable[Status]":
        """What is in the run that begins at `offset`, in this layer alone."""

    @abstractmethod
    def block_status_above(
        self, base: "BlockNode | None", offset: int, nbytes: int, *, include_base: bool = False, want_zero: bool = True
    ) -> "Awaitable[ChainStatus]":
        """What is in the run that begins at `offset`, asked from this layer down to (but without) `base`."""

    @abstractmethod
    def is_zero(self, offset: int, nbytes: int) -> "Awaitable[bool]":
        """Whether a range is known to read as zeroes through the whole chain, also past the end of shorter layers."""

    @abstractmethod
    def extents(self, offset: int, nbytes: int, want_zero: bool = True) -> "Awaitable[ExtentBatch]":
        """The runs of this layer from `offset` on, in one batch: at least one run, at most up to the range's end."""

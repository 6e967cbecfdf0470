"""BlockDriver: the contract between the generic block layer and a protocol, a format or a filter.

*Driver below, guarantees above.* A driver sees only requests that are inside the node, aligned to
`limits.request_alignment`, and no longer than the matching maximum. Bounds, alignment, padding, splitting, serialising,
counting and tracking exist once, in `aioblock.blockio`; a driver may assert them and never repeats them. Exceptions:
a write or write-zeroes may reach past the end of a protocol that sets `can_grow`.

A length need not be a multiple of the alignment: then reads, writes and status reach up to the next multiple, where a
read gives zeroes; a discard ends at the length.

Data verbs are coroutine functions, or plain functions that return an awaitable: one that only passes on to a child
returns the child's, and saves a coroutine.

Requests of one node run concurrently and in any order, also overlapping ones: a driver protects its own metadata.
Nobody cancels a *changing* verb of a driver half way (`pwritev`, `pwrite_zeroes`, `pdiscard`, `truncate`, `flush`):
the backend shields it. Reads and status may be cancelled at every await.

Buffers are flat memoryviews of bytes. A driver keeps none after it has returned or raised; a read that is cancelled
must not write into the caller's buffer afterwards.

Errors are OSError with an errno. A driver that cannot do an optional thing raises NotSupported *before it has changed
anything*; the generic code then takes the fall-back named below.

Required: `open`, `close`, `getlength`, `preadv`. The rest is optional.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aioblock.base.errors import NotSupported
from aioblock.core.images import CheckResult, CreateOption, DriverInfo, Prealloc
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.extents import ExtentBatch
    from aioblock.core.io import BlockIO, Status

__all__ = ["BlockDriver"]


class BlockDriver(ABC):
    """One node's protocol, format or filter. An instance exists only while its node is open."""

    name: ClassVar[str]
    """The name in options and in output, as QEMU spells it: "qcow2"."""
    kind: ClassVar[str]
    """"protocol" (holds the bytes), "format" (has a `file` child) or "filter" (passes on what its child holds)."""
    supports_backing: ClassVar[bool] = False
    """What this layer leaves open comes from the `backing` child, or reads as zeroes where there is none."""
    can_grow: ClassVar[bool] = False
    """Protocols: a write past the end makes the node longer."""
    variable_length: ClassVar[bool] = False
    """The length may change by itself (a device): `getlength` is asked again instead of remembered."""
    supported_write_flags: ClassVar[int] = 0
    """Which of REQ_FUA and REQ_COMPRESSED and REQ_UNCHANGED `pwritev` does itself; REQ_FUA is else a flush behind."""
    supported_zero_flags: ClassVar[int] = 0
    """Which of REQ_MAY_UNMAP, REQ_FUA and REQ_NO_FALLBACK `pwrite_zeroes` understands; others are cut off before."""
    naming_options: ClassVar[frozenset[str]] = frozenset()
    """Options that change what is read: with one of them set, the file name alone does not name the node."""
    create_options: ClassVar[tuple[CreateOption, ...]] = ()
    """What `create` takes; empty: cannot be created."""

    limits: BlockLimits
    """Set by `open`, and again by `refresh_limits`."""
    cluster_size: int | None = None
    """Formats: the unit of allocation in bytes, in which copy-on-read copies and compressed data is written."""
    identity: object = None
    """Protocols: what is equal for two nodes that hold the same bytes (device and inode); None where nobody knows."""

    # -- required ----------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Open the node: take options, open children, read what is needed, set `limits`.

        Cancelled or failed: everything the driver itself opened is closed again; children are the graph's.
        Raises: ImageError, OptionError, UntrustedReference, OSError.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give up everything; the generic code has drained and flushed before, and closes the children afterwards.

        Called once. All is given up also where this raises: the first error is raised at the end.
        """

    @abstractmethod
    async def getlength(self) -> int:
        """The length of the node in bytes."""

    @abstractmethod
    def preadv(self, offset: int, buffer: memoryview, flags: int) -> "Awaitable[None]":
        """Fill `buffer` from `offset`: all of it, or raise. `flags` is 0."""

    def preadv_now(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` here and now, or return False: then `preadv` is asked. Without it: False.

        The short way of what is in memory, without a coroutine: it neither waits nor suspends, so nobody can see the
        request in flight. False leaves the content of `buffer` undefined. Raises: OSError, as `preadv`.
        """
        return False

    # -- data; each with its fall-back -------------------------------------------------------------------------------

    def pwritev(self, offset: int, data: memoryview, flags: int) -> "Awaitable[None]":
        """Write all of `data` at `offset`. Only `supported_write_flags` come through. Without it: read-only."""
        raise NotSupported(f"Driver '{self.name}' cannot write")

    def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> "Awaitable[None]":
        """Make the range read as zeroes the short way. Without it, or NotSupported: a buffer of zeroes is written.

        Head and tail that are not aligned to `limits.pwrite_zeroes_alignment` come in requests of their own.
        """
        raise NotSupported

    def pdiscard(self, offset: int, nbytes: int) -> "Awaitable[None]":
        """The range is not needed any more. Without it, or NotSupported: nothing happens."""
        raise NotSupported

    def pwritev_compressed(self, offset: int, data: memoryview) -> "Awaitable[None]":
        """Store one cluster compressed (the last one may be short). Without it: NotSupported to the caller.

        An empty `data` says that this was the last one.
        """
        raise NotSupported(f"Driver '{self.name}' cannot write compressed data")

    async def flush(self) -> None:
        """Write back what this driver holds in memory, in order; protocols: put it on stable storage.

        The generic code flushes the writable children afterwards, and merges concurrent flushes. Without it: nothing.
        A driver whose order of writes needs it flushes a child itself, in between.
        """

    def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> "Awaitable[None]":
        """Set the length in bytes; what is grown reads as zeroes. Without it: NotSupported."""
        raise NotSupported("Image format driver does not support resize")

    # -- status; each with its fall-back -----------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> "Status":
        """What this layer alone says of the run at `offset`: flags DATA, ZERO, OFFSET_VALID, RAW, RECURSE, COMPRESSED.

        `pnum` may be less or more than was asked, never 0. Neither DATA nor ZERO: this layer decides nothing.
        `want_zero` False: only "allocated or not" counts; skip what costs I/O to learn about zeroes.
        Should answer without suspending where it can: the concurrency of chains begins where a layer suspends.
        Without it: everything is DATA (protocols: with OFFSET_VALID).
        """
        raise NotSupported

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
        """As `block_status`, many runs at once: from `offset` at least one run, at most up to the end of the range.

        Without it: `block_status` is asked again and again.
        """
        raise NotSupported

    # -- the image as a whole ----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo:
        """What the image tells about itself. No I/O."""
        return DriverInfo()

    async def allocated_size(self) -> int | None:
        """Protocols: bytes that the storage really uses; None where nobody knows. Without it: the children's sum."""
        raise NotSupported

    def has_zero_init(self) -> bool:
        """Whether a node that was just created (or grown) reads as zeroes. Filters: as the child."""
        return False

    async def check(self, *, fix_leaks: bool = False, fix_errors: bool = False) -> CheckResult:
        """Check the metadata against itself; repair where asked. Nothing else is in flight meanwhile."""
        raise NotSupported("This image format does not support checks")

    async def refresh_limits(self) -> None:
        """Set `limits` anew, because a child changed its own."""

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Change the mode of an open node; it is drained and flushed. All changes, or nothing and an error.

        Without it: nothing to do for this driver.
        """

    async def set_permissions(self, perm: int, shared: int) -> None:
        """Protocols: what all users of the node together do (`perm`) and let others do (`shared`): PERM_* bits.

        Asked before they do it. Failed: the old ones stay. Without it: nothing to do, no other process can tell.
        Raises: OSError EAGAIN where another process does not agree.
        """

    # -- drain -------------------------------------------------------------------------------------------------------

    async def drain_begin(self) -> None:
        """Stop what runs in the background of its own accord, and wait until it has. Without it: nothing does."""

    def drain_end(self) -> None:
        """It may go on."""

    # -- before there is a node --------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """How sure it is, 0 to 100, that a file which begins with `head` (up to 2,048 bytes) is of this format."""
        return 0

    @classmethod
    async def create(cls, file: "BlockIO", options: Mapping[str, Any]) -> None:
        """Formats: write an empty image into `file` (already there, empty, writable).

        `options`: a value for each of `create_options`, in its kind; those not given are absent.
        Failed: `file` holds nothing usable. Raises: OptionError before anything is written; OSError.
        """
        raise NotSupported(f"Format driver '{cls.name}' does not support image creation")

    @classmethod
    async def create_file(cls, filename: str, options: Mapping[str, Any]) -> None:
        """Protocols: make `filename` exist with the given size, or empty an existing one. Raises: as `create`."""
        raise NotSupported(f"Protocol driver '{cls.name}' does not support image creation")

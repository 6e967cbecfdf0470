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
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aioblock.base.errors import NotSupported
from aioblock.core.images import CheckResult, CreateOption, DriverInfo, Measurement, Prealloc, SnapshotInfo
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.context import OpenContext
    from aioblock.core.debugger import Debugger
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.core.extents import ExtentBatch
    from aioblock.core.io import BlockIO, ContextRuns, Done, Status, StoredData

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
    supported_write_flags: int = 0
    """Which of REQ_FUA and REQ_COMPRESSED and REQ_UNCHANGED `pwritev` does itself; REQ_FUA is else a flush behind.
    Of the class, or of an instance where it is only known when that is open."""
    supported_zero_flags: int = 0
    """Which of REQ_MAY_UNMAP, REQ_FUA and REQ_NO_FALLBACK `pwrite_zeroes` understands; others are cut off before.
    Of the class or an instance, likewise."""
    name_prefix: ClassVar[str] = ""
    """Filters that have file names of their own: how those begin, "blkdebug:". See `parse_filename`."""
    flat_names: ClassVar[bool] = False
    """Protocols: names have no directories, so that no other name can be relative to one."""
    shrinks_alone: ClassVar[bool] = False
    """While a node becomes shorter no request runs on it: nobody allocates while the driver gives storage back."""
    naming_options: ClassVar[frozenset[str]] = frozenset()
    """Options that change what is read: with one of them set, the file name alone does not name the node."""
    runtime_options: ClassVar[frozenset[str]] = frozenset()
    """Options that `change_options` takes while the node is open."""
    create_options: ClassVar[tuple[CreateOption, ...]] = ()
    """What `create` takes; empty: cannot be created."""
    amend_options: ClassVar[tuple[CreateOption, ...]] = ()
    """What `amend` takes; empty: nothing can be changed."""

    limits: BlockLimits
    """Set by `open`, and again by `refresh_limits`."""
    cluster_size: int | None = None
    """Formats: the unit of allocation in bytes, in which copy-on-read copies and compressed data is written."""
    bitmaps: "dict[str, DirtyBitmap] | None" = None
    """Formats that store dirty bitmaps: those of the node, by name. `open` puts those in that the image holds; whoever
    uses the node adds and removes some; `close` stores the persistent ones. None: they cannot be stored."""
    debugger: "Debugger | None" = None
    """A filter for tests, here or right below, that wants to be told of each step: see `core.debugger`."""
    contexts: tuple[str, ...] = ()
    """Protocols: metadata contexts, the questions about runs of bytes that the storage answers beside block status, by
    name: "qemu:allocation-depth". Drivers whose status is RAW need not: the child is asked."""
    exact_filename: str = ""
    """Filters with a `name_prefix`: the name that opens the same thing, or "" where it takes options. Protocols with
    several ways to name a thing: the one that is shown; "": the file name that was given."""
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

    def prefetch(self, offset: int, nbytes: int) -> "Awaitable[None]":
        """Have a range brought to where reads are fast; of any length. Advisory.

        Without it drivers whose status is RAW pass it on to the child; else, and where it fails, the range is read.
        """
        raise NotSupported

    # -- data; each with its fall-back -------------------------------------------------------------------------------

    def pwritev(self, offset: int, data: memoryview, flags: int) -> "Awaitable[None]":
        """Write all of `data` at `offset`. Only `supported_write_flags` come through. Without it: read-only."""
        raise NotSupported(f"Driver '{self.name}' cannot write")

    def pwritev_soon(self, offset: int, data: memoryview, done: "Done") -> bool:
        """Begin to write all of `data` here and now, or return False: then `pwritev` is asked. Without it: False.

        The short way of a write that needs no metadata, without a coroutine: `done` is called with its error, or None,
        when it has ended. Never before this returns.
        """
        return False

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

    def copy_range_from(
        self, offset: int, nbytes: int, target: "BlockIO", target_offset: int, flags: int
    ) -> "Awaitable[None]":
        """Formats: have the storage copy a range into another graph, by `copy_range` of the child that it lies in.

        `flags`: REQ_FUA, passed on. Without it, or NotSupported, also half way: the range is read and written instead.
        """
        raise NotSupported(f"Driver '{self.name}' cannot tell its storage to copy")

    def copy_range_to(self, offset: int, data: "StoredData") -> "Awaitable[None]":
        """As `pwritev`, of data in the storage of another graph: by `pwrite_stored` of the child; protocols copy.

        Without it, or NotSupported, also half way: as `copy_range_from`.
        """
        raise NotSupported(f"Driver '{self.name}' cannot tell its storage to copy")

    async def flush(self) -> None:
        """Write back what this driver holds in memory, in order; protocols: put it on stable storage.

        The generic code flushes the writable children afterwards (but not those of the role CHILDREN), and merges
        concurrent flushes. Without it: nothing.
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

    async def context_runs(self, offset: int, nbytes: int, names: Sequence[str]) -> "dict[str, ContextRuns]":
        """Protocols: for each of these `contexts`, the runs from `offset` on: at least one, up to any end in the range.

        Asked only for what is in `contexts`.
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

    async def check(
        self,
        *,
        fix_leaks: bool = False,
        fix_errors: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckResult:
        """Check the metadata against itself; repair where asked. Nothing else is in flight meanwhile.

        `progress` is called with the bytes of metadata that are done, and of all that are known by then.
        """
        raise NotSupported("This image format does not support checks")

    async def amend(
        self,
        options: Mapping[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Change the image as a whole: a value for each of `amend_options` that is given. Nothing else is in flight.

        `force`: also where data may be lost. `progress` is told how much is done, of how much. Failed: some is changed.
        Raises: OptionError and NotSupported before anything is written; OSError.
        """
        raise NotSupported(f"Format driver '{self.name}' does not support option amendment")

    async def make_empty(self) -> None:
        """Formats: hold nothing any more, so that the disk is what the backing file says. Stable after a flush.

        Nothing else is in flight. Failed: a part is still there. Raises: NotSupported; OSError.
        """
        raise NotSupported(f"Format driver '{self.name}' cannot make an image empty")

    async def change_backing_file(self, filename: str | None, format: str | None) -> None:
        """Write another name of the backing file into the image; None: none. Nothing else is in flight meanwhile.

        What is open as the backing file stays so. Failed: the image names the old one or the new one.
        Raises: NotSupported; OptionError where the name cannot be stored; OSError.
        """
        raise NotSupported(f"Format driver '{self.name}' keeps no name of a backing file")

    def snapshots(self) -> Sequence[SnapshotInfo]:
        """The internal snapshots, oldest entry of the table first. No I/O. Without it: there are none."""
        return ()

    async def snapshot_create(
        self, name: str, *, vm_state_size: int = 0, vm_clock_nsec: int = 0, icount: int | None = None
    ) -> SnapshotInfo:
        """Keep the disk as it is now, and the VM state area, under a name. Nothing else is in flight meanwhile.

        Failed: there is no such snapshot. Raises: NotSupported, OSError.
        """
        raise self._no_snapshots()

    async def snapshot_apply(self, id_or_name: str) -> None:
        """Make the disk what a snapshot holds; its size too. Nothing else is in flight meanwhile.

        Failed: the disk is as it was, or as the snapshot. Raises: NotSupported, OSError (ENOENT: there is none).
        """
        raise self._no_snapshots()

    async def snapshot_delete(self, id_or_name: str) -> None:
        """Forget a snapshot, and free what it alone used. Nothing else is in flight meanwhile.

        Raises: NotSupported, OSError (ENOENT: there is none).
        """
        raise self._no_snapshots()

    async def vm_state_read(self, offset: int, nbytes: int) -> bytearray:
        """Bytes of the VM state area, which begins at offset 0; zeroes where nothing was written.

        Nothing else is in flight meanwhile. Raises: NotSupported, OSError.
        """
        raise self._no_vm_state()

    async def vm_state_write(self, offset: int, data: memoryview) -> None:
        """Write into the VM state area, which grows as needed. Nothing else is in flight meanwhile.

        Raises: NotSupported, OSError.
        """
        raise self._no_vm_state()

    def _no_snapshots(self) -> NotSupported:
        return NotSupported(f"Driver '{self.name}' does not support internal snapshots")

    def _no_vm_state(self) -> NotSupported:
        return NotSupported(f"Driver '{self.name}' has no room for a VM state")

    def stores_bitmaps(self) -> bool:
        """Whether this image can keep persistent bitmaps. Without it: where there are `bitmaps`."""
        return self.bitmaps is not None

    def check_new_bitmap(self, bitmap: "DirtyBitmap") -> None:
        """With `bitmaps`: whether one more could be stored. Raises: BitmapError."""

    async def load_bitmap(self, bitmap: "DirtyBitmap") -> None:
        """With `bitmaps`: fetch the content of one that is not `loaded`; where it is damaged, it is inconsistent then.

        Raises: OSError.
        """

    async def remove_bitmap(self, bitmap: "DirtyBitmap") -> None:
        """With `bitmaps`: remove one from the image, if it is stored there. Nothing else is in flight meanwhile.

        Raises: OSError.
        """

    async def refresh_limits(self) -> None:
        """Set `limits` anew, because a child changed its own."""

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Change the mode of an open node; it is drained and flushed. All changes, or nothing and an error.

        Without it: nothing to do for this driver.
        """

    def change_options(self, options: "Options", *, unmap: bool) -> None:
        """Take values for the `runtime_options`, as at the opening; those not given go back to their defaults.

        The node is drained. `unmap`: discards shall reach the storage. Raises: OptionError, and nothing has changed.
        """

    async def set_permissions(self, perm: int, shared: int) -> None:
        """Protocols: what all users of the node together do (`perm`) and let others do (`shared`): PERM_* bits.

        Asked before they do it. Failed: the old ones stay. Without it: nothing to do, no other process can tell.
        Raises: OSError EAGAIN where another process does not agree.
        """

    # -- drain -------------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """A drain begins: requests that this driver holds back on purpose go on at once, also later ones. Calls nest.

        Without it: nothing is held back.
        """

    def hold_back(self) -> None:
        """The reverse of one `let_go`: the drain is over."""

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
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """The options that a file name means; it begins with `name_prefix`. Raises: OptionError."""
        return {"filename": filename}

    @classmethod
    def check_create(cls, options: Mapping[str, Any]) -> None:
        """Whether `create` can make an image with these options, before its files are touched. Raises: OptionError."""

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

    @classmethod
    async def measure(
        cls,
        options: Mapping[str, Any],
        size: int,
        data: AsyncIterable[tuple[int, int]] | None,
        bitmaps: "Iterable[DirtyBitmap] | None",
    ) -> Measurement:
        """Formats: how large the file of an image becomes that `create` would make with `options`, and then is filled.

        `size` of the disk in bytes, which counts, not the option. `data`: the runs (offset, length) that hold data, in
        ascending order; None: there is none. `bitmaps` that are to be stored in it; None: the source keeps none.
        Raises: OptionError; NotSupported; what `data` raises.
        """
        raise NotSupported(f"Block driver '{cls.name}' does not support size measurement")

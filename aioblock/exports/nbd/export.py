"""NbdExport: a disk, or a part of it, as the server shows it to clients."""

from collections.abc import Iterable, Sequence

from aioblock.base.errors import OptionError
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.exports.nbd.contexts import AllocationContext, BitmapContext, Context, DepthContext, TailContext
from aioblock.exports.nbd.sectors import WholeSectors, in_sectors
from aioblock.graph.backend import BlockBackend
from aioblock.nbd.constants import (
    CONTEXT_ALLOCATION,
    CONTEXT_ALLOCATION_DEPTH,
    CONTEXT_DIRTY_BITMAP,
    FLAG_CAN_MULTI_CONN,
    FLAG_HAS_FLAGS,
    FLAG_READ_ONLY,
    FLAG_SEND_CACHE,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    MAX_PAYLOAD,
    MAX_STRING,
    STATE_HOLE,
    STATE_ZERO,
)
from aioblock.nbd.export import ExportInfo

__all__ = ["NbdExport"]

_PREFERRED_BLOCK = 4096


class NbdExport:
    """What of a disk is served, and how. The disk stays the caller's: it is closed after the server."""

    def __init__(
        self,
        disk: BlockBackend,
        *,
        read_only: bool = False,
        description: str = "",
        offset: int = 0,
        size: int | None = None,
        allocation_depth: bool = False,
        bitmaps: Sequence[str] = (),
        whole_sectors: bool = False,
        min_block: int = 1,
    ) -> None:
        """`offset` and `size` in bytes: the part that is served; None: up to the end of the disk.

        `whole_sectors`: a disk that ends within a sector of 512 bytes is filled up with zeroes; what is written behind
        its end makes it longer. `min_block`: what clients are told that requests should be multiples of.
        `allocation_depth`, `bitmaps` (names of dirty bitmaps of the top image): offered as metadata contexts.
        Raises: OptionError.
        """
        length = in_sectors(disk.length) if whole_sectors else disk.length
        if size is None:
            size = length - offset
        if offset < 0 or size < 0 or offset + size > length:
            raise OptionError(f"An export of {size} bytes at {offset} is not inside '{disk.name}' of {length} bytes")
        if size % min_block:
            raise OptionError(f"An export of {size} bytes is not made of blocks of {min_block}")
        if len(description.encode()) > MAX_STRING:
            raise OptionError(f"The description of an export has more than {MAX_STRING} bytes")
        self.disk = disk
        self.served = WholeSectors(disk) if length > disk.length else disk
        """What requests go to."""
        self.min_block = min_block
        self.read_only = read_only or not disk.writable
        self.description = description
        self.offset = offset
        self.size = size
        self.allocation_depth = allocation_depth
        self.bitmap_names = tuple(dict.fromkeys(bitmaps))
        self.contexts: dict[str, Context] = {}
        """What clients may ask about runs of the export, by name, once it is served."""
        self._held: list[DirtyBitmap] = []

    def __repr__(self) -> str:
        mode = "read-only" if self.read_only else "writable"
        return f"<NbdExport {self.disk.name} {mode} offset={self.offset} size={self.size}>"

    async def begin(self) -> None:
        """Get ready to be served: the bitmaps are loaded, and nobody else may change them meanwhile.

        Failed: nothing is held. Raises: BitmapError, OSError.
        """
        contexts: dict[str, Context] = {CONTEXT_ALLOCATION: AllocationContext(self.disk)}
        if self.allocation_depth:
            contexts[CONTEXT_ALLOCATION_DEPTH] = DepthContext(self.disk)
        if self.served is not self.disk:
            behind = STATE_HOLE | STATE_ZERO if self.min_block == 1 else None  # no run ends within a block
            contexts[CONTEXT_ALLOCATION] = TailContext(contexts[CONTEXT_ALLOCATION], self.disk, behind)
            if self.allocation_depth:
                contexts[CONTEXT_ALLOCATION_DEPTH] = TailContext(contexts[CONTEXT_ALLOCATION_DEPTH], self.disk, None)
        try:
            for name in self.bitmap_names:
                bitmap = await self.disk.bitmap(name)
                bitmap.busy = True
                self._held.append(bitmap)
                contexts[CONTEXT_DIRTY_BITMAP + name] = BitmapContext(bitmap)
        except BaseException:
            self.end()
            raise
        self.contexts = contexts

    def end(self) -> None:
        """It is not served any more."""
        for bitmap in self._held:
            bitmap.busy = False
        self._held.clear()
        self.contexts = {}

    def info(self, name: str, *, multi_conn: bool) -> ExportInfo:
        """What clients are told of it. `multi_conn`: they may use it over several connections.

        A flush on one connection covers the writes that were answered on all of them: there is one disk behind them.
        """
        flags = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_CACHE
        if self.read_only:
            flags |= FLAG_READ_ONLY
        else:
            flags |= FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO
        if multi_conn:
            flags |= FLAG_CAN_MULTI_CONN
        return ExportInfo(
            name,
            self.size,
            flags,
            min_block=self.min_block,
            preferred_block=_PREFERRED_BLOCK,
            max_block=MAX_PAYLOAD,
            description=self.description,
            canonical_name=name,
        )

    def offered(self, queries: Iterable[str], *, select: bool) -> list[tuple[int, str]]:
        """Ids and names of the contexts that queries ask for. Not to `select`: all, or all of a namespace, too."""
        names = list(self.contexts)
        asked = list(queries)
        if select:
            wanted = set(asked)
        else:
            groups = [query for query in asked if query.endswith(":")]
            wanted = {name for name in names if not asked or name in asked or name.startswith(tuple(groups))}
        return [(number, name) for number, name in enumerate(names) if name in wanted]

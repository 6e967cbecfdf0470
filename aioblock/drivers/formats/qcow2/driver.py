"""Qcow2Driver: the contract of `BlockDriver`, handed on to the verbs; opening, reopening and closing.

A read or an overwrite inside one cluster, whose L2 table is in memory, goes straight to the file: its awaitable is
returned as it is.
"""

import errno
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.images import CreateOption, Measurement, Prealloc
from aioblock.core.limits import BlockLimits
from aioblock.drivers.formats.qcow2 import status, zeroes
from aioblock.drivers.formats.qcow2.commit import commit, write_back
from aioblock.drivers.formats.qcow2.compressed_write import finish_compressed, write_compressed
from aioblock.drivers.formats.qcow2.create_options import AMEND_OPTIONS, CREATE_OPTIONS
from aioblock.drivers.formats.qcow2.entries import (
    L2_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
)
from aioblock.drivers.formats.qcow2.header import MAGIC
from aioblock.drivers.formats.qcow2.image import Image
from aioblock.drivers.formats.qcow2.opening import check_header_writable, open_image, prepare_writing
from aioblock.drivers.formats.qcow2.options import RUNTIME_OPTIONS, take_options
from aioblock.drivers.formats.qcow2.read import read
from aioblock.drivers.formats.qcow2.whole import WholeImage
from aioblock.drivers.formats.qcow2.write import write

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.context import OpenContext
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.core.extents import ExtentBatch
    from aioblock.core.io import BlockIO, Done, Status, StoredData

__all__ = ["Qcow2Driver"]


class Qcow2Driver(WholeImage):
    """The qcow2 format."""

    name: ClassVar[str] = "qcow2"
    kind: ClassVar[str] = "format"
    supports_backing: ClassVar[bool] = True
    shrinks_alone: ClassVar[bool] = True
    supported_zero_flags: int = REQ_MAY_UNMAP
    runtime_options: ClassVar[frozenset[str]] = RUNTIME_OPTIONS
    naming_options: ClassVar[frozenset[str]] = frozenset({"encrypt", "snapshot"})
    create_options: ClassVar[tuple[CreateOption, ...]] = CREATE_OPTIONS
    amend_options: ClassVar[tuple[CreateOption, ...]] = AMEND_OPTIONS

    def __init__(self, image: Image) -> None:
        self.image = image
        self.bitmaps = image.bitmaps
        self.file: BlockIO = image.file
        self._data = image.data_file
        header = image.header
        self.cluster_size = header.cluster_size
        self.limits = BlockLimits(
            request_alignment=512 if image.encrypted else 1,
            pwrite_zeroes_alignment=header.subcluster_size,
            pdiscard_alignment=header.cluster_size,
        )
        # What the hot path needs, one attribute away.
        self._tables = image.l2.tables
        self._table_shift = image.table_shift
        self._cluster_bits = image.cluster_bits
        self._cluster_mask = image.cluster_mask
        self._l2_mask = image.l2_mask
        self._mask = self._plain = 0
        self._set_hot_path()

    def __repr__(self) -> str:
        return f"<Qcow2Driver {self.image!r}>"

    def _set_hot_path(self) -> None:
        """An entry for which (entry & mask) == plain, and which has an offset, is data that stays where it is while it
        is read. In a writable image it is so if nobody else refers to it. Extended entries never are, for this purpose,
        nor is what must be decrypted.
        """
        image = self.image
        copied = 0 if image.read_only else OFLAG_COPIED
        self._mask = copied | OFLAG_COMPRESSED | OFLAG_ZERO | L2_RESERVED_MASK | image.cluster_mask
        self._plain = -1 if image.extended or not image.data.plain else copied

    @property
    def backing(self) -> "BlockIO | None":
        """The backing child; the graph may change it."""
        return self.image.backing

    @backing.setter
    def backing(self, child: "BlockIO | None") -> None:
        self.image.backing = child

    # -- opening and closing -----------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Open an image. Options: see `options`. A writable one takes its bitmaps into use in the file at once."""
        return cls(await open_image(context))

    async def close(self) -> None:
        """Write everything back, and store the bitmaps. Raises: OSError where that failed; all is given up anyway."""
        image = self.image
        try:
            await image.settle_marking()
            if not image.read_only and not image.corrupt:
                await write_back(image)
                await self.store_bitmaps()
        finally:
            image.threads.close()
            image.l2.tables.clear()
            image.refcounts.blocks.clear()
            image.decompressed.clear()

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Change between read-only and writable. Raises: CorruptImage, NotSupported, OSError; then nothing changed."""
        image = self.image
        if read_only == image.read_only:
            return
        if read_only:
            await write_back(image)
            await self.store_bitmaps()
            image.read_only = True
            self._set_hot_path()
            return
        check_header_writable(image.header, for_check=False)
        image.read_only = False
        try:
            await prepare_writing(image)
        except BaseException:
            image.read_only = True
            raise
        self._set_hot_path()

    def change_options(self, options: "Options", *, unmap: bool) -> None:
        """See `options`. Raises: OptionError, and nothing has changed."""
        image = self.image
        image.options = take_options(options, image.header, unmap=unmap)
        image.l2.limit = image.options.l2_tables
        image.refcounts.limit = image.options.refcount_blocks

    async def drain_begin(self) -> None:
        """Only the mark of a corruption is ever written in the background."""
        await self.image.settle_marking()

    async def getlength(self) -> int:
        """The size of the disk."""
        return self.image.size

    # -- data --------------------------------------------------------------------------------------------------------

    def preadv_now(self, offset: int, buffer: memoryview) -> bool:
        """Read plain data whose table is in memory, if the file can do it now."""
        host = self._plain_data(offset, len(buffer))
        return host != 0 and self._data.readinto_now(host, buffer)

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Read."""
        if host := self._plain_data(offset, len(buffer)):
            return self._data.readinto(host, buffer)
        return read(self.image, offset, buffer)

    def _plain_data(self, offset: int, nbytes: int) -> int:
        """Where in the file the range lies, if its table is in memory and it is plain data of one cluster; else 0."""
        table = self._tables.get(offset >> self._table_shift)
        if table is None:
            return 0
        inside = offset & self._cluster_mask
        entry = table.entries[offset >> self._cluster_bits & self._l2_mask]
        host = entry & OFFSET_MASK
        if entry & self._mask != self._plain or not host or inside + nbytes > self._cluster_mask + 1:
            return 0
        table.used = True
        return host + inside

    def pwritev_soon(self, offset: int, data: memoryview, done: "Done") -> bool:
        """Write over plain data whose table is in memory, if the file takes it at once."""
        host = self._in_place(offset, len(data))
        return host != 0 and self._data.pwrite_soon(host, data, done)

    def pwritev(self, offset: int, data: memoryview, flags: int) -> Awaitable[None]:
        """Write."""
        if host := self._in_place(offset, len(data)):
            return self._data.pwrite(host, data)
        return self._write(offset, data)

    def _in_place(self, offset: int, nbytes: int) -> int:
        """Where in the file the range lies, if it may be written over there, without a change of metadata; else 0."""
        image = self.image
        metadata = image.metadata_clusters
        if not metadata or image.corrupt or not image.l1[offset >> self._table_shift] & OFLAG_COPIED:
            return 0
        host = self._plain_data(offset, nbytes)
        return 0 if host >> self._cluster_bits in metadata else host

    async def _write(self, offset: int, data: "memoryview | StoredData") -> None:
        try:
            await write(self.image, offset, data)
        except OSError:
            await self.image.settle_marking()
            raise

    def copy_range_from(
        self, offset: int, nbytes: int, target: "BlockIO", target_offset: int, flags: int
    ) -> Awaitable[None]:
        """Copy plain data, and what the backing file holds; NotSupported for compressed and encrypted clusters."""
        from aioblock.drivers.formats.qcow2.copy_range import copy_range_from

        return copy_range_from(self.image, offset, nbytes, target, target_offset, flags)

    async def copy_range_to(self, offset: int, data: "StoredData") -> None:
        """Write whole (sub)clusters, or over data; NotSupported where the rest of a new one would have to be filled."""
        if not self.image.data.plain:
            raise NotSupported
        await self._write(offset, data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Mark clusters as zero; they keep their host clusters unless REQ_MAY_UNMAP."""
        try:
            await zeroes.write_zeroes(self.image, offset, nbytes, flags)
        except OSError:
            await self.image.settle_marking()
            raise

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Give whole clusters back."""
        try:
            await zeroes.discard(self.image, offset, nbytes)
        except OSError:
            await self.image.settle_marking()
            raise

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        """Store clusters compressed; what has a host cluster already, or gets no smaller, is written as it is."""
        image = self.image
        image.check_writable()
        if image.external:
            raise NotSupported  # compressed clusters cannot lie in an external data file
        if image.encrypted:  # they would not be encrypted
            raise NotSupported("Compression and encryption not supported at the same time")
        if not data:
            await finish_compressed(image)
            return
        if offset & image.cluster_mask or (len(data) & image.cluster_mask and offset + len(data) != image.size):
            raise OSError(errno.EINVAL, "Compressed writes take whole clusters")
        try:
            await write_compressed(image, offset, data)
        except OSError:
            await image.settle_marking()
            raise

    async def flush(self) -> None:
        """Write the tables back, in order. Raises: OSError; after one failure for ever."""
        await self.image.settle_marking()
        await commit(self.image)

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Make the disk larger or smaller: see `resize`."""
        try:
            from aioblock.drivers.formats.qcow2 import resize

            await resize.resize(self.image, length, prealloc)
        except OSError:
            await self.image.settle_marking()
            raise

    # -- status ------------------------------------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> "Status":
        """The run at `offset`."""
        return await status.block_status(self.image, offset, nbytes, want_zero)

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
        """Many runs, from whole L2 tables at a time."""
        from aioblock.drivers.formats.qcow2.extents import extents  # brings numpy, which most programs never need

        return await extents(self.image, offset, nbytes, want_zero)

    # -- before there is a node --------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """By the magic and the version."""
        return 100 if head[:4] == MAGIC and int.from_bytes(head[4:8], "big") >= 2 else 0

    @classmethod
    def check_create(cls, options: Mapping[str, Any]) -> None:
        """What makes no header is refused."""
        from aioblock.drivers.formats.qcow2.create import check_options

        check_options(options)

    @classmethod
    async def create(cls, file: "BlockIO", options: Mapping[str, Any]) -> None:
        """Write an empty image."""
        from aioblock.drivers.formats.qcow2.create import create

        await create(file, options)

    @classmethod
    async def measure(
        cls,
        options: Mapping[str, Any],
        size: int,
        data: AsyncIterable[tuple[int, int]] | None,
        bitmaps: "Iterable[DirtyBitmap] | None",
    ) -> Measurement:
        """How large an image becomes."""
        from aioblock.drivers.formats.qcow2.measure import measure

        return await measure(options, size, data, bitmaps)

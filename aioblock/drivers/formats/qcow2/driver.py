"""Qcow2Driver: the contract of `BlockDriver`, handed on to the verbs; opening, reopening and closing.

A read or an overwrite inside one cluster, whose L2 table is in memory, goes straight to the file: its awaitable is
returned as it is.
"""

import errno
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aioblock.base.errors import CorruptImage, ImageError, NotSupported, UnsupportedFeature
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.driver import BlockDriver
from aioblock.core.images import CheckResult, CreateOption, DriverInfo, InnerName, Prealloc, Role
from aioblock.core.limits import BlockLimits
from aioblock.drivers.formats.qcow2 import status, zeroes
from aioblock.drivers.formats.qcow2.commit import commit, write_back
from aioblock.drivers.formats.qcow2.compressed import Decompressed, Packer, finish_compressed, write_compressed
from aioblock.drivers.formats.qcow2.create_options import CREATE_OPTIONS
from aioblock.drivers.formats.qcow2.entries import (
    L2_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
    table_from_bytes,
)
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS, CRYPT_NONE
from aioblock.drivers.formats.qcow2.header import MAGIC, Header, features_field, read_header
from aioblock.drivers.formats.qcow2.image import Image, log
from aioblock.drivers.formats.qcow2.options import take_options
from aioblock.drivers.formats.qcow2.read import read
from aioblock.drivers.formats.qcow2.refcounts import Refcounts
from aioblock.drivers.formats.qcow2.tables import L2Cache
from aioblock.drivers.formats.qcow2.write import write

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.extents import ExtentBatch
    from aioblock.core.io import BlockIO, Status
    from aioblock.drivers.formats.qcow2.bitmap_directory import BitmapEntry

__all__ = ["Qcow2Driver"]


class Qcow2Driver(BlockDriver):
    """The qcow2 format."""

    name: ClassVar[str] = "qcow2"
    kind: ClassVar[str] = "format"
    supports_backing: ClassVar[bool] = True
    supported_zero_flags: ClassVar[int] = REQ_MAY_UNMAP
    create_options: ClassVar[tuple[CreateOption, ...]] = CREATE_OPTIONS

    def __init__(self, image: Image) -> None:
        self.image = image
        self.file: BlockIO = image.file
        header = image.header
        self.cluster_size = header.cluster_size
        self.limits = BlockLimits(
            pwrite_zeroes_alignment=header.subcluster_size, pdiscard_alignment=header.cluster_size
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
        is read. In a writable image it is so if nobody else refers to it. Extended entries never are, for this purpose.
        """
        image = self.image
        copied = 0 if image.read_only else OFLAG_COPIED
        self._mask = copied | OFLAG_COMPRESSED | OFLAG_ZERO | L2_RESERVED_MASK | image.cluster_mask
        self._plain = -1 if image.extended else copied

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
        """Open an image. Options: see `options`. A writable one has its autoclear bits cleared in the file at once."""
        file = await context.open_child(Role.FILE)
        header = await read_header(file, context.filename, for_check=context.for_check)
        _check_supported(header)
        if not context.read_only:
            _check_writable(header, for_check=context.for_check)
        options = take_options(context.options, header, unmap=context.unmap)
        image = Image(file, header, options, read_only=context.read_only)
        image.l2 = L2Cache(image, options.l2_tables)
        image.refcounts = Refcounts(image, options.refcount_blocks)
        image.packer = Packer(image)
        image.decompressed = Decompressed()
        image.l1 = table_from_bytes(await file.pread(header.l1_table_offset, 8 * header.l1_size))
        if context.read_only:
            image.bitmaps = await _bitmaps(file, header)
        else:
            await _prepare_writing(image)
        inner = InnerName(header.backing_file, header.backing_format) if header.backing_file is not None else None
        image.backing = await context.open_inner(Role.BACKING, inner)
        image.this = context.this
        return cls(image)

    async def close(self) -> None:
        """Write everything back. Raises: OSError where that failed; the image is given up all the same."""
        image = self.image
        try:
            await image.settle_marking()
            if not image.read_only and not image.corrupt:
                await write_back(image)
        finally:
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
            image.read_only = True
            self._set_hot_path()
            return
        _check_writable(image.header, for_check=False)
        image.read_only = False
        try:
            await _prepare_writing(image)
        except BaseException:
            image.read_only = True
            raise
        self._set_hot_path()

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
        return host != 0 and self.file.readinto_now(host, buffer)

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Read."""
        if host := self._plain_data(offset, len(buffer)):
            return self.file.readinto(host, buffer)
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

    def pwritev(self, offset: int, data: memoryview, flags: int) -> Awaitable[None]:
        """Write."""
        image = self.image
        index = offset >> self._table_shift
        table = self._tables.get(index)
        metadata = image.metadata_clusters
        if table is not None and metadata and not image.corrupt and image.l1[index] & OFLAG_COPIED:
            inside = offset & self._cluster_mask
            entry = table.entries[offset >> self._cluster_bits & self._l2_mask]
            if entry & self._mask == self._plain and inside + len(data) <= self._cluster_mask + 1:
                host = entry & OFFSET_MASK
                if host >> self._cluster_bits not in metadata:
                    table.used = True
                    return self.file.pwrite(host + inside, data)
        return self._write(offset, data)

    async def _write(self, offset: int, data: memoryview) -> None:
        try:
            await write(self.image, offset, data)
        except OSError:
            await self.image.settle_marking()
            raise

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
        size = image.cluster_size
        image.check_writable()
        if not data:
            await finish_compressed(image)
            return
        if offset & image.cluster_mask or (len(data) & image.cluster_mask and offset + len(data) != image.size):
            raise OSError(errno.EINVAL, "Compressed writes take whole clusters")
        try:
            for at in range(0, len(data), size):
                part = data[at : at + size]
                if not await write_compressed(image, offset + at, part):
                    await write(image, offset + at, part)
        except OSError:
            await image.settle_marking()
            raise

    async def flush(self) -> None:
        """Write the tables back, in order. Raises: OSError; after one failure for ever."""
        await self.image.settle_marking()
        await commit(self.image)

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Make the disk larger. Smaller: NotSupported."""
        try:
            from aioblock.drivers.formats.qcow2 import resize

            await resize.grow(self.image, length, prealloc)
        except OSError:
            await self.image.settle_marking()
            raise

    # -- status ------------------------------------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> "Status":
        """The run at `offset`."""
        return await status.block_status(self.image, offset, nbytes, want_zero)

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
        """Many runs, from whole L2 tables at a time."""
        return await status.extents(self.image, offset, nbytes, want_zero)

    # -- the image as a whole ----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo:
        """What `qemu-img info` shows."""
        from aioblock.drivers.formats.qcow2.info import describe

        return describe(self.image.header, self.image.bitmaps)

    def has_zero_init(self) -> bool:
        """Preallocated clusters read as what the file holds."""
        image = self.image
        if image.l1 and image.l1[0]:
            return self.file.node.driver.has_zero_init()
        return True

    async def check(self, *, fix_leaks: bool = False, fix_errors: bool = False) -> CheckResult:
        """Check the metadata in the file, after writing back what is in memory."""
        if fix_leaks or fix_errors:
            raise NotSupported("Repairing qcow2 images is not built yet")
        image = self.image
        if not image.read_only and not image.corrupt:
            await write_back(image)
        from aioblock.drivers.formats.qcow2.check import check_image

        return await check_image(image.file, image.header)

    # -- before there is a node --------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """By the magic and the version."""
        return 100 if head[:4] == MAGIC and int.from_bytes(head[4:8], "big") >= 2 else 0

    @classmethod
    async def create(cls, file: "BlockIO", options: Mapping[str, Any]) -> None:
        """Write an empty image."""
        from aioblock.drivers.formats.qcow2.create import create

        await create(file, options)


def _check_supported(header: Header) -> None:
    if header.crypt_method != CRYPT_NONE:
        raise UnsupportedFeature("Encrypted qcow2 images are not supported yet", features=("encryption",))
    if header.has_data_file:
        raise UnsupportedFeature("External data files are not supported yet", features=("external data file",))


def _check_writable(header: Header, *, for_check: bool) -> None:
    """Raises: CorruptImage, NotSupported where the image must not be written as it is."""
    if for_check:
        return
    if header.corrupt:
        raise CorruptImage("qcow2: Image is corrupt; cannot be opened read/write")
    if header.dirty:
        raise NotSupported("qcow2: The image was not closed properly and needs a repair, which is not built yet")


async def _bitmaps(file: "BlockIO", header: Header) -> Sequence["BitmapEntry"]:
    """The persistent bitmaps, for information; damaged ones do not keep an image from being read."""
    if not header.autoclear_features & AUTOCLEAR_BITMAPS:
        return ()
    from aioblock.drivers.formats.qcow2.bitmap_directory import read_bitmap_directory

    try:
        return await read_bitmap_directory(file, header)
    except (ImageError, OSError) as error:
        log.warning("Bitmaps are not available: %s", error)
        return ()


async def _prepare_writing(image: Image) -> None:
    """Before the first write: the refcount table, and the promise that autoclear bits make."""
    header = image.header
    if header.version >= 3 and header.autoclear_features:
        header.autoclear_features = 0
        await image.file.pwrite(*features_field(header))
        await image.file.flush()
    await image.refcounts.load()

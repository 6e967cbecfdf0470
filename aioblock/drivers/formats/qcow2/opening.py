"""Opening: from a header to an `Image`, and what comes before the first write."""

from typing import TYPE_CHECKING

from aioblock.base.errors import CorruptImage, ImageError, NotSupported, OptionError
from aioblock.core.eager import Finished, outcome, settle, start
from aioblock.core.images import InnerName, Role
from aioblock.drivers.formats.qcow2.compressed import Decompressed
from aioblock.drivers.formats.qcow2.compressed_write import Packer
from aioblock.drivers.formats.qcow2.compression_threads import CompressionThreads
from aioblock.drivers.formats.qcow2.data import Data, NoData
from aioblock.drivers.formats.qcow2.encryption import open_encryption
from aioblock.drivers.formats.qcow2.entries import table_from_bytes
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW
from aioblock.drivers.formats.qcow2.header import Header, features_field, read_header
from aioblock.drivers.formats.qcow2.image import Image, log
from aioblock.drivers.formats.qcow2.options import take_options
from aioblock.drivers.formats.qcow2.overlap import load_inactive
from aioblock.drivers.formats.qcow2.refcounts import Refcounts
from aioblock.drivers.formats.qcow2.tables import L2Cache
from aioblock.drivers.formats.qcow2.watched import WatchedData

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext

__all__ = ["check_header_writable", "open_image", "prepare_writing"]


async def open_image(context: "OpenContext") -> Image:
    """Open an image; a writable one is ready for the first write. Raises: ImageError, OptionError, OSError."""
    file = await context.open_child(Role.FILE)
    header = await read_header(file, context.filename, for_check=context.for_check)
    if not context.read_only:
        check_header_writable(header, for_check=context.for_check)
    options = take_options(context.options, header, unmap=context.unmap)
    image = Image(file, header, options, read_only=context.read_only)
    image.data = await _open_data(context, image)
    image.data = await open_encryption(context, image)
    if (debugger := image.data_file.node.debugger) is not None:
        image.data = WatchedData(image.data, debugger.event)
    image.l2 = L2Cache(image, options.l2_tables)
    image.refcounts = Refcounts(image, options.refcount_blocks)
    image.packer = Packer(image)
    image.threads = CompressionThreads()
    image.decompressed = Decompressed()
    inner = InnerName(header.backing_file, header.backing_format) if header.backing_file is not None else None
    loading = start(_load(image, context.options.take("snapshot", None), for_check=context.for_check))
    try:
        # Where reading takes time, the layers below are opened meanwhile; but a writable image is ready before.
        if isinstance(loading, Finished) or not context.read_only:
            await outcome(loading)
        image.backing = await context.open_inner(Role.BACKING, inner)
        await outcome(loading)
    finally:
        await settle([] if isinstance(loading, Finished) else [loading])
    image.this = context.this
    return image


async def _load(image: Image, snapshot: object, *, for_check: bool) -> None:
    """The L1 table, and what else is read before the first request."""
    header = image.header
    image.l1 = table_from_bytes(await image.file.pread(header.l1_table_offset, 8 * header.l1_size))
    if image.read_only:
        await _find_bitmaps(image, needed=False)
    else:
        await prepare_writing(image, for_check=for_check)
    if snapshot is not None:
        from aioblock.drivers.formats.qcow2.snapshot_find import load_snapshot

        await load_snapshot(image, snapshot)
        image.bitmaps.clear()  # they are those of the disk as it is now


async def _open_data(context: "OpenContext", image: Image) -> Data:
    """Where guest data is: the image file, or the data file that the options or the image name."""
    header = image.header
    if not header.has_data_file:
        if str(Role.DATA_FILE) in context.options:
            await context.open_inner(Role.DATA_FILE, None)
            raise OptionError("'data-file' can only be set for images with an external data file", option="data-file")
        return Data(image.file)
    if context.metadata_only or context.for_check:  # a name in an image is not followed to learn about the image
        context.options.take(str(Role.DATA_FILE), None)
        return NoData(image.file)
    name = InnerName(header.data_file, None) if header.data_file else None
    data_file = await context.open_inner(Role.DATA_FILE, name)
    if data_file is None:
        raise OptionError("'data-file' is required for this image", option="data-file")
    image.data_file = data_file
    return Data(data_file)


def check_header_writable(header: Header, *, for_check: bool) -> None:
    """Raises: CorruptImage where the image must not be written as it is."""
    if for_check:
        return
    if header.corrupt:
        raise CorruptImage("qcow2: Image is corrupt; cannot be opened read/write")


async def _find_bitmaps(image: Image, *, needed: bool) -> None:
    """Learn of the persistent bitmaps. Damaged ones do not keep an image from being read, or repaired: not `needed`.

    Raises: InvalidImage, CorruptImage, OSError.
    """
    if not image.header.autoclear_features & AUTOCLEAR_BITMAPS:
        return
    from aioblock.drivers.formats.qcow2.bitmap_store import find_bitmaps

    try:
        await find_bitmaps(image)
    except (ImageError, OSError) as error:
        if needed:
            raise
        log.warning("Bitmaps are not available: %s", error)


async def prepare_writing(image: Image, *, for_check: bool = False) -> None:
    """Before the first write: the refcount table, and the promise that autoclear bits make.

    An image that was not closed properly is repaired. Bits that nobody here keeps are cleared; the bitmaps are said to
    be in use. Raises: OSError.
    """
    header = image.header
    if header.dirty and not for_check:
        from aioblock.drivers.formats.qcow2.check import repair_dirty

        await repair_dirty(image)
    if image.snapshot is not None:
        raise NotSupported("A snapshot can only be read")
    await _find_bitmaps(image, needed=not for_check)
    keep = AUTOCLEAR_DATA_FILE_RAW if header.has_data_file else 0
    if for_check:
        keep |= AUTOCLEAR_BITMAPS  # a repair changes no guest data
    if image.stored_bitmaps:
        keep |= AUTOCLEAR_BITMAPS
    if header.version >= 3 and header.autoclear_features & ~keep:
        header.autoclear_features &= keep
        await image.file.pwrite(*features_field(header))
        await image.file.flush()
    if image.stored_bitmaps:
        from aioblock.drivers.formats.qcow2.bitmap_store import take_into_use

        await take_into_use(image)
    await load_inactive(image)
    await image.refcounts.load()

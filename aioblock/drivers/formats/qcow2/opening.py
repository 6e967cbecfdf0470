"""Opening: from a header to an `Image`, and what comes before the first write."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aioblock.base.errors import CorruptImage, ImageError, NotSupported, UnsupportedFeature
from aioblock.core.images import InnerName, Role
from aioblock.drivers.formats.qcow2.compressed import Decompressed, Packer
from aioblock.drivers.formats.qcow2.data import Data
from aioblock.drivers.formats.qcow2.entries import table_from_bytes
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS, CRYPT_NONE
from aioblock.drivers.formats.qcow2.header import Header, features_field, read_header
from aioblock.drivers.formats.qcow2.image import Image, log
from aioblock.drivers.formats.qcow2.options import take_options
from aioblock.drivers.formats.qcow2.refcounts import Refcounts
from aioblock.drivers.formats.qcow2.tables import L2Cache

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.bitmap_directory import BitmapEntry

__all__ = ["check_header_writable", "open_image", "prepare_writing"]


async def open_image(context: "OpenContext") -> Image:
    """Open an image; a writable one is ready for the first write. Raises: ImageError, OptionError, OSError."""
    file = await context.open_child(Role.FILE)
    header = await read_header(file, context.filename, for_check=context.for_check)
    _check_supported(header)
    if not context.read_only:
        check_header_writable(header, for_check=context.for_check)
    options = take_options(context.options, header, unmap=context.unmap)
    image = Image(file, header, options, read_only=context.read_only)
    image.data = Data(image.data_file)
    image.l2 = L2Cache(image, options.l2_tables)
    image.refcounts = Refcounts(image, options.refcount_blocks)
    image.packer = Packer(image)
    image.decompressed = Decompressed()
    image.l1 = table_from_bytes(await file.pread(header.l1_table_offset, 8 * header.l1_size))
    if context.read_only:
        image.bitmaps = await _bitmaps(file, header)
    else:
        await prepare_writing(image)
    inner = InnerName(header.backing_file, header.backing_format) if header.backing_file is not None else None
    image.backing = await context.open_inner(Role.BACKING, inner)
    image.this = context.this
    return image


def _check_supported(header: Header) -> None:
    if header.crypt_method != CRYPT_NONE:
        raise UnsupportedFeature("Encrypted qcow2 images are not supported yet", features=("encryption",))
    if header.has_data_file:
        raise UnsupportedFeature("External data files are not supported yet", features=("external data file",))


def check_header_writable(header: Header, *, for_check: bool) -> None:
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


async def prepare_writing(image: Image) -> None:
    """Before the first write: the refcount table, and the promise that autoclear bits make."""
    header = image.header
    if header.version >= 3 and header.autoclear_features:
        header.autoclear_features = 0
        await image.file.pwrite(*features_field(header))
        await image.file.flush()
    await image.refcounts.load()

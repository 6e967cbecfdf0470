"""Amend: change what an image says about itself, after it was made.

What is asked for is checked as a whole before anything is written. Then, in this order, each step stable before the
next one: version up, refcount width, encryption, the data file, lazy refcounts, the size, version down. A failure
leaves the steps that are done.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aioblock.base.errors import NotSupported, OptionError
from aioblock.core.images import Prealloc
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.create import MIN_FEATURE_TABLE_CLUSTER_SIZE
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import (
    AUTOCLEAR_DATA_FILE_RAW,
    COMPAT_LAZY_REFCOUNTS,
    CRYPT_NONE,
    INCOMPAT_DATA_FILE,
    INCOMPAT_DIRTY,
)
from aioblock.drivers.formats.qcow2.header import Header, features_field
from aioblock.drivers.formats.qcow2.header_update import update_header
from aioblock.drivers.formats.qcow2.validation import MAX_BACKING_FORMAT, V2_LENGTH, V3_LENGTH

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["amend", "change_backing_file"]

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}


class _Wish(NamedTuple):
    """What an image shall be."""

    version: int
    refcount_order: int
    lazy: bool
    size: int
    data_file: str | None
    data_file_raw: bool
    encryption: bool
    """Key slots are to be changed."""


async def amend(
    image: "Image",
    options: Mapping[str, Any],
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Change an image. `options`: see `AMEND_OPTIONS`; those not given stay as they are. Nothing else is in flight.

    Raises: OptionError and NotSupported before anything is written; OSError.
    """
    image.check_writable()
    wish = _check(image, options)
    header = image.header
    await write_back(image)
    if wish.version > image.version:
        await _upgrade(image)
    if wish.refcount_order != header.refcount_order:
        from aioblock.drivers.formats.qcow2.amend_refcounts import change_refcount_order

        await change_refcount_order(image, wish.refcount_order, progress)
    if wish.encryption:
        from aioblock.drivers.formats.qcow2.encryption import amend_encryption

        await amend_encryption(image, options, force=force)
    await _change_data_file(image, wish)
    if wish.lazy != header.lazy_refcounts:
        header.compatible_features ^= COMPAT_LAZY_REFCOUNTS
        await image.file.pwrite(*features_field(header))
        await image.file.flush()
        image.options.lazy_refcounts = wish.lazy
    if wish.size != image.size:
        from aioblock.drivers.formats.qcow2.resize import resize

        await resize(image, wish.size, Prealloc.OFF)
        await write_back(image)
    if wish.version < image.version:
        await _downgrade(image, progress)


# -- what is asked for -----------------------------------------------------------------------------------------------


def _check(image: "Image", options: Mapping[str, Any]) -> _Wish:
    """Raises: OptionError, NotSupported where an image cannot be made what is asked for."""
    header = image.header
    version = image.version
    if (compat := options.get("compat")) is not None:
        if compat not in _VERSIONS:
            raise OptionError(f"Unknown compatibility level {compat}", option="compat")
        version = _VERSIONS[compat]
    encryption = any(name.startswith("encrypt.") for name in options)
    if encryption and header.crypt_method == CRYPT_NONE:
        raise OptionError("Can't amend encryption options - encryption not present", option="encrypt")
    bits = options.get("refcount_bits", header.refcount_bits)
    if not 1 <= bits <= 64 or bits & (bits - 1):
        raise OptionError("Refcount width must be a power of two and may not exceed 64 bits", option="refcount_bits")
    lazy = options.get("lazy_refcounts", header.lazy_refcounts and version >= 3)
    data_file = options.get("data_file")
    if data_file is not None and not header.has_data_file:
        raise OptionError("data-file can only be set for images that use an external data file", option="data_file")
    raw = options.get("data_file_raw", image.data_file_raw)
    if raw and not image.data_file_raw:
        raise OptionError("data-file-raw cannot be set on existing images", option="data_file_raw")
    if version < 3 and bits != 16:
        if "refcount_bits" in options:
            raise OptionError(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above"
                " (use compat=1.1 or greater)",
                option="refcount_bits",
            )
        raise OptionError("compat=0.10 requires refcount_bits=16", option="compat")
    _check_backing(header, options)
    if lazy and version < 3:
        raise OptionError(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            option="lazy_refcounts",
        )
    size = options.get("size") or image.size
    if size % 512:
        raise OptionError("The new size must be a multiple of 512", option="size")
    if version < image.version:
        _check_downgrade(header, size)
    return _Wish(version, bits.bit_length() - 1, lazy, size, data_file, raw, encryption)


def _check_backing(header: Header, options: Mapping[str, Any]) -> None:
    if "backing_file" not in options and "backing_fmt" not in options:
        return
    # As QEMU has it: of the two that are there, both must be named, or none.
    given = options.get("backing_file"), options.get("backing_fmt")
    if given != (header.backing_file, header.backing_format):
        raise OptionError(
            "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.", option="backing_file"
        )


def _check_downgrade(header: Header, size: int) -> None:
    if header.has_data_file:
        raise NotSupported("Cannot downgrade an image with a data file")
    if known := header.incompatible_features & ~(INCOMPAT_DIRTY | INCOMPAT_DATA_FILE):
        raise NotSupported(f"Cannot downgrade an image with incompatible features {known:#x} set")
    if ext.find(header.extensions, ext.BITMAPS) is not None:
        raise NotSupported("Cannot downgrade an image with persistent bitmaps")
    for entry in header.snapshots:
        if entry.vm_state_size >= 1 << 32 or entry.disk_size not in (None, size):
            raise NotSupported("Internal snapshots prevent downgrade of image")


# -- the steps -------------------------------------------------------------------------------------------------------


async def _upgrade(image: "Image") -> None:
    if image.header.nb_snapshots:
        from aioblock.drivers.formats.qcow2.snapshots import complete_snapshot_table

        await complete_snapshot_table(image)

    def change(header: Header) -> None:
        header.version = 3
        header.header_length = V3_LENGTH
        if header.cluster_size >= MIN_FEATURE_TABLE_CLUSTER_SIZE:
            ext.insert(header.extensions, ext.feature_table())

    await update_header(image, change)


async def _downgrade(image: "Image", progress: Callable[[int, int], None] | None) -> None:
    from aioblock.drivers.formats.qcow2.amend_zeroes import expand_zeroes

    await expand_zeroes(image, progress)

    def change(header: Header) -> None:
        header.version = 2
        header.header_length = V2_LENGTH
        header.unknown_fields = b""
        header.incompatible_features = header.compatible_features = header.autoclear_features = 0
        header.extensions = [extension for extension in header.extensions if extension.type != ext.FEATURE_NAMES]

    await update_header(image, change)


async def _change_data_file(image: "Image", wish: _Wish) -> None:
    header = image.header
    if image.data_file_raw and not wish.data_file_raw:
        header.autoclear_features &= ~AUTOCLEAR_DATA_FILE_RAW
        await image.file.pwrite(*features_field(header))
        await image.file.flush()
        image.data_file_raw = False
    name = wish.data_file
    if name is None or name == header.data_file:
        return

    def change(header: Header) -> None:
        _put(header, ext.DATA_FILE, name.encode("utf-8", "surrogateescape"))

    await update_header(image, change)


def _put(header: Header, kind: int, data: bytes) -> None:
    """Set an extension in a header; no data: remove it."""
    others = [extension for extension in header.extensions if extension.type != kind]
    header.extensions = [Extension(kind, data), *others] if data else others


# -- the backing file ------------------------------------------------------------------------------------------------


async def change_backing_file(image: "Image", filename: str | None, format: str | None) -> None:
    """Write another name, and format, of the backing file into the image; None: it has none. Its data stays as it is.

    What is open as the backing file stays so. Stable when done. Failed: the image names the old one, or the new one.
    Raises: OptionError before anything is written; OSError.
    """
    image.check_writable()
    encoded = (format or "").encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_BACKING_FORMAT:
        raise OptionError(f"Backing format '{format}' is too long", option="backing_fmt")
    if filename and image.data_file_raw:
        raise OptionError("An image with data-file-raw can have no backing file", option="backing_file")
    await write_back(image)

    def change(header: Header) -> None:
        _put(header, ext.BACKING_FORMAT, encoded if filename else b"")
        header.backing_file = filename or None

    await update_header(image, change)

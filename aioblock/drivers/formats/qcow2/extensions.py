"""The extensions of a qcow2 header, which follow it up to the name of the backing file or the end of the cluster.

    byte  0 -  3   type
          4 -  7   length of the data
          8 -  n   data
          n -  m   padding to a multiple of 8

Type 0 ends them. A program keeps the types that it does not know as they are. One of the types known here
stands there at most once.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from aioblock.base.errors import InvalidImage
from aioblock.drivers.formats.qcow2.features import FEATURES

__all__ = [
    "BACKING_FORMAT",
    "BITMAPS",
    "BitmapsExtension",
    "CRYPTO",
    "DATA_FILE",
    "FEATURE_NAMES",
    "Extension",
    "bitmaps_extension",
    "feature_table",
    "insert",
    "find",
    "parse_bitmaps",
    "parse_extensions",
    "parse_feature_table",
    "serialise_extensions",
]

END: Final = 0
BACKING_FORMAT: Final = 0xE2792ACA
FEATURE_NAMES: Final = 0x6803F857
BITMAPS: Final = 0x23852875
CRYPTO: Final = 0x0537BE77
DATA_FILE: Final = 0x44415441

_ONCE: Final = frozenset((BACKING_FORMAT, FEATURE_NAMES, BITMAPS, CRYPTO, DATA_FILE))

MAX_EXTENSIONS: Final = 1024
"""More than this in one header is an attack on whoever keeps them."""

_HEAD: Final = struct.Struct(">II")
_FEATURE: Final = struct.Struct(">BB46s")
_BITMAPS: Final = struct.Struct(">IIQQ")


class Extension(NamedTuple):
    """One header extension: its type, and its data without the padding."""

    type: int
    data: bytes


class BitmapsExtension(NamedTuple):
    """Where the directory of the persistent bitmaps lies. Sizes and offsets in bytes."""

    nb_bitmaps: int
    directory_size: int
    directory_offset: int


def parse_extensions(area: bytes | memoryview, offset: int) -> list[Extension]:
    """The extensions in `area`, which begins at `offset` of the file, without the end mark. Raises: InvalidImage."""
    found: list[Extension] = []
    seen: set[int] = set()
    at = 0
    while len(area) - at >= _HEAD.size:
        kind, nbytes = _HEAD.unpack_from(area, at)
        if kind == END:
            return found
        if nbytes > len(area) - at - _HEAD.size:
            raise InvalidImage("Header extension too large", offset=offset + at)
        if kind in _ONCE and kind in seen:
            raise InvalidImage(f"Header extension {kind:#010x} appears twice", offset=offset + at)
        if len(found) == MAX_EXTENSIONS:
            raise InvalidImage("Too many header extensions", offset=offset + at)
        seen.add(kind)
        start = at + _HEAD.size
        found.append(Extension(kind, bytes(area[start : start + nbytes])))
        at = start + (nbytes + 7 & ~7)
    if any(area[at:]):
        raise InvalidImage("Header extension too large", offset=offset + at)
    if found and at >= len(area):
        raise InvalidImage("Header extensions have no end", offset=offset + len(area))
    return found


def serialise_extensions(extensions: Iterable[Extension]) -> bytes:
    """The extensions one after the other, each padded, and the end mark."""
    parts = bytearray()
    for kind, data in extensions:
        parts += _HEAD.pack(kind, len(data)) + data + bytes(-len(data) % 8)
    return bytes(parts + _HEAD.pack(END, 0))


def find(extensions: Sequence[Extension], kind: int) -> bytes | None:
    """The data of the extension of that type, or None."""
    for extension in extensions:
        if extension.type == kind:
            return extension.data
    return None


# -- the feature name table ------------------------------------------------------------------------------------------


def insert(extensions: list[Extension], extension: Extension) -> None:
    """Add a known extension to a list: behind those that are known, before those that are not, as QEMU orders them."""
    place = next((number for number, found in enumerate(extensions) if found.type not in _ONCE), len(extensions))
    extensions.insert(place, extension)


def feature_table() -> Extension:
    """The feature name table of a new image."""
    return Extension(FEATURE_NAMES, b"".join(_FEATURE.pack(kind, bit, name.encode()) for kind, bit, name in FEATURES))


def parse_feature_table(data: bytes) -> dict[tuple[int, int], str]:
    """Names by kind and bit, fit to be printed. Only for messages: what makes no sense in it is left out."""
    names: dict[tuple[int, int], str] = {}
    data = data[: 1024 * _FEATURE.size]
    for at in range(0, len(data), _FEATURE.size):  # the last entry may be cut short
        kind, bit, name = _FEATURE.unpack(data[at : at + _FEATURE.size].ljust(_FEATURE.size, b"\0"))
        text = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        if text and bit < 64:
            shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
            names.setdefault((kind, bit), shown)
    return names


# -- bitmaps ---------------------------------------------------------------------------------------------------------

MAX_BITMAPS: Final = 65535
MAX_BITMAP_DIRECTORY: Final = 0x3FFFC00
"""64 KiB short of 64 MiB: as many entries as there may be, each of the greatest size (1,024 bytes)."""


def bitmaps_extension(place: BitmapsExtension) -> bytes:
    """The data of the bitmaps extension."""
    return _BITMAPS.pack(place.nb_bitmaps, 0, place.directory_size, place.directory_offset)


def parse_bitmaps(data: bytes, cluster_size: int) -> BitmapsExtension:
    """The bitmaps extension, checked as far as it can be without reading the directory. Raises: InvalidImage."""
    if len(data) != _BITMAPS.size:
        raise InvalidImage("bitmaps_ext: Invalid extension length")
    count, reserved, size, offset = _BITMAPS.unpack(data)
    if reserved:
        raise InvalidImage("bitmaps_ext: Reserved field is not zero")
    if count > MAX_BITMAPS:
        raise InvalidImage(
            f"bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}"
        )
    if count == 0:
        raise InvalidImage("found bitmaps extension with zero bitmaps")
    if offset & (cluster_size - 1):
        raise InvalidImage("bitmaps_ext: invalid bitmap directory offset")
    if size > MAX_BITMAP_DIRECTORY:
        raise InvalidImage(
            f"bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size ({MAX_BITMAP_DIRECTORY})"
        )
    if size == 0:
        raise InvalidImage("Requested bitmap directory size is zero")
    return BitmapsExtension(count, size, offset)

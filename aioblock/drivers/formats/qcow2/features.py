"""The feature bits of a qcow2 header, and what its other selectors may say.

A program must not open an image with an incompatible bit that it does not know. It may ignore a compatible bit, and
clears an autoclear bit that it does not know before it writes anything.
"""

from typing import Final

INCOMPAT_DIRTY: Final = 1 << 0
INCOMPAT_CORRUPT: Final = 1 << 1
INCOMPAT_DATA_FILE: Final = 1 << 2
INCOMPAT_COMPRESSION: Final = 1 << 3
INCOMPAT_EXTENDED_L2: Final = 1 << 4
INCOMPAT_KNOWN: Final = 0x1F
COMPAT_LAZY_REFCOUNTS: Final = 1 << 0
AUTOCLEAR_BITMAPS: Final = 1 << 0
AUTOCLEAR_DATA_FILE_RAW: Final = 1 << 1
AUTOCLEAR_KNOWN: Final = 0x3

CRYPT_NONE: Final = 0
CRYPT_AES: Final = 1
CRYPT_LUKS: Final = 2

COMPRESSION_ZLIB: Final = 0
COMPRESSION_ZSTD: Final = 1

# The kinds of features, as the feature name table numbers them.
INCOMPATIBLE: Final = 0
COMPATIBLE: Final = 1
AUTOCLEAR: Final = 2

FEATURES: Final = (
    (INCOMPATIBLE, 0, "dirty bit"),
    (INCOMPATIBLE, 1, "corrupt bit"),
    (INCOMPATIBLE, 2, "external data file"),
    (INCOMPATIBLE, 3, "compression type"),
    (INCOMPATIBLE, 4, "extended L2 entries"),
    (COMPATIBLE, 0, "lazy refcounts"),
    (AUTOCLEAR, 0, "bitmaps"),
    (AUTOCLEAR, 1, "raw external data"),
)
"""Kind, bit and name of every feature, in the order in which they stand in the feature name table."""

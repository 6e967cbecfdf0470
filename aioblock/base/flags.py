"""Flags of requests, of block status and of permissions. Plain ints: an operation on an IntFlag costs 1 us.

Block status (`block-status` in the manual):

    bit   name          meaning
    0x01  DATA          reads come from this layer's storage
    0x02  ZERO          reads as zeroes
    0x04  OFFSET_VALID  `map` is the offset in `file` where the raw bytes lie
    0x08  RAW           internal: ask `file` at `map` instead
    0x10  ALLOCATED     this layer decides the content (set by the generic code where DATA or ZERO is)
    0x20  EOF           the run reaches the end of this layer
    0x40  RECURSE       internal: ask `file` too, for holes inside allocated data
    0x80  COMPRESSED    the data is stored compressed
"""

from typing import Final

DATA: Final = 0x01
ZERO: Final = 0x02
OFFSET_VALID: Final = 0x04
RAW: Final = 0x08
ALLOCATED: Final = 0x10
EOF: Final = 0x20
RECURSE: Final = 0x40
COMPRESSED: Final = 0x80

_STATUS_NAMES: Final = ("DATA", "ZERO", "OFFSET_VALID", "RAW", "ALLOCATED", "EOF", "RECURSE", "COMPRESSED")

# Flags of one request.
REQ_COPY_ON_READ: Final = 0x01  # read: what comes from a backing file is written into this layer too
REQ_MAY_UNMAP: Final = 0x02  # write-zeroes: the storage may be given back
REQ_FUA: Final = 0x04  # write: is on stable storage when the request completes
REQ_NO_FALLBACK: Final = 0x08  # write-zeroes: fail with NotSupported rather than write a buffer of zeroes
REQ_COMPRESSED: Final = 0x10  # write: store it compressed
REQ_UNCHANGED: Final = 0x20  # write: what is read stays the same (copy-on-read); needs less permission
REQ_SERIALISING: Final = 0x40  # write: wait for every overlapping request, and let them wait
REQ_ZEROES_AS_DATA: Final = 0x80  # copy-on-read: store zeroes as data, too

# Permissions on a node, as QEMU numbers them (the lock bytes of an image file are 100 + bit number).
PERM_CONSISTENT_READ: Final = 0x01
PERM_WRITE: Final = 0x02
PERM_WRITE_UNCHANGED: Final = 0x04
PERM_RESIZE: Final = 0x08
PERM_ALL: Final = 0x0F


def status_names(flags: int) -> str:
    """The names of the status flags that are set, joined by `|`; `-` for none."""
    return "|".join(name for bit, name in enumerate(_STATUS_NAMES) if flags >> bit & 1) or "-"

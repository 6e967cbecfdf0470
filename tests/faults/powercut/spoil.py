"""Damage done to an image on purpose, while nobody has it open: what a repair is for.

1  a cluster that nobody uses is counted          4  a zero entry keeps a host cluster, and not an aligned one
2  dirty, and counts above 1 are 1                5  dirty, and data is not counted
3  an entry does not say that it is COPIED        6  the refcount table lies behind the end of the file

And no damage, but what another program may do: 7  the last header extension is one that nobody knows.
"""

import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from tests.faults.powercut.fsck import COPIED, DIRTY, EXT_FOREIGN, FOREIGN, Image

__all__ = ["SPOILERS", "spoilt"]


def spoilt(content: bytes, kind: str) -> bytes:
    """The image, damaged; as it was where there is nothing to damage."""
    changed = bytearray(content)
    with suppress(LookupError):
        SPOILERS[kind](changed, Image(bytearray(content)))
    return bytes(changed)


def _block(image: Image) -> int:
    """Where the first refcount block is; counts have 16 bits."""
    assert image.refcount_order == 4
    if offset := int(image.flat(image.reftable_offset, 1)[0]):
        return offset
    raise LookupError("no refcount block")


def _counts(content: bytearray, image: Image) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    """The counts in the first block, to be changed."""
    return np.frombuffer(content, ">u2", image.cluster_size // 2, _block(image))


def _set_dirty(content: bytearray) -> None:
    content[79] |= DIRTY


def _first_data(image: Image) -> tuple[int, int, int]:
    """An entry of the active tables that has a data cluster of its own: its place in the file, itself, the cluster."""
    tree = image.active
    for table in tree.l2.tolist():
        for number, entry in enumerate(image.tables(np.array([table]))[0].tolist()):
            if entry & int(COPIED) and not entry & 1:
                return (table << image.cluster_bits) + 8 * number, entry, (entry & ~int(COPIED)) >> image.cluster_bits
    raise LookupError("no data")


def _leak(content: bytearray, image: Image) -> None:
    cluster = int(np.flatnonzero(_counts(content, image) == 0)[0])
    _counts(content, image)[cluster] = 1
    content.extend(bytes(max((cluster + 1 << image.cluster_bits) - len(content), 0)))


def _too_low(content: bytearray, image: Image) -> None:
    counts = _counts(content, image)
    counts[counts > 1] = 1
    _set_dirty(content)


def _not_copied(content: bytearray, image: Image) -> None:
    place, entry, _ = _first_data(image)
    struct.pack_into(">Q", content, place, entry & ~int(COPIED))


def _misaligned(content: bytearray, image: Image) -> None:
    """The cluster that it names begins in one that is in use."""
    place, _, cluster = _first_data(image)
    table = place // image.cluster_size
    free = int(np.flatnonzero(image.tables(np.array([table]))[0] == 0)[0])
    entry = (cluster << image.cluster_bits) + 512 | 1
    struct.pack_into(">Q", content, table * image.cluster_size + 8 * free, entry)


def _uncounted(content: bytearray, image: Image) -> None:
    _counts(content, image)[_first_data(image)[2]] = 0
    _set_dirty(content)


def _no_table(content: bytearray, image: Image) -> None:
    struct.pack_into(">Q", content, 48, len(content) + (16 << image.cluster_bits))


def _foreign(content: bytearray, image: Image) -> None:
    if EXT_FOREIGN in image.extensions:
        raise LookupError("it is there")
    at = image.header_length
    while (head := struct.unpack_from(">II", content, at))[0]:
        at += 8 + (head[1] + 7 & ~7)
    struct.pack_into(">II8sII", content, at, EXT_FOREIGN, len(FOREIGN), FOREIGN, 0, 0)


SPOILERS: dict[str, Callable[[bytearray, Image], None]] = {
    "1": _leak,
    "2": _too_low,
    "3": _not_copied,
    "4": _misaligned,
    "5": _uncounted,
    "6": _no_table,
    "7": _foreign,
}

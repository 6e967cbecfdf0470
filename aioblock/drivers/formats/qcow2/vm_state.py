"""The VM state: the area of the guest's address space that begins where the last L2 table of the disk ends.

It is mapped by the same L1 table as the disk, so a snapshot keeps both. Nothing of it comes from a backing file. Who
moves the end of the disk drops it first (`shrink.drop_behind`): what lies there would become part of the disk.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.read import read
from aioblock.drivers.formats.qcow2.write import write

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["read_vm_state", "vm_state_offset", "write_vm_state"]

MAX_OFFSET: Final = 1 << 63
SECTOR: Final = 512


def vm_state_offset(image: "Image") -> int:
    """Where the area begins, in the guest's address space."""
    return -(-image.size >> image.table_shift) << image.table_shift


@contextmanager
def _whole_space(image: "Image") -> Iterator[None]:
    """The disk has no end here, and no backing file. Nothing else is in flight."""
    size, backing = image.size, image.backing
    image.size, image.backing = MAX_OFFSET, None
    try:
        yield
    finally:
        image.size, image.backing = size, backing


def _whole_sectors(offset: int, nbytes: int) -> tuple[int, int]:
    """Where the sectors begin and end that a range touches: what is encrypted is so as a whole."""
    return offset // SECTOR * SECTOR, -(-(offset + nbytes) // SECTOR) * SECTOR


async def read_vm_state(image: "Image", offset: int, nbytes: int) -> bytearray:
    """Bytes of the area from `offset` on; zeroes where there is nothing. Nothing else is in flight. Raises: OSError."""
    if offset < 0 or nbytes < 0:
        raise OSError(errno.EINVAL, "A range of the VM state begins before its area")
    if image.encrypted and (offset | nbytes) % SECTOR:
        low, high = _whole_sectors(offset, nbytes)
        return (await read_vm_state(image, low, high - low))[offset - low : offset - low + nbytes]
    data = bytearray(nbytes)
    begin = vm_state_offset(image) + offset
    there = min(max((len(image.l1) << image.table_shift) - begin, 0), nbytes)
    if there:
        with _whole_space(image):
            await read(image, begin, memoryview(data)[:there])
    return data


async def write_vm_state(image: "Image", offset: int, data: memoryview) -> None:
    """Write into the area; the L1 table grows as needed. Nothing else is in flight.

    Failed: each part of the range holds old or new data. Raises: OSError (EFBIG where no L1 table reaches so far).
    """
    from aioblock.drivers.formats.qcow2.resize import grow_l1

    image.check_writable()
    if offset < 0:
        raise OSError(errno.EINVAL, "A range of the VM state begins before its area")
    if not data:
        return
    if image.encrypted and (offset | len(data)) % SECTOR:
        low, high = _whole_sectors(offset, len(data))
        whole = await read_vm_state(image, low, high - low)
        whole[offset - low : offset - low + len(data)] = data
        offset, data = low, memoryview(whole)
    begin = vm_state_offset(image) + offset
    needed = (begin + len(data) - 1 >> image.table_shift) + 1
    if needed > image.header.max_l1_size or begin + len(data) > MAX_OFFSET:
        raise OSError(errno.EFBIG, "The VM state is too large for the cluster size of the image")
    if needed > len(image.l1):
        await grow_l1(image, needed)
    with _whole_space(image):
        await write(image, begin, data)

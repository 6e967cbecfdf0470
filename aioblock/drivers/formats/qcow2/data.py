"""Data: where the bytes of guest clusters are read and written, once the mapping has said where they lie.

Compressed streams do not pass here: they are bytes of the image file, and never encrypted.
"""

import errno
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["Data", "NoData", "give_data_back"]


class Data:
    """Guest data as it is, in the file that holds it. `host`: the offset there; `guest`: the offset on the disk."""

    plain = True
    """The bytes in the file are those of the guest, so that others may reach for them directly."""

    def __init__(self, file: "BlockIO") -> None:
        self.file = file

    def readinto(self, host: int, guest: int, buffer: memoryview) -> Awaitable[None]:
        """Fill `buffer`. Raises: OSError."""
        return self.file.readinto(host, buffer)

    def pwrite(self, host: int, guest: int, data: memoryview) -> Awaitable[None]:
        """Write `data`, which does not change meanwhile. Raises: OSError."""
        return self.file.pwrite(host, data)

    def pwrite_zeroes(self, host: int, guest: int, nbytes: int) -> Awaitable[None]:
        """Make a range read as zeroes for the guest. Raises: OSError."""
        return self.file.pwrite_zeroes(host, nbytes)


class NoData(Data):
    """The image was opened for its metadata alone: its data file was not opened, or there is no key."""

    plain = False

    def readinto(self, host: int, guest: int, buffer: memoryview) -> Awaitable[None]:
        """Raises: OSError."""
        raise OSError(errno.EIO, "The image was opened for its metadata alone")

    def pwrite(self, host: int, guest: int, data: memoryview) -> Awaitable[None]:
        """Raises: OSError."""
        raise OSError(errno.EIO, "The image was opened for its metadata alone")

    def pwrite_zeroes(self, host: int, guest: int, nbytes: int) -> Awaitable[None]:
        """Raises: OSError."""
        raise OSError(errno.EIO, "The image was opened for its metadata alone")


async def give_data_back(image: "Image", clusters: Iterable[int]) -> None:
    """Discard clusters of the external data file that no entry in the image file names any more.

    What is in use again, or about to be, is left alone: with a data file a guest cluster always comes back to its old
    place. A writer who wants a cluster meanwhile waits. Discarding is advisory: no error is told.
    """
    for cluster in sorted(clusters):
        guest = cluster << image.cluster_bits
        if guest >= image.size or cluster in image.allocating:
            continue
        event = image.claim((cluster,))
        try:
            table = await image.l2.fetch(guest >> image.table_shift)
            index = (cluster & image.l2_mask) * (2 if image.extended else 1)
            if table is None or not table.entries[index] & image.host_mask:
                await image.data_file.pdiscard(guest, min(image.cluster_size, image.size - guest))
        except OSError:
            pass
        finally:
            image.disclaim((cluster,), event)

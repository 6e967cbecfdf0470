"""What a server says of allocation, as block status."""

from typing import TYPE_CHECKING, Final

from aioblock.base.flags import DATA, OFFSET_VALID, ZERO
from aioblock.core.io import Status
from aioblock.nbd.constants import STATE_HOLE, STATE_ZERO
from aioblock.nbd.replies import StatusReply

if TYPE_CHECKING:
    from aioblock.core.extents import ExtentBatch

__all__ = ["batch_of", "first_run"]

_FLAGS: Final = tuple(
    OFFSET_VALID | (0 if state & STATE_HOLE else DATA) | (ZERO if state & STATE_ZERO else 0) for state in range(4)
)
"""The flags of block status for each state of `base:allocation`."""


def first_run(reply: StatusReply, context: int, alignment: int) -> Status:
    """The first run of a reply."""
    extents = reply.extents[context]
    length, state = _aligned(extents.lengths[0], extents.flags[0], alignment)
    return Status(_FLAGS[state & 3], length, reply.offset)


def _aligned(length: int, state: int, alignment: int) -> tuple[int, int]:
    """The first extent, where a server does not keep to its own minimum block size: a block in part of it is data."""
    if length < alignment:
        return alignment, 0
    return length - length % alignment, state


def batch_of(reply: StatusReply, context: int, alignment: int) -> "ExtentBatch":
    """All runs of a reply, up to the first that ends within a block."""
    import numpy as np

    from aioblock.core.extents import ExtentBatch

    extents = reply.extents[context]
    lengths = np.asarray(extents.lengths).astype(np.int64)
    states = (np.asarray(extents.flags) & np.asarray(3, extents.flags.typecode)).astype(np.uint8)
    if alignment > 1 and (uneven := np.flatnonzero(lengths % alignment)).size:
        end = int(uneven[0])
        if end == 0 or lengths[end] >= alignment:
            lengths[end], states[end] = _aligned(int(lengths[end]), int(states[end]), alignment)
            end += 1
        lengths, states = lengths[:end], states[:end]
    begins = np.cumsum(lengths) - lengths + reply.offset
    none = np.full(len(lengths), -1, np.int8)
    return ExtentBatch(reply.offset, lengths, np.array(_FLAGS, np.uint8)[states], begins, none)

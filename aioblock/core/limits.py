"""What a node asks of the requests that reach its driver."""

from dataclasses import dataclass

__all__ = ["BlockLimits"]


@dataclass(slots=True)
class BlockLimits:
    """Limits of one node, in bytes. The generic code keeps to them; the driver may assert them.

    Unless said otherwise 0 means "no limit". `request_alignment` and `memory_alignment` are powers of two.
    """

    request_alignment: int = 1
    """Offset and length of every request are multiples of this; the generic code pads what is not. At least 1."""

    memory_alignment: int = 1
    """Buffers at such addresses are used as they are; the driver copies others. Advice for who allocates buffers."""

    max_transfer: int = 0
    """The longest read or write; longer ones are split. A multiple of `request_alignment`."""

    opt_transfer: int = 0
    """A good length for long sequential requests. Advice."""

    pwrite_zeroes_alignment: int = 0
    """Write-zeroes requests are split so that a partial head and tail come alone. 0: as `request_alignment`."""

    max_pwrite_zeroes: int = 0
    """The longest write-zeroes request; no less than the alignment for them."""

    pdiscard_alignment: int = 0
    """A discard that does not cover a whole such unit is dropped by the generic code. 0: as `request_alignment`."""

    max_pdiscard: int = 0
    """The longest discard request; no less than the alignment for them."""

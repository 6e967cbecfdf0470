"""Counters of what a backend and the chain below it did: plain numbers that only grow."""

from dataclasses import asdict, dataclass

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """Of one backend. Requests are those of its user, probes the questions asked of single layers for it."""

    reads: int = 0
    bytes_read: int = 0
    writes: int = 0
    bytes_written: int = 0
    zeroes: int = 0
    bytes_zeroed: int = 0
    discards: int = 0
    bytes_discarded: int = 0
    flushes: int = 0
    status: int = 0
    """Block-status questions over this layer or the chain."""
    failed: int = 0
    """Requests that ended with an error; cancelled callers do not count."""
    probes: int = 0
    """Questions issued to single layers."""
    probes_immediate: int = 0
    """Of these: answered without suspending, so without waiting for I/O."""
    probes_cancelled: int = 0
    """Of these: not needed any more because a layer above decided; cancelled, or their answer dropped."""
    probes_short_circuited: int = 0
    """Questions never asked because a layer ended: its end of file says that the rest reads as zeroes."""

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return asdict(self)

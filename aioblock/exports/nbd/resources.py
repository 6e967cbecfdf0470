"""Resources: what all connections of a server share."""

from aioblock.exports.nbd.budget import Budget
from aioblock.exports.nbd.door import Door
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.memory import Memory
from aioblock.nbd.receiver import SCRATCH

__all__ = ["Resources"]


class Resources:
    """The bounds, the memory and the time of one server."""

    __slots__ = ("budget", "door", "limits", "memory", "scratch")

    def __init__(self, limits: NbdLimits) -> None:
        self.limits = limits
        self.budget = Budget(limits.total_bytes)
        """The bytes that all clients together hold."""
        self.memory = Memory()
        """Buffers for long reads and writes."""
        self.scratch = bytearray(SCRATCH)
        """Where whatever clients send is received: it is used up before the next one's comes."""
        self.door = Door()
        """Where those wait for their turn who are not in yet, and those who ask nothing but what is refused."""

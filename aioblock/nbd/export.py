"""ExportInfo: what a server tells a client about an export."""

from dataclasses import dataclass

from aioblock.base.errors import RemoteProtocolError
from aioblock.nbd.constants import FLAG_HAS_FLAGS, MAX_LENGTH_32

__all__ = ["ExportInfo"]


@dataclass(slots=True)
class ExportInfo:
    """An export. Sizes in bytes."""

    name: str
    """The name that was asked for."""
    size: int = 0
    flags: int = FLAG_HAS_FLAGS
    """FLAG_HAS_FLAGS and so on."""
    min_block: int = 1
    """Offsets and lengths of requests are multiples of it."""
    preferred_block: int = 4096
    max_block: int = MAX_LENGTH_32
    """The longest payload; MAX_LENGTH_32: no limit was told."""
    description: str = ""
    canonical_name: str = ""
    """The name that the server has for it; "": it told none."""

    def check(self) -> None:
        """What no server may tell. Raises: RemoteProtocolError."""
        small, preferred, large = self.min_block, self.preferred_block, self.max_block
        if self.size >= 1 << 63:
            raise RemoteProtocolError(f"export length {self.size} is too large")
        if small < 1 or small & (small - 1) or small > 1 << 16:
            raise RemoteProtocolError(f"server minimum block size {small} is not a power of two up to 65536")
        if preferred & (preferred - 1) or preferred < small:
            raise RemoteProtocolError(f"server preferred block size {preferred} is not valid")
        if large != MAX_LENGTH_32 and (large % small or large < preferred):
            raise RemoteProtocolError(f"server maximum block size {large} is not valid")
        if self.size % small:
            raise RemoteProtocolError(f"export length {self.size} is not multiple of minimum block size {small}")

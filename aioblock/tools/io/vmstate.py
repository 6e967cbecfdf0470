"""The VM state (-b): the area of an image behind its disk, where a snapshot keeps a machine's memory."""

from .failures import CommandFailed
from .sectors import SECTOR

__all__ = ["require_sectors"]


def require_sectors(offset: int, nbytes: int) -> None:
    """Check that a request covers whole sectors. Raises: CommandFailed."""
    for value, name in ((offset, "offset"), (nbytes, "count")):
        if value % SECTOR:
            raise CommandFailed(f"{value} is not a sector-aligned value for '{name}'")

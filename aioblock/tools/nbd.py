"""aioblock-nbd: serve images over NBD. The server is not built yet; the program says so."""

import sys
from collections.abc import Sequence

from .program import fail, print_version, program_name

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--version" in words or "-V" in words:
        print_version()
        return 0
    if "--help" in words or "-h" in words:
        print(f"Usage: {program_name()} [OPTION]... FILE\n\nServe a disk image over NBD: not built yet.")
        return 0
    return fail("the NBD server is not built yet")

"""aioblock: the program for people. Tables, colour, progress and pictures on a terminal, JSON for programs.

It needs the packages of `aioblock[cli]`, which nothing else does: they are imported below this module only.
"""

import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except KeyboardInterrupt:  # while something is imported or printed: whatever changes an image catches it itself
        print("aioblock: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _main(words: list[str]) -> int:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"aioblock: this program needs the package '{error.name}', which is not installed.\n"
            "Install it with: pip install 'aioblock[cli]'\n"
            "(aioblock-img and aioblock-io do without.)",
            file=sys.stderr,
        )
        return 1
    from .application import run_program

    return run_program(words)

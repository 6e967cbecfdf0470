"""aioblock-nbd: serve an image over NBD; the arguments are those of QEMU's qemu-nbd."""

import sys
from collections.abc import Sequence

from ..program import finish
from .commandline import CommandLine, parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return finish(lambda: _run(words))


def _run(words: list[str]) -> int:
    asked = parse(words)
    if isinstance(asked, int):
        return asked
    return _dispatch(asked)


def _dispatch(asked: CommandLine) -> int:
    if asked.list_exports:
        from .listing import list_exports

        return list_exports(asked)
    if asked.disconnect:
        from .kernel import disconnect

        return disconnect(asked.file)
    from .background import run_forked
    from .serving import serve_image

    background = asked.fork or (asked.connect is not None and not asked.verbose)
    return run_forked(asked, serve_image) if background else serve_image(asked, lambda: None)

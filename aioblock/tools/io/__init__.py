"""aioblock-io: read and write a disk image, request by request; the drop-in for QEMU's qemu-io."""

import sys
from collections.abc import Sequence

from ..program import finish, run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status: 1 where a command failed."""
    words = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        from .commandline import parse

        asked = parse(words)
        if isinstance(asked, int):
            return asked
        command_line = asked

        async def session() -> int:
            from .work import work

            return await work(command_line)

        return run(session)

    return finish(body)

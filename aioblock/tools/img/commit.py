"""`commit`: write what an image holds into its backing file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..program import CACHE_MODES, ProgramError, error_text, run
from .asked import Asked, long_options
from .command import opened, parse_size_argument
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend, BlockNode

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename"


class _Asked(Asked):
    SHORT = "f:t:b:dpqr:"
    LONG = long_options("object", "image-opts")
    SWITCHES: ClassVar = {"d": "keep"}

    base: str | None = None
    keep = False
    rate = 0

    def take(self, option: str, value: str) -> None:
        if option == "b":
            self.base, self.keep = value, True  # the layers above stay valid only if the top keeps what it holds
        elif option == "r":
            self.rate = parse_size_argument("rate limit", value)
        else:
            super().take(option, value)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    name = asked.one_image()
    asked.check_format()
    if asked.cache not in CACHE_MODES:
        raise ProgramError(f"Invalid cache option: {asked.cache}")
    progress = Progress(asked.shown and not asked.quiet)

    async def body() -> int:
        import aioblock

        async with opened(name, writable=True, cache=asked.cache, discard="unmap", **asked.how()) as disk:
            progress.begin()
            complete = False
            try:
                target = _base(disk, asked.base, name)
                await aioblock.commit(disk, target, keep=asked.keep, bytes_per_second=asked.rate, progress=progress)
                complete = True
            except aioblock.PositionedError as error:
                raise ProgramError(f"Block job failed: {error_text(error.error)}") from error
            except (OSError, aioblock.BlockError) as error:
                raise ProgramError(error_text(error)) from error
            finally:
                progress.end(complete)
        if not asked.quiet:
            print("Image committed.")
        return 0

    return run(body)


def _base(disk: "BlockBackend", base: str | None, name: str) -> "BlockNode | None":
    """The layer to write into; None: the backing file. Raises: ProgramError."""
    from aioblock import find_layer

    if base is None or disk.node.below is None:
        return None
    found = find_layer(disk, base)
    if found is None:
        raise ProgramError(f"Did not find '{base}' in the backing chain of '{name}'")
    return found

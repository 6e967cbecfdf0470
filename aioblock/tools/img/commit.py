"""`commit`: write what an image holds into its backing file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import CACHE_MODES, ProgramError, define_object, error_text, run
from .command import Options, check_image_opts, opened, parse_size_argument
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend, BlockNode

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename"


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    base: str | None = None
    cache = "writeback"
    keep = shown = quiet = image_opts = False
    rate = 0
    options = Options(argv, "f:t:b:dpqr:", {"object": "object:", "image-opts": "image-opts"})
    for option, value in options:
        if option == "f":
            format = value
        elif option == "t":
            cache = value
        elif option == "b":
            base, keep = value, True  # the layers above stay valid only if the top keeps what it holds
        elif option == "d":
            keep = True
        elif option == "p":
            shown = True
        elif option == "q":
            quiet = True
        elif option == "r":
            rate = parse_size_argument("rate limit", value)
        elif option == "object":
            define_object(value)
        elif option == "image-opts":
            image_opts = True
    name = options.one_image()
    check_image_opts(image_opts, format)
    if cache not in CACHE_MODES:
        raise ProgramError(f"Invalid cache option: {cache}")
    progress = Progress(shown and not quiet)

    async def body() -> int:
        import aioblock

        async with opened(name, image_opts=image_opts, format=format, writable=True, cache=cache) as disk:
            progress.begin()
            complete = False
            try:
                target = _base(disk, base, name)
                await aioblock.commit(disk, target, keep=keep, bytes_per_second=rate, progress=progress)
                complete = True
            except aioblock.PositionedError as error:
                raise ProgramError(f"Block job failed: {error_text(error.error)}") from error
            except (OSError, aioblock.BlockError) as error:
                raise ProgramError(error_text(error)) from error
            finally:
                progress.end(complete)
        if not quiet:
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

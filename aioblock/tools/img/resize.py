"""`resize`: make the disk of an image larger or smaller."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..program import ProgramError, error_text, print_error, run
from .asked import Asked, long_options
from .command import SECTOR, opened, usage_error

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size"


class _Asked(Asked):
    SHORT = "f:q"
    LONG = long_options("object", "image-opts", preallocation="preallocation:", shrink="shrink")
    SWITCHES: ClassVar = {"shrink": "shrink"}

    prealloc = "off"
    shrink = False

    def take(self, option: str, value: str) -> None:
        if option != "preallocation":
            super().take(option, value)
            return
        if value not in ("off", "metadata", "falloc", "full"):
            raise ProgramError(f"Invalid preallocation mode '{value}'")
        self.prealloc = value


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    # The last word is the size, also where it begins with a minus and looks like options.
    if len(argv) < 2:
        raise usage_error("Not enough arguments")
    asked = _Asked(argv[:-1])
    if len(asked.operands) != 1:
        raise usage_error("Expecting image file name and size")
    name = asked.operands[0]
    asked.check_format()
    sign, size = _parse(argv[-1])

    async def body() -> int:
        async with opened(name, writable=True, resize=True, **asked.how()) as disk:
            current = -(-disk.length // SECTOR) * SECTOR
            # What is left of the last sector does not count, also where the disk would only lose that.
            length = current + sign * size if sign else size
            if disk.length <= length < current and not asked.shrink:
                raise _refused()
            await _resize(disk, length, asked.prealloc, asked.shrink)
        if not asked.quiet:
            print("Image resized.")
        return 0

    return run(body, fast=False)


def _parse(text: str) -> tuple[int, int]:
    """The sign of a size, 0 where it has none, and the size. Raises: ProgramError."""
    from aioblock import CreateOption, OptionError, typed_options

    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    try:
        return sign, typed_options([CreateOption("size", "size", "")], {"size": text[1:] if sign else text})["size"]
    except OptionError as error:
        raise ProgramError(error_text(error)) from error


async def _resize(disk: "BlockBackend", length: int, prealloc: str, shrink: bool) -> None:
    """Set the length. Raises: ProgramError."""
    from aioblock import BlockError, OptionError, resize

    try:
        await resize(disk, length, shrink=shrink, prealloc=prealloc)
    except (OSError, BlockError) as error:
        if not isinstance(error, OptionError) or error.option != "shrink":
            raise ProgramError(error_text(error)) from error
        raise _refused() from error


def _refused() -> ProgramError:
    """Print why the disk is not made smaller."""
    print_error("Use the --shrink option to perform a shrink operation.")
    print_error(
        "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such "
        "an operation, make sure there is no important data there."
    )
    return ProgramError("")

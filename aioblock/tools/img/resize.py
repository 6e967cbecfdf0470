"""`resize`: make the disk of an image larger or smaller."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import ProgramError, define_object, error_text, print_error, run
from .command import Options, check_image_opts, opened, usage_error

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size"

_LONG = {
    "object": "object:",
    "image-opts": "image-opts",
    "preallocation": "preallocation:",
    "shrink": "shrink",
}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    prealloc = "off"
    shrink = quiet = image_opts = False
    # The last word is the size, also where it begins with a minus and looks like options.
    if len(argv) < 2:
        raise usage_error("Not enough arguments")
    options = Options(argv[:-1], "f:q", _LONG)
    for option, value in options:
        if option == "f":
            format = value
        elif option == "q":
            quiet = True
        elif option == "object":
            define_object(value)
        elif option == "image-opts":
            image_opts = True
        elif option == "preallocation":
            if value not in ("off", "metadata", "falloc", "full"):
                raise ProgramError(f"Invalid preallocation mode '{value}'")
            prealloc = value
        elif option == "shrink":
            shrink = True
    if len(options.operands) != 1:
        raise usage_error("Expecting image file name and size")
    name = options.operands[0]
    check_image_opts(image_opts, format)
    sign, size = _parse(argv[-1])

    async def body() -> int:
        async with opened(name, image_opts=image_opts, format=format, writable=True, resize=True) as disk:
            length = disk.length + sign * size if sign else size
            await _resize(disk, length, prealloc, shrink)
        if not quiet:
            print("Image resized.")
        return 0

    return run(body, fast=False)


def _parse(text: str) -> tuple[int, int]:
    """The sign of a size, 0 where it has none, and the size. Raises: ProgramError."""
    from aioblock import OptionError, parse_size

    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    number = text[1:] if sign else text
    try:
        size = parse_size(number, limit=1 << 200)
    except OptionError:
        raise ProgramError(
            "Parameter 'size' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively."
        ) from None
    if size >= 1 << 64:
        raise ProgramError(f"Value '{number}' is out of range for parameter 'size'")
    return sign, size


async def _resize(disk: "BlockBackend", length: int, prealloc: str, shrink: bool) -> None:
    """Set the length. Raises: ProgramError."""
    from aioblock import BlockError, Prealloc

    if length <= 0:
        raise ProgramError("New image size must be positive")
    mode: Prealloc = Prealloc(prealloc)
    if length <= disk.length and mode is not Prealloc.OFF:
        raise ProgramError("Preallocation can only be used for growing images")
    if length < disk.length and not shrink:
        print_error("Use the --shrink option to perform a shrink operation.")
        print_error(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such "
            "an operation, make sure there is no important data there."
        )
        sys.stderr.flush()
        raise ProgramError("")
    try:
        await disk.truncate(length, prealloc=mode)
        await disk.flush()
    except (OSError, BlockError) as error:
        raise ProgramError(error_text(error)) from error

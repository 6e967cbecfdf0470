"""`amend`: change what an image says about itself."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..program import CACHE_MODES, ProgramError, error_text, run
from .asked import Asked, OptionList, long_options
from .command import opened, usage_error
from .create import option_line
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename"


class _Asked(Asked):
    SHORT = "f:o:pqt:"
    LONG = long_options("object", "image-opts", force="force")
    SWITCHES: ClassVar = {"force": "force"}

    force = False


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    given = asked.given
    if not given:
        raise usage_error("Must specify options (-o)")
    name = asked.operands[0] if asked.operands else None
    if asked.format is not None and given.asks_help:
        return _help(asked.format)
    shown = Progress(asked.shown and not asked.quiet)

    async def body() -> int:
        if name is None or len(asked.operands) > 1:
            raise ProgramError("Expecting one image file name")
        asked.check_format()
        if asked.cache not in CACHE_MODES:
            raise ProgramError(f"Invalid cache option: {asked.cache}")
        async with opened(name, cache=asked.cache, writable=True, resize=True, **asked.how()) as disk:
            if given.asks_help:
                return _help(disk.node.driver.name)
            await _amend(disk, given, asked.force, shown)
        return 0

    try:
        return run(body, fast=False)
    finally:
        shown.end(complete=False)


async def _amend(disk: "BlockBackend", given: OptionList, force: bool, progress: Progress) -> None:
    """Change the image. Raises: ProgramError."""
    from aioblock import BlockError, OptionError, typed_options

    driver = disk.node.driver
    _check_amendable(driver.name)
    try:
        strings = given.values()
        creation = {option.name for option in driver.create_options} - {option.name for option in driver.amend_options}
        for name in strings:
            if name in creation:
                raise OptionError(f"Invalid parameter '{name}'\nThis option is only supported for image creation")
        values = typed_options(driver.amend_options, strings)
    except OptionError as error:
        raise ProgramError(error_text(error)) from error
    progress.begin()
    try:
        await disk.amend(values, force=force, progress=progress)
    except (OSError, BlockError) as error:
        raise ProgramError(error_text(error)) from error
    finally:
        progress.all_done()  # as QEMU has it, also where it failed


def _check_amendable(format: str) -> None:
    from aioblock import driver_names, find_driver

    if format not in driver_names():
        raise ProgramError(f"Unknown file format '{format}'")
    if not find_driver(format).amend_options:
        raise ProgramError(f"Format driver '{format}' does not support option amendment")


def _help(format: str) -> int:
    """List the options that an image of a format can be changed in. Raises: ProgramError."""
    from aioblock import find_driver

    _check_amendable(format)
    print(f"Amend options for '{format}':")
    for option in sorted(find_driver(format).amend_options, key=lambda option: option.name):
        print(option_line(option))
    sys.stdout.flush()
    return 0

"""`amend`: change what an image says about itself."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import CACHE_MODES, ProgramError, define_object, error_text, run
from .command import Options, check_image_opts, opened, usage_error
from .create import OptionList, option_line, typed
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename"

_LONG = {"object": "object:", "image-opts": "image-opts", "force": "force"}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    cache = "writeback"
    force = quiet = progress = image_opts = False
    given = OptionList()
    options = Options(argv, "f:o:pqt:", _LONG)
    for option, value in options:
        if option == "f":
            format = value
        elif option == "o":
            given.add(value)
        elif option == "p":
            progress = True
        elif option == "q":
            quiet = True
        elif option == "t":
            cache = value
        elif option == "force":
            force = True
        elif option == "object":
            define_object(value)
        elif option == "image-opts":
            image_opts = True
    if not given:
        raise usage_error("Must specify options (-o)")
    name = options.operands[0] if options.operands else None
    if format is not None and given.asks_help:
        return _help(format)
    if name is None or len(options.operands) > 1:
        raise ProgramError("Expecting one image file name")
    check_image_opts(image_opts, format)
    if cache not in CACHE_MODES:
        raise ProgramError(f"Invalid cache option: {cache}")

    async def body() -> int:
        async with opened(name, image_opts=image_opts, format=format, cache=cache, writable=True, resize=True) as disk:
            if given.asks_help:
                return _help(disk.node.driver.name)
            await _amend(disk, given, force, Progress(progress and not quiet))
        return 0

    return run(body, fast=False)


async def _amend(disk: "BlockBackend", given: OptionList, force: bool, progress: Progress) -> None:
    """Change the image. Raises: ProgramError."""
    from aioblock import BlockError, OptionError

    driver = disk.node.driver
    _check_amendable(driver.name)
    try:
        strings = given.values()
        creation = {option.name for option in driver.create_options} - {option.name for option in driver.amend_options}
        for name in strings:
            if name in creation:
                raise OptionError(f"Invalid parameter '{name}'\nThis option is only supported for image creation")
        values = typed(driver.amend_options, strings)
    except OptionError as error:
        raise ProgramError(error_text(error)) from error
    progress.begin()
    complete = False
    try:
        await disk.amend(values, force=force, progress=progress)
        complete = True
    except (OSError, BlockError) as error:
        raise ProgramError(error_text(error)) from error
    finally:
        progress.end(complete)


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

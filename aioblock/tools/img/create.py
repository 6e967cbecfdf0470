"""`create`: make a new image."""

import errno
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..program import error_text, fail, objects, open_image, print_error, run
from .asked import Asked, long_options
from .command import SECTOR, parse_size_argument, usage_error

if TYPE_CHECKING:
    from aioblock import CreateOption

__all__ = [
    "USAGE",
    "creation_error",
    "format_options",
    "main",
    "option_line",
    "print_option_help",
]

USAGE = "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]"

_DETECTED = "\nDetected format of "
_KINDS = {"size": "<size>", "bool": "<bool (on/off)>", "int": "<num>", "str": "<str>"}


class _Asked(Asked):
    SHORT = "F:b:f:o:qu"
    LONG = long_options("object")
    WORDS: ClassVar = {"b": "backing", "F": "backing_format"}
    SWITCHES: ClassVar = {"u": "unsafe"}

    format: str = "raw"
    backing: str | None = None
    backing_format: str | None = None
    unsafe = False


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    operands = asked.operands
    if asked.given.asks_help:
        return print_option_help(asked.format, operands[0] if operands else None)
    if not operands:
        raise usage_error("Expecting image file name")
    size = parse_size_argument("image size", operands[1]) if len(operands) > 1 else None
    if len(operands) > 2:
        raise usage_error(f"Unexpected argument: {operands[2]}")
    name = operands[0]
    return run(lambda: _create(asked, name, size), fast=False)


async def _create(asked: _Asked, name: str, size: int | None) -> int:
    import aioblock

    format = asked.format
    try:
        known = _creatable(format, name)
        strings = asked.given.values()
        if size is not None and "size" in strings:
            raise aioblock.OptionError("The image size must be specified only once")
        values = aioblock.typed_options(known, strings)
        names = {option.name for option in known}
        if asked.backing is not None:
            if "backing_file" not in names:
                raise aioblock.OptionError(f"Backing file not supported for file format '{format}'")
            values["backing_file"] = asked.backing
        if asked.backing_format is not None:
            if "backing_fmt" not in names:
                raise aioblock.OptionError(f"Backing file format not supported for file format '{format}'")
            values["backing_fmt"] = asked.backing_format
        if size is not None:
            values["size"] = size
        await _settle_backing(name, values, asked.unsafe)
        if "size" not in values:
            raise aioblock.OptionError("Image creation needs a size parameter")
        if not asked.quiet:
            print(f"Formatting '{name}', fmt={format} {format_options(known, values)}", flush=True)
        values["size"] = -(-values["size"] // SECTOR) * SECTOR
        await aioblock.create(name, format, values, trust=aioblock.TRUST_ALL, objects=objects)
    except (OSError, aioblock.BlockError) as error:
        message = f"{name}: {creation_error(error, format)}"
        print_error(message, end="" if _DETECTED in message else "\n")  # QEMU ends no line behind this hint
        return 1
    return 0


def _creatable(format: str, name: str | None) -> "tuple[CreateOption, ...]":
    """The options of a format that can be created. Raises: OptionError, NotSupported."""
    import aioblock

    if format not in aioblock.driver_names():
        raise aioblock.OptionError(f"Unknown file format '{format}'")
    return aioblock.create_options(format, name)


async def _settle_backing(name: str, values: dict[str, Any], unsafe: bool) -> None:
    """Look at the backing file: it must be there unless `unsafe`, its format be given, and it may give the size."""
    import aioblock

    backing = values.get("backing_file")
    if backing is None:
        return
    if not backing:
        raise aioblock.OptionError("Expected backing file name, got empty string")
    if backing == name:
        raise aioblock.OptionError("Error: Trying to create an image with the same filename as the backing file")
    detected = None
    if not unsafe:
        format = values.get("backing_fmt")
        try:
            # Another process may be writing it: only its size is looked at.
            async with await open_image(
                aioblock.beside(name, backing), format=format, force_share=True, metadata_only=True
            ) as disk:
                detected = disk.node.driver.name
                values.setdefault("size", -(-disk.length // SECTOR) * SECTOR)
        except (OSError, aioblock.BlockError) as error:
            raise aioblock.OptionError(f"{error_text(error)}\nCould not open backing image.") from error
    if "backing_fmt" not in values:
        hint = f"{_DETECTED}{detected}." if detected is not None else ""
        raise aioblock.OptionError(f"Backing file specified without backing format{hint}")


def format_options(known: "Sequence[CreateOption]", values: Mapping[str, Any]) -> str:
    """The options that have a value, in the format's own order, as they are shown when an image is made."""
    shown = []
    for option in known:
        value = values.get(option.name, option.default)
        if value is None:
            continue
        text = ("on" if value else "off") if isinstance(value, bool) else str(value).replace(",", ",,")
        shown.append(f"{option.name}={text}")
    return " ".join(shown)


def print_option_help(format: str, name: str | None) -> int:
    """List the options of `-o` for a format, and those of the storage where a file name says which one it is."""
    import aioblock

    try:
        known = _creatable(format, name)
        if name is None:
            own = {option.name for option in aioblock.find_driver(format).create_options}
            known = tuple(option for option in known if option.name in own)
    except (OSError, aioblock.BlockError) as error:
        return fail(error_text(error))
    print(f"Supported {format} options:" if name is None else "Supported options:")
    for option in sorted(known, key=lambda option: option.name):
        print(option_line(option))
    if name is None:
        print("\nThe protocol level may support further options.")
        print("Specify the target filename to include those options.")
    sys.stdout.flush()
    return 0


def option_line(option: "CreateOption") -> str:
    """How an option is shown in a list of them."""
    return f"  {option.name + '=' + _KINDS[option.kind]:<22} - {option.help}"


def creation_error(error: Exception, format: str) -> str:
    """What is said when an image cannot be created."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        from aioblock import find_driver

        clustered = any(option.name == "cluster_size" for option in find_driver(format).create_options)
        hint = " (try using a larger cluster size)" if clustered else ""
        return f"The image size is too large for file format '{format}'{hint}"
    return error_text(error)

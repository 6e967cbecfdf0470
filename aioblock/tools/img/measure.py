"""`measure`: how large the file of a new image would become."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from ..program import ProgramError, define_object, error_text, objects, print_error, run
from .command import Options, check_image_opts, opened, parse_output, parse_size_argument
from .create import OptionList
from .qjson import to_json
from .snapshot_source import opened_at, parse_snapshot

if TYPE_CHECKING:
    from aioblock import BlockBackend, Measurement

__all__ = ["USAGE", "main"]

USAGE = (
    "[--output=ofmt] [-O output_fmt] [-o options] "
    "[--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]"
)

_LONG = {
    "object": "object:",
    "image-opts": "image-opts",
    "output": "output:",
    "size": "size:",
    "force-share": "U",
}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    output_format = "raw"
    size: int | None = None
    snapshot: str | dict[str, str] | None = None
    json = image_opts = force_share = False
    given = OptionList()
    options = Options(argv, "f:l:o:O:U", _LONG)
    for option, value in options:
        if option == "f":
            format = value
        elif option == "l":
            snapshot = parse_snapshot(value)
        elif option == "o":
            given.add(value)
        elif option == "O":
            output_format = value
        elif option == "U":
            force_share = True
        elif option == "object":
            define_object(value)
        elif option == "image-opts":
            image_opts = True
        elif option == "output":
            json = parse_output(value)
        elif option == "size":
            size = parse_size_argument("image size", value)
    if len(options.operands) > 1:
        raise ProgramError("At most one filename argument is allowed.")
    name = options.operands[0] if options.operands else None
    if name is None and (image_opts or format is not None or snapshot is not None):
        raise ProgramError("--image-opts, -f, and -l require a filename argument.")
    if name is None and size is None:
        raise ProgramError("Either --size N or one filename must be specified.")
    if name is not None and size is not None:
        raise ProgramError("--size N cannot be used together with a filename.")
    check_image_opts(image_opts, format)

    async def body() -> int:
        if name is None:
            found = await _measured(output_format, given, size, None)
        else:
            how = {"image_opts": image_opts, "format": format, "force_share": force_share}
            async with _source(name, snapshot, how) as disk:
                found = await _measured(output_format, given, None, disk)
        _print(found, json)
        return 0

    return run(body, fast=False)


def _source(
    name: str, snapshot: str | dict[str, str] | None, how: dict[str, Any]
) -> "AbstractAsyncContextManager[BlockBackend]":
    return opened(name, **how) if snapshot is None else opened_at(name, snapshot, **how)


async def _measured(format: str, given: OptionList, size: int | None, source: "BlockBackend | None") -> "Measurement":
    """Raises: ProgramError."""
    import aioblock

    if format not in aioblock.driver_names():
        raise ProgramError(f"Unknown file format '{format}'")
    try:
        return await aioblock.measure(format, given.values(), size=size, source=source, objects=objects)
    except aioblock.OptionError as error:
        message = error_text(error)
        if not message.startswith("Invalid parameter "):
            raise ProgramError(message) from error
        print_error(message)
        raise ProgramError(f"Invalid options for file format '{format}'") from error
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error


def _print(found: "Measurement", json: bool) -> None:
    if json:
        facts = {} if found.bitmaps is None else {"bitmaps": found.bitmaps}
        print(to_json({**facts, "required": found.required, "fully-allocated": found.fully_allocated}))
        return
    print(f"required size: {found.required}\nfully allocated size: {found.fully_allocated}")
    if found.bitmaps is not None:
        print(f"bitmaps size: {found.bitmaps}")

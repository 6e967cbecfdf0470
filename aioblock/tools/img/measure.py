"""`measure`: how large the file of a new image would become."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from ..program import ProgramError, error_text, objects, print_error, run
from .asked import Asked, long_options
from .command import opened, parse_size_argument
from .qjson import to_json
from .snapshot_source import opened_at, parse_snapshot

if TYPE_CHECKING:
    from aioblock import BlockBackend, Measurement

__all__ = ["USAGE", "main"]

USAGE = (
    "[--output=ofmt] [-O output_fmt] [-o options] "
    "[--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]"
)


class _Asked(Asked):
    SHORT = "f:l:o:O:U"
    LONG = long_options("object", "image-opts", "output", "force-share", size="size:")
    WORDS: ClassVar = {"O": "output_format"}

    GETOPT = "measure"

    output_format = "raw"
    size: int | None = None
    snapshot: str | dict[str, str] | None = None

    def take(self, option: str, value: str) -> None:
        if option == "l":
            self.snapshot = parse_snapshot(value)
        elif option == "size":
            self.size = parse_size_argument("image size", value)
        else:
            super().take(option, value)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    if len(asked.operands) > 1:
        raise ProgramError("At most one filename argument is allowed.")
    name = asked.operands[0] if asked.operands else None
    if name is None and (asked.image_opts or asked.format is not None or asked.snapshot is not None):
        raise ProgramError("--image-opts, -f, and -l require a filename argument.")
    if name is None and asked.size is None:
        raise ProgramError("Either --size N or one filename must be specified.")
    if name is not None and asked.size is not None:
        raise ProgramError("--size N cannot be used together with a filename.")
    asked.check_format()

    async def body() -> int:
        if name is None:
            found = await _measured(asked, None)
        else:
            async with _source(name, asked.snapshot, asked.how()) as disk:
                found = await _measured(asked, disk)
        _print(found, asked.json)
        return 0

    return run(body, fast=False)


def _source(
    name: str, snapshot: str | dict[str, str] | None, how: dict[str, Any]
) -> "AbstractAsyncContextManager[BlockBackend]":
    return opened(name, **how) if snapshot is None else opened_at(name, snapshot, **how)


async def _measured(asked: _Asked, source: "BlockBackend | None") -> "Measurement":
    """Raises: ProgramError."""
    import aioblock

    format = asked.output_format
    if format not in aioblock.driver_names():
        raise ProgramError(f"Unknown file format '{format}'")
    try:
        values = aioblock.typed_options(aioblock.create_options(format, "x"), asked.given.values())
    except aioblock.OptionError as error:
        print_error(error_text(error))
        raise ProgramError(f"Invalid options for file format '{format}'") from error
    except aioblock.NotSupported as error:
        raise ProgramError(f"Format driver '{format}' does not support image creation") from error
    if format == "qcow2" and values.get("compat") not in (None, "0.10", "1.1"):
        raise ProgramError(f"Invalid compatibility level: '{values['compat']}'")  # QEMU knows no other names here
    try:
        return await aioblock.measure(format, values, size=asked.size, source=source, objects=objects)
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

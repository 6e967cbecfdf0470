"""`compare`: whether two images hold the same content."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..program import CACHE_MODES, ProgramError, define_object, error_text, run
from .command import SECTOR, Options, check_image_opts, opened, usage_error
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2"

_LONG = {"object": "object:", "image-opts": "image-opts", "force-share": "U"}

_DIFFERENT, _NOT_OPENED, _STATUS_FAILED, _READ_FAILED = 1, 2, 3, 4


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    formats: list[str | None] = [None, None]
    cache = "writeback"
    shown = quiet = strict = image_opts = force_share = False
    options = Options(argv, "f:F:T:pqsU", _LONG)
    for option, value in options:
        if option == "f":
            formats[0] = value
        elif option == "F":
            formats[1] = value
        elif option == "T":
            cache = value
        elif option == "p":
            shown = True
        elif option == "q":
            quiet = True
        elif option == "s":
            strict = True
        elif option == "U":
            force_share = True
        elif option == "object":
            define_object(value, _NOT_OPENED)
        elif option == "image-opts":
            image_opts = True
    names = options.operands
    if len(names) != 2:
        raise usage_error("Expecting two image file names")
    progress = Progress(shown and not quiet)

    async def body() -> int:
        if cache not in CACHE_MODES:
            raise ProgramError(f"Invalid source cache option: {cache}", _NOT_OPENED)
        how: dict[str, Any] = {
            "image_opts": image_opts,
            "cache": cache,
            "force_share": force_share,
            "status": _NOT_OPENED,
        }
        check_image_opts(image_opts, formats[0], _NOT_OPENED)
        async with opened(names[0], format=formats[0], **how) as first:
            check_image_opts(image_opts, formats[1], _NOT_OPENED)
            async with opened(names[1], format=formats[1], **how) as second:
                return await _compare(first, second, names, strict, quiet, progress)

    try:
        return run(body)
    finally:
        progress.end(complete=False)


async def _compare(
    first: "BlockBackend", second: "BlockBackend", names: list[str], strict: bool, quiet: bool, progress: Progress
) -> int:
    from aioblock import PositionedError, compare

    def say(message: str) -> None:
        if not quiet:
            print(message)

    progress.begin()
    try:
        found = await compare(first, second, strict=strict, progress=progress)
    except PositionedError as error:
        name = names[error.source]
        if error.action == "status":
            raise ProgramError(f"Sector allocation test failed for {name}", _STATUS_FAILED) from error
        reason = error_text(error.error)
        raise ProgramError(f"Error while reading offset {error.offset} of {name}: {reason}", _READ_FAILED) from error
    sectors = [-(-disk.length // SECTOR) for disk in (first, second)]
    if found is not None and found.kind == "length":
        say("Strict mode: Image size mismatch!")
    elif found is not None and found.kind == "status":
        say(f"Strict mode: Offset {found.offset} block status mismatch!")
    else:
        if sectors[0] != sectors[1] and (found is None or found.offset >= min(sectors) * SECTOR):
            say("Warning: Image size mismatch!")
        say(f"Content mismatch at offset {found.offset}!" if found is not None else "Images are identical.")
    return 0 if found is None else _DIFFERENT

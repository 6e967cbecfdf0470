"""`compare`: whether two images hold the same content."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..program import CACHE_MODES, ProgramError, define_object, error_text, run
from .asked import Asked, long_options
from .command import SECTOR, check_image_opts, opened, usage_error
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2"

_DIFFERENT, _NOT_OPENED, _STATUS_FAILED, _READ_FAILED = 1, 2, 3, 4


class _Asked(Asked):
    SHORT = "f:F:T:pqsU"
    LONG = long_options("object", "image-opts", "force-share")
    WORDS: ClassVar = {"F": "second_format"}
    SWITCHES: ClassVar = {"s": "strict"}

    second_format: str | None = None
    strict = False

    def take(self, option: str, value: str) -> None:
        if option == "object":
            define_object(value, _NOT_OPENED)
        else:
            super().take(option, value)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    names = asked.operands
    if len(names) != 2:
        raise usage_error("Expecting two image file names")
    progress = Progress(asked.shown and not asked.quiet)

    async def body() -> int:
        if asked.source_cache not in CACHE_MODES:
            raise ProgramError(f"Invalid source cache option: {asked.source_cache}", _NOT_OPENED)
        how = {**asked.how(), "cache": asked.source_cache, "status": _NOT_OPENED}
        asked.check_format(_NOT_OPENED)
        async with opened(names[0], **how) as first:
            how["format"] = asked.second_format
            check_image_opts(asked.image_opts, asked.second_format, _NOT_OPENED)
            async with opened(names[1], **how) as second:
                return await _compare(first, second, names, asked.strict, asked.quiet, progress)

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

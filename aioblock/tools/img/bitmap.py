"""`bitmap`: change the persistent dirty bitmaps of an image."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ..program import ProgramError, define_object, error_text, run
from .command import Options, check_image_opts, opened, parse_size_argument

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "(--merge source | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] "
    "[-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap"
)

_ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")

_LONG = {
    **{action: action for action in _ACTIONS if action != "merge"},
    "merge": "merge:",
    "granularity": "g:",
    "source-file": "b:",
    "source-format": "F:",
    "object": "object:",
    "image-opts": "image-opts",
}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    source: str | None = None
    source_format: str | None = None
    granularity: int | None = None
    image_opts = False
    actions: list[tuple[str, str]] = []
    options = Options(argv, "b:f:F:g:", _LONG)
    for option, value in options:
        if option in _ACTIONS:
            actions.append((option, value))
        elif option == "b":
            source = value
        elif option == "f":
            format = value
        elif option == "F":
            source_format = value
        elif option == "g":
            granularity = parse_size_argument("granularity", value)
        elif option == "object":
            define_object(value)
        elif option == "image-opts":
            image_opts = True
    if len(options.operands) != 2:
        raise ProgramError("Expecting filename and bitmap name")
    asked = {action for action, _ in actions}
    if not asked:
        raise ProgramError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if granularity and "add" not in asked:
        raise ProgramError("granularity only supported with --add")
    if source_format is not None and source is None:
        raise ProgramError("-F only supported with -b")
    if source is not None and "merge" not in asked:
        raise ProgramError("Merge bitmap source file only supported with --merge")
    check_image_opts(image_opts, format)
    name, bitmap = options.operands

    async def body() -> None:
        from aioblock import BlockError

        try:
            async with AsyncExitStack() as stack:
                disk = await stack.enter_async_context(
                    opened(name, image_opts=image_opts, format=format, writable=True, backing=False)
                )
                other = None
                if source is not None:
                    other = await stack.enter_async_context(opened(source, format=source_format, backing=False))
                for action, value in actions:
                    await _act(disk, action, bitmap, value, granularity or None, other)
        except (OSError, BlockError) as error:  # at the end: that is when bitmaps are stored
            raise ProgramError(f"Could not store the bitmaps of '{name}': {error_text(error)}") from error

    return run(body, fast=False)


async def _act(
    disk: "BlockBackend", action: str, name: str, value: str, granularity: int | None, source: "BlockBackend | None"
) -> None:
    """Do one action; `value` is the bitmap that `merge` takes from. Raises: ProgramError."""
    from aioblock import BlockError

    try:
        if action == "add":
            await disk.bitmap_add(name, granularity)
        elif action == "remove":
            await disk.bitmap_remove(name)
        elif action == "clear":
            await disk.bitmap_clear(name)
        elif action == "enable":
            await disk.bitmap_enable(name)
        elif action == "disable":
            await disk.bitmap_disable(name)
        else:
            await disk.bitmap_merge(name, value, source)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Operation {action} on bitmap {name} failed: {error_text(error)}") from error

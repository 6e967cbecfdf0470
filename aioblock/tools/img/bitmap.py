"""`bitmap`: change the persistent dirty bitmaps of an image."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar

from ..program import ProgramError, error_text, run
from .asked import Asked, long_options
from .command import opened, parse_size_argument

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "(--merge source | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] "
    "[-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap"
)

_ACTIONS = ("add", "remove", "clear", "enable", "disable", "merge")


class _Asked(Asked):
    SHORT = "b:f:F:g:"
    LONG = long_options(
        "object",
        "image-opts",
        **{action: action for action in _ACTIONS if action != "merge"},
        merge="merge:",
        granularity="g:",
        source_file="b:",
        source_format="F:",
    )
    WORDS: ClassVar = {"b": "source", "F": "source_format"}

    source: str | None = None
    source_format: str | None = None
    granularity: int | None = None

    def __init__(self, argv: Sequence[str]) -> None:
        self.actions: list[tuple[str, str]] = []
        super().__init__(argv)

    def take(self, option: str, value: str) -> None:
        if option in _ACTIONS:
            self.actions.append((option, value))
        elif option == "g":
            self.granularity = parse_size_argument("granularity", value)
        else:
            super().take(option, value)

    def check(self) -> None:
        """Refuse what does not go together. Raises: ProgramError."""
        asked = {action for action, _ in self.actions}
        if not asked:
            raise ProgramError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
        if self.granularity and "add" not in asked:
            raise ProgramError("granularity only supported with --add")
        if self.source_format is not None and self.source is None:
            raise ProgramError("-F only supported with -b")
        if self.source is not None and "merge" not in asked:
            raise ProgramError("Merge bitmap source file only supported with --merge")
        if len(self.operands) != 2:
            raise ProgramError("Expecting filename and bitmap name")
        self.check_format()


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    asked.check()
    name, bitmap = asked.operands

    async def body() -> None:
        from aioblock import BlockError

        try:
            async with AsyncExitStack() as stack:
                disk = await stack.enter_async_context(opened(name, writable=True, backing=False, **asked.how()))
                other = None
                if asked.source is not None:
                    source = opened(asked.source, format=asked.source_format, backing=False)
                    other = await stack.enter_async_context(source)
                for action, value in asked.actions:
                    await _act(disk, action, bitmap, value, asked.granularity or None, other)
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

"""`dd`: copy a part of an image into a new one."""

from collections.abc import Sequence
from typing import ClassVar

from ..program import ProgramError, error_text, objects, print_error, run
from .asked import Asked, long_options
from .command import MAX_LENGTH, SECTOR, opened, parse_size_argument
from .create import creation_error

__all__ = ["USAGE", "main"]

USAGE = "[--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output"

_MAX_BLOCK = (1 << 31) - 1


class _Asked(Asked):
    SHORT = "f:O:U"
    LONG = long_options("object", "image-opts", "force-share")
    WORDS: ClassVar = {"O": "target_format"}

    target_format = "raw"
    source: str | None = None
    target: str | None = None
    block = SECTOR
    count: int | None = None
    skip = 0

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv)
        for operand in self.operands:
            self._take_operand(*operand.partition("="))
        if self.source is None or self.target is None:
            raise ProgramError("Must specify both input and output files")
        self.check_format()

    def _take_operand(self, name: str, equals: str, value: str) -> None:
        if name == "if" and equals:
            self.source = value
        elif name == "of" and equals:
            self.target = value
        elif name == "bs" and equals:
            self.block = parse_size_argument("bs", value)
            if not 1 <= self.block <= _MAX_BLOCK:
                raise ProgramError(f"Invalid bs specified. Must be between 1 and {_MAX_BLOCK}.")
        elif name == "count" and equals:
            self.count = parse_size_argument("count", value, MAX_LENGTH)
        elif name == "skip" and equals:
            self.skip = parse_size_argument("skip", value, MAX_LENGTH)
        else:
            raise ProgramError(f"unrecognized operand {name}")


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    return run(lambda: _copy(asked))


async def _copy(asked: _Asked) -> None:
    import aioblock

    assert asked.source is not None and asked.target is not None
    async with opened(asked.source, share_write=False, **asked.how()) as source:  # it cannot be the output too
        _check_target(asked.target_format, asked.target)
        # As QEMU has it: the blocks of `count` are those from the beginning of the input on, skipped ones included.
        end = -(-source.length // SECTOR) * SECTOR
        if asked.count is not None:
            end = min(end, asked.count * asked.block)
        begin = asked.skip * asked.block
        behind, begin = begin > end, min(begin, end)
        async with aioblock.removed_on_failure(asked.target):
            try:
                await aioblock.create(
                    asked.target,
                    asked.target_format,
                    size=-(-(end - begin) // SECTOR) * SECTOR,
                    trust=aioblock.TRUST_ALL,
                    objects=objects,
                )
            except (OSError, aioblock.BlockError) as error:
                reason = creation_error(error, asked.target_format)
                raise ProgramError(f"{asked.target}: error while creating output image: {reason}") from error
            if behind:
                print_error(f"{asked.source}: cannot skip to specified offset")
            async with opened(asked.target, format=asked.target_format, writable=True) as target:
                try:
                    await aioblock.convert(
                        source,
                        target,
                        skip=begin,
                        nbytes=end - begin,
                        target_is_zero=target.node.driver.has_zero_init(),
                    )
                except (OSError, aioblock.BlockError) as error:
                    raise ProgramError(error_text(error)) from error


def _check_target(format: str, name: str) -> None:
    """The format can be created. Raises: ProgramError."""
    import aioblock

    if format not in aioblock.driver_names():
        raise ProgramError("Unknown file format")
    try:
        aioblock.create_options(format, name)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error

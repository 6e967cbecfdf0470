"""The commands discard, flush and truncate."""

from typing import TYPE_CHECKING

from ..program import ProgramError
from .command import Words, failure_text, operands, read_options
from .failures import CommandFailed
from .numbers import MAX_REQUEST, parse_bytes
from .report import Stopwatch, report
from .sectors import length_of
from .session import Session

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["discard", "flush", "truncate"]

_LONGEST = (1 << 63) - (1 << 30)
"""QEMU's longest image in bytes."""


async def discard(session: Session, words: Words) -> None:
    """Say that a range is not needed any more."""
    from aioblock import BlockError

    machine = quiet = False
    options = read_options(words, "Cq")
    for letter, _ in options:
        machine |= letter == "C"
        quiet |= letter == "q"
    where, length = operands(options, 2, 2)
    offset = parse_bytes(where)
    nbytes = parse_bytes(length)
    if nbytes > MAX_REQUEST:
        raise CommandFailed(f"length cannot exceed {MAX_REQUEST}, given {length}")
    watch = Stopwatch()
    try:
        await _discard(session.disk, offset, nbytes)
    except (OSError, BlockError) as error:
        raise CommandFailed(f"discard failed: {failure_text(error)}") from None
    watch.stop()
    if not quiet:
        report("discard", offset, nbytes, watch.seconds, machine=machine)


async def _discard(disk: "BlockBackend", offset: int, nbytes: int) -> None:
    length = disk.length
    if length < offset + nbytes <= await length_of(disk):  # nothing lies behind the end, in its sector
        nbytes = max(length - offset, 0)
        offset = min(offset, length)
    await disk.pdiscard(offset, nbytes)


async def flush(session: Session, words: Words) -> None:
    """Put everything on stable storage. Raises: OSError, BlockError."""
    await session.disk.flush()


async def truncate(session: Session, words: Words) -> None:
    """Set the length. Raises: OSError, BlockError."""
    from aioblock import Prealloc

    prealloc = Prealloc.OFF
    options = read_options(words, "m:")
    for _, value in options:
        try:
            prealloc = Prealloc(value)
        except ValueError:
            raise ProgramError(f"Invalid preallocation mode '{value}'") from None
    length, *_ = operands(options, 1, None)
    nbytes = parse_bytes(length)
    if nbytes > _LONGEST:
        raise ProgramError(f"offset({nbytes}) exceeds maximum({_LONGEST})")
    await session.disk.truncate(nbytes, exact=False, prealloc=prealloc)

"""The commands length, info, map and alloc."""

from collections.abc import AsyncIterator

from ..program import ProgramError
from .command import Words, failure_text
from .failures import CommandFailed
from .numbers import parse_bytes, show_bytes
from .sectors import SECTOR, length_of, whole
from .session import Session

_TELL_NOTHING = ("null-co", "quorum")
"""Drivers that cannot be asked: QEMU's program takes that for a failure, and says no word."""

__all__ = ["alloc", "info", "length", "map_"]


async def length(session: Session, words: Words) -> None:
    """Print the length of the image. Raises: CommandFailed."""
    try:
        print(show_bytes(await length_of(session.disk)))
    except OSError as error:
        raise CommandFailed(f"getlength: {failure_text(error)}") from None


async def info(session: Session, words: Words) -> None:
    """Print what the image tells about itself."""
    name = session.disk.node.driver.name
    print(f"format name: {name}")
    if session.disk.node.is_named:  # QEMU tells the protocol's name too, which is the same one
        print(f"format name: {name}")
    if session.disk.node.unfiltered.driver.name in _TELL_NOTHING:
        session.failed = True
        return
    told = session.disk.info()
    print(f"cluster size: {show_bytes(told.cluster_size or 0)}")
    print(f"vm state offset: {show_bytes(told.vm_state_offset or 0)}")
    if told.lines:
        print("Format specific information:")
        for line in told.lines:
            print(f"    {line}")


async def map_(session: Session, words: Words) -> None:
    """Print which ranges the top layer decides, and which it leaves to its backing file. Raises: ProgramError."""
    from aioblock import BlockError

    try:
        async for offset, nbytes, allocated in _runs(session):
            state = "    allocated" if allocated else "not allocated"
            print(f"{_both(nbytes)} bytes {state} at offset {_both(offset)}")
    except (OSError, BlockError) as error:
        raise ProgramError(f"Failed to get allocation status: {failure_text(error)}") from None


async def _runs(session: Session) -> AsyncIterator[tuple[int, int, bool]]:
    """(offset, length, whether the top layer decides) over the whole image, merged."""
    from aioblock import ALLOCATED

    top = session.disk.node
    while top.backing is None and top.driver.kind == "filter" and top.file is not None:
        top = top.file.node
    below = top.backing.node if top.backing is not None else None
    begin = end = 0
    state = False
    async for extent in session.disk.extents(base=below, want_zero=False):
        allocated = bool(extent.flags & ALLOCATED)
        if allocated != state and end > begin:
            yield begin, end - begin, state
            begin = end
        state = allocated
        end = extent.offset + extent.length
    if end > begin:
        yield begin, whole(end) - begin, state


def _both(nbytes: int) -> str:
    return f"{show_bytes(nbytes)} ({nbytes:#x})"


async def alloc(session: Session, words: Words) -> None:
    """Print how many bytes of a range the top layer decides. Raises: CommandFailed."""
    from aioblock import ALLOCATED, BlockError

    offset = parse_bytes(words[1])
    wanted = parse_bytes(words[2]) if len(words) > 2 else SECTOR
    end = min(offset + wanted, await length_of(session.disk))
    wanted = max(end - offset, 0)
    allocated = 0
    at = offset
    while at < end:
        try:
            run = await session.disk.block_status(at, end - at, want_zero=False)
        except (OSError, BlockError) as error:
            raise CommandFailed(f"is_allocated failed: {failure_text(error)}") from None
        if not run.pnum:  # behind the end, in its sector
            allocated += end - at
            break
        allocated += run.pnum if run.flags & ALLOCATED else 0
        at += run.pnum
    print(f"{allocated}/{wanted} bytes allocated at offset {show_bytes(offset)}")

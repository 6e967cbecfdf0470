"""The commands aio_read, aio_write and aio_flush: requests that run while the next commands do.

A request prints what became of it when it is done; what it says does not count for the exit status. It lets the
command that follows have its say first, also where it was done at once.
"""

import asyncio

from .buffers import unread
from .command import Words, failure_text, operands, parse_lengths, read_options
from .failures import CommandFailed
from .numbers import parse_bytes
from .reading import Wish, show
from .report import Stopwatch, report
from .sectors import make_room, read_into
from .session import Session
from .writing import WriteOptions

__all__ = ["aio_flush", "aio_read", "aio_write"]


async def aio_read(session: Session, words: Words) -> None:
    """Begin to read."""
    wish = Wish()
    options = read_options(words, "CiP:qv")
    for letter, value in options:
        if letter == "i":
            _count_invalid(session, "read")
            return
        wish.take(letter, value)
    where, *lengths = operands(options, 2, None)
    offset = parse_bytes(where)
    await session.start(_read(session, offset, parse_lengths(lengths), wish))


async def _read(session: Session, offset: int, nbytes: int, wish: Wish) -> None:
    from aioblock import BlockError

    data = unread(nbytes)
    watch = Stopwatch()
    try:
        await read_into(session.disk, offset, data)
    except (OSError, BlockError) as error:
        await asyncio.sleep(0)
        print(f"readv failed: {failure_text(error)}")
        return
    watch.stop()
    await asyncio.sleep(0)
    show(offset, data, watch.seconds, wish)


async def aio_write(session: Session, words: Words) -> None:
    """Begin to write."""
    wish = WriteOptions()
    options = read_options(words, "CfiP:quz")
    for letter, value in options:
        if letter == "i":
            _count_invalid(session, "write")
            return
        wish.take(letter, value)
    where, *lengths = operands(options, 2, None)
    if wish.zeroes and len(lengths) > 1:
        raise CommandFailed("-z supports only a single length parameter")
    if wish.unmap and not wish.zeroes:
        raise CommandFailed("-u requires -z to be specified")
    offset = parse_bytes(where)
    nbytes = parse_bytes(lengths[0]) if wish.zeroes else parse_lengths(lengths)
    await session.start(_write(session, offset, nbytes, wish))


async def _write(session: Session, offset: int, nbytes: int, wish: WriteOptions) -> None:
    from aioblock import BlockError

    data = b"" if wish.zeroes else wish.content(nbytes)
    watch = Stopwatch()
    try:
        await make_room(session.disk, offset, nbytes)
        if wish.zeroes:
            await session.disk.pwrite_zeroes(offset, nbytes, wish.flags())
        else:
            await session.disk.pwrite(offset, data, wish.flags())
    except (OSError, BlockError) as error:
        await asyncio.sleep(0)
        print(f"aio_write failed: {failure_text(error)}")
        return
    watch.stop()
    await asyncio.sleep(0)
    if not wish.quiet:
        report("wrote", offset, nbytes, watch.seconds, machine=wish.machine)


async def aio_flush(session: Session, words: Words) -> None:
    """Wait until every request that runs beside the commands is done."""
    await session.settle()


def _count_invalid(session: Session, verb: str) -> None:
    """-i: a request that a device would refuse. It shows in the statistics and goes no further."""
    print(f"injecting invalid {verb} request")
    session.disk.statistics.failed += 1

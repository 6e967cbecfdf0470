"""The commands read and readv."""

from .buffers import holds, unread
from .command import Words, failure_text, operands, parse_lengths, read_options
from .failures import CommandFailed, WrongUsage
from .numbers import MAX_REQUEST, parse_bytes, parse_pattern
from .report import Stopwatch, dump, report
from .sectors import read_into
from .session import Session
from .vmstate import require_sectors

__all__ = ["Wish", "read", "readv", "show"]


class Wish:
    """What shall be done with data once it is read."""

    def __init__(self) -> None:
        self.machine = False
        self.quiet = False
        self.dump = False
        self.pattern: int | None = None
        self.begin = 0
        """Where in the data the pattern begins."""
        self.nbytes: int | None = None
        """How long it is; None: to the end."""

    def take(self, letter: str, value: str) -> None:
        """Take one of the options that every read has. Raises: CommandFailed."""
        match letter:
            case "C":
                self.machine = True
            case "q":
                self.quiet = True
            case "v":
                self.dump = True
            case "P":
                self.pattern = parse_pattern(value)


async def read(session: Session, words: Words) -> None:
    """Read a range, and check or show it."""
    wish = Wish()
    vm_state = ranged = False
    options = read_options(words, "bCl:pP:qs:v")
    for letter, value in options:
        match letter:
            case "b":
                vm_state = True
            case "l":
                ranged, wish.nbytes = True, parse_bytes(value)
            case "s":
                ranged, wish.begin = True, parse_bytes(value)
            case _:
                wish.take(letter, value)
    where, length = operands(options, 2, 2)
    offset = parse_bytes(where)
    nbytes = parse_bytes(length)
    if nbytes > MAX_REQUEST:
        raise CommandFailed(f"length cannot exceed {MAX_REQUEST}, given {length}")
    if ranged and wish.pattern is None:
        raise WrongUsage
    if wish.nbytes is None:
        wish.nbytes = nbytes - wish.begin
    if wish.nbytes < 0 or wish.begin + wish.nbytes > nbytes:
        raise CommandFailed("pattern verification range exceeds end of read data")
    if vm_state:
        require_sectors(offset, nbytes)
    await _read(session, "read", offset, nbytes, wish, vm_state=vm_state)


async def readv(session: Session, words: Words) -> None:
    """Read a range into several buffers; the library reads them as the one range that they are."""
    wish = Wish()
    options = read_options(words, "CP:qv")
    for letter, value in options:
        wish.take(letter, value)
    where, *lengths = operands(options, 2, None)
    offset = parse_bytes(where)
    await _read(session, "readv", offset, parse_lengths(lengths), wish)


async def _read(session: Session, verb: str, offset: int, nbytes: int, wish: Wish, *, vm_state: bool = False) -> None:
    from aioblock import BlockError

    data = unread(nbytes)
    watch = Stopwatch()
    try:
        if vm_state:
            data = await session.disk.vm_state_read(offset, nbytes)
        else:
            await read_into(session.disk, offset, data)
    except (OSError, BlockError) as error:
        raise CommandFailed(f"{verb} failed: {failure_text(error)}") from None
    watch.stop()
    session.failed |= not show(offset, data, watch.seconds, wish)


def show(offset: int, data: bytearray, seconds: float, wish: Wish) -> bool:
    """Check, dump and report what was read; returns whether the data was what it should be."""
    good = True
    if wish.pattern is not None:
        length = len(data) if wish.nbytes is None else wish.nbytes
        good = holds(data, wish.pattern, wish.begin, length)
        if not good:
            print(f"Pattern verification failed at offset {offset + wish.begin}, {length} bytes")
    if not wish.quiet:
        if wish.dump:
            dump(offset, data)
        report("read", offset, len(data), seconds, machine=wish.machine)
    return good

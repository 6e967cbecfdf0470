"""The commands write and writev."""

from dataclasses import dataclass

from .buffers import DEFAULT_PATTERN, filled, from_file
from .command import Words, failure_text, operands, parse_lengths, read_options
from .failures import CommandFailed
from .numbers import MAX_REQUEST, parse_bytes, parse_pattern
from .report import Stopwatch, report
from .sectors import make_room
from .session import Session
from .vmstate import require_sectors

__all__ = ["WriteOptions", "write", "writev"]


@dataclass(slots=True)
class WriteOptions:
    """The options of the writing commands; each command takes some of them."""

    vm_state: bool = False
    compressed: bool = False
    machine: bool = False
    fua: bool = False
    no_fallback: bool = False
    quiet: bool = False
    unmap: bool = False
    zeroes: bool = False
    pattern: int | None = None
    source: str | None = None

    def take(self, letter: str, value: str) -> None:
        """Take one option. Raises: CommandFailed."""
        match letter:
            case "b":
                self.vm_state = True
            case "c":
                self.compressed = True
            case "C":
                self.machine = True
            case "f":
                self.fua = True
            case "n":
                self.no_fallback = True
            case "q":
                self.quiet = True
            case "u":
                self.unmap = True
            case "z":
                self.zeroes = True
            case "P":
                self.pattern = parse_pattern(value)
            case "s":
                self.source = value

    def flags(self) -> int:
        """The flags of the request."""
        from aioblock import REQ_COMPRESSED, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK

        return (
            (REQ_FUA if self.fua else 0)
            | (REQ_MAY_UNMAP if self.unmap else 0)
            | (REQ_NO_FALLBACK if self.no_fallback else 0)
            | (REQ_COMPRESSED if self.compressed and not self.zeroes else 0)
        )

    def check(self) -> None:
        """Raises: CommandFailed where options exclude each other."""
        if self.vm_state and self.zeroes:
            raise CommandFailed("-b and -z cannot be specified at the same time")
        if self.fua and (self.vm_state or self.compressed):
            raise CommandFailed("-f and -b or -c cannot be specified at the same time")
        if self.no_fallback and not self.zeroes:
            raise CommandFailed("-n requires -z to be specified")
        if self.unmap and not self.zeroes:
            raise CommandFailed("-u requires -z to be specified")
        if self.zeroes + (self.pattern is not None) + (self.source is not None) > 1:
            raise CommandFailed("Only one of -z, -P, and -s can be specified at the same time")

    def content(self, nbytes: int) -> bytes:
        """The bytes to write. Raises: PatternFileError."""
        if self.source is not None:
            return from_file(self.source, nbytes)
        return filled(DEFAULT_PATTERN if self.pattern is None else self.pattern, nbytes)


async def write(session: Session, words: Words) -> None:
    """Write a pattern, a file's content, or zeroes."""
    wish = WriteOptions()
    options = read_options(words, "bcCfnpP:qs:uz")
    for letter, value in options:
        wish.take(letter, value)
    where, length = operands(options, 2, 2)
    wish.check()
    offset = parse_bytes(where)
    nbytes = parse_bytes(length)
    if nbytes > MAX_REQUEST and not wish.no_fallback:
        raise CommandFailed(f"length cannot exceed {MAX_REQUEST} without -n, given {length}")
    if wish.vm_state or wish.compressed:
        require_sectors(offset, nbytes)
    await _write(session, "write", offset, nbytes, wish)


async def writev(session: Session, words: Words) -> None:
    """Write from several buffers; the library writes them as the one range that they are."""
    wish = WriteOptions()
    options = read_options(words, "CfP:q")
    for letter, value in options:
        wish.take(letter, value)
    where, *lengths = operands(options, 2, None)
    offset = parse_bytes(where)
    await _write(session, "writev", offset, parse_lengths(lengths), wish)


async def _write(session: Session, verb: str, offset: int, nbytes: int, wish: WriteOptions) -> None:
    from aioblock import BlockError

    data = b"" if wish.zeroes else wish.content(nbytes)
    watch = Stopwatch()
    try:
        if wish.vm_state:
            await session.disk.vm_state_write(offset, data)
        elif wish.zeroes:
            await make_room(session.disk, offset, nbytes)
            await session.disk.pwrite_zeroes(offset, nbytes, wish.flags())
        else:
            await make_room(session.disk, offset, nbytes)
            await session.disk.pwrite(offset, data, wish.flags())
    except (OSError, BlockError) as error:
        raise CommandFailed(f"{verb} failed: {failure_text(error)}") from None
    watch.stop()
    if not wish.quiet:
        report("wrote", offset, nbytes, watch.seconds, machine=wish.machine)

"""`bench`: many requests of the same kind, a fixed number at a time, and how long they took."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, ClassVar

from ..program import CACHE_MODES, ProgramError, error_text, run
from .asked import Asked, long_options
from .command import MAX_LENGTH, SECTOR, opened, parse_number, parse_size_argument

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "[-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] "
    "[--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename"
)

_MAX_INT = (1 << 31) - 1


class _Asked(Asked):
    SHORT = "c:d:f:i:no:qs:S:t:wU"
    LONG = long_options(
        "object",
        "image-opts",
        "force-share",
        flush_interval="flush-interval:",
        pattern="pattern:",
        no_drain="no-drain",
    )
    SWITCHES: ClassVar = {"w": "write"}

    aio: str | None = None
    count = 75000
    depth = 64
    offset = 0
    size = 4096
    step = 0
    write = False
    pattern = 0
    flush_interval = 0
    drain = True

    def take(self, option: str, value: str) -> None:
        if option == "c":
            self.count = parse_number(value, "Invalid request count specified")
        elif option == "d":
            self.depth = parse_number(value, "Invalid queue depth specified")
        elif option == "i":
            if value not in ("threads", "native", "io_uring"):
                raise ProgramError(f"Invalid aio option: {value}")
            self.aio = value
        elif option == "n":
            self.aio = "native"
        elif option == "o":
            self.offset = parse_size_argument("offset", value, MAX_LENGTH)
        elif option == "s":
            self.size = parse_size_argument("buffer size", value, _MAX_INT)
        elif option == "S":
            self.step = parse_size_argument("step_size", value, _MAX_INT)
        elif option == "t" and value not in CACHE_MODES:
            raise ProgramError("Invalid cache mode")
        elif option == "pattern":
            self.pattern = parse_number(value, "Invalid pattern byte specified", 0xFF)
        elif option == "flush-interval":
            self.flush_interval = parse_number(value, "Invalid flush interval specified")
        elif option == "no-drain":
            self.drain = False
        else:
            super().take(option, value)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    name = asked.one_image()
    if not asked.write and asked.flush_interval:
        raise ProgramError("--flush-interval is only available in write tests")
    if asked.flush_interval and asked.flush_interval < asked.depth:
        raise ProgramError("Flush interval can't be smaller than depth")
    if not asked.depth:
        raise ProgramError("Invalid queue depth specified")
    asked.check_format()

    async def body() -> None:
        async with opened(name, writable=asked.write, cache=asked.cache, aio=asked.aio, **asked.how()) as disk:
            await _bench(disk, asked)

    return run(body)


async def _bench(disk: "BlockBackend", asked: _Asked) -> None:
    from aioblock import BlockError

    step = asked.step or asked.size
    if not disk.length:
        raise ProgramError("The image is empty")
    kind = "write" if asked.write else "read"
    print(
        f"Sending {asked.count} {kind} requests, {asked.size} bytes each, {asked.depth} in parallel "
        f"(starting at offset {asked.offset}, step size {step})"
    )
    if asked.flush_interval:
        print(f"Sending flush every {asked.flush_interval} requests")
    # The first request goes where it was told to, all others begin inside the image.
    start, length = asked.offset, -(-disk.length // SECTOR) * SECTOR
    offsets = chain([start][: asked.count], ((start + number * step) % length for number in range(1, asked.count)))
    before = time.perf_counter()
    try:
        await _send(disk, asked, offsets)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Failed request: {error_text(error)}") from error
    print(f"Run completed in {time.perf_counter() - before:.3f} seconds.")


async def _send(disk: "BlockBackend", asked: _Asked, offsets: Iterator[int]) -> None:
    """Send all requests. Raises: OSError of the first that failed."""
    import asyncio

    from aioblock import aligned_buffer

    end, size = disk.length, asked.size

    def inside(offset: int) -> int:
        """How much of a request is sent that reaches behind the end: what is left of the last sector does not count."""
        return end - offset if end > offset and offset + size <= -(-end // SECTOR) * SECTOR else size

    async def reader() -> None:
        buffer = aligned_buffer(asked.size)
        readinto = disk.readinto
        for offset in offsets:
            await readinto(offset, buffer if offset + size <= end else buffer[: inside(offset)])

    async def writer(offsets: Iterator[int]) -> None:
        pwrite = disk.pwrite
        for offset in offsets:
            await pwrite(offset, data if offset + size <= end else data[: inside(offset)])

    data = aligned_buffer(asked.size)
    data[:] = bytes([asked.pattern]) * asked.size
    written = 0

    async def flushing_writer() -> None:
        nonlocal written
        for offset in offsets:
            written += 1
            due = written % asked.flush_interval == 0
            await disk.pwrite(offset, data if offset + size <= end else data[: inside(offset)])
            if due:
                await disk.flush()

    async def together(*workers: "asyncio._CoroutineLike[None]") -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    if not asked.write:
        await together(*(reader() for _ in range(asked.depth)))
    elif not asked.flush_interval:
        await together(*(writer(offsets) for _ in range(asked.depth)))
    elif not asked.drain:
        await together(*(flushing_writer() for _ in range(asked.depth)))
    else:
        sent = 0
        while sent < asked.count:
            turn = min(asked.flush_interval, asked.count - sent)
            some = islice(offsets, turn)
            await together(*(writer(some) for _ in range(asked.depth)))
            sent += turn
            if turn == asked.flush_interval:
                await disk.flush()

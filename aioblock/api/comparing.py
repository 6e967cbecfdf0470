"""Comparing two images."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Unpack

from aioblock.api.opening import Image, Opening, name_of, opened
from aioblock.base.errors import with_context
from aioblock.graph.backend import BlockBackend
from aioblock.jobs import compare as job
from aioblock.jobs import differences as ranges
from aioblock.jobs.compare import Difference
from aioblock.jobs.differences import DifferentRange
from aioblock.jobs.errors import PositionedError

__all__ = ["compare", "differences"]


async def compare(
    first: Image,
    second: Image,
    *,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    second_format: str | None = None,
    **how: Unpack[Opening],
) -> Difference | None:
    """Where two disks differ first; None: nowhere. What one has behind the end of the other must be zeroes.

    `strict`: they must also be of the same length (in blocks of 512 bytes), and allocated alike.
    `progress(done, total)` is told bytes. `format`, `second_format` and `how`: as in `open`, for those of the two that
    are given by name.

    Cancelled or failed: nothing is left running or open.
    Raises: as `open`; PositionedError, whose `source` says which of the two (0 or 1).
    """
    async with _opened((first, second), (format, second_format), how) as disks:
        with _named((first, second)):
            return await job.compare(*disks, strict=strict, progress=progress)


async def differences(
    first: Image,
    second: Image,
    *,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    second_format: str | None = None,
    **how: Unpack[Opening],
) -> AsyncGenerator[DifferentRange, None]:
    """Every range in which two disks differ, in order, neighbours joined. Behind its end a disk counts as zeroes.

    Close it if you leave it early (`contextlib.aclosing`). `progress(done, total)` is told bytes. `format`,
    `second_format` and `how`: as in `open`, for those of the two that are given by name.

    Closed early, cancelled or failed: nothing is left running or open.
    Raises: as `open`; PositionedError, whose `source` says which of the two (0 or 1).
    """
    async with _opened((first, second), (format, second_format), how) as disks:
        with _named((first, second)):
            async with aclosing(ranges.differences(*disks, progress=progress)) as found:
                async for run in found:
                    yield run


@asynccontextmanager
async def _opened(
    images: tuple[Image, Image], formats: tuple[str | None, str | None], how: Opening
) -> AsyncIterator[tuple[BlockBackend, BlockBackend]]:
    """Both images open. Raises: as `open`."""
    both_open = all(isinstance(image, BlockBackend) for image in images)
    async with AsyncExitStack() as stack:
        disks: list[BlockBackend] = []
        for image, kind in zip(images, formats, strict=True):
            mine: Opening = {} if isinstance(image, BlockBackend) and not both_open else how
            disks.append(await stack.enter_async_context(opened(image, format=kind, how=mine)))
        yield disks[0], disks[1]


@contextmanager
def _named(images: tuple[Image, Image]) -> Iterator[None]:
    """Let a failed request say which of the images it was about, where that was given by its name."""
    try:
        yield
    except PositionedError as error:
        image = images[error.source]
        if not isinstance(image, BlockBackend):
            error.filename = name_of(image)
            with_context(error, f"'{error.filename}': ")
        raise

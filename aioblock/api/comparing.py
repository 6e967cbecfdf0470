"""Comparing two images."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Unpack

from aioblock.api.opening import Image, Opening, name_of, opened
from aioblock.base.errors import with_context
from aioblock.graph.backend import BlockBackend
from aioblock.jobs import compare as job
from aioblock.jobs.compare import Difference
from aioblock.jobs.errors import PositionedError

__all__ = ["compare"]


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
    async with AsyncExitStack() as stack:
        disks: list[BlockBackend] = []
        both_open = isinstance(first, BlockBackend) and isinstance(second, BlockBackend)
        for image, kind in ((first, format), (second, second_format)):
            mine: Opening = {} if isinstance(image, BlockBackend) and not both_open else how
            disks.append(await stack.enter_async_context(opened(image, format=kind, how=mine)))
        try:
            return await job.compare(disks[0], disks[1], strict=strict, progress=progress)
        except PositionedError as error:
            image = (first, second)[error.source]
            if not isinstance(image, BlockBackend):
                error.filename = name_of(image)
                with_context(error, f"'{error.filename}': ")
            raise

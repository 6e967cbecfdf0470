"""Measuring: how large an image would become, from a size or from another image."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from aioblock.base.errors import NotSupported
from aioblock.base.flags import ALLOCATED, DATA, ZERO
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Measurement
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.registry import find_driver
from aioblock.graph.backend import BlockBackend
from aioblock.graph.creating import create_options, typed_options

__all__ = ["measure_image"]


async def measure_image(
    format: str,
    options: Mapping[str, Any],
    size: int | None,
    source: BlockBackend | None,
    objects: Mapping[str, NamedObject],
) -> Measurement:
    """What an image of a format takes that is made with `options` and then holds what `source` holds, or nothing.

    `size`: of the disk; None: that of `source`. Raises: OptionError, NotSupported, OSError.
    """
    driver = find_driver(format)
    if driver.measure.__func__ is BlockDriver.measure.__func__:  # type: ignore[attr-defined]
        raise NotSupported(f"Block driver '{format}' does not support size measurement")
    known = create_options(format, find_driver("file"))
    values = typed_options(known, options)
    for option in known:
        if option.names is not None and option.name in values:
            values[option.name] = find_object(objects, values[option.name], option.names)
    if source is None:
        return await driver.measure(values, size or 0, None, None)
    bitmaps = source.bitmaps().values() if source.stores_bitmaps else None
    async with aclosing(_data_of(source)) as data:
        return await driver.measure(values, source.length if size is None else size, data, bitmaps)


async def _data_of(source: BlockBackend) -> AsyncGenerator[tuple[int, int], None]:
    """The runs of a chain that hold data."""
    async with aclosing(source.extents()) as extents:
        async for extent in extents:
            if extent.flags & (DATA | ALLOCATED | ZERO) == DATA | ALLOCATED:
                yield extent.offset, extent.length

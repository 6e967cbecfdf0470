"""Converting: the content of images, copied into a new image or into one that is open."""

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Unpack

from aioblock.api.bitmaps import check_bitmaps, copy_bitmaps
from aioblock.api.chains import layer_of
from aioblock.api.creating import create_options, files_of
from aioblock.api.new_files import check_not_read, removed_on_failure
from aioblock.api.opening import Image, Opening, name_of, open, opened, used
from aioblock.base.errors import BlockError, NotSupported, OptionError, message_of, with_context
from aioblock.core.driver import BlockDriver
from aioblock.core.node import BlockNode
from aioblock.core.registry import find_driver
from aioblock.graph.backend import BlockBackend
from aioblock.graph.creating import create_image, typed_options
from aioblock.graph.names import strip_protocol
from aioblock.graph.trust import TRUST_DIRECTORY, Reference
from aioblock.jobs import convert as job
from aioblock.jobs.errors import PositionedError
from aioblock.jobs.plan import SECTOR

__all__ = ["convert", "target_options"]


async def convert(
    source: Image | Sequence[Image],
    target: str | os.PathLike[str] | BlockBackend,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    target_cache: str = "writeback",
    compressed: bool = False,
    level: int | None = None,
    sparse: int = 4096,
    keep_backing: bool | None = None,
    base: str | BlockNode | None = None,
    skip: int = 0,
    nbytes: int | None = None,
    target_is_zero: bool | None = None,
    bitmaps: bool = False,
    in_order: bool = True,
    offload: bool = False,
    workers: int = 8,
    bytes_per_second: int = 0,
    progress: Callable[[int, int], None] | None = None,
    salvage: Callable[[int, OSError], None] | None = None,
    **how: Unpack[Opening],
) -> None:
    """Copy an image, or several one behind the other, into a new image, or to the beginning of an open one.

    `source`: an image, or several, each of which begins at a multiple of 512 bytes; `source_format` and `how` are
    `format` and the rest of `open` for those that are given by name.

    `target` as a name: an image of that `format` (None: raw) is made there with `options`, those of `create`, and the
    size of all sources together; `target_cache` is the `cache` of `open` for it. What was there is overwritten. With a
    `backing_file` among the options, what the top layer of the only source leaves open is left open.
    `target` as an open image: it is filled; it is at least as long as all that is copied.

    `compressed`: store clusters compressed; `level`: how hard in a new image, on the scale of its compression type.
    `sparse`: this many zero bytes in a row are not written as data; 0: all is written. `keep_backing`: what the layers
    of the only source above `base` (a layer, or its name; None: its top layer alone) leave open is left to the target's
    backing file, or to what the target holds. `skip`, `nbytes`: only this part of the only source, as far as there is
    one. `target_is_zero`: an open target is known to read as zeroes. `bitmaps`: the persistent dirty bitmaps of the
    only source are copied too. `in_order`: writes begin in the order of their offsets. `offload`: data is copied by the
    storage where it can, without a look for zeroes in it. `workers`: how many pieces are under way at a time, each with
    a buffer of 2 MiB. `bytes_per_second`: no faster than this; 0: as fast as it goes. `progress(done, total)` is told
    bytes. `salvage(offset, error)`: what cannot be read becomes zeroes, and is told here.

    Everything written is on stable storage at the end. Cancelled or failed: nothing is left running or open; a target
    that was made is removed again, one that was there before and has been touched is named as incomplete in a note of
    the error (`__notes__`), and an open one holds a part.
    Raises: before the target is touched: as `open` for the sources; OptionError; NotSupported where the format cannot
    be made, or not what was asked for. Then: PositionedError; OSError; GraphError where another uses the target.
    """
    images: list[Image] = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if isinstance(target, BlockBackend):
        if format is not None or options is not None or level is not None:
            raise ValueError("format, options and level are for a target that is made")
    elif keep_backing is not None or target_is_zero is not None:
        raise ValueError("keep_backing and target_is_zero are for an open target")
    if not images:
        raise ValueError("there is nothing to convert")
    if (bitmaps or base is not None) and len(images) != 1:
        raise ValueError("only one source has bitmaps, or layers, that the target could have too")

    async with AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(disk) for disk in _all_opened(images, source_format, how)]
        if bitmaps:
            check_bitmaps(sources[0])
        copy = partial(
            job.convert,
            sources,
            compressed=compressed,
            sparse=sparse,
            base=layer_of(sources[0], base) if base is not None else None,
            skip=skip,
            nbytes=nbytes,
            in_order=in_order,
            offload=offload,
            workers=workers,
            bytes_per_second=bytes_per_second,
            progress=progress,
            salvage=salvage,
        )

        async def fill(disk: BlockBackend, name: str | None, *, keep_backing: bool, is_zero: bool) -> None:
            if bitmaps and not disk.stores_bitmaps:
                raise NotSupported(f"Format driver '{disk.node.driver.name}' does not support bitmaps")
            try:
                await copy(disk, keep_backing=keep_backing, target_is_zero=is_zero)
            except PositionedError as error:
                _name(error, images, name)
                raise
            if bitmaps:
                await copy_bitmaps(sources[0], disk)

        def check_backing(keep_backing: bool) -> None:
            if base is not None and not keep_backing:
                raise ValueError("base is for a target that leaves the rest to its backing file")
            if skip and keep_backing:
                raise ValueError("a backing file does not move along with the part of the source behind skip")

        if isinstance(target, BlockBackend):
            check_backing(bool(keep_backing))
            await fill(target, None, keep_backing=bool(keep_backing), is_zero=bool(target_is_zero))
            return
        name, made = os.fspath(target), format or "raw"
        values = target_options(made, name, options, sources=len(sources), compressed=compressed)
        values["size"] = _length(sources, skip, nbytes)
        check_backing("backing_file" in values)
        files = await files_of(made, name, values)
        await check_not_read(files, [source.node for source in sources])
        async with removed_on_failure(*files):
            discard = "unmap" if sparse else "ignore"
            async with _made(name, made, values, level, target_cache, discard, how) as disk:
                is_zero = disk.node.driver.has_zero_init()
                await fill(disk, name, keep_backing="backing_file" in values, is_zero=is_zero)
            await stack.aclose()  # here, so that who is cancelled meanwhile has no new file either


def _all_opened(
    images: Sequence[Image], format: str | None, how: Opening
) -> list[AbstractAsyncContextManager[BlockBackend]]:
    """The words about opening are for those that are given by name, if there are any."""
    if all(isinstance(image, BlockBackend) for image in images):
        return [opened(image, format=format, how=how) for image in images]
    alone = partial(opened, share_write=False)  # least of all may the target be a source
    nothing: Opening = {}
    return [
        opened(image, how=nothing) if isinstance(image, BlockBackend) else alone(image, format=format, how=how)
        for image in images
    ]


def _length(sources: Sequence[BlockBackend], skip: int, nbytes: int | None) -> int:
    """Of all that is copied."""
    *others, last = [source.length for source in sources]
    length = sum(-(-other // SECTOR) * SECTOR for other in others) + last
    length = max(length - skip, 0)
    return length if nbytes is None else min(length, nbytes)


@asynccontextmanager
async def _made(
    name: str,
    format: str,
    values: Mapping[str, Any],
    level: int | None,
    cache: str,
    discard: str,
    how: Opening,
) -> AsyncIterator[BlockBackend]:
    """A new image, open to be filled inside."""
    objects, policy = how.get("objects") or {}, how.get("trust", TRUST_DIRECTORY)
    named = {values.get("backing_file"), values.get("data_file")}

    def trust(reference: Reference) -> bool:
        """The caller has named the files that the new image names; what those name is another matter."""
        return (reference.image == strip_protocol(name) and reference.name in named) or policy(reference)

    try:
        await create_image(name, format, values, objects)
    except (OSError, BlockError) as error:
        if name not in message_of(error):
            with_context(error, f"Could not create '{name}': ")
        raise
    # Where it was made with a secret, it is opened with the same one.
    chosen = {option: value for option, value in values.items() if option.endswith("key-secret")}
    if level is not None:
        chosen["compression-level"] = level
    disk = await open(
        name,
        format=format,
        options=chosen,
        writable=True,
        cache=cache,
        discard=discard,
        objects=objects,
        trust=trust,
    )
    async with used(disk):
        yield disk


def _name(error: PositionedError, images: Sequence[Image], target: str | None) -> None:
    """Let an error say which of the files it is about, where the caller has only given names."""
    image: Image | None = target if error.action == "write" else images[error.source]
    if image is not None and not isinstance(image, BlockBackend):
        error.filename = name_of(image)
        with_context(error, f"'{error.filename}': ")


def target_options(
    format: str,
    name: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    *,
    sources: int = 1,
    compressed: bool = False,
) -> dict[str, Any]:
    """The options for a new image that so many sources are to be converted into, each in its kind, checked.

    Raises: OptionError and NotSupported where one is unknown, or where they do not go together.
    """
    values = typed_options(create_options(format, name), options or {})
    if "backing_file" in values:
        if sources > 1:
            raise OptionError(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
                option="backing_file",
            )
        if not values.get("backing_fmt"):
            raise OptionError("Use of backing file requires explicit backing format", option="backing_fmt")
    if compressed:
        if find_driver(format).pwritev_compressed is BlockDriver.pwritev_compressed:
            raise NotSupported("Compression not supported for this file format")
        if values.get("encryption") or values.get("encrypt.format"):
            raise OptionError("Compression and encryption not supported at the same time", option="encrypt.format")
        if values.get("preallocation", "off") != "off":
            raise OptionError("Compression and preallocation not supported at the same time", option="preallocation")
    return values

"""Opening: from a name to a disk that can be used, for the call of one function or for as long as the caller likes."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypedDict

from aioblock.base.errors import BlockError, OptionError, message_of, with_context
from aioblock.base.options import nest, overlaid
from aioblock.blockio.status import WINDOW
from aioblock.core.context import AIO_MODES
from aioblock.core.eager import to_end
from aioblock.core.objects import NamedObject
from aioblock.drivers import register_all
from aioblock.graph.backend import BlockBackend
from aioblock.graph.names import json_name, to_options
from aioblock.graph.opening import close_edge, open_root
from aioblock.graph.permissions import root_permissions
from aioblock.graph.reopen import cache_mode
from aioblock.graph.settings import MAX_DEPTH, OpenSettings
from aioblock.graph.trust import TRUST_DIRECTORY, TrustPolicy

__all__ = ["Image", "ImageName", "Opening", "name_of", "open", "opened", "used"]

ImageName: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A file name, `protocol:...`, `json:{...}`, or options."""

Image: TypeAlias = ImageName | BlockBackend
"""An image by its name, or open."""

register_all()


class Opening(TypedDict, total=False):
    """How an image is opened that was given by its name: arguments of `open`, which says what they mean.

    Options of drivers go into the name: `{"filename": "disk.qcow2", "overlap-check": "all"}`.
    """

    cache: str
    aio: str | None
    discard: str
    force_share: bool
    trust: TrustPolicy
    probe: bool
    snapshot: str
    objects: Mapping[str, NamedObject]
    max_depth: int


async def open(
    name: ImageName,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    writable: bool = False,
    resize: bool = False,
    cache: str = "writeback",
    aio: str | None = None,
    discard: str = "unmap",
    detect_zeroes: str = "off",
    copy_on_read: bool = False,
    force_share: bool = False,
    share_write: bool = True,
    backing: bool = True,
    trust: TrustPolicy = TRUST_DIRECTORY,
    probe: bool | None = None,
    for_check: bool = False,
    metadata_only: bool = False,
    snapshot: str | None = None,
    objects: Mapping[str, NamedObject] | None = None,
    node_name: str | None = None,
    max_in_flight: int = 1024,
    max_depth: int = MAX_DEPTH,
    window: int = WINDOW,
) -> BlockBackend:
    """Open an image with all its backing files.

    `name`: a file name, `protocol:...`, `json:{...}`, or options as a dict; `options` are laid over it. `format` None:
    guessed from the content, which is allowed (`probe` None) of the top image of a read-only open only.
    `discard`: unmap, or ignore, which drops discards and keeps the storage of what is zeroed.
    `cache`: none, writeback, writethrough, directsync or unsafe. `aio`: how the system is asked where the page cache is
    passed by (none, directsync): native, which needs that, threads or io_uring; None: what is best. `trust` says which
    files named inside images may be opened. `max_in_flight`: how many requests run at a time, later ones wait their
    turn. `window`: how many layers of a chain are asked for their status at the same time. `objects`: the named
    objects, by id, that options refer to (secrets). `metadata_only`: only what the image says about itself is wanted,
    so that an encrypted one needs no secret; its data cannot be read.
    `share_write` off: nobody else may write to the image meanwhile, which its locks see to.
    `snapshot`: the disk as it was when this internal snapshot was made, by its id or else its name; read-only.

    Cancelled or failed: everything is closed again.
    Raises: OSError, ImageError, OptionError, UntrustedReference, GraphError.
    """
    described = dict(name) if isinstance(name, Mapping) else to_options(os.fspath(name))
    described = nest(described)
    if options:
        described = overlaid(described, nest(options))
    if format is not None:
        if described.get("driver", format) != format:
            raise OptionError("Cannot specify both 'driver' and 'format'", option="driver")
        described["driver"] = format
    if snapshot is not None:
        described["snapshot"] = snapshot
    if discard not in ("ignore", "off", "unmap", "on"):
        raise OptionError(f"Invalid discard mode '{discard}'", option="discard")
    if aio is not None and aio not in AIO_MODES:
        raise OptionError(f"Invalid aio mode '{aio}'", option="aio")
    settings = OpenSettings(
        writable=writable,
        cache=cache_mode(cache),
        unmap=discard in ("unmap", "on"),
        aio=aio,
        detect_zeroes=detect_zeroes,
        force_share=force_share,
        backing=backing,
        trust=trust,
        probe=probe,
        for_check=for_check,
        metadata_only=metadata_only,
        objects=objects if objects is not None else {},
        max_depth=max_depth,
    )
    perm, shared = root_permissions(writable=writable, resize=resize, share_write=share_write or force_share)
    root = await open_root(described, settings, perm, shared, node_name)
    try:
        return BlockBackend(root, max_in_flight=max_in_flight, window=window, copy_on_read=copy_on_read)
    except BaseException:
        await close_edge(root)
        raise


@asynccontextmanager
async def opened(
    image: Image,
    *,
    format: str | None = None,
    how: Opening,
    writable: bool = False,
    resize: bool = False,
    backing: bool = True,
    for_check: bool = False,
    metadata_only: bool = False,
    share_write: bool = True,
) -> AsyncIterator[BlockBackend]:
    """An image for one call: an open one as it is, one that is given by its name open inside. The rest as in `open`.

    Raises: as `open`, with the name in the message; at the end, as `BlockBackend.close`. ValueError where an open image
    comes with words about how to open it.
    """
    if isinstance(image, BlockBackend):
        given = [*(["format"] if format is not None else []), *(how.keys() - {"objects"})]
        if given:
            raise ValueError(f"'{image.name}' is open already, so this has no effect: {', '.join(sorted(given))}")
        yield image
        return
    try:
        disk = await open(
            image,
            format=format,
            writable=writable,
            resize=resize,
            backing=backing,
            for_check=for_check,
            metadata_only=metadata_only,
            share_write=share_write,
            **how,
        )
    except (OSError, BlockError) as error:
        if name_of(image) not in message_of(error):
            with_context(error, f"Could not open '{name_of(image)}': ")
        raise
    async with used(disk):
        yield disk


@asynccontextmanager
async def used(disk: BlockBackend) -> AsyncIterator[BlockBackend]:
    """As `async with disk`, but who is cancelled while the image is being closed waits until it is."""
    try:
        yield disk
    except BaseException as error:
        await to_end(disk.__aexit__(type(error), error, error.__traceback__))
        raise
    await to_end(disk.close())


def name_of(image: Image) -> str:
    """An image as it is named in messages."""
    if isinstance(image, BlockBackend):
        return image.name
    if not isinstance(image, Mapping):
        return os.fspath(image)
    given = nest(image)
    while "filename" not in given:
        inner = [child for child in (given.get("file"), given.get("image")) if isinstance(child, Mapping)]
        if not inner:
            return json_name(nest(image))
        given = dict(inner[0])
    return str(given["filename"])

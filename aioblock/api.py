"""Layer 6: what a program that uses aioblock calls: open, create."""

import os
from collections.abc import Mapping
from typing import Any

from aioblock.base.errors import OptionError
from aioblock.base.options import nest, overlaid
from aioblock.blockio.status import WINDOW
from aioblock.core.images import CreateOption, Measurement
from aioblock.core.objects import NamedObject
from aioblock.core.registry import find_driver
from aioblock.drivers import register_all
from aioblock.graph.backend import BlockBackend
from aioblock.graph.names import beside, protocol_of, to_options
from aioblock.graph.opening import close_edge, open_root
from aioblock.graph.permissions import root_permissions
from aioblock.graph.reopen import cache_mode
from aioblock.graph.settings import MAX_DEPTH, OpenSettings
from aioblock.graph.trust import TRUST_DIRECTORY, TrustPolicy

__all__ = ["create", "create_options", "measure", "open"]

register_all()


async def open(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    writable: bool = False,
    resize: bool = False,
    cache: str = "writeback",
    discard: str = "unmap",
    detect_zeroes: str = "off",
    copy_on_read: bool = False,
    force_share: bool = False,
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
    `cache`: none, writeback, writethrough, directsync or unsafe. `trust` says which files named inside images may be
    opened. `max_in_flight`: how many requests run at a time, later ones wait their turn. `window`: how many layers of a
    chain are asked for their status at the same time. `objects`: the named objects, by id, that options refer to
    (secrets). `metadata_only`: only what the image says about itself is wanted, so that an encrypted one needs no
    secret; its data cannot be read.
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
    settings = OpenSettings(
        writable=writable,
        cache=cache_mode(cache),
        unmap=discard in ("unmap", "on"),
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
    perm, shared = root_permissions(writable=writable, resize=resize)
    root = await open_root(described, settings, perm, shared, node_name)
    try:
        return BlockBackend(root, max_in_flight=max_in_flight, window=window, copy_on_read=copy_on_read)
    except BaseException:
        await close_edge(root)
        raise


async def create(
    name: str | os.PathLike[str],
    format: str,
    options: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    trust: TrustPolicy = TRUST_DIRECTORY,
    objects: Mapping[str, NamedObject] | None = None,
) -> None:
    """Make an image. `size` in bytes; None: the option "size", else the size of the backing file named in `options`.
    `objects`: the named objects, by id, that options refer to: secrets.

    What was there under that name is lost. Failed: what is there is no usable image.
    Raises: OptionError before anything is touched; NotSupported; OSError.
    """
    values = dict(options or {})
    if size is not None:
        values["size"] = size
    if "size" not in values:
        backing = values.get("backing_file")
        if not backing:
            raise OptionError("Image creation needs a size parameter", option="size")
        async with await open(
            beside(os.fspath(name), backing),
            format=values.get("backing_fmt"),
            trust=trust,
            probe=True,
            metadata_only=True,
            objects=objects,
        ) as disk:
            values["size"] = disk.length
    from aioblock.graph.creating import create_image  # here, because most programs create nothing

    await create_image(os.fspath(name), format, values, objects or {})


async def measure(
    format: str,
    options: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    source: BlockBackend | None = None,
    objects: Mapping[str, NamedObject] | None = None,
) -> Measurement:
    """How large the file of an image becomes that is made with these options, as those of `create`, and then filled.

    `size` of its disk in bytes, or `source`: an open image whose size it has and whose data it is to hold.
    `objects`: the named objects, by id, that options refer to: secrets. Cancelled or failed: nothing is left behind.
    Raises: OptionError; NotSupported; OSError.
    """
    from aioblock.graph.measuring import measure_image  # here, because most programs measure nothing

    return await measure_image(format, options or {}, size, source, objects or {})


def create_options(format: str, name: str | None = None) -> tuple[CreateOption, ...]:
    """The options that `create` takes for a format (with those of the protocol that `name` means behind them).

    Raises: OptionError, NotSupported.
    """
    from aioblock.graph.creating import create_options as options_of

    return options_of(format, protocol_of(name) if name is not None else find_driver("file"))

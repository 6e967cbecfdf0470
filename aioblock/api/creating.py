"""Creating: new images, the options that they take, and how large they become."""

import os
from collections.abc import Mapping
from typing import Any, Unpack

from aioblock.api.new_files import check_apart, removed_on_failure
from aioblock.api.opening import Image, Opening, open, opened, used
from aioblock.base.errors import OptionError
from aioblock.core.images import CreateOption, Measurement
from aioblock.core.objects import NamedObject
from aioblock.core.registry import find_driver
from aioblock.graph import creating
from aioblock.graph.creating import create_image
from aioblock.graph.measuring import measure_image
from aioblock.graph.names import beside, protocol_of
from aioblock.graph.trust import TRUST_DIRECTORY, TrustPolicy

__all__ = ["create", "create_options", "files_of", "measure"]


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

    What was there under that name is lost. Cancelled or failed: files that were made are removed again; what was there
    before and has been touched is no usable image, and named as such in a note of the error.
    Raises: OptionError before anything is touched; NotSupported; OSError.
    """
    values = dict(options or {})
    path = os.fspath(name)
    if size is not None:
        values["size"] = size
    if "size" not in values:
        backing = values.get("backing_file")
        if not backing:
            raise OptionError("Image creation needs a size parameter", option="size")
        disk = await open(
            beside(path, backing),
            format=values.get("backing_fmt"),
            trust=trust,
            probe=True,
            metadata_only=True,
            objects=objects,
        )
        async with used(disk):
            values["size"] = disk.length
    async with removed_on_failure(*await files_of(format, path, values)):
        await create_image(path, format, values, objects or {})


async def files_of(format: str, name: str, options: Mapping[str, Any]) -> list[str]:
    """The files that become one image. Raises: NotSupported; OptionError, also where one would be another one too."""
    others = [options.get(option.name) for option in create_options(format, name) if option.role is not None]
    made = [name, *(beside(name, str(other)) for other in others if other)]
    backing = options.get("backing_file")
    await check_apart(made, [beside(name, str(backing))] if backing else [])
    return made


def create_options(format: str, name: str | os.PathLike[str] | None = None) -> tuple[CreateOption, ...]:
    """The options that `create` takes for a format (with those of the protocol that `name` means behind them).

    Raises: OptionError, NotSupported.
    """
    return creating.create_options(format, protocol_of(os.fspath(name)) if name is not None else find_driver("file"))


async def measure(
    format: str,
    options: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    source: Image | None = None,
    source_format: str | None = None,
    **how: Unpack[Opening],
) -> Measurement:
    """How large the file of an image becomes that is made with these options, as those of `create`, and then filled.

    `size` of its disk in bytes, or `source`: an image whose size it has and whose data it is to hold; `source_format`
    and `how` are `format` and the rest of `open`. `objects` among them are also for `options`.
    Cancelled or failed: nothing is left behind. Raises: OptionError; NotSupported; as `open`; OSError.
    """
    objects = how.get("objects") or {}
    if source is None:
        return await measure_image(format, options or {}, size, None, objects)
    async with opened(source, format=source_format, how=how) as disk:
        return await measure_image(format, options or {}, size, disk, objects)

"""Creating images: the options checked, the storage made, the format written into it."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE
from aioblock.base.options import Options
from aioblock.base.units import parse_size
from aioblock.blockio.child import Child
from aioblock.core.driver import BlockDriver
from aioblock.core.eager import cancelled_once, to_end
from aioblock.core.images import CreateOption, Role
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.registry import find_driver
from aioblock.graph.names import beside, protocol_of, strip_protocol
from aioblock.graph.opening import close_edge, open_root
from aioblock.graph.settings import OpenSettings

__all__ = ["create_image", "create_options", "typed_options"]


def create_options(format: str, protocol: type[BlockDriver] | None = None) -> tuple[CreateOption, ...]:
    """The options that `create` takes for a format, those of the protocol it is written to behind its own.

    Raises: OptionError for an unknown format; NotSupported for one that cannot be created.
    """
    driver = find_driver(format)
    if not driver.create_options:
        raise NotSupported(f"Format driver '{format}' does not support image creation")
    found = {option.name: option for option in driver.create_options}
    for option in protocol.create_options if protocol is not None else ():
        found.setdefault(option.name, option)
    return tuple(found.values())


async def create_image(
    name: str, format: str, options: Mapping[str, Any], objects: Mapping[str, NamedObject] | None = None
) -> None:
    """Make an image of a format. `options`: a value for each option that is given, of its kind or as a string.

    `objects`: the named objects that options may refer to by their id.

    What was there before under that name is lost. Failed: what is there is no usable image.
    Raises: OptionError before anything is touched; NotSupported; OSError.
    """
    protocol = protocol_of(name)
    known = create_options(format, protocol)
    values = typed_options(known, options)
    if values.get("size", 0) >= 1 << 63:
        raise OptionError("No image is 2^63 bytes long, or longer", option="size")
    for option in known:
        if option.names is not None and option.name in values:
            values[option.name] = find_object(objects or {}, values[option.name], option.names)
    driver = find_driver(format)
    path = strip_protocol(name)
    own = {option.name for option in driver.create_options}
    below = {option.name for option in protocol.create_options}
    if driver.name == "raw":
        await to_end(protocol.create_file(path, {key: value for key, value in values.items() if key in below}))
        return
    written = {key: value for key, value in values.items() if key in own}
    driver.check_create(written)
    files = {Role.FILE: (protocol, path)}
    for option in known:
        if option.role is not None and values.get(option.name):
            other = beside(name, values[option.name])  # where it will be looked for
            files[option.role] = protocol_of(other), strip_protocol(other)
    for role, (kind, file) in files.items():
        extra = {key: values[key] for key in values if key in below - own} if role is Role.FILE else {}
        await to_end(kind.create_file(file, {"size": 0} | extra))
    await cancelled_once(_write_format(driver, files, written), _nothing)


async def _write_format(
    driver: type[BlockDriver], files: Mapping[Role, tuple[type[BlockDriver], str]], values: Mapping[str, Any]
) -> None:
    """Open the files, and let the driver write its format. Those beside the image go with the values, by their role."""
    perm = PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE
    shared = PERM_ALL & ~(PERM_WRITE | PERM_RESIZE)
    async with AsyncExitStack() as stack:
        edges: dict[str, Child] = {}
        for role, (kind, path) in files.items():
            where = {"driver": kind.name, "filename": path}
            edge = edges[str(role)] = await open_root(where, OpenSettings(writable=True), perm, shared)
            stack.push_async_callback(close_edge, edge)
        await driver.create(edges.pop(str(Role.FILE)), {**values, **edges})


async def _nothing(_: None) -> None:
    """A file that was written is not unwritten."""


def typed_options(known: Sequence[CreateOption], options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options in their kinds, checked in the order in which they are given. Raises: OptionError."""
    kinds = {option.name: option.kind for option in known}
    values: dict[str, Any] = {}
    for name, value in options.items():
        kind = kinds.get(name)
        reader = Options({name: value})
        if kind is None:
            raise OptionError(f"Invalid parameter '{name}'", option=name)
        if kind == "size":
            values[name] = _size(name, value)
        elif kind == "int":
            values[name] = reader.take_int(name)
        elif kind == "bool":
            values[name] = reader.take_bool(name)
        else:
            values[name] = reader.take_str(name)
    return values


def _size(name: str, value: object) -> int:
    try:
        size = parse_size(str(value), limit=1 << 200)
    except OptionError:
        raise OptionError(
            f"Parameter '{name}' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively.",
            option=name,
        ) from None
    if size >= 1 << 64:
        raise OptionError(f"Value '{value}' is out of range for parameter '{name}'", option=name)
    return size

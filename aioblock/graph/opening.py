"""Opening and closing: from a name and options to a graph of nodes, and back.

Who names a file decides how far it is trusted: the caller's names and options are followed as they are, a name inside
an image only as far as the trust policy lets it. On any failure everything that was opened is closed again.
"""

import errno
import itertools
import re
from collections.abc import Mapping
from typing import Any

from aioblock.base.errors import BlockError, OptionError
from aioblock.base.flags import PERM_CONSISTENT_READ
from aioblock.base.options import Options, nest
from aioblock.blockio.child import Child
from aioblock.blockio.flush import flush
from aioblock.core.context import CacheMode
from aioblock.core.driver import BlockDriver
from aioblock.core.eager import cancelled_once
from aioblock.core.images import Role
from aioblock.core.node import BlockNode, Edge
from aioblock.graph.context import GraphContext
from aioblock.graph.names import json_name
from aioblock.graph.permissions import attach, detach
from aioblock.graph.settings import DETECT_ZEROES, OpenSettings, Place, require_unmap

__all__ = ["close_edge", "open_root"]

_numbers = itertools.count(100)
_NODE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]{0,30}", re.ASCII)


async def open_root(
    options: Mapping[str, Any], settings: OpenSettings, perm: int, shared: int, name: str | None = None
) -> Child:
    """Open a graph, and return the edge to its top node; close it with `close_edge`.

    Cancelled or failed: everything is closed again.
    Raises: OSError, ImageError, OptionError, UntrustedReference, GraphError.
    """
    return await cancelled_once(_open_root(options, settings, perm, shared, name), close_edge)


async def _open_root(
    options: Mapping[str, Any], settings: OpenSettings, perm: int, shared: int, name: str | None
) -> Child:
    opened = await _open_node(nest(options), settings, Place(perm, shared, settings.writable), name)
    root = Child(None, None, opened, perm, shared)
    try:
        await attach(root)
    except BaseException:
        await close_node(opened)
        raise
    return root


async def _open_node(
    options: dict[str, Any], settings: OpenSettings, place: Place, name: str | None = None
) -> BlockNode:
    reader = Options(options)
    name = _name(name or reader.take_str("node-name", None), settings)
    writable = not reader.take_bool("read-only", False) and place.writable
    reader.take_bool("auto-read-only", False)  # what it allows, a reopen, is done by an explicit verb here
    node = BlockNode(name, read_only=not writable, cache=_cache(reader, settings))
    node.options = options
    node.detect_zeroes = reader.take_choice("detect-zeroes", DETECT_ZEROES, settings.detect_zeroes)
    perm = place.perm if writable else place.perm & PERM_CONSISTENT_READ
    place = place._replace(perm=perm, writable=writable)
    context = GraphContext(node, reader, settings, place, _open_node, close_node)
    node.unmap = context.unmap
    require_unmap(node.detect_zeroes, node.unmap)
    try:
        driver = await _open_driver(node, context)
    except BaseException:
        await _close_children(node)
        raise
    _name_node(node, driver, context)
    return node


def _name(asked: str | None, settings: OpenSettings) -> str:
    """The name of a node: what was asked for, if nobody in this graph has it, else one of our own."""
    if not asked:
        return f"#block{next(_numbers)}"
    if not _NODE_NAME.fullmatch(asked):
        raise OptionError(f"Invalid node-name: '{asked}'", option="node-name")
    if asked in settings.names:
        raise OptionError(f"Duplicate nodes with node-name='{asked}'", option="node-name")
    settings.names.add(asked)
    return asked


def _cache(reader: Options, settings: OpenSettings) -> CacheMode:
    described = reader.take("cache", {})
    if not isinstance(described, Mapping):
        raise OptionError("Parameter 'cache' expects cache.direct, cache.no-flush or cache.writeback", option="cache")
    options = Options({f"cache.{key}": value for key, value in described.items()})
    mode = CacheMode(
        direct=options.take_bool("cache.direct", settings.cache.direct),
        no_flush=options.take_bool("cache.no-flush", settings.cache.no_flush),
        writeback=options.take_bool("cache.writeback", settings.cache.writeback),
    )
    for name in options.leftover():
        reader.put(name, options.take(name))  # to be refused with the driver's name
    return mode


async def _open_driver(node: BlockNode, context: GraphContext) -> BlockDriver:
    driver_class = await context.choose_driver()
    if not node.read_only and driver_class.pwritev is BlockDriver.pwritev:
        raise OptionError(f"Driver '{driver_class.name}' can only be used read-only", option="read-only")
    driver = await driver_class.open(context)
    try:
        if unknown := context.options.leftover():
            named = driver_class.kind == "protocol" or driver_class.name_prefix
            kind, not_ = ("protocol", "doesn't") if named else ("format", "does not")
            raise OptionError(
                f"Block {kind} '{driver_class.name}' {not_} support the option '{unknown[0]}'", option=unknown[0]
            )
        node.set_driver(driver, await _length_of(driver))
    except BaseException:
        await driver.close()
        raise
    return driver


async def _length_of(driver: BlockDriver) -> int:
    """The length of a node that was just opened. A drive may be opened while it has no disc: 0 then."""
    try:
        return await driver.getlength()
    except OSError as error:
        if driver.variable_length and error.errno == errno.ENOMEDIUM:
            return 0
        raise


def _name_node(node: BlockNode, driver: BlockDriver, context: GraphContext) -> None:
    """The names by which a node is shown, once all its children are there; and the options that open it again."""
    if driver.kind == "protocol":
        node.exact_filename = driver.exact_filename or context.filename
    elif driver.name_prefix:
        node.exact_filename = driver.exact_filename
    elif context.plain and driver.kind == "format" and node.file is not None and node.file.node.is_named:
        node.exact_filename = node.file.node.exact_filename
    node.runtime_options = {key: value for key, value in node.options.items() if key in driver.runtime_options}
    described: dict[str, Any] = {"driver": driver.name}
    if driver.kind == "protocol" and context.filename:
        described["filename"] = context.filename
    described |= {key: value for key, value in node.options.items() if key in driver.naming_options}
    for key, child in node.children.items():
        if child.role is Role.CHILDREN:
            described.setdefault(str(child.role), []).append(child.node.options)
        elif child.role is not Role.BACKING or context.backing_overridden:
            described[key] = child.node.options
    node.options = described
    node.filename = node.exact_filename or json_name(described)


async def close_edge(edge: Edge) -> None:
    """Give up an edge; its node is closed when no other edge leads there.

    Everything is given up also where something fails; the first error is raised at the end. Raises: OSError.
    """
    await detach(edge)
    if not edge.node.parents:
        await close_node(edge.node)


async def close_node(node: BlockNode) -> None:
    """Close a node that nobody uses any more. Raises: as `close_edge`."""
    if node.closed:
        return
    node.closed = True
    first: Exception | None = None
    try:
        await node.requests.idle()
        if not node.read_only:
            await flush(node)
    except OSError as error:
        first = error
    try:
        await node.driver.close()
    except (OSError, BlockError) as error:
        first = first or error
    below = await _close_children(node)
    first = first or below
    if first is not None:
        raise first


async def _close_children(node: BlockNode) -> Exception | None:
    """Give up all edges to children; the first error, not raised."""
    first: Exception | None = None
    for child in node.children.values():
        try:
            await close_edge(child)
        except (OSError, BlockError) as error:
            if child.role is not Role.CHILDREN:  # else the parent's flush has weighed what became of its data
                first = first or error
    node.children.clear()
    node.file = node.backing = None
    return first

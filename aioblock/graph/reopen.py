"""Reopen: change between read-only and writable, or the cache mode, of a graph that stays open."""

from collections.abc import Mapping
from typing import Any

from aioblock.base.errors import OptionError
from aioblock.base.flags import PERM_CONSISTENT_READ, PERM_WRITE
from aioblock.base.options import Options, flatten, nest, overlaid
from aioblock.blockio.child import Child
from aioblock.blockio.flush import flush
from aioblock.core.context import CacheMode
from aioblock.core.images import Role
from aioblock.core.node import BlockNode, Edge, FlushState
from aioblock.graph.drain import drained
from aioblock.graph.permissions import child_permissions, update_permissions
from aioblock.graph.settings import DETECT_ZEROES, require_unmap, unmaps

__all__ = ["cache_mode", "reopen"]

_GENERIC = ("discard", "detect-zeroes")
_MODES = {
    "none": CacheMode(direct=True),
    "off": CacheMode(direct=True),
    "writeback": CacheMode(),
    "writethrough": CacheMode(writeback=False),
    "directsync": CacheMode(direct=True, writeback=False),
    "unsafe": CacheMode(no_flush=True),
}


def cache_mode(name: str) -> CacheMode:
    """The cache mode of that name, as QEMU's `-t` takes it. Raises: OptionError."""
    try:
        return _MODES[name]
    except KeyError:
        raise OptionError(f"Invalid cache mode '{name}'", option="cache") from None


async def reopen(
    root: Child,
    *,
    writable: bool | None = None,
    cache: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Change the mode of a graph; layers below the top stay read-only. Drained and flushed meanwhile.

    `options`: `discard`, `detect-zeroes`, and runtime options of the top node's driver, laid over those of the opening.

    Failed: the old mode holds. Raises: OSError, GraphError, OptionError.
    """
    read_only = root.node.read_only if writable is None else not writable
    mode = root.node.cache if cache is None else cache_mode(cache)
    async with root.node.alone, drained(root.node):
        if not root.node.read_only:
            await flush(root.node)
        before, unmap, detect_zeroes = root.node.reopened_with, root.node.unmap, root.node.detect_zeroes
        if options:
            _change_options(root, nest(options))
        try:
            await _change(root, read_only, mode)
            if options:
                await _measure(root.node)
        except BaseException:
            if options:
                discard = "unmap" if unmap else "ignore"
                _change_options(root, {**before, "discard": discard, "detect-zeroes": detect_zeroes})
            raise


def _change_options(root: Child, options: Mapping[str, Any]) -> None:
    """Take `discard`, `detect-zeroes`, and the driver's runtime options, over those of the opening.

    Layers below that discarded as the top did go on to. Raises: OptionError; nothing has changed.
    """
    node = root.node
    names = node.driver.runtime_options
    given = Options({name: options[name] for name in _GENERIC if name in options})
    unmap = unmaps(given.take("discard", "unmap" if node.unmap else "ignore"))
    detect_zeroes = given.take_choice("detect-zeroes", DETECT_ZEROES, node.detect_zeroes)
    require_unmap(detect_zeroes, unmap)
    for name, value in flatten(options).items():
        if name not in _GENERIC and name.partition(".")[0] not in names:
            _require_unchanged(node, name, value)
    wanted = {name: value for name, value in options.items() if name in names}
    node.driver.change_options(Options(overlaid(node.runtime_options, wanted)), unmap=unmap)
    node.reopened_with = wanted
    node.detect_zeroes = detect_zeroes
    before = node.unmap
    for edge in _path(root):
        if edge.node.unmap == before:
            edge.node.unmap = unmap


async def _measure(node: BlockNode) -> None:
    """Options may say how long a node is. Raises: BitmapError where a dirty bitmap cannot follow."""
    length = await node.driver.getlength()
    if length != node.length:
        for bitmap in node.bitmaps.values():
            bitmap.require()
        node.length = length
        for bitmap in node.bitmaps.values():
            bitmap.truncate(length)


def _require_unchanged(node: BlockNode, name: str, value: Any) -> None:
    """Check that an option, perhaps of a child (`file.driver`), has the value that it has. Raises: OptionError."""
    child, dot, rest = name.partition(".")
    while dot and child in node.children:
        node, name = node.children[child].node, rest
        child, dot, rest = name.partition(".")
    if name == "auto-read-only":  # what it allows is done by `writable` here
        Options({name: value}).take_bool(name)
        return
    if {"driver": node.driver.name, "node-name": node.name}.get(name, node.options.get(name)) != value:
        raise OptionError(f"Cannot change the option '{name}'", option=name)


async def _change(root: Child, read_only: bool, mode: CacheMode) -> None:
    """Storage first when more is allowed, formats first when less is; undone in reverse where one refuses."""
    edges = _path(root)
    done: list[tuple[BlockNode, bool, CacheMode]] = []
    order = edges if read_only else list(reversed(edges))
    old = [(edge, edge.perm, edge.shared) for edge in edges]
    try:
        for edge in order:
            node = edge.node
            done.append((node, node.read_only, node.cache))
            if not read_only:
                await _permit(root, edge, writable=True)
            await node.driver.reopen(read_only=read_only, direct=mode.direct, no_flush=mode.no_flush)
            node.read_only, node.cache = read_only, mode
            node.set_limits(node.driver.limits)
            if not read_only and done[-1][1]:
                node.flush_state = FlushState()
        if read_only:
            for edge in reversed(edges):
                await _permit(root, edge, writable=False)
    except BaseException:
        for node, was_read_only, was in reversed(done):
            if (node.read_only, node.cache) != (was_read_only, was):
                await node.driver.reopen(read_only=was_read_only, direct=was.direct, no_flush=was.no_flush)
                node.read_only, node.cache = was_read_only, was
        for edge, perm, shared in old:
            if (edge.perm, edge.shared) != (perm, shared):
                await update_permissions(edge, perm, shared)
        raise


def _path(root: Child) -> list[Edge]:
    """The edges from the backend down to the storage of the top layer, backing files left out."""
    found: list[Edge] = []
    todo: list[Edge] = [root]
    while todo:
        edge = todo.pop()
        found.append(edge)
        todo.extend(child for child in edge.node.children.values() if child.role is not Role.BACKING)
    return found


async def _permit(root: Child, edge: Edge, *, writable: bool) -> None:
    """Ask for the permissions of the mode to come, on one edge."""
    perm = PERM_CONSISTENT_READ | (PERM_WRITE if writable else 0)
    shared = root.shared
    if edge.parent is not None and edge.role is not None:
        perm, shared = child_permissions(type(edge.parent.driver), edge.role, perm, shared, writable=writable)
    if (perm, shared) != (edge.perm, edge.shared):
        await update_permissions(edge, perm, shared)

"""Permissions: what the users of a node do with it, and what they let others do meanwhile.

A parent asks of its child what it needs (`perm`) and says what others may do (`shared`); two edges to one node agree if
neither does what the other does not share. Protocols carry the sum out to other processes, as locks on the file.

What an edge asks, by the kind of its parent (what QEMU's programs do, seen from the locks they take):

    parent      role      perm                                       shared
    backend     -         read, write if writable, resize if asked   all
    format      file      read; write and resize if writable         read, write-unchanged
    raw, filter file      as its own parents                         as its own parents
    any         log       read, write and resize                     read, write-unchanged
    any         backing   read                                       all, or read and write-unchanged if the parents
                                                                     do not share writing
"""

from aioblock.base.errors import PermissionConflict
from aioblock.base.flags import (
    PERM_ALL,
    PERM_CONSISTENT_READ,
    PERM_RESIZE,
    PERM_WRITE,
    PERM_WRITE_UNCHANGED,
)
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Role
from aioblock.core.node import BlockNode, Edge

__all__ = ["attach", "child_permissions", "detach", "root_permissions", "update_permissions"]

_NAMES = {
    PERM_CONSISTENT_READ: "consistent read",
    PERM_WRITE: "write",
    PERM_WRITE_UNCHANGED: "write unchanged",
    PERM_RESIZE: "resize",
}
_UNTOUCHED = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED


def root_permissions(*, writable: bool, resize: bool = False, share_write: bool = True) -> tuple[int, int]:
    """What a backend asks and shares."""
    perm = PERM_CONSISTENT_READ
    if writable:
        perm |= PERM_WRITE
    if resize:
        perm |= PERM_RESIZE
    return perm, PERM_ALL if share_write else _UNTOUCHED


def child_permissions(
    driver: type[BlockDriver], role: Role, perm: int, shared: int, *, writable: bool
) -> tuple[int, int]:
    """What the edge from a node to its child asks and shares, when the node's parents ask `perm`, share `shared`."""
    if role is Role.BACKING:
        return PERM_CONSISTENT_READ, PERM_ALL if shared & PERM_WRITE else _UNTOUCHED
    if role is Role.LOG:
        return PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, _UNTOUCHED
    if driver.kind == "filter" or driver.name == "raw":
        return perm, shared
    asked = PERM_CONSISTENT_READ
    if writable:
        asked |= PERM_WRITE | PERM_RESIZE
    return asked, _UNTOUCHED


async def attach(edge: Edge) -> None:
    """Make an edge count. Raises: PermissionConflict, and then nothing has changed; OSError of the storage."""
    edge.node.parents.append(edge)
    try:
        _check(edge)
        await _carry_out(edge.node)
    except BaseException:
        edge.node.parents.remove(edge)
        raise


async def detach(edge: Edge) -> None:
    """Make an edge count no more. Giving up permissions does not fail."""
    if edge in edge.node.parents:
        edge.node.parents.remove(edge)
        if edge.node.parents:
            await _carry_out(edge.node)


async def update_permissions(edge: Edge, perm: int, shared: int) -> None:
    """Ask for other permissions on an edge. Raises: as `attach`; the old ones stay then."""
    old = edge.perm, edge.shared
    edge.perm, edge.shared = perm, shared
    try:
        _check(edge)
        await _carry_out(edge.node)
    except BaseException:
        edge.perm, edge.shared = old
        raise


def _check(edge: Edge) -> None:
    for other in edge.node.parents:
        if other is edge:
            continue
        refused = edge.perm & ~other.shared or other.perm & ~edge.shared
        if refused:
            names = ", ".join(name for bit, name in _NAMES.items() if refused & bit)
            raise PermissionConflict(
                f"Node '{edge.node.name}' is in use and its other user does not share '{names}'",
                node=edge.node.name,
                filename=edge.node.filename,
            )


async def _carry_out(node: BlockNode) -> None:
    """Tell the driver the sum of what the parents ask and share."""
    perm, shared = 0, PERM_ALL
    for edge in node.parents:
        perm |= edge.perm
        shared &= edge.shared
    await node.driver.set_permissions(perm, shared)

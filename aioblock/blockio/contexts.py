"""Metadata contexts of one layer: whoever passes on the bytes of its child passes on the question too."""

import errno
from collections.abc import Sequence

from aioblock.base.errors import NotSupported
from aioblock.base.flags import RAW
from aioblock.blockio.request import aligned, check_range, request_error
from aioblock.blockio.status import ask_driver
from aioblock.core.io import ContextRuns
from aioblock.core.node import BlockNode

__all__ = ["context_runs"]


async def context_runs(
    node: BlockNode, offset: int, nbytes: int, names: Sequence[str] | None
) -> dict[str, ContextRuns]:
    """The runs from `offset` on in each of the contexts, all in bytes; None: in all that there are.

    One question to the storage. Cancelled: nothing is left behind.
    Raises: NotSupported where the storage has no such contexts; OSError, also where the range is not inside the node.
    """
    check_range(node, offset, nbytes)
    if not nbytes or offset + nbytes > node.length:
        raise request_error(errno.EINVAL if not nbytes else errno.EIO, node)
    ticket = node.requests.begin()
    try:
        known = node.driver.contexts
        if not known:
            flags, pnum, where, file = await ask_driver(node, offset, nbytes, False)
            if not flags & RAW or file is None:
                raise NotSupported(f"'{node.filename or node.name}' has no metadata contexts")
            return await context_runs(file.node, where, min(pnum, nbytes), names)
        if names is None:
            names = known
        for name in names:
            if name not in known:
                raise NotSupported(f"'{node.filename or node.name}' is not open with the metadata context '{name}'")
        if not names:
            return {}
        begin, end = aligned(node, offset, nbytes)
        found = await node.driver.context_runs(begin, end - begin, names)
        return {name: _cut(runs, offset - begin, nbytes) for name, runs in found.items()}
    finally:
        node.requests.end(ticket)


def _cut(runs: ContextRuns, skipped: int, nbytes: int) -> ContextRuns:
    """The part of runs that was asked for, without what alignment added before and behind it."""
    if not skipped and sum(runs.lengths) <= nbytes:
        return runs
    lengths, flags, at = [], [], -skipped
    for length, state in zip(runs.lengths, runs.flags, strict=True):
        start, at = max(at, 0), at + length
        if (end := min(at, nbytes)) > start:
            lengths.append(end - start)
            flags.append(state)
    return ContextRuns(lengths, flags)

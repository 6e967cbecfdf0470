"""Block status of one layer, and of a chain whose layers are asked at the same time.

One layer: the eight steps of `block_status` below are the rule; `docs/block-status.md` explains them.

A chain: the top layer is asked at once. As long as layers answer without suspending, the next one is asked only when
it is needed, and none of it costs a task. As soon as a question suspends, the next layers are asked for the same range
meanwhile, up to `WINDOW` at a time. Answers are used strictly from the top down; when one ends the search the deeper
questions are cancelled and awaited, so none is left running, and their errors are dropped.
"""

import asyncio
from collections.abc import Iterator

from aioblock.base.errors import BlockError, NotSupported
from aioblock.base.flags import ALLOCATED, DATA, EOF, OFFSET_VALID, RAW, RECURSE, ZERO
from aioblock.blockio.request import aligned, check_range, refresh_length
from aioblock.core.eager import Finished, settle, start
from aioblock.core.io import BlockIO, ChainStatus, Status
from aioblock.core.node import BlockNode
from aioblock.core.statistics import Statistics

__all__ = ["WINDOW", "ask_driver", "block_status", "block_status_above", "decided", "is_zero", "layers"]

WINDOW = 16
"""How many layers are asked at the same time by default: most chains whole, and no server is flooded."""

_UNCOUNTED = Statistics()

_ENDED: Finished[Status] = Finished(Status(EOF, 0))
"""The answer of a layer that was not asked, because it ends before the question begins."""


async def block_status(node: BlockNode, offset: int, nbytes: int, want_zero: bool = True) -> Status:
    """What is in the run that begins at `offset`, in this layer alone; all in bytes.

    `want_zero` False asks only "allocated or not". Cancelled: nothing is left behind.
    Raises: OSError.
    """
    check_range(node, offset, nbytes)
    ticket = node.requests.begin()
    try:
        length = node.length if not node.variable_length else await refresh_length(node)
        if offset >= length:  # 1
            return Status(EOF, 0)
        if not nbytes:
            return Status(0, 0)
        nbytes = min(nbytes, length - offset)  # 2
        answer = await ask_driver(node, offset, nbytes, want_zero)
        return await decided(node, offset, answer, want_zero)
    finally:
        node.requests.end(ticket)


async def ask_driver(node: BlockNode, offset: int, nbytes: int, want_zero: bool) -> Status:
    """Steps 3 and 4, for a question inside the layer: what the driver says, cut to the question."""
    if node.has_status:  # 4
        begin, end = (offset, offset + nbytes) if not node.align_mask else aligned(node, offset, nbytes)
        try:
            flags, pnum, where, file = await node.driver.block_status(begin, end - begin, want_zero)
        except NotSupported:
            pass
        else:
            skipped = offset - begin
            if pnum <= skipped:
                raise AssertionError(f"driver '{node.driver.name}' answered for {pnum} bytes at {begin}")
            where = where + skipped if flags & (OFFSET_VALID | RAW) else 0
            return Status(flags, min(pnum - skipped, nbytes), where, file)
    if node.is_protocol:  # 3
        return Status(DATA | OFFSET_VALID, nbytes, offset)
    return Status(DATA, nbytes)


async def decided(node: BlockNode, offset: int, answer: Status, want_zero: bool) -> Status:
    """Steps 5 to 8: what the driver's answer means for the layer."""
    flags, pnum, where, file = answer
    if flags & RAW:  # 5
        assert file is not None
        flags, pnum, where, file = await _of_child(file, where, pnum, want_zero)
    else:
        if flags & (DATA | ZERO):  # 6
            flags |= ALLOCATED
        elif node.driver.supports_backing and _backing_ends(node, offset, want_zero):
            flags |= ZERO
        if want_zero and flags & RECURSE and flags & DATA and flags & OFFSET_VALID and file is not None:  # 7
            flags, pnum = await _look_into_file(file.node, flags, pnum, where)
        flags &= ~(RECURSE | EOF)
    if offset + pnum == node.length:  # 8
        flags |= EOF
    return Status(flags, pnum, where, file)


async def _of_child(file: BlockIO, where: int, nbytes: int, want_zero: bool) -> Status:
    """The child's own answer. Where the child ends before this layer does, there are zeroes behind it."""
    flags, pnum, where, inner = await block_status(file.node, where, nbytes, want_zero)
    if not pnum:
        return Status(ZERO | ALLOCATED, nbytes)
    return Status(flags & ~EOF, pnum, where, file if inner is None and file.node.is_protocol else inner)


def _backing_ends(node: BlockNode, offset: int, want_zero: bool) -> bool:
    """Whether nothing below decides: no backing file, or one that ends at or before `offset`."""
    if node.backing is None:
        return True
    return want_zero and node.backing.node.length <= offset


async def _look_into_file(child: BlockNode, flags: int, pnum: int, where: int) -> tuple[int, int]:
    """Holes inside allocated data. It only adds knowledge, so errors of the child are ignored."""
    try:
        below, run, _, _ = await block_status(child, where, pnum, True)
    except (OSError, BlockError):
        return flags, pnum
    if below & EOF and (not run or below & ZERO):
        return flags | ZERO, pnum  # all behind the end of the child reads as zeroes too
    return flags | (below & ZERO), run


async def block_status_above(
    top: BlockNode,
    base: BlockNode | None,
    offset: int,
    nbytes: int,
    *,
    include_base: bool = False,
    want_zero: bool = True,
    window: int = WINDOW,
    statistics: Statistics = _UNCOUNTED,
) -> ChainStatus:
    """What is in the run at `offset`, from `top` down to `base` (None: the whole chain), and which layer decides.

    depth 1 is the top; 0: no layer did. EOF: the run reaches the end of `top`. Cancelled: nothing is left behind.
    Raises: OSError of a layer whose answer is needed; errors of others are dropped.
    """
    search = _ChainSearch(layers(top, base, include_base), offset, nbytes, want_zero, max(window, 1), statistics)
    if search.next is None:
        return ChainStatus(0, nbytes, 0, None, 0)
    try:
        return await search.run()
    finally:
        await search.stop()


def layers(top: BlockNode, base: BlockNode | None, include_base: bool) -> Iterator[BlockNode]:
    """The layers of a chain from `top` down to `base` (None: to its end). A filter is one with what it filters."""
    bottom = None if base is None else base.unfiltered
    node: BlockNode | None = top
    while node is not None:
        last = bottom is not None and node.unfiltered is bottom
        if last and not include_base:
            return
        yield node
        node = None if last else node.below


class _ChainSearch:
    """One question over a chain: the layers asked ahead, and what the upper ones said so far."""

    __slots__ = ("asked", "following", "nbytes", "next", "offset", "open_ended", "stats", "top", "want_zero", "window")

    def __init__(
        self,
        following: Iterator[BlockNode],
        offset: int,
        nbytes: int,
        want_zero: bool,
        window: int,
        stats: Statistics,
    ) -> None:
        self.following = following
        self.next = self.top = next(following, None)
        """`next`: the first layer that nobody asked yet."""
        self.offset, self.nbytes, self.want_zero = offset, nbytes, want_zero
        self.window, self.stats = window, stats
        self.asked: list[tuple[BlockNode, Finished[Status] | asyncio.Task[Status]]] = []
        self.open_ended = True
        """No layer asked so far is known to hide all below it."""

    def _ask(self, nbytes: int) -> None:
        """Ask the next layer, unless its length already says that it has nothing here."""
        node = self.next
        assert node is not None
        self.next = next(self.following, None)
        question: Finished[Status] | asyncio.Task[Status] = _ENDED
        if node is self.top or node.length > self.offset or node.variable_length:
            self.stats.probes += 1
            question = start(block_status(node, self.offset, nbytes, self.want_zero))
            self.stats.probes_immediate += isinstance(question, Finished)
        self.asked.append((node, question))
        self.open_ended = not _ends_the_search(question)

    async def run(self) -> ChainStatus:
        depth, limit, flags = 0, self.nbytes, 0
        ends_at = -1  # where a layer above the deciding one ends, in bytes from `offset`
        while self.asked or self.next is not None:
            if not self.asked:
                self._ask(limit)
            node, question = self.asked[0]
            if not isinstance(question, Finished) and not question.done():
                while self.open_ended and len(self.asked) < self.window and self.next is not None:
                    self._ask(limit)
                await asyncio.wait((question,))
            del self.asked[0]
            layer = question.result()
            depth += 1
            flags = layer.flags
            if not layer.pnum:
                if depth == 1:
                    return ChainStatus(flags & EOF, 0, 0, None, 0)
                not_asked = (question is _ENDED) + (self.next is not None) + sum(1 for _ in self.following)
                self.stats.probes_short_circuited += not_asked
                return ChainStatus(ZERO | ALLOCATED | (EOF if ends_at == limit else 0), limit, 0, node, depth)
            if layer.pnum <= limit:
                limit = layer.pnum
                if flags & EOF and (depth == 1 or not flags & ALLOCATED):
                    ends_at = limit
            flags = flags & ~EOF | (EOF if ends_at == limit else 0)
            if flags & ALLOCATED:
                file = layer.file.node if layer.file is not None else (node if node.is_protocol else None)
                return ChainStatus(flags, limit, layer.map, file, depth)
        return ChainStatus(flags, limit, 0, None, 0)

    async def stop(self) -> None:
        """Nobody needs the deeper answers: cancel and await what still runs."""
        if not self.asked:
            return
        self.stats.probes_cancelled += sum(question is not _ENDED for _, question in self.asked)
        running = [question for _, question in self.asked if not isinstance(question, Finished)]
        self.asked.clear()
        await settle(running)


def _ends_the_search(question: "Finished[Status] | asyncio.Task[Status]") -> bool:
    """Whether no layer below can matter any more: this one has answered, and decides, has ended, or failed."""
    if not isinstance(question, Finished):
        return False
    try:
        answer = question.result()
    except Exception:
        return True
    return not answer.pnum or bool(answer.flags & ALLOCATED)


async def is_zero(top: BlockNode, offset: int, nbytes: int, *, statistics: Statistics = _UNCOUNTED) -> bool:
    """Whether a range is known to read as zeroes through the whole chain; bytes past the end of `top` count as such.

    An answer of False may mean "not known". Raises: OSError.
    """
    end = min(offset + nbytes, top.length)
    while offset < end:
        status = await block_status_above(top, None, offset, end - offset, statistics=statistics)
        if not status.pnum or not status.flags & ZERO:
            return False
        offset += status.pnum
    return True

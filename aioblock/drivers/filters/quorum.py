"""`quorum`: several children hold the same data; a request counts as done where enough of them agree.

Reads ask all children and take the answer that most give (`read-pattern=quorum`), or ask one after the other until one
can read (`fifo`). Writes go to all. A request fails with the error that most report.

Lock order: the range of a request here, then those of the children. A read does not run beside a write of the same
range, or it would see some children before the write and some after it, and count that as disagreement.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeVar

from aioblock.base.errors import BlockError, OptionError, PermissionConflict, VerifyError, message_of
from aioblock.base.flags import DATA, PERM_WRITE, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_UNCHANGED, ZERO
from aioblock.core.driver import BlockDriver
from aioblock.core.eager import run_to_end, settle, start
from aioblock.core.images import Role
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits
from aioblock.core.requests import RequestQueue

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["QuorumDriver"]

_PATTERNS: Final = ("quorum", "fifo")


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is asked of the children."""

    threshold: int
    """How many must agree."""
    blkverify: bool
    """Two children that differ end in a VerifyError."""
    rewrite: bool
    """What a child holds against the vote is written over."""
    fifo: bool


class QuorumDriver(BlockDriver):
    """Votes on what the children answer. Cannot be resized; discards do nothing, compressed data is refused."""

    name: ClassVar[str] = "quorum"
    kind: ClassVar[str] = "filter"
    naming_options: ClassVar[frozenset[str]] = frozenset(
        {"vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"}
    )
    supported_write_flags: int = REQ_FUA | REQ_UNCHANGED
    supported_zero_flags: int = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, children: "Sequence[BlockIO]", rules: _Rules) -> None:
        self.children = children
        self.limits = BlockLimits()
        self._rules = rules
        self._ranges = RequestQueue()
        self._rewriting: set[asyncio.Task[None]] = set()  # reads that change children: they go on without their caller

    def __repr__(self) -> str:
        pattern = "fifo" if self._rules.fifo else "quorum"
        return f"<QuorumDriver {self._rules.threshold} of {len(self.children)}, {pattern}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `children`, a list; `vote-threshold`, `read-pattern` (quorum, fifo), `blkverify` (of two children),
        `rewrite-corrupted`.

        Raises: OptionError; PermissionConflict where a child cannot be written that has to be; what opening one raises.
        """
        options = context.options
        described = options.take("children", [])
        if isinstance(described, dict):
            raise OptionError("Option children is not a valid array", option="children")
        if not isinstance(described, list) or not described:
            raise OptionError("Number of provided children must be 1 or more", option="children")
        rules = _take_rules(options, len(described))
        if rules.rewrite and context.read_only:
            raise PermissionConflict("Block node is read-only", node=context.node_name, filename=context.filename)
        children = []
        for number, child in enumerate(described):
            options.put(f"{Role.CHILDREN}.{number}", child)
            opened = await context.open_child(Role.CHILDREN, number=number, perm=PERM_WRITE if rules.rewrite else 0)
            if opened.node.read_only and not context.read_only:
                raise PermissionConflict(
                    "Block node is read-only", node=opened.node.name, filename=opened.node.filename
                )
            children.append(opened)
        return cls(children, rules)

    async def close(self) -> None:
        """Wait for what still rewrites."""
        await self.drain_begin()

    async def drain_begin(self) -> None:
        """Wait for what still rewrites though its caller is gone."""
        while self._rewriting:
            await asyncio.wait(self._rewriting)

    async def getlength(self) -> int:
        """The length that all children have. Raises: OSError EIO where they differ."""
        if len({child.length for child in self.children}) != 1:
            lengths = ", ".join(str(child.length) for child in self.children)
            raise OSError(errno.EIO, f"Could not refresh total sector count: the children differ in length: {lengths}")
        return self.children[0].length

    def has_zero_init(self) -> bool:
        """Only where all do."""
        return all(child.node.driver.has_zero_init() for child in self.children)

    async def allocated_size(self) -> int | None:
        """Of all children together."""
        total = 0
        for child in self.children:
            node = child.node
            while not node.is_protocol and node.file is not None:
                node = node.file.node
            size = await node.driver.allocated_size()
            if size is None:
                return None
            total += size
        return total

    # -- reads -------------------------------------------------------------------------------------------------------

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Read by vote, or from the first child that can."""
        if self._rules.fifo:
            await self._read_first(offset, buffer)
        elif self._rules.rewrite:
            private = memoryview(bytearray(len(buffer)))
            await run_to_end(self._read_voted(offset, private), self._rewriting)
            buffer[:] = private
        else:
            await self._read_voted(offset, buffer)

    async def _read_first(self, offset: int, buffer: memoryview) -> None:
        failed: OSError | None = None
        for child in self.children:
            failed = await _outcome(child.readinto(offset, buffer))
            if failed is None:
                return
        assert failed is not None
        raise failed

    async def _read_voted(self, offset: int, buffer: memoryview) -> None:
        ticket = self._ranges.begin(offset, offset + len(buffer))
        try:
            if self._ranges.serialising:
                await self._ranges.wait(ticket)
            answers = [buffer, *(memoryview(bytearray(len(buffer))) for _ in self.children[1:])]
            outcomes = await _side_by_side(
                child.readinto(offset, answer) for child, answer in zip(self.children, answers, strict=True)
            )
            self._count(outcomes)
            versions = _versions(answers, outcomes)
            if len(versions) > 1:
                await self._settle(offset, answers, versions)
            elif versions[0][0] > 0:
                buffer[:] = answers[versions[0][0]]  # the first child could not read
        finally:
            self._ranges.end(ticket)

    async def _settle(self, offset: int, answers: list[memoryview], versions: list[list[int]]) -> None:
        """The children differ: let them vote, and put the version that wins into the first of `answers`.

        Raises: OSError EIO where too few agree; VerifyError.
        """
        if self._rules.blkverify:
            first = next(at for at, (a, b) in enumerate(zip(*answers, strict=True)) if a != b)
            raise VerifyError(
                errno.EIO,
                f"quorum: offset={offset} bytes={len(answers[0])} contents mismatch at offset {offset + first}",
            )
        winner = _most(versions)
        if len(winner) < self._rules.threshold:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        right = answers[winner[0]]
        answers[0][:] = right
        if self._rules.rewrite:
            wrong = [number for version in versions if version is not winner for number in version]
            # One that cannot be written over stays wrong, and loses the next vote too.
            await _side_by_side(self.children[number].pwrite(offset, right) for number in wrong)

    # -- changes -----------------------------------------------------------------------------------------------------

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write to all."""
        await self._change(offset, len(data), lambda child: child.pwrite(offset, data, flags))

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero in all."""
        await self._change(offset, nbytes, lambda child: child.pwrite_zeroes(offset, nbytes, flags))

    async def _change(self, offset: int, nbytes: int, request: "Callable[[BlockIO], Awaitable[None]]") -> None:
        ticket = self._ranges.begin_serialising(offset, offset + nbytes)
        try:
            await self._ranges.wait(ticket)
            self._count(await _side_by_side(request(child) for child in self.children))
        finally:
            self._ranges.end(ticket)

    async def flush(self) -> None:
        """Flush all: the generic code leaves that to this driver, because a failure of one may be no failure here."""
        writable = [child for child in self.children if not child.node.read_only]
        if writable:
            self._count(await _side_by_side(child.flush() for child in writable))

    # -- status ------------------------------------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Zeroes where all children have zeroes, else data. A child that cannot tell has data."""
        zeroes, data = nbytes, 0
        for child in self.children:
            try:
                answer = await child.block_status_above(None, offset, nbytes, want_zero=want_zero)
            except (OSError, BlockError):
                return Status(DATA, nbytes)
            pnum = answer.pnum or nbytes
            if answer.flags & ZERO:
                zeroes = min(zeroes, pnum)
            else:
                data = max(data, pnum)
        return Status(DATA, min(data, nbytes)) if data else Status(ZERO, zeroes)

    # -- votes -------------------------------------------------------------------------------------------------------

    def _count(self, outcomes: list[OSError | None]) -> None:
        """Raises: the error that most requests ended with, where too few were done."""
        if outcomes.count(None) >= self._rules.threshold:
            return
        kinds: dict[int, list[OSError]] = {}
        for outcome in outcomes:
            if outcome is not None:
                kinds.setdefault(outcome.errno or errno.EIO, []).append(outcome)
        raise _most(list(kinds.values()))[0]


def _take_rules(options: "Options", count: int) -> _Rules:
    threshold = options.take_int("vote-threshold", 0)
    if threshold < 1:
        raise OptionError("Parameter 'vote-threshold' expects a value >= 1", option="vote-threshold")
    if threshold > count:
        raise OptionError("threshold may not exceed children count", option="vote-threshold")
    pattern = options.take_str("read-pattern", "quorum")
    if pattern not in _PATTERNS:
        raise OptionError("Please set read-pattern as fifo or quorum", option="read-pattern")
    fifo = pattern == "fifo"
    # Where there is no vote on reads there is nothing to do for these two.
    blkverify = options.take_bool("blkverify") and not fifo
    rewrite = options.take_bool("rewrite-corrupted") and not fifo
    if blkverify and (count, threshold) != (2, 2):
        raise OptionError(
            "blkverify=on can only be set if there are exactly two files and vote-threshold is 2", option="blkverify"
        )
    if blkverify and rewrite:
        raise OptionError("rewrite-corrupted=on cannot be used with blkverify=on", option="rewrite-corrupted")
    return _Rules(threshold, blkverify, rewrite, fifo)


T = TypeVar("T")


def _most(groups: list[list[T]]) -> list[T]:
    """The largest group; of several the one that came last, as QEMU has it."""
    return max(reversed(groups), key=len)


def _versions(answers: list[memoryview], outcomes: list[OSError | None]) -> list[list[int]]:
    """The children that could answer, grouped by their answers."""
    versions: list[list[int]] = []
    for number, outcome in enumerate(outcomes):
        if outcome is not None:
            continue
        for version in versions:
            if answers[version[0]] == answers[number]:
                version.append(number)
                break
        else:
            versions.append([number])
    return versions


async def _outcome(request: Awaitable[None]) -> OSError | None:
    try:
        await request
    except OSError as error:
        return error
    except BlockError as error:  # damaged metadata
        return OSError(errno.EIO, message_of(error))
    return None


async def _side_by_side(requests: Iterable[Awaitable[None]]) -> list[OSError | None]:
    """What each of several requests came to. Cancelled: all have ended, as far as they can be cancelled."""
    begun = [start(_outcome(request)) for request in requests]
    tasks = [request for request in begun if isinstance(request, asyncio.Task)]
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        await settle(tasks)
        raise
    return [request.result() for request in begun]

"""Scripted drivers: each layer of a chain answers what the test wrote down, when the test lets it, and notes each call.

    top = Script(65536, runs=[(0, 65536)])                      # decides nothing
    low = Script(65536, runs=[(DATA, 4096), (ZERO, 61440)])
    top.hold("block_status")                                     # from now on such calls wait at a gate
    async with opened(top, low) as disk:
        asking = asyncio.create_task(disk.block_status_above(None, 0, 65536))
        await until(lambda: top.held)
        top.release()
        ...

The drivers assert what the contract of `core.driver` promises them: requests inside the node, aligned, not too long.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import aioblock
from aioblock.base.errors import NotSupported
from aioblock.base.flags import DATA, OFFSET_VALID, RAW, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, ZERO
from aioblock.core import registry
from aioblock.core.driver import BlockDriver
from aioblock.core.extents import ExtentBatch
from aioblock.core.images import Prealloc, Role
from aioblock.core.io import BlockIO, Status
from aioblock.core.limits import BlockLimits
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.graph.drain import subtree
from tests.kit.watching import assert_idle, counted_tasks, until

__all__ = [
    "Call",
    "Script",
    "ScriptedDriver",
    "ScriptedFilter",
    "ScriptedProtocol",
    "assert_idle",
    "chain_options",
    "counted_tasks",
    "layers_of",
    "opened",
    "registered",
    "until",
]

Answer = tuple[int, int] | tuple[int, int, int]
"""Flags, length and, with OFFSET_VALID or RAW, the offset in the file."""

OPTIONAL = (
    "pwritev",
    "pwrite_zeroes",
    "pdiscard",
    "pwritev_compressed",
    "flush",
    "truncate",
    "block_status",
    "extents",
)


class Call:
    """One call of a driver's verb, and what became of it: running, done, failed or cancelled."""

    def __init__(self, verb: str, offset: int, nbytes: int, flags: int) -> None:
        self.verb, self.offset, self.nbytes, self.flags = verb, offset, nbytes, flags
        self.outcome = "running"
        self.gate: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{self.verb} {self.offset}+{self.nbytes} flags={self.flags:#x} {self.outcome}>"

    @property
    def where(self) -> tuple[int, int]:
        return self.offset, self.nbytes


class Script:
    """What one scripted driver is and does.

    `runs`: the layer from 0 to its end as answers in order, or a callable that is asked (offset, nbytes, want_zero).
    Without `runs`, the layer is what was written to it: with `cluster`, in clusters that are copied up from the backing
    file; without, all of it is data. `lacks`: the optional verbs it has not. `limits`: fields of BlockLimits.
    `attributes`: class attributes of the driver (`can_grow`, `supported_zero_flags` ...).
    """

    def __init__(
        self,
        length: int,
        runs: Sequence[Answer] | Callable[[int, int, bool], Answer] | None = None,
        *,
        content: bytes = b"",
        cluster: int = 0,
        limits: Mapping[str, int] | None = None,
        lacks: Iterable[str] = ("extents",),
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.length = length
        self.runs = runs
        self.content = bytearray(content.ljust(length, b"\0"))
        self.cluster = cluster
        self.clusters: dict[int, int] = {}
        """With `cluster`: DATA or ZERO of each that this layer decides."""
        self.limits = BlockLimits(**(limits or {}))
        self.lacks = frozenset(lacks)
        assert self.lacks <= set(OPTIONAL)
        self.attributes = dict(attributes or {})
        self.most = 0
        """Answers of `block_status` are at most that long; 0: as long as the run, also longer than the question."""
        self.batch = 1 << 30
        """How many runs `extents` answers at most."""
        self.log: list[Call] = []
        self.held: list[Call] = []
        """The calls that wait at their gates, in order."""
        self.before: Callable[[Call], Awaitable[None]] | None = None
        """Awaited at the beginning of each call."""
        self._holding: set[str] = set()
        self._faults: list[tuple[str, int, BaseException]] = []

    def __repr__(self) -> str:
        return f"<Script {self.length} bytes, {len(self.log)} calls, {len(self.held)} held>"

    # -- what the test does ------------------------------------------------------------------------------------------

    def calls(self, verb: str) -> list[Call]:
        """The calls of one verb, in order."""
        return [call for call in self.log if call.verb == verb]

    def hold(self, *verbs: str) -> None:
        """Calls of these verbs wait at their gates from now on."""
        self._holding.update(verbs)

    def release(self, call: Call | None = None) -> None:
        """Let one held call go on; without one: all of them, and those to come."""
        if call is None:
            self._holding.clear()
        for held in [call] if call is not None else list(self.held):
            self.held.remove(held)
            assert held.gate is not None
            if not held.gate.done():
                held.gate.set_result(None)

    def fail(self, verb: str, error: BaseException, number: int = 1) -> None:
        """The `number`-th call of the verb from now on raises the error."""
        self._faults.append((verb, len(self.calls(verb)) + number, error))

    # -- what the driver does ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def call(self, verb: str, offset: int = 0, nbytes: int = 0, flags: int = 0) -> AsyncIterator[Call]:
        call = Call(verb, offset, nbytes, flags)
        self.log.append(call)
        number = len(self.calls(verb))
        try:
            if self.before is not None:
                await self.before(call)
            if verb in self._holding:
                call.gate = asyncio.get_running_loop().create_future()
                self.held.append(call)
                try:
                    await call.gate
                finally:
                    if call in self.held:
                        self.held.remove(call)
            for fault in self._faults:
                if fault[:2] == (verb, number):
                    raise fault[2]
            yield call
        except asyncio.CancelledError:
            call.outcome = "cancelled"
            raise
        except BaseException:
            call.outcome = "failed"
            raise
        call.outcome = "done"

    def run_at(self, offset: int, nbytes: int, want_zero: bool) -> Answer:
        """The answer for one question."""
        if callable(self.runs):
            return self.runs(offset, nbytes, want_zero)
        at = 0
        for flags, length, *where in self.runs or ():
            if offset < at + length:
                skipped = offset - at
                return flags, length - skipped, (where[0] + skipped if where else offset)
            at += length
        if self.runs is not None:  # an aligned question may begin before the end and reach behind it; never begin there
            raise AssertionError(f"the script says nothing of {offset}")
        if not self.cluster:
            return DATA, nbytes
        number = offset // self.cluster
        kind = self.clusters.get(number, 0)
        end = number + 1
        while end * self.cluster < offset + nbytes and self.clusters.get(end, 0) == kind:
            end += 1
        return kind, end * self.cluster - offset

    def get(self, offset: int, nbytes: int) -> bytes:
        """What lies there; zeroes behind the end."""
        return bytes(self.content[offset : offset + nbytes]).ljust(nbytes, b"\0")

    def put(self, offset: int, data: bytes | memoryview, *, grow: bool) -> None:
        """Write; what lies behind the end counts only where the node grows."""
        end = offset + len(data)
        if grow and end > self.length:
            self.resize(end)
        inside = max(min(end, self.length) - offset, 0)
        self.content[offset : offset + inside] = data[:inside]

    def resize(self, length: int) -> None:
        self.content = self.content[:length].ljust(length, b"\0")
        self.length = length


class ScriptedDriver(BlockDriver):
    """A format with backing support, told by a Script what to do. Its `file` is optional."""

    name = "scripted"
    kind = "format"
    supports_backing = True
    supported_write_flags = 0
    supported_zero_flags = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, script: Script, file: BlockIO | None, backing: BlockIO | None) -> None:
        self.script, self.file, self.backing = script, file, backing
        self.limits = script.limits
        self.cluster_size = script.cluster or None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.script!r}>"

    @classmethod
    async def open(cls, context: Any) -> Self:
        script: Script = context.options.take("script")
        made = type(
            cls.__name__, (cls,), script.attributes | {verb: getattr(BlockDriver, verb) for verb in script.lacks}
        )
        async with script.call("open"):
            file = await context.open_child(Role.FILE) if "file" in context.options else None
            backing = await context.open_inner(Role.BACKING, None) if cls.supports_backing else None
            return made(script, file, backing)  # type: ignore[no-any-return]

    async def close(self) -> None:
        async with self.script.call("close"):
            pass

    async def getlength(self) -> int:
        async with self.script.call("getlength"):
            return self.script.length

    def _check(self, offset: int, nbytes: int, longest: int = 0, unit: int = 0) -> None:
        """What the contract promises of a request."""
        unit = unit or self.limits.request_alignment
        end = self.script.length if self.can_grow else -(-self.script.length // unit) * unit
        assert nbytes > 0, "an empty request reached the driver"
        assert offset % unit == 0 and nbytes % unit == 0, f"{offset}+{nbytes} is not aligned to {unit}"
        assert self.can_grow or 0 <= offset < offset + nbytes <= end, f"{offset}+{nbytes} is not inside {end}"
        assert not longest or nbytes <= longest, f"{nbytes} is more than {longest}"

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        self._check(offset, len(buffer), self.limits.max_transfer)
        assert flags == 0
        async with self.script.call("preadv", offset, len(buffer)):
            buffer[:] = await self._read(offset, len(buffer))

    async def _read(self, offset: int, nbytes: int) -> bytes:
        cluster = self.script.cluster
        if not cluster:
            return self.script.get(offset, nbytes)
        found = bytearray()
        while len(found) < nbytes:
            at = offset + len(found)
            part = min(cluster - at % cluster, nbytes - len(found))
            kind = self.script.clusters.get(at // cluster)
            if kind == DATA:
                found += self.script.get(at, part)
            elif kind is None and self.backing is not None:
                found += await self.backing.pread(at, part)
            else:
                found += bytes(part)
        return bytes(found)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        self._check(offset, len(data), self.limits.max_transfer)
        assert not flags & ~self.supported_write_flags
        async with self.script.call("pwritev", offset, len(data), flags):
            await self._copy_up(offset, len(data))
            self.script.put(offset, data, grow=self.can_grow)

    async def _copy_up(self, offset: int, nbytes: int) -> None:
        cluster, clusters = self.script.cluster, self.script.clusters
        if not cluster:
            return
        for number in range(offset // cluster, (offset + nbytes - 1) // cluster + 1):
            if clusters.get(number) != DATA:
                old = await self._read(number * cluster, cluster)
                if clusters.get(number) != DATA:
                    self.script.put(number * cluster, old, grow=False)
                    clusters[number] = DATA

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        self._check(offset, nbytes, self.limits.max_pwrite_zeroes)
        assert not flags & ~self.supported_zero_flags
        cluster = self.script.cluster
        async with self.script.call("pwrite_zeroes", offset, nbytes, flags):
            if not cluster:
                self.script.put(offset, bytes(nbytes), grow=self.can_grow)
                return
            end = offset + nbytes
            if offset % cluster or (end % cluster and end < self.script.length):
                raise NotSupported
            for number in range(offset // cluster, -(-end // cluster)):
                self.script.clusters[number] = ZERO

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        unit = max(self.limits.pdiscard_alignment, self.limits.request_alignment)
        assert offset % unit == 0 and nbytes > 0
        assert nbytes % unit == 0 or offset + nbytes == self.script.length
        assert offset + nbytes <= self.script.length
        assert not self.limits.max_pdiscard or nbytes <= max(self.limits.max_pdiscard, unit)
        async with self.script.call("pdiscard", offset, nbytes):
            self.script.put(offset, bytes(nbytes), grow=False)

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        async with self.script.call("pwritev_compressed", offset, len(data)):
            self.script.put(offset, data, grow=False)

    async def flush(self) -> None:
        async with self.script.call("flush"):
            pass

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        async with self.script.call("truncate", length):
            self.script.resize(length)

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        self._check(offset, nbytes)
        async with self.script.call("block_status", offset, nbytes, int(want_zero)):
            return self._status(offset, nbytes, want_zero)

    def _status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        flags, pnum, *where = self.script.run_at(offset, nbytes, want_zero)
        if self.script.most:
            pnum = min(pnum, self.script.most)
        return Status(flags, pnum, where[0] if where else 0, self.file if flags & (OFFSET_VALID | RAW) else None)

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> ExtentBatch:
        self._check(offset, nbytes)
        async with self.script.call("extents", offset, nbytes, int(want_zero)):
            runs: list[Status] = []
            at, end = offset, min(offset + nbytes, self.script.length)
            while at < end and len(runs) < self.script.batch:
                try:
                    run = self._status(at, end - at, want_zero)
                except OSError:
                    if not runs:
                        raise
                    break
                runs.append(run._replace(pnum=min(run.pnum, end - at)))
                at += runs[-1].pnum
            return ExtentBatch.of_runs(offset, runs)

    async def drain_begin(self) -> None:
        async with self.script.call("drain_begin"):
            pass


class ScriptedProtocol(ScriptedDriver):
    """A protocol, told by a Script what to do."""

    name = "scripted-protocol"
    kind = "protocol"
    supports_backing = False
    can_grow = True
    supported_write_flags = REQ_FUA

    def _status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        flags, pnum, *where = self.script.run_at(offset, nbytes, want_zero)
        if self.script.runs is None:
            flags, where = flags | OFFSET_VALID, [offset]
        if self.script.most:
            pnum = min(pnum, self.script.most)
        return Status(flags, pnum, where[0] if where else 0)


class ScriptedFilter(ScriptedDriver):
    """A filter: passes reads and questions on to its `file`."""

    name = "scripted-filter"
    kind = "filter"
    supports_backing = False

    def _status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        return Status(RAW | OFFSET_VALID, nbytes, offset, self.file)

    async def getlength(self) -> int:
        assert self.file is not None
        self.script.length = self.file.length
        return self.file.length

    async def _read(self, offset: int, nbytes: int) -> bytes:
        assert self.file is not None
        return bytes(await self.file.pread(offset, nbytes))

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> ExtentBatch:
        raise NotSupported


# -- opening them --------------------------------------------------------------------------------------------------


@contextmanager
def registered() -> Iterator[None]:
    """Inside, the scripted drivers can be opened by name."""
    drivers = (ScriptedDriver, ScriptedProtocol, ScriptedFilter)
    registry.register(*drivers)
    try:
        yield
    finally:
        for driver in drivers:
            del registry._drivers[driver.name]


def chain_options(*scripts: Script, files: Mapping[Script, Script] | None = None) -> dict[str, Any]:
    """The options that open a chain, its top first. `files`: a protocol's script below a layer's."""
    options: dict[str, Any] | None = None
    for script in reversed(scripts):
        options = {"driver": "scripted", "script": script} | ({"backing": options} if options else {})
        if files and script in files:
            options["file"] = {"driver": "scripted-protocol", "script": files[script]}
    assert options is not None
    return options


@asynccontextmanager
async def opened(
    *scripts: Script, files: Mapping[Script, Script] | None = None, options: Mapping[str, Any] | None = None, **how: Any
) -> AsyncIterator[BlockBackend]:
    """A chain of scripted layers, the top first; or whatever `options` describe."""
    with registered():
        disk = await aioblock.open(options or chain_options(*scripts, files=files), **how)
    try:
        yield disk
    finally:
        for node in subtree(disk.node):
            if isinstance(node.driver, ScriptedDriver):
                node.driver.script.release()
        await disk.close()


def layers_of(disk: BlockBackend) -> list[BlockNode]:
    """The nodes of the chain, the top first."""
    found: list[BlockNode] = []
    node: BlockNode | None = disk.node
    while node is not None:
        found.append(node)
        node = node.below
    return found

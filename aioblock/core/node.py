"""Nodes and edges: the graph as plain state. The verbs are in `blockio`, the wiring in `graph`."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from aioblock.base.flags import PERM_ALL
from aioblock.core.context import CacheMode
from aioblock.core.debugger import Debugger
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.core.driver import BlockDriver
from aioblock.core.images import InnerName, Role
from aioblock.core.io import BlockIO
from aioblock.core.limits import BlockLimits
from aioblock.core.requests import RequestQueue

__all__ = ["BlockNode", "Edge", "Gate"]


class Gate(Protocol):
    """Where requests of a user come in, and can be stopped while the graph is drained: a backend."""

    def stop(self) -> None:
        """New requests wait from now on; calls nest."""

    def go_on(self) -> None:
        """The reverse of one `stop`."""

    async def idle(self) -> None:
        """Wait until every request that came through has ended."""


class Edge(BlockIO):
    """A link from a parent (a node, or a backend: None) to a node, with what the parent needs and what it shares.

    Abstract: the verbs are in `blockio.child`.
    """

    __slots__ = ("node", "parent", "perm", "role", "shared")

    def __init__(
        self, parent: "BlockNode | None", role: Role | None, node: "BlockNode", perm: int = 0, shared: int = PERM_ALL
    ) -> None:
        self.parent = parent
        self.role = role
        self.node = node
        self.perm = perm
        self.shared = shared

    def __repr__(self) -> str:
        above = self.parent.name if self.parent is not None else "(backend)"
        return f"<Edge {above} -{self.role or 'root'}-> {self.node.name} perm={self.perm:#x} shared={self.shared:#x}>"


class FlushState:
    """Generations of writes and flushes of one node: a flush that has nothing new to do is free."""

    __slots__ = ("active", "error", "flushed", "written")

    def __init__(self) -> None:
        self.written = 0
        """Counts completed writes."""
        self.flushed = 0
        """The value of `written` that the last successful flush covered."""
        self.active: asyncio.Future[None] | None = None
        """The flush that runs now."""
        self.error: OSError | None = None
        """The first failure. Sticky: what was lost then does not come back with a later success."""


class BlockNode:
    """A driver instance in the graph: its edges, limits, length, requests in flight, flush state."""

    __slots__ = (
        "align_mask",
        "alone",
        "backing",
        "backing_name",
        "bitmaps",
        "cache",
        "can_grow",
        "children",
        "closed",
        "debugger",
        "detect_zeroes",
        "driver",
        "exact_filename",
        "file",
        "filename",
        "flush_state",
        "gates",
        "has_extents",
        "has_status",
        "length",
        "limits",
        "max_transfer",
        "name",
        "options",
        "parents",
        "quiesced",
        "read_only",
        "reopened_with",
        "requests",
        "runtime_options",
        "tasks",
        "unmap",
        "variable_length",
    )

    driver: BlockDriver
    limits: BlockLimits

    def __init__(self, name: str, *, read_only: bool = True, cache: CacheMode | None = None) -> None:
        self.name = name
        self.read_only = read_only
        self.cache = cache or CacheMode()
        self.length = 0
        self.filename = ""
        """As it is shown: a plain name, or `json:{...}`."""
        self.exact_filename = ""
        """The plain name that opens the same thing, or ""."""
        self.options: dict[str, Any] = {}
        """The options it was opened with."""
        self.runtime_options: dict[str, Any] = {}
        """Those given at the opening that the driver can change while it is open."""
        self.reopened_with: Mapping[str, Any] = {}
        """What the last reopen laid over them."""
        self.file: Edge | None = None
        self.backing: Edge | None = None
        self.backing_name: InnerName | None = None
        """The backing file as the image names it."""
        self.children: dict[str, Edge] = {}
        """By role; where there are several of one, `children.0` and so on."""
        self.parents: list[Edge] = []
        self.gates: list[Gate] = []
        """Of the backends whose root this node is."""
        self.bitmaps: dict[str, DirtyBitmap] = {}
        """The dirty bitmaps, by name; those that record are marked by whatever changes the node."""
        self.alone = asyncio.Lock()
        """Held while somebody works on the image as a whole: of such, drained or not, one runs at a time."""
        self.requests = RequestQueue()
        self.tasks: set[asyncio.Task[Any]] = set()
        """Requests whose caller was cancelled and that run to their end."""
        self.flush_state = FlushState()
        self.quiesced = 0
        self.closed = False
        self.detect_zeroes = "off"
        self.unmap = True
        """Discards reach the driver, and write-zeroes may give storage back; False: neither (`discard=ignore`)."""
        self.can_grow = False
        self.debugger: Debugger | None = None
        self.variable_length = False
        self.has_status = False
        self.has_extents = False
        self.align_mask = 0
        self.max_transfer = 0

    def __repr__(self) -> str:
        driver = self.driver.name if hasattr(self, "driver") else "(opening)"
        mode = "ro" if self.read_only else "rw"
        return f"<BlockNode {self.name} {driver} {mode} length={self.length} in_flight={self.in_flight}>"

    @property
    def in_flight(self) -> int:
        """How many requests run on this node now."""
        return len(self.requests)

    def set_driver(self, driver: BlockDriver, length: int) -> None:
        """The driver has opened: remember of it what every request needs."""
        kind = type(driver)
        self.driver = driver
        if driver.bitmaps is not None:
            self.bitmaps = driver.bitmaps
        self.length = length
        filtered = self.file.node if kind.kind == "filter" and self.file is not None else None
        self.can_grow = kind.can_grow if filtered is None else filtered.can_grow
        self.debugger = driver.debugger
        self.variable_length = kind.variable_length
        self.has_status = kind.block_status is not BlockDriver.block_status
        self.has_extents = kind.extents is not BlockDriver.extents
        self.set_limits(driver.limits)

    def set_limits(self, limits: BlockLimits) -> None:
        """Take the limits, and what is derived from them for the hot path."""
        alignment = limits.request_alignment
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"request_alignment {alignment} is not a power of two")
        self.limits = limits
        self.align_mask = alignment - 1
        self.max_transfer = limits.max_transfer

    @property
    def is_protocol(self) -> bool:
        """Whether the bytes end here."""
        return self.driver.kind == "protocol"

    @property
    def is_named(self) -> bool:
        """Whether names are those of its driver: a protocol's, or `prefix:...` of a filter."""
        return self.driver.kind == "protocol" or self.driver.name_prefix != ""

    @property
    def unfiltered(self) -> "BlockNode":
        """The layer that this node is or filters: a filter adds none to the chain."""
        node = self
        while node.driver.kind == "filter" and node.file is not None:
            node = node.file.node
        return node

    @property
    def below(self) -> "BlockNode | None":
        """The next layer of the chain: the backing node, of a filter that of what it filters; None at the bottom."""
        backing = self.unfiltered.backing
        return None if backing is None else backing.node

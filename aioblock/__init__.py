"""aioblock: virtual disk images as an asyncio library.

disk = await aioblock.open("disk.qcow2")
async with disk:
    data = await disk.pread(0, 4096)
    async for extent in disk.extents():
        print(extent)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aioblock.api import create, create_options, open
from aioblock.base.buffers import aligned_buffer
from aioblock.base.errors import (
    BlockError,
    CorruptImage,
    GraphError,
    ImageError,
    InvalidImage,
    JobError,
    NodeInUse,
    NotSupported,
    OptionError,
    PermissionConflict,
    UnsupportedFeature,
    UntrustedReference,
    message_of,
    with_context,
)
from aioblock.base.flags import (
    ALLOCATED,
    COMPRESSED,
    DATA,
    EOF,
    OFFSET_VALID,
    REQ_COMPRESSED,
    REQ_COPY_ON_READ,
    REQ_FUA,
    REQ_MAY_UNMAP,
    REQ_NO_FALLBACK,
    ZERO,
    status_names,
)
from aioblock.base.options import flatten, nest, parse_keyval
from aioblock.base.units import human_size, parse_size
from aioblock.core.images import CheckFinding, CheckResult, CreateOption, DriverInfo, InnerName, Prealloc, Role
from aioblock.core.io import ChainStatus, Status
from aioblock.core.node import BlockNode
from aioblock.core.registry import driver_names, find_driver
from aioblock.core.statistics import Statistics
from aioblock.graph.backend import BlockBackend
from aioblock.graph.extent import Extent
from aioblock.graph.trust import TRUST_ALL, TRUST_DIRECTORY, TRUST_NONE, Reference, TrustPolicy

if TYPE_CHECKING:
    from aioblock.jobs.compare import Difference, compare
    from aioblock.jobs.convert import convert
    from aioblock.jobs.errors import PositionedError

__version__ = "0.1.0"

_JOBS = {"Difference": "compare", "PositionedError": "errors", "compare": "compare", "convert": "convert"}
"""Where the jobs are: loaded when they are used, because most programs that open an image need none."""


def __getattr__(name: str) -> Any:
    if name not in _JOBS:
        raise AttributeError(f"module 'aioblock' has no attribute '{name}'")
    return getattr(import_module(f"aioblock.jobs.{_JOBS[name]}"), name)


__all__ = [
    "ALLOCATED",
    "COMPRESSED",
    "DATA",
    "EOF",
    "OFFSET_VALID",
    "REQ_COMPRESSED",
    "REQ_COPY_ON_READ",
    "REQ_FUA",
    "REQ_MAY_UNMAP",
    "REQ_NO_FALLBACK",
    "TRUST_ALL",
    "TRUST_DIRECTORY",
    "TRUST_NONE",
    "ZERO",
    "BlockBackend",
    "BlockError",
    "BlockNode",
    "ChainStatus",
    "CheckFinding",
    "CheckResult",
    "CorruptImage",
    "CreateOption",
    "Difference",
    "DriverInfo",
    "Extent",
    "GraphError",
    "ImageError",
    "InnerName",
    "InvalidImage",
    "JobError",
    "NodeInUse",
    "NotSupported",
    "OptionError",
    "PermissionConflict",
    "PositionedError",
    "Prealloc",
    "Reference",
    "Role",
    "Statistics",
    "Status",
    "TrustPolicy",
    "UnsupportedFeature",
    "UntrustedReference",
    "aligned_buffer",
    "compare",
    "convert",
    "create",
    "create_options",
    "driver_names",
    "find_driver",
    "flatten",
    "human_size",
    "message_of",
    "nest",
    "open",
    "parse_keyval",
    "parse_size",
    "status_names",
    "with_context",
]

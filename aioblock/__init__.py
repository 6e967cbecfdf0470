"""aioblock: virtual disk images as an asyncio library.

disk = await aioblock.open("disk.qcow2")
async with disk:
    data = await disk.pread(0, 4096)
    async for extent in disk.extents():
        print(extent)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aioblock.api import create, create_options, measure, open
from aioblock.base.buffers import aligned_buffer
from aioblock.base.errors import (
    BitmapError,
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
    VerifyError,
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
from aioblock.core.debugger import Debugger
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.core.images import (
    CheckFinding,
    CheckResult,
    CreateOption,
    DriverInfo,
    InnerName,
    Measurement,
    Prealloc,
    Role,
    SnapshotInfo,
)
from aioblock.core.io import ChainStatus, Status
from aioblock.core.node import BlockNode
from aioblock.core.objects import NamedObject
from aioblock.core.registry import driver_names, find_driver
from aioblock.core.statistics import Statistics
from aioblock.graph.backend import BlockBackend
from aioblock.graph.extent import Extent
from aioblock.graph.trust import TRUST_ALL, TRUST_DIRECTORY, TRUST_NONE, Reference, TrustPolicy

if TYPE_CHECKING:
    from aioblock.core.secrets import Secret
    from aioblock.graph.objects import OBJECT_TYPES, make_object
    from aioblock.jobs.commit import commit
    from aioblock.jobs.compare import Difference, compare
    from aioblock.jobs.convert import convert
    from aioblock.jobs.errors import PositionedError
    from aioblock.jobs.rebase import rebase

__version__ = "0.1.0"

_JOBS = {
    "Difference": "compare",
    "PositionedError": "errors",
    "commit": "commit",
    "compare": "compare",
    "convert": "convert",
    "rebase": "rebase",
}
"""Where the jobs are: loaded when they are used, because most programs that open an image need none."""

_OBJECTS = {"OBJECT_TYPES": "graph.objects", "Secret": "core.secrets", "make_object": "graph.objects"}
"""Named objects, likewise."""


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        return getattr(import_module(f"aioblock.{_OBJECTS[name]}"), name)
    if name not in _JOBS:
        raise AttributeError(f"module 'aioblock' has no attribute '{name}'")
    return getattr(import_module(f"aioblock.jobs.{_JOBS[name]}"), name)


__all__ = [
    "ALLOCATED",
    "COMPRESSED",
    "DATA",
    "EOF",
    "OBJECT_TYPES",
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
    "BitmapError",
    "BlockBackend",
    "BlockError",
    "BlockNode",
    "ChainStatus",
    "CheckFinding",
    "CheckResult",
    "CorruptImage",
    "CreateOption",
    "Debugger",
    "Difference",
    "DirtyBitmap",
    "DriverInfo",
    "Extent",
    "GraphError",
    "ImageError",
    "InnerName",
    "InvalidImage",
    "JobError",
    "Measurement",
    "NamedObject",
    "NodeInUse",
    "NotSupported",
    "OptionError",
    "PermissionConflict",
    "PositionedError",
    "Prealloc",
    "Reference",
    "Role",
    "SnapshotInfo",
    "Secret",
    "Statistics",
    "Status",
    "TrustPolicy",
    "UnsupportedFeature",
    "UntrustedReference",
    "VerifyError",
    "aligned_buffer",
    "commit",
    "compare",
    "convert",
    "create",
    "create_options",
    "driver_names",
    "find_driver",
    "flatten",
    "human_size",
    "make_object",
    "measure",
    "message_of",
    "nest",
    "open",
    "parse_keyval",
    "parse_size",
    "rebase",
    "status_names",
    "with_context",
]

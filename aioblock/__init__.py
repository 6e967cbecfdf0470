"""aioblock: virtual disk images as an asyncio library.

disk = await aioblock.open("disk.qcow2")
async with disk:
    data = await disk.pread(0, 4096)
    async for extent in disk.extents():
        print(extent)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aioblock.api.opening import Image, ImageName, Opening, open
from aioblock.base.buffers import aligned_buffer
from aioblock.base.errors import (
    BitmapError,
    BlockError,
    CorruptImage,
    GraphError,
    ImageError,
    InvalidImage,
    JobError,
    LocalProtocolError,
    NbdError,
    NodeInUse,
    NotSupported,
    OptionError,
    OptionRefused,
    PermissionConflict,
    RemoteProtocolError,
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
from aioblock.core.io import ChainStatus, ContextRuns, Status
from aioblock.core.node import BlockNode
from aioblock.core.objects import NamedObject
from aioblock.core.registry import driver_names, find_driver
from aioblock.core.statistics import Statistics
from aioblock.graph.backend import BlockBackend
from aioblock.graph.extent import Extent
from aioblock.graph.names import beside
from aioblock.graph.trust import TRUST_ALL, TRUST_DIRECTORY, TRUST_NONE, Reference, TrustPolicy

if TYPE_CHECKING:
    from aioblock.api.bitmaps import (
        bitmap_add,
        bitmap_clear,
        bitmap_disable,
        bitmap_enable,
        bitmap_merge,
        bitmap_remove,
        bitmaps,
        copy_bitmaps,
    )
    from aioblock.api.chains import commit, rebase
    from aioblock.api.changing import amend, check, resize
    from aioblock.api.comparing import compare, differences
    from aioblock.api.converting import convert, target_options
    from aioblock.api.creating import create, create_options, measure
    from aioblock.api.info import BitmapInfo, ImageInfo, info, info_chain
    from aioblock.api.new_files import removed_on_failure
    from aioblock.api.snapshots import snapshot_apply, snapshot_create, snapshot_delete, snapshots
    from aioblock.api.watchdog import BlockedLoop, LagHistogram, LoopWatchdog
    from aioblock.core.authorization import Authorization, AuthzList, AuthzSimple
    from aioblock.core.secrets import Secret
    from aioblock.core.tls import TlsCredentials, TlsPsk, TlsX509, find_tls_credentials
    from aioblock.drivers.protocols.nbd.listing import list_exports
    from aioblock.exports.nbd.client_info import NbdClientInfo
    from aioblock.exports.nbd.export import NbdExport
    from aioblock.exports.nbd.kernel import KernelDevice, disconnect_device
    from aioblock.exports.nbd.limits import NbdLimits
    from aioblock.exports.nbd.listening import activated_sockets
    from aioblock.exports.nbd.server import NbdServer, serve
    from aioblock.graph.creating import typed_options
    from aioblock.graph.layers import find_layer
    from aioblock.graph.objects import OBJECT_TYPES, make_object
    from aioblock.jobs.compare import Difference
    from aioblock.jobs.differences import DifferentRange
    from aioblock.jobs.errors import PositionedError
    from aioblock.nbd.client_handshake import ListedExport
    from aioblock.nbd.uri import NbdUri

__version__ = "0.1.0"

_ELSEWHERE = {
    "api.bitmaps": (
        "bitmap_add",
        "bitmap_clear",
        "bitmap_disable",
        "bitmap_enable",
        "bitmap_merge",
        "bitmap_remove",
        "bitmaps",
        "copy_bitmaps",
    ),
    "api.chains": ("commit", "rebase"),
    "api.changing": ("amend", "check", "resize"),
    "api.comparing": ("compare", "differences"),
    "api.converting": ("convert", "target_options"),
    "api.creating": ("create", "create_options", "measure"),
    "api.info": ("BitmapInfo", "ImageInfo", "info", "info_chain"),
    "api.new_files": ("removed_on_failure",),
    "api.snapshots": ("snapshot_apply", "snapshot_create", "snapshot_delete", "snapshots"),
    "api.watchdog": ("BlockedLoop", "LagHistogram", "LoopWatchdog"),
    "core.authorization": ("Authorization", "AuthzList", "AuthzSimple"),
    "core.secrets": ("Secret",),
    "graph.creating": ("typed_options",),
    "core.tls": ("TlsCredentials", "TlsPsk", "TlsX509", "find_tls_credentials"),
    "drivers.protocols.nbd.listing": ("list_exports",),
    "exports.nbd.client_info": ("NbdClientInfo",),
    "exports.nbd.export": ("NbdExport",),
    "exports.nbd.kernel": ("KernelDevice", "disconnect_device"),
    "exports.nbd.limits": ("NbdLimits",),
    "exports.nbd.listening": ("activated_sockets",),
    "exports.nbd.server": ("NbdServer", "serve"),
    "graph.layers": ("find_layer",),
    "graph.objects": ("OBJECT_TYPES", "make_object"),
    "jobs.compare": ("Difference",),
    "jobs.differences": ("DifferentRange",),
    "jobs.errors": ("PositionedError",),
    "nbd.client_handshake": ("ListedExport",),
    "nbd.uri": ("NbdUri",),
}
"""Where the names are that are loaded when they are used: most programs need few of them, and shall start fast."""


def __getattr__(name: str) -> Any:
    for module, names in _ELSEWHERE.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"aioblock.{module}"), name)
            return value
    raise AttributeError(f"module 'aioblock' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ListedExport",
    "list_exports",
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
    "Authorization",
    "AuthzList",
    "AuthzSimple",
    "BitmapError",
    "BitmapInfo",
    "BlockBackend",
    "BlockError",
    "BlockNode",
    "BlockedLoop",
    "ChainStatus",
    "ContextRuns",
    "CheckFinding",
    "CheckResult",
    "CorruptImage",
    "CreateOption",
    "Debugger",
    "Difference",
    "DifferentRange",
    "DirtyBitmap",
    "DriverInfo",
    "Extent",
    "GraphError",
    "Image",
    "ImageError",
    "ImageInfo",
    "ImageName",
    "InnerName",
    "InvalidImage",
    "JobError",
    "KernelDevice",
    "LagHistogram",
    "LocalProtocolError",
    "LoopWatchdog",
    "Measurement",
    "NamedObject",
    "NbdClientInfo",
    "NbdError",
    "NbdExport",
    "NbdLimits",
    "NbdServer",
    "NbdUri",
    "NodeInUse",
    "NotSupported",
    "Opening",
    "OptionError",
    "OptionRefused",
    "PermissionConflict",
    "PositionedError",
    "Prealloc",
    "Reference",
    "RemoteProtocolError",
    "Role",
    "Secret",
    "SnapshotInfo",
    "Statistics",
    "Status",
    "TlsCredentials",
    "TlsPsk",
    "TlsX509",
    "TrustPolicy",
    "UnsupportedFeature",
    "UntrustedReference",
    "VerifyError",
    "activated_sockets",
    "aligned_buffer",
    "amend",
    "beside",
    "bitmap_add",
    "bitmap_clear",
    "bitmap_disable",
    "bitmap_enable",
    "bitmap_merge",
    "bitmap_remove",
    "bitmaps",
    "check",
    "commit",
    "compare",
    "convert",
    "copy_bitmaps",
    "create",
    "create_options",
    "differences",
    "disconnect_device",
    "driver_names",
    "find_driver",
    "find_layer",
    "find_tls_credentials",
    "flatten",
    "human_size",
    "info",
    "info_chain",
    "make_object",
    "measure",
    "message_of",
    "nest",
    "open",
    "parse_keyval",
    "parse_size",
    "rebase",
    "removed_on_failure",
    "resize",
    "serve",
    "snapshot_apply",
    "snapshot_create",
    "snapshot_delete",
    "snapshots",
    "status_names",
    "target_options",
    "typed_options",
    "with_context",
]

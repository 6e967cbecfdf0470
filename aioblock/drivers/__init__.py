"""Layer 4: the drivers. This is the table of all of them; `raw` comes last, because it takes everything.

A driver is loaded when it is asked for: start-up time is what a program like `info` mostly takes.
"""

from functools import partial
from importlib import import_module

from aioblock.core.driver import BlockDriver
from aioblock.core.registry import register_later, register_prefixes

__all__ = ["register_all"]

_TABLE = (
    ("file", "protocol", "aioblock.drivers.protocols.posix.file", "FileDriver"),
    ("host_cdrom", "protocol", "aioblock.drivers.protocols.posix.host_device", "HostCdromDriver"),
    ("host_device", "protocol", "aioblock.drivers.protocols.posix.host_device", "HostDeviceDriver"),
    ("memory", "protocol", "aioblock.drivers.protocols.memory", "MemoryDriver"),
    ("nbd", "protocol", "aioblock.drivers.protocols.nbd", "NbdDriver"),
    ("null-co", "protocol", "aioblock.drivers.protocols.null", "NullDriver"),
    ("blkdebug", "filter", "aioblock.drivers.filters.blkdebug", "BlkdebugDriver"),
    ("blklogwrites", "filter", "aioblock.drivers.filters.blklogwrites", "BlklogwritesDriver"),
    ("blkverify", "filter", "aioblock.drivers.filters.blkverify", "BlkverifyDriver"),
    ("compress", "filter", "aioblock.drivers.filters.compress", "CompressDriver"),
    ("copy-on-read", "filter", "aioblock.drivers.filters.copy_on_read", "CopyOnReadDriver"),
    ("luks", "format", "aioblock.drivers.formats.luks", "LuksDriver"),
    ("preallocate", "filter", "aioblock.drivers.filters.preallocate", "PreallocateDriver"),
    ("quorum", "filter", "aioblock.drivers.filters.quorum", "QuorumDriver"),
    ("throttle", "filter", "aioblock.drivers.filters.throttle", "ThrottleDriver"),
    ("qcow2", "format", "aioblock.drivers.formats.qcow2", "Qcow2Driver"),
    ("raw", "format", "aioblock.drivers.formats.raw", "RawDriver"),
)

_PREFIXES = {"nbd": ("nbds", "nbd+tcp", "nbds+tcp", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")}


def register_all() -> None:
    """Put every driver into the registry."""
    for name, prefixes in _PREFIXES.items():
        register_prefixes(name, prefixes)
    for name, kind, module, driver in _TABLE:
        register_later(name, kind, partial(_load, module, driver))


def _load(module: str, driver: str) -> type[BlockDriver]:
    found: type[BlockDriver] = getattr(import_module(module), driver)
    return found

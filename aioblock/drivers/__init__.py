"""Layer 4: the drivers. This is the table of all of them; `raw` comes last, because it takes everything."""

import importlib

from aioblock.core.registry import register

__all__ = ["register_all"]

_TABLE = (
    ("aioblock.drivers.protocols.posix.file", "FileDriver"),
    ("aioblock.drivers.protocols.posix.host_device", "HostDeviceDriver"),
    ("aioblock.drivers.protocols.memory", "MemoryDriver"),
    ("aioblock.drivers.protocols.null", "NullDriver"),
    ("aioblock.drivers.filters.copy_on_read", "CopyOnReadDriver"),
    ("aioblock.drivers.formats.qcow2", "Qcow2Driver"),
    ("aioblock.drivers.formats.raw", "RawDriver"),
)


def register_all() -> None:
    """Put every driver into the registry."""
    for module, name in _TABLE:
        register(getattr(importlib.import_module(module), name))

"""`nbd`: the export of an NBD server."""

from aioblock.drivers.protocols.nbd.driver import NbdDriver

__all__ = ["NbdDriver"]

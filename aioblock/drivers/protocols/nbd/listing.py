"""The exports of a server."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aioblock.base.errors import OptionError
from aioblock.drivers.protocols.nbd.address import take_address
from aioblock.drivers.protocols.nbd.connecting import Endpoint, connect
from aioblock.drivers.protocols.nbd.security import take_tls

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.objects import NamedObject
    from aioblock.nbd.client_handshake import ListedExport

__all__ = ["list_exports"]


async def list_exports(options: "Options", objects: "Mapping[str, NamedObject]") -> "list[ListedExport]":
    """What the server offers. Options: those of the driver that say where it is, and of TLS.

    The name of an export, where one is given, counts not.
    Raises: OptionError; OSError; NbdError, also where the server does not tell.
    """
    address, _ = take_address(options)
    tls, hostname = take_tls(options, objects, address)
    if unknown := options.leftover():
        raise OptionError(f"A list of exports has no option '{unknown[0]}'", option=unknown[0])
    connection = await connect(Endpoint(address, "", (), tls, hostname, list_exports=True))
    await connection.close()
    return connection.handshake.exports

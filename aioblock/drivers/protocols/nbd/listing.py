"""What exports a server has: a connection that asks, and opens none."""

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from aioblock.base.errors import RemoteProtocolError, with_context
from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake, ListedExport

if TYPE_CHECKING:
    from aioblock.core.tls import TlsCredentials

__all__ = ["list_exports"]

_PIECE = 1 << 16


async def list_exports(
    server: str | tuple[str, int | str],
    *,
    tls: "TlsCredentials | None" = None,
    tls_hostname: str | None = None,
    timeout: float | None = 30.0,
) -> list[ListedExport]:
    """The exports of the NBD server at the path of a Unix socket, or at a host and port, with what it tells of each.

    `tls`: credentials of a client; without TLS nothing is asked then. `tls_hostname`: the name that the server's
    certificate must be for; None: the host. `timeout` in seconds. Cancelled or failed: nothing is left.
    Raises: OSError where the server cannot be reached or goes away; NbdError; OptionError, NotSupported of `tls`.
    """
    context = tls.ssl_context() if tls is not None else None
    where = server if isinstance(server, str) else f"{server[0]}:{server[1]}"
    hostname = tls_hostname or (server[0] if not isinstance(server, str) else "")
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(server, where)
            try:
                handshake = ClientHandshake(tls=context is not None, list_exports=True)
                while True:
                    for event in handshake.feed(await _receive(reader)):
                        if event is ClientEvent.START_TLS and context is not None:
                            writer.write(handshake.take_output())
                            try:
                                await writer.start_tls(context, server_hostname=hostname)
                            except OSError as error:
                                raise with_context(error, "TLS handshake failed: ") from None
                            handshake.tls_started()
                    writer.write(handshake.take_output())
                    if handshake.done:
                        await writer.drain()
                        return handshake.exports
            finally:
                writer.close()
                try:
                    await writer.wait_closed()
                except OSError:
                    pass  # the server may have gone first
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, f"No answer from '{where}' within {timeout} seconds") from None


async def _connect(
    server: str | tuple[str, int | str], where: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        if isinstance(server, str):
            return await asyncio.open_unix_connection(server)
        return await asyncio.open_connection(server[0], server[1])
    except socket.gaierror as error:
        raise OSError(errno.EINVAL, f"address resolution failed for {where}: {error.strerror}") from None
    except OSError as error:
        code = error.errno or errno.ECONNREFUSED  # several addresses, and several reasons
        raise OSError(code, f"Failed to connect to '{where}': {os.strerror(code)}") from None


async def _receive(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(_PIECE)
    if not data:
        raise RemoteProtocolError("The server closed the connection in the handshake")
    return data

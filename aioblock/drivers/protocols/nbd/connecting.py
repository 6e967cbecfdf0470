"""Making a connection: the socket, the handshake, TLS."""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import LocalProtocolError, OptionError, with_context
from aioblock.drivers.protocols.nbd.address import Address
from aioblock.drivers.protocols.nbd.connection import Connection
from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake

if TYPE_CHECKING:
    import ssl

__all__ = ["Endpoint", "connect"]

HANDSHAKE_SECONDS: Final = 30.0
"""A server that takes longer is given up: it would hold up its client for ever."""


_FIRST_PASSED: Final = 3
"""The first of the file descriptors that systemd passes: sd_listen_fds(3)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What to connect to, and how."""

    address: Address
    export: str
    contexts: tuple[str, ...]
    """The metadata contexts to ask for."""
    tls: "ssl.SSLContext | None" = None
    tls_hostname: str | None = None
    """The name that the server's certificate must be for; None: that of the address, where it has one."""


async def connect(endpoint: Endpoint) -> Connection:
    """A connection with an open export.

    Cancelled or failed: nothing is left. Raises: OSError where the server cannot be reached or goes away; NbdError.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            connection = await _connect(endpoint)
            await _shake(connection, endpoint)
            return connection
    except TimeoutError as error:
        await _give_up(connection)
        if error.errno:
            raise  # the network's own
        raise OSError(
            errno.ETIMEDOUT, f"No answer from '{endpoint.address}' within {HANDSHAKE_SECONDS:.0f} seconds"
        ) from None
    except BaseException:
        await _give_up(connection)
        raise


async def _give_up(connection: Connection | None) -> None:
    if connection is not None:
        connection.cut()
        await asyncio.shield(connection.closed)


async def _connect(endpoint: Endpoint) -> Connection:
    address = endpoint.address
    try:
        return await dial(address, partial(_new_connection, endpoint))
    except LocalProtocolError as error:
        raise OptionError(str(error), option="export") from None
    except socket.gaierror as error:
        raise OSError(errno.EINVAL, f"address resolution failed for {address}: {error.strerror}") from None
    except ValueError as error:
        raise OptionError(f"'{address}' is no address: {error}", option="server") from None
    except OSError as error:
        code = error.errno or errno.ECONNREFUSED  # several addresses, and several reasons: asyncio gives no errno
        raise OSError(code, f"Failed to connect to '{address}': {os.strerror(code)}") from None


def _new_connection(endpoint: Endpoint) -> Connection:
    return Connection(ClientHandshake(endpoint.export, tls=endpoint.tls is not None, contexts=endpoint.contexts))


async def dial(address: Address, protocol: Callable[[], Connection]) -> Connection:
    """A connection without a word said on it; a file descriptor is taken over.

    Raises: OSError; ValueError where the address is none.
    """
    loop = asyncio.get_running_loop()
    if address.kind == "unix":
        return (await loop.create_unix_connection(protocol, address.path))[1]
    if address.kind == "inet":
        port: Any = _port(address.port)  # the name of a service, too: the stubs know numbers only
        return (await loop.create_connection(protocol, address.host, port))[1]
    if address.kind == "fd":
        sock = _passed_socket(address.path)
    else:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.kind == "vsock":
            await loop.sock_connect(sock, (int(address.host), int(address.port)))
        return (await loop.create_connection(protocol, sock=sock))[1]
    except BaseException:
        sock.close()
        raise


def _passed_socket(name: str) -> socket.socket:
    """A connected socket that this process was given: by its number, or by its name as systemd passes it.

    Raises: ValueError where it is none; OSError.
    """
    if name.isascii() and name.isdigit():
        fd = int(name)
    else:
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        if os.environ.get("LISTEN_PID") != str(os.getpid()) or name not in names:
            raise ValueError(f"no file descriptor of the name '{name}' was passed (LISTEN_FDNAMES)")
        fd = _FIRST_PASSED + names.index(name)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ValueError(f"file descriptor {fd} is no socket")
    return socket.socket(fileno=fd)


def _port(text: str) -> int | str:
    """A number, or the name of a service. Raises: ValueError."""
    if not text.isascii() or not text.isdigit():
        return text
    port = int(text)
    if port > 0xFFFF:
        raise ValueError("ports go up to 65535")
    return port


async def _shake(connection: Connection, endpoint: Endpoint) -> None:
    while True:
        event = await connection.next_event()
        if event is not ClientEvent.START_TLS:
            return
        assert endpoint.tls is not None
        hostname = endpoint.tls_hostname
        if hostname is None and endpoint.address.kind == "inet":
            hostname = endpoint.address.host
        connection.begin_tls()
        try:
            transport = await asyncio.get_running_loop().start_tls(
                connection.transport,
                connection,
                endpoint.tls,
                server_hostname=hostname or "",
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=1.0,
            )
        except OSError as error:  # ssl.SSLError is one
            raise with_context(error, "TLS handshake failed: ") from None
        if transport is None or transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "TLS handshake failed: the server has gone")
        connection.tls_started(transport)

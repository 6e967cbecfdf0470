"""NbdServer: exports, and the clients that use them."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from aioblock.base.errors import OptionError
from aioblock.core.authorization import Authorization
from aioblock.core.eager import Finished, start
from aioblock.core.tls import TlsCredentials
from aioblock.exports.nbd.client_info import NbdClientInfo, peer_name
from aioblock.exports.nbd.connection import Connection
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.listening import Address, Listener, open_sockets
from aioblock.exports.nbd.resources import Resources
from aioblock.graph.backend import BlockBackend
from aioblock.nbd.constants import MAX_STRING, Mode
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.server_handshake import TlsPolicy

__all__ = ["NbdServer", "serve"]


class NbdServer:
    """Serves exports. Use `serve`; the server belongs to the event loop in which it was made.

    Exports may be added and removed while it runs. It closes no disk: close those after the server.
    """

    def __init__(
        self,
        *,
        tls: TlsCredentials | ssl.SSLContext | None = None,
        tls_required: bool = True,
        authorization: Authorization | None = None,
        limits: NbdLimits | None = None,
        mode: Mode = Mode.EXTENDED,
    ) -> None:
        """See `serve`. `mode`: the best that clients may have. Raises: OptionError, NotSupported."""
        self.limits = limits if limits is not None else NbdLimits()
        self.resources = Resources(self.limits)
        self.ssl_context = tls.ssl_context() if isinstance(tls, TlsCredentials) else tls
        self.tls_policy = TlsPolicy.OFF
        if self.ssl_context is not None:
            self.tls_policy = TlsPolicy.REQUIRED if tls_required else TlsPolicy.OPTIONAL
        if authorization is not None and self.tls_policy is not TlsPolicy.REQUIRED:
            raise OptionError("Authorization needs TLS, and that it is required")
        self.authorization = authorization
        self.mode = mode
        self.exports: dict[str, NbdExport] = {}
        self.default: str | None = None
        """The name of the export that clients get who ask for "", where there is none of that name."""
        self.connections: set[Connection] = set()
        self.stopping = False
        self.sessions_begun = 0
        """How many clients have opened an export, ever."""
        self._connections_begun = 0
        self._listeners: list[Listener] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None
        self.on_client_begun: Callable[[NbdClientInfo], None] | None = None
        """Called when a client has opened an export."""
        self.on_client_gone: Callable[[NbdClientInfo], None] | None = None
        """Called when a client that had opened an export is gone."""

    def __repr__(self) -> str:
        return f"<NbdServer exports={list(self.exports)} connections={len(self.connections)}>"

    # -- exports -----------------------------------------------------------------------------------------------------

    async def add_export(self, name: str, export: NbdExport | BlockBackend) -> None:
        """Offer an export under a name; clients that ask for the name "" get that one.

        Failed: it is not there. Raises: OptionError, BitmapError, OSError.
        """
        if len(name.encode()) > MAX_STRING or "\0" in name:
            raise OptionError(f"The name of an export has more than {MAX_STRING} bytes, or a NUL in it")
        if name in self.exports:
            raise OptionError(f"NBD server already has export named '{name}'")
        if isinstance(export, BlockBackend):
            export = NbdExport(export)
        await export.begin()
        self.exports[name] = export

    async def remove_export(self, name: str) -> None:
        """Offer it no more, and close the connections of those who use it, when what they have asked is answered.

        Raises: KeyError.
        """
        export = self.exports.pop(name)
        await self._stop([connection for connection in self.connections if connection.export is export])
        export.end()

    def find(self, name: str) -> NbdExport | None:
        """The export of a name."""
        return self.exports.get(self._canonical(name))

    def info(self, name: str) -> ExportInfo | None:
        """What clients are told of an export; None: there is none of that name."""
        canonical = self._canonical(name)
        export = self.exports.get(canonical)
        if export is None:
            return None
        info = export.info(canonical, multi_conn=self.limits.connections != 1)
        info.name = name
        return info

    def _canonical(self, name: str) -> str:
        return name if name or "" in self.exports or self.default is None else self.default

    def listed(self) -> list[tuple[str, str]]:
        """Names and descriptions of all exports."""
        return [(name, export.description) for name, export in self.exports.items()]

    # -- clients -----------------------------------------------------------------------------------------------------

    def clients(self) -> list[NbdClientInfo]:
        """What each client does now, in the order in which they came; takes about 2 us for each."""
        found = [connection.info() for connection in self.connections]
        found.sort(key=lambda info: info.number)
        return found

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets that it listens on."""
        return [listener.sock for listener in self._listeners]

    async def listen(self, address: Address) -> None:
        """Accept clients at one more address. Failed: it does not listen there. Raises: OSError."""
        for sock in await open_sockets(address):
            self._listeners.append(Listener(sock, self.resources.door, self._accepted))
        self._admit()

    def attach(self, client: socket.socket) -> None:
        """Take a client that is connected already, such as one end of a pair of sockets; the server closes it."""
        client.setblocking(False)
        self._accepted(client)

    def _admit(self) -> None:
        """Accept clients, or let them wait."""
        limit = self.limits.connections
        count = len(self.connections) + len(self._accepting)
        room = not self.stopping and (limit is None or count < limit)
        for listener in self._listeners:
            if room:
                listener.on()
            else:
                listener.off()

    def _accepted(self, client: socket.socket) -> None:
        begun = start(self._connect(client))
        if isinstance(begun, Finished):
            begun.result()
        else:
            self._accepting.add(begun)
            begun.add_done_callback(self._connected)
        self._admit()

    async def _connect(self, client: socket.socket) -> None:
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections_begun += 1
        connection = Connection(self, self._connections_begun, peer_name(client))
        self.connections.add(connection)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except BaseException as error:
            client.close()
            self.connections.discard(connection)
            if not isinstance(error, OSError):  # else it was gone before it was there
                raise

    def _connected(self, task: "asyncio.Task[None]") -> None:
        self._accepting.discard(task)
        self._admit()

    def session_begun(self, connection: Connection) -> None:
        """A client has opened an export."""
        self.sessions_begun += 1
        if self.on_client_begun is not None:
            self.on_client_begun(connection.info())

    def connection_gone(self, connection: Connection) -> None:
        """A client is gone."""
        self.connections.discard(connection)
        self._admit()
        if connection.export is not None and self.on_client_gone is not None:
            self.on_client_gone(connection.info())

    # -- end ---------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted within `limits.stop_timeout`, and close all connections.

        A second call only waits for the first. Cancelled: it goes on in the background.
        """
        if self._closed is None:
            self._closed = self._loop.create_task(self._close())
        await asyncio.shield(self._closed)

    async def _close(self) -> None:
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._accepting:
            await asyncio.wait(self._accepting)
        await self._stop(list(self.connections))
        self.resources.door.close()
        for export in self.exports.values():
            export.end()
        self.exports.clear()

    async def _stop(self, connections: Sequence[Connection]) -> None:
        for connection in connections:
            connection.stop()
        gone = [connection.gone for connection in connections]
        if gone:
            _, late = await asyncio.wait(gone, timeout=self.limits.stop_timeout)
            for connection in connections:
                if connection.gone in late:
                    connection.abort()
            if late:
                await asyncio.wait(late)

    def abort(self) -> None:
        """Close all connections now: what they have asked is not answered. For a `close` that takes too long."""
        for connection in list(self.connections):
            connection.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def serve(
    exports: BlockBackend | NbdExport | Mapping[str, BlockBackend | NbdExport],
    *addresses: Address,
    tls: TlsCredentials | ssl.SSLContext | None = None,
    tls_required: bool = True,
    authorization: Authorization | None = None,
    limits: NbdLimits | None = None,
) -> NbdServer:
    """Serve disks over NBD: one under the name "", or several by their names.

    `addresses`: paths of Unix sockets, pairs of host and port (host "": all; port 0: any), sockets that listen.
    `tls`: certificates or keys; then clients must use them, or may where not `tls_required`. `authorization` says which
    of the clients' certificates may come in. `limits`: what clients may cost.

    The server runs until it is closed: `async with await serve(...) as server`. Cancelled or failed: nothing is open.
    Raises: OSError, OptionError, BitmapError, NotSupported.
    """
    server = NbdServer(tls=tls, tls_required=tls_required, authorization=authorization, limits=limits)
    try:
        named = exports if isinstance(exports, Mapping) else {"": exports}
        for name, export in named.items():
            await server.add_export(name, export)
        for address in addresses:
            await server.listen(address)
    except BaseException:
        await server.close()
        raise
    return server

"""NbdClientInfo: what one client of a server does, at the moment of asking."""

import os
import socket
import struct
from dataclasses import dataclass

__all__ = ["NbdClientInfo", "peer_name"]


@dataclass(frozen=True, slots=True)
class NbdClientInfo:
    """One connection. Bytes and requests are those since it began."""

    number: int
    """Which one of the server it is, from 1, in the order in which they came."""
    peer: str
    """Who it is: "192.0.2.1:4711", "[2001:db8::1]:4711", "vsock:2:4711", "pid 4711" behind a Unix socket."""
    phase: str
    """"handshake", "tls", "session", or "closed"."""
    tls: bool
    """Whether the connection is encrypted."""
    seconds: float
    """How long it has been there."""
    export: str | None = None
    """The name of the export that it has opened."""
    requests: int = 0
    """That were taken from it, those that were refused among them."""
    bytes_read: int = 0
    """That its reads asked for."""
    bytes_written: int = 0
    """That its writes brought."""
    in_flight: int = 0
    """Requests that wait for the disk now."""
    held: int = 0
    """Bytes of requests and replies in memory now; see `NbdLimits.client_bytes`."""


def peer_name(client: socket.socket) -> str:
    """What `NbdClientInfo.peer` says of a connected socket."""
    try:
        if client.family == socket.AF_UNIX:
            pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"pid {pid}"
        where = client.getpeername()
    except OSError:  # gone already
        return "?"
    if client.family == socket.AF_INET6:
        return f"[{where[0]}]:{where[1]}"
    if client.family == socket.AF_INET:
        return f"{where[0]}:{where[1]}"
    return "vsock:{}:{}".format(*where) if isinstance(where, tuple) else os.fsdecode(where)

"""Where `serve` listens, as it is typed and as clients are told: NBD URIs."""

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .failures import Failure

if TYPE_CHECKING:
    from aioblock import NbdServer, NbdUri

__all__ = ["Place", "given_places", "listen", "tcp_place", "unix_place"]

_PORT = 10809
_ANY = "*"


class Place(NamedTuple):
    """An address to listen at."""

    address: str | tuple[str, int] | socket.socket
    """As the library takes it."""
    host: str = ""
    """What clients call it."""


def unix_place(path: str) -> Place:
    """A Unix socket."""
    return Place(os.path.abspath(path))


def tcp_place(text: str) -> Place:
    """`[HOST][:PORT]`, or a port alone; "*" is every address. Raises: Failure."""
    host, _, port = text.rpartition(":")
    if text.isdigit():
        host, port = "", text
    elif ":" not in text or text.endswith("]") or (":" in host and not host.endswith("]")):
        host, port = text, ""  # a name, or a bare address of IPv6
    host = host.removeprefix("[").removesuffix("]") or "localhost"
    if port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise Failure(f"'{text}' is no address", hint="HOST:PORT, the port from 0 (any free one) to 65535", status=2)
    number = int(port) if port else _PORT
    return Place(("", number), socket.gethostname()) if host == _ANY else Place((host, number), host)


def given_places() -> list[Place]:
    """The sockets that systemd has opened for this process. Raises: OptionError."""
    from aioblock import activated_sockets

    return [Place(sock, socket.gethostname()) for sock in activated_sockets()]


async def listen(server: "NbdServer", places: Sequence[Place], *, tls: bool) -> "list[NbdUri]":
    """Listen at them all; returns the URIs of the places, which lack the export. Raises: OSError."""
    found: list[NbdUri] = []
    for place in places:
        known = len(server.sockets)
        await server.listen(place.address)
        found += _uris(place, server.sockets[known:], tls=tls)
    return found


def _uris(place: Place, sockets: Sequence[socket.socket], *, tls: bool) -> "list[NbdUri]":
    from aioblock import NbdUri

    names = [sock.getsockname() for sock in sockets]
    if sockets[0].family == socket.AF_UNIX:
        return [NbdUri("unix", tls, socket=names[0])]
    if len({name[1] for name in names}) == 1:
        return [NbdUri("tcp", tls, host=place.host, port=names[0][1])]
    return [NbdUri("tcp", tls, host=name[0], port=name[1]) for name in names]  # a free port of each address

"""NBD URIs, as the NBD URI specification has them.

nbd://host[:port]/export             TCP                    nbds://...         with TLS
nbd+unix:///export?socket=path       Unix domain socket     nbds+unix://...    with TLS
nbd+vsock://cid[:port]/export        AF_VSOCK               nbds+vsock://...   with TLS
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from aioblock.base.errors import OptionError
from aioblock.nbd.constants import DEFAULT_PORT

__all__ = ["SCHEMES", "NbdUri"]

SCHEMES: Final = ("nbd", "nbds", "nbd+tcp", "nbds+tcp", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
_DEFAULT_CID: Final = "2"  # the host


@dataclass(slots=True)
class NbdUri:
    """Where an export is. `str()` gives the URI."""

    transport: str
    """"tcp", "unix" or "vsock"."""
    tls: bool = False
    """TLS is demanded."""
    host: str = ""
    """TCP: a name or an address; vsock: the context id."""
    port: int = DEFAULT_PORT
    socket: str = ""
    """Unix: the path; a NUL first: in the abstract namespace."""
    export: str = ""
    user: str = ""
    """For some kinds of TLS."""
    query: dict[str, str] = field(default_factory=dict)
    """Other parameters: `tls-hostname`, `tls-verify-peer`, `tls-type` and so on."""

    @classmethod
    def parse(cls, text: str) -> "NbdUri":
        """Raises: OptionError."""
        try:
            parts = urlsplit(text, allow_fragments=False)
            port = parts.port
        except ValueError as error:
            raise OptionError(f"'{text}' is no NBD URI: {error}") from None
        if parts.scheme not in SCHEMES:
            raise OptionError(f"'{text}' is no NBD URI: unknown scheme '{parts.scheme}'")
        plain, _, transport = parts.scheme.partition("+")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        uri = cls(transport or "tcp", plain == "nbds", export=unquote(parts.path.removeprefix("/")), query=query)
        uri.user = unquote(parts.username or "")
        if uri.transport == "unix":
            uri.socket = query.pop("socket", "")
            if not uri.socket:
                raise OptionError(f"'{text}' names no socket: it needs ?socket=PATH")
            if parts.hostname or port is not None:
                raise OptionError(f"'{text}' names a host and a Unix domain socket: it needs three slashes")
            return uri
        if "socket" in query:
            raise OptionError(f"'{text}' names a socket, but is for {uri.transport}")
        uri.host = unquote(parts.hostname or "")
        uri.port = DEFAULT_PORT if port is None else port
        if uri.transport == "vsock":
            uri.host = uri.host or _DEFAULT_CID
            if not uri.host.isascii() or not uri.host.isdigit():
                raise OptionError(f"'{text}' needs a number as context id")
        uri.host = uri.host or "localhost"
        return uri

    def __str__(self) -> str:
        scheme = ("nbds" if self.tls else "nbd") + ("" if self.transport == "tcp" else f"+{self.transport}")
        query = {"socket": self.socket} if self.transport == "unix" else {}
        query |= self.query
        place = ""
        if self.transport != "unix":
            place = f"[{self.host}]" if ":" in self.host else quote(self.host)
            if self.port != DEFAULT_PORT:
                place += f":{self.port}"
        if self.user:
            place = f"{quote(self.user)}@{place}"
        tail = "&".join(f"{quote(key)}={quote(value)}" for key, value in query.items())
        path = f"/{quote(self.export)}" if self.export or tail else ""
        return f"{scheme}://{place}{path}" + (f"?{tail}" if tail else "")

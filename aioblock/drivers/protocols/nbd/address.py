"""Where an export is: from options and file names, as QEMU has them, to an address; and back to a name.

nbd:unix:PATH[:exportname=NAME]    nbd:HOST:PORT[:exportname=NAME]    and the URIs of `aioblock.nbd.uri`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.options import Options, nest
from aioblock.nbd.constants import DEFAULT_PORT, MAX_STRING
from aioblock.nbd.uri import SCHEMES, NbdUri

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Address", "options_of_name", "take_address"]

_EXPORT_NAME: Final = ":exportname="
_URI_OPTIONS: Final = frozenset(("tls-hostname", "tls-verify-peer", "tls-type"))


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server. `str()` is for messages."""

    kind: str
    """"unix", "inet", "vsock", or "fd": a connection that is there."""
    path: str = ""
    """fd: the number or the name of the file descriptor."""
    host: str = ""
    """vsock: the context id."""
    port: str = ""

    def __str__(self) -> str:
        if self.kind == "fd":
            return f"fd:{self.path}"
        return self.path if self.kind == "unix" else f"{self.host}:{self.port}"

    def name_of(self, export: str) -> str:
        """The file name that QEMU shows for an export at this address; "": it has none."""
        if self.kind == "fd":
            return ""
        if self.kind == "unix":
            return f"nbd+unix://{_path_of(export)}?socket={self.path}"
        scheme = "nbd" if self.kind == "inet" else "nbd+vsock"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{_path_of(export)}"


def _path_of(export: str) -> str:
    return f"/{export}" if export else ""


def options_of_name(name: str) -> dict[str, Any]:
    """The options that a file name means, nested. Raises: OptionError."""
    if "://" in name.split("?", 1)[0] and name.partition(":")[0] in SCHEMES:
        return _options_of_uri(name)
    place, found, export = name.removeprefix("nbd:").partition(_EXPORT_NAME)
    if (found and not export) or name == "nbd:" or not name.startswith("nbd:"):
        raise OptionError("NBD server address missing", option="server")
    options: dict[str, Any] = {"export": export} if found else {}
    if place.startswith("unix:"):
        return options | {"server": {"type": "unix", "path": place.removeprefix("unix:")}}
    host, colon, port = place.rpartition(":")
    if not colon or not host or not port:
        raise OptionError(f"error parsing address '{place}'", option="server")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return options | {"server": {"type": "inet", "host": host, "port": port}}


def _options_of_uri(name: str) -> dict[str, Any]:
    try:
        uri = NbdUri.parse(name)
    except OptionError as error:
        raise OptionError(f"No valid URL specified: {error}", option="filename") from None
    if unknown := uri.query.keys() - _URI_OPTIONS:
        raise OptionError(f"No valid URL specified: unknown parameter '{min(unknown)}'", option="filename")
    if uri.query.get("tls-type", "x509") != "x509":
        raise NotSupported(f"TLS of the type {uri.query['tls-type']} needs tls-creds")
    options: dict[str, Any] = {"export": uri.export} if uri.export else {}
    if uri.tls:
        options["tls"] = True
        if uri.query.get("tls-verify-peer", "1") not in ("1", "0"):
            raise OptionError("tls-verify-peer in an NBD URI expects 0 or 1", option="filename")
        if uri.query.get("tls-verify-peer") == "0":
            options["tls-verify-peer"] = False
    if "tls-hostname" in uri.query:
        options["tls-hostname"] = uri.query["tls-hostname"]
    if uri.transport == "unix":
        server = {"type": "unix", "path": uri.socket}
    elif uri.transport == "vsock":
        server = {"type": "vsock", "cid": uri.host, "port": str(uri.port)}
    else:
        server = {"type": "inet", "host": uri.host, "port": str(uri.port)}
    return options | {"server": server}


def take_address(options: Options) -> tuple[Address, str]:
    """The address, and the name of the export; `filename`, where there is one, is taken apart first.

    Raises: OptionError.
    """
    name = options.take_str("filename", "")
    if name:
        if taken := {"host", "port", "path"} & _names(options):
            raise OptionError(f"file name and '{min(taken)}' may not be used at the same time", option="filename")
        for key, value in options_of_name(name).items():
            if key not in options:
                options.put(key, value)
    path, host = options.take_str("path", None), options.take_str("host", None)
    port = options.take("port")
    export = options.take_str("export", "")
    if len(export.encode("utf-8", "replace")) > MAX_STRING or "\0" in export:
        raise OptionError("export name too long to send to server", option="export")
    server = options.take("server")
    if path is not None and host is not None:
        raise OptionError("path and host may not be used at the same time", option="path")
    if server is not None and (path is not None or host is not None):
        raise OptionError("'server' and path/host/port may not be used at the same time", option="server")
    if path is not None:
        if port is not None:
            raise OptionError("port may not be used without host", option="port")
        return Address("unix", path=path), export
    if host is not None:
        return Address("inet", host=host, port=str(port if port is not None else DEFAULT_PORT)), export
    if port is not None:
        raise OptionError("port may not be used without host", option="port")
    if server is None:
        raise OptionError("NBD server address missing", option="server")
    if not isinstance(server, Mapping):
        raise OptionError("Parameter 'server' expects server.type and so on", option="server")
    return _server_address(Options(nest(server))), export


def _names(options: Options) -> set[str]:
    return {name for name in ("host", "port", "path") if name in options}


def _server_address(server: Options) -> Address:
    kind = server.take_str("type", None)
    if kind is None:
        raise OptionError("Parameter 'server.type' is missing", option="server.type")
    if kind == "unix":
        path = _needed(server, "path")
        if server.take_bool("abstract", False):
            path = f"\0{path}"
        server.take_bool("tight", True)
        address = Address("unix", path=path)
    elif kind == "inet":
        address = Address("inet", host=_needed(server, "host"), port=_needed(server, "port"))
        for name in ("ipv4", "ipv6", "numeric", "keep-alive", "mptcp"):
            if server.take(name) is not None:
                raise NotSupported(f"server.{name} is not supported")
    elif kind == "vsock":
        address = Address("vsock", host=_needed(server, "cid"), port=_needed(server, "port"))
    elif kind == "fd":
        address = Address("fd", path=_needed(server, "str"))
    else:
        raise OptionError(f"Parameter 'type' does not accept value '{kind}'", option="server.type")
    _refuse(server.leftover())
    return address


def _needed(server: Options, name: str) -> str:
    value = server.take(name)
    if value is None:
        raise OptionError(f"Parameter '{name}' is missing", option=f"server.{name}")
    return str(value)


def _refuse(unknown: "Iterable[str]") -> None:
    for name in unknown:
        raise OptionError(f"Block protocol 'nbd' doesn't support the option 'server.{name}'", option=f"server.{name}")

"""TLS credentials: certificates or shared keys, which options name by an id; the files are those that QEMU takes.

A directory holds, in PEM: `ca-cert.pem`, `ca-crl.pem` (if lists of revoked certificates are wanted), and for each end
`server-cert.pem` with `server-key.pem`, `client-cert.pem` with `client-key.pem`. For shared keys: `keys.psk`, lines of
`user:hexadecimal key`.
"""

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError, message_of
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.secrets import Secret

if TYPE_CHECKING:
    import ssl

    from aioblock.base.options import Options

__all__ = ["TlsCredentials", "TlsPsk", "TlsX509", "find_tls_credentials"]

_ENDPOINTS: Final = ("client", "server")
_PROPERTIES: Final = {
    "dir": "string",
    "endpoint": "QCryptoTLSCredsEndpoint",
    "priority": "string",
    "verify-peer": "bool",
}
_PSK_CIPHERS: Final = "DHE-PSK-AES256-GCM-SHA384:ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:@SECLEVEL=2"


class TlsCredentials(NamedObject):
    """What one end of a TLS connection shows, and what it asks of the other end."""

    def __init__(self, endpoint: str, directory: str, *, verify_peer: bool = True) -> None:
        self.endpoint = endpoint
        """ "client" or "server"."""
        self.directory = directory
        self.verify_peer = verify_peer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint} {self.directory}>"

    @abstractmethod
    def ssl_context(self) -> "ssl.SSLContext":
        """A context for this endpoint. Reads the files, and blocks meanwhile. A client's checks the host's name.

        Raises: OptionError where a file cannot be used; NotSupported where this Python cannot do it.
        """

    @classmethod
    def _endpoint(cls, properties: "Options") -> tuple[str, str, bool]:
        """The properties that all kinds have: endpoint, directory, verify-peer. Raises: OptionError, NotSupported."""
        endpoint = properties.take_str("endpoint", "client")
        if endpoint not in _ENDPOINTS:
            raise OptionError(f"Parameter 'endpoint' does not accept value '{endpoint}'", option="endpoint")
        verify_peer = properties.take_bool("verify-peer", True)
        if properties.take_str("priority", None) is not None:
            raise NotSupported("TLS priority strings are those of GnuTLS, which is not used here")
        directory = properties.take_str("dir", None)
        if directory is None:
            raise OptionError("Missing 'dir' property value", option="dir")
        return endpoint, directory, verify_peer

    def _file(self, name: str) -> str:
        """The path of a file that must be there. Raises: OptionError."""
        path = os.path.join(self.directory, name)
        try:
            os.stat(path)
        except OSError as error:
            raise OptionError(f"Unable to access credentials {path}: {message_of(error)}", option="dir") from None
        return path


def _new_context(endpoint: str) -> "ssl.SSLContext":
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if endpoint == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsX509(TlsCredentials):
    """X.509 certificates. A server that verifies its peers wants a certificate of each client."""

    type_name: ClassVar[str] = "tls-creds-x509"
    properties: ClassVar[Mapping[str, str]] = {**_PROPERTIES, "passwordid": "string", "sanity-check": "bool"}

    def __init__(
        self, endpoint: str, directory: str, *, verify_peer: bool = True, password: Secret | None = None
    ) -> None:
        super().__init__(endpoint, directory, verify_peer=verify_peer)
        self.password = password
        """What the private key is encrypted with."""

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """From the properties of QEMU's object of this name; `sanity-check` is taken and has no effect.

        Raises: OptionError, NotSupported.
        """
        properties.take_bool("sanity-check", True)
        password_id = properties.take_str("passwordid", None)
        password = find_object(objects, password_id, Secret) if password_id is not None else None
        endpoint, directory, verify_peer = cls._endpoint(properties)
        made = cls(endpoint, directory, verify_peer=verify_peer, password=password)
        made.ssl_context()  # what is wrong with the files is said now
        return made

    def ssl_context(self) -> "ssl.SSLContext":
        """See `TlsCredentials.ssl_context`."""
        import ssl

        context = _new_context(self.endpoint)
        ca = None
        if self.endpoint == "client" or self.verify_peer or os.path.exists(os.path.join(self.directory, "ca-cert.pem")):
            ca = self._file("ca-cert.pem")
        cert_name, key_name = f"{self.endpoint}-cert.pem", f"{self.endpoint}-key.pem"
        has_cert = self.endpoint == "server" or os.path.exists(os.path.join(self.directory, cert_name))
        try:
            if ca is not None:
                context.load_verify_locations(ca)
            if os.path.exists(revoked := os.path.join(self.directory, "ca-crl.pem")):
                context.load_verify_locations(revoked)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            if has_cert:
                password: Any = self.password.passphrase() if self.password is not None else _no_password
                context.load_cert_chain(self._file(cert_name), self._file(key_name), password)
        except OSError as error:  # SSLError is one
            raise OptionError(
                f"Unable to load TLS credentials from {self.directory}: {message_of(error)}", option="dir"
            ) from None
        if not self.verify_peer:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _no_password() -> bytes:
    """Asked for the password of a key that is encrypted: without this, OpenSSL would ask at the terminal."""
    return b""


class TlsPsk(TlsCredentials):
    """Keys that both ends know, by the name of the user. Needs Python 3.13."""

    type_name: ClassVar[str] = "tls-creds-psk"
    properties: ClassVar[Mapping[str, str]] = {**_PROPERTIES, "username": "string"}

    def __init__(self, endpoint: str, directory: str, *, user: str = "qemu") -> None:
        super().__init__(endpoint, directory)
        self.user = user
        """As whom a client comes."""
        self._keys: dict[str, bytes] = {}

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """From the properties of QEMU's object of this name; reads the keys. Raises: OptionError, NotSupported."""
        user = properties.take_str("username", "qemu")
        endpoint, directory, _ = cls._endpoint(properties)
        made = cls(endpoint, directory, user=user)
        made.ssl_context()
        return made

    def ssl_context(self) -> "ssl.SSLContext":
        """See `TlsCredentials.ssl_context`. Keys can be used with TLS 1.2 only."""
        import ssl

        self._keys = _read_keys(self._file("keys.psk"))
        if self.endpoint == "client" and self.user not in self._keys:
            raise OptionError(f"User '{self.user}' is not in {self.directory}/keys.psk", option="username")
        context = _new_context(self.endpoint)
        psk: Any = context  # its two methods came with Python 3.13
        if not hasattr(psk, "set_psk_server_callback"):
            raise NotSupported("TLS with shared keys (tls-creds-psk) needs Python 3.13 or later")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers(_PSK_CIPHERS)
        if self.endpoint == "server":
            psk.set_psk_server_callback(lambda user: self._keys.get(user or "", b""))
        else:
            psk.set_psk_client_callback(lambda hint: (self.user, self._keys[self.user]))
        return context


def _read_keys(path: str) -> dict[str, bytes]:
    """The keys by user. Raises: OptionError."""
    keys, number = {}, 0
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                number += 1
                user, colon, key = line.strip().rpartition(":")
                if line.strip():
                    keys[user] = bytes.fromhex(key)
                    if not colon or not key:
                        raise ValueError
    except OSError as error:
        raise OptionError(f"Unable to access credentials {path}: {message_of(error)}", option="dir") from None
    except ValueError:
        raise OptionError(f"{path}: line {number} is not of the form user:hexadecimal key", option="dir") from None
    return keys


def find_tls_credentials(objects: Mapping[str, NamedObject], id: str, endpoint: str) -> TlsCredentials:
    """The credentials of that id, for that endpoint. Raises: OptionError."""
    found = objects.get(id)
    if found is None:
        raise OptionError(f"No TLS credentials with id '{id}'", option="tls-creds")
    if not isinstance(found, TlsCredentials):
        raise OptionError(f"Object with id '{id}' is not TLS credentials", option="tls-creds")
    if found.endpoint != endpoint:
        raise OptionError(f"Expecting TLS credentials with a {endpoint} endpoint", option="tls-creds")
    return found

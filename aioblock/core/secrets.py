"""Secrets: passphrases and keys, which options name by an id, so that they stand in no option themselves."""

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Self

from aioblock.base.errors import OptionError, message_of
from aioblock.base.extras import need_cryptography
from aioblock.core.objects import NamedObject, find_object

if TYPE_CHECKING:
    from aioblock.base.options import Options

__all__ = ["Secret"]

_KEY_BYTES: Final = 32
_BLOCK: Final = 16
_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


class Secret(NamedObject):
    """Some bytes that nobody else should see; they are in no `repr` and no message."""

    type_name: ClassVar[str] = "secret"
    properties: ClassVar[Mapping[str, str]] = {
        "data": "string",
        "file": "string",
        "format": "QCryptoSecretFormat",
        "iv": "string",
        "keyid": "string",
    }

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)

    def __repr__(self) -> str:
        return "<Secret>"

    def passphrase(self) -> bytes:
        """The bytes, which must be text. Raises: OptionError."""
        try:
            self.data.decode()
        except UnicodeDecodeError:
            raise OptionError(f"Data from secret {self.id} is not valid UTF-8") from None
        return self.data

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """`data` or `file`, in `format` raw or base64; encrypted (AES-256-CBC) where `keyid` names a secret, with `iv`.

        Without `keyid` the format is only that of the storage: it is undone here. Raises: OptionError; NotSupported
        where the package `cryptography` is needed and missing.
        """
        data, file = properties.take_str("data", None), properties.take_str("file", None)
        form = properties.take_str("format", "raw")
        key_id, vector = properties.take_str("keyid", None), properties.take_str("iv", None)
        if form not in ("raw", "base64"):
            raise OptionError(f"Parameter 'format' does not accept value '{form}'", option="format")
        if file is not None:
            if data is not None:
                raise OptionError("'file' and 'data' are mutually exclusive")
            content = _read(file)
        elif data is not None:
            content = data.encode("utf-8", "surrogateescape")
        else:
            raise OptionError("Either 'file' or 'data' must be provided")
        if form == "base64":
            content = _from_base64(content)
        if key_id is not None:
            content = _decrypt(content, find_object(objects, key_id, Secret).data, vector)
        return cls(content)


def _read(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise OptionError(f"Unable to read {name}: Failed to open file “{name}”: {message_of(error)}") from None


def _from_base64(text: bytes) -> bytes:
    """Raises: OptionError. An incomplete group at the end is refused, where QEMU leaves it out without a word."""
    if not _BASE64.issuperset(text):
        raise OptionError("Base64 data contains invalid characters")
    try:
        return base64.b64decode(text)
    except ValueError:
        raise OptionError("Base64 data is incomplete") from None


def _decrypt(data: bytes, key: bytes, vector: str | None) -> bytes:
    if len(key) != _KEY_BYTES:
        raise OptionError(f"Key should be {_KEY_BYTES} bytes in length")
    if vector is None:
        raise OptionError("IV is required to decrypt secret")
    iv = _from_base64(vector.encode("utf-8", "surrogateescape"))
    if len(iv) != _BLOCK:
        raise OptionError(f"IV should be {_BLOCK} bytes in length not {len(iv)}")
    if not data or len(data) % _BLOCK:
        raise OptionError(f"Length {len(data)} must be a multiple of block size {_BLOCK}")
    need_cryptography()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    plain = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor().update(data)
    padding = plain[-1]
    if not 1 <= padding <= _BLOCK or plain[-padding:] != bytes([padding]) * padding:
        raise OptionError(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
    return plain[:-padding]

"""Secrets: where they come from, what keeps them from being shown, and what is no secret."""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.options import Options
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.secrets import Secret


def define(objects: dict[str, NamedObject] | None = None, **properties: Any) -> bytes:
    reader = Options(properties)
    made = Secret.define(reader, objects or {})
    assert not reader.leftover()
    return made.data


def test_data_and_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"from a file\n")
    assert define(data="pass") == b"pass"
    assert define(data="", format="raw") == b""
    assert define(file=str(file)) == b"from a file\n"
    assert define(data="cGFzcw==", format="base64") == b"pass"
    file.write_bytes(b"cGFz\ncw==\n")
    assert define(file=str(file), format="base64") == b"pass"


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "Either 'file' or 'data' must be provided"),
        ({"data": "a", "file": "b"}, "'file' and 'data' are mutually exclusive"),
        ({"data": "a", "format": "hex"}, "Parameter 'format' does not accept value 'hex'"),
        ({"data": 5}, "Parameter 'data' expects a string"),
        ({"data": "eA =", "format": "base64"}, "Base64 data contains invalid characters"),
        ({"data": "eA", "format": "base64"}, "Base64 data is incomplete"),
        ({"file": "/nowhere"}, "Unable to read /nowhere: Failed to open file “/nowhere”: No such file or directory"),
        ({"data": "x", "keyid": "none", "iv": "AAAA"}, "No secret with id 'none'"),
    ],
)
def test_a_wrong_definition(properties: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        define(**properties)
    assert str(caught.value) == message


KEY, IV = bytes(range(32)), bytes(range(16))
KEYS: dict[str, NamedObject] = {"key": Secret(KEY), "short": Secret(b"x")}


def encrypted(text: bytes, padding: int | None = None) -> str:
    count = 16 - len(text) % 16
    padded = text + bytes([count if padding is None else padding]) * count
    data = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor().update(padded)
    return base64.b64encode(data).decode()


def test_an_encrypted_one() -> None:
    how = {"format": "base64", "keyid": "key", "iv": base64.b64encode(IV).decode()}
    for text in (b"pass", b"", b"sixteen bytes ab", os.urandom(50)):
        assert define(KEYS, data=encrypted(text), **how) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keyid": "short"}, "Key should be 32 bytes in length"),
        ({"iv": None}, "IV is required to decrypt secret"),
        ({"iv": "AAAA"}, "IV should be 16 bytes in length not 3"),
        ({"data": "AAAA"}, "Length 3 must be a multiple of block size 16"),
        ({"data": ""}, "Length 0 must be a multiple of block size 16"),
        ({"data": encrypted(b"pass", padding=0)}, r"Incorrect number of padding bytes .0. found on decrypted data"),
        ({"data": encrypted(b"pass", padding=200)}, r"Incorrect number of padding bytes .200. found"),
        ({"data": encrypted(b"pass", padding=15)}, r"Incorrect number of padding bytes .15. found"),
    ],
)
def test_an_encrypted_one_that_is_wrong(changes: dict[str, Any], message: str) -> None:
    how = {"data": encrypted(b"pass"), "format": "base64", "keyid": "key", "iv": base64.b64encode(IV).decode()}
    given = {name: value for name, value in (how | changes).items() if value is not None}
    with pytest.raises(OptionError, match=message):
        define(KEYS, **given)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    how = {"format": "base64", "keyid": "key", "iv": base64.b64encode(IV).decode()}
    with pytest.raises(NotSupported, match=r"pip install aioblock\[crypto\]"):
        define(KEYS, data=encrypted(b"pass"), **how)
    assert define(data="pass") == b"pass"


def test_it_is_not_shown() -> None:
    assert "hush" not in repr(Secret(b"hush")) + str(Secret(b"hush"))


def test_a_passphrase_is_text() -> None:
    assert Secret("größe".encode()).passphrase() == "größe".encode()
    bad = Secret(b"a\xffb")
    bad.id = "sec0"
    with pytest.raises(OptionError, match="Data from secret sec0 is not valid UTF-8"):
        bad.passphrase()


def test_what_is_found_is_of_the_kind_that_was_asked_for() -> None:
    class Other(Secret):
        type_name = "other"

    objects: dict[str, NamedObject] = {"a": Secret(b"x")}
    assert find_object(objects, "a", Secret) is objects["a"]
    with pytest.raises(OptionError, match="No secret with id 'b'"):
        find_object(objects, "b", Secret)
    with pytest.raises(OptionError, match="Object with id 'a' is not a other"):
        find_object(objects, "a", Other)

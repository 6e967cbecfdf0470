"""Encrypted images: one passphrase, and the options in which each format takes it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .failures import Failure
from .format_choice import creatable, format_names

if TYPE_CHECKING:
    from aioblock import CreateOption, NamedObject

__all__ = ["encrypt", "with_key"]

_ID = "key"
"""By which options refer to the passphrase."""


def _option(format: str) -> str:
    return "key-secret" if format == "luks" else "encrypt.key-secret"


def with_key(format: str, key: bytes) -> dict[str, Any]:
    """The arguments of `aioblock.open` by which an encrypted image of a format is opened with a passphrase."""
    import aioblock

    return {"options": {_option(format): _ID}, "objects": {_ID: aioblock.Secret(key)}}


def encrypt(
    format: str, known: "tuple[CreateOption, ...]", values: dict[str, Any], key: bytes | None
) -> "Mapping[str, NamedObject]":
    """Let options of a new image say that it is encrypted, unless there is no key; returns the objects they refer to.

    Raises: Failure where the format has no encryption.
    """
    if key is None:
        return {}
    import aioblock

    if not any(option.name == _option(format) for option in known):
        others = [
            name
            for name in format_names()
            if creatable(name) and any(option.name == _option(name) for option in aioblock.create_options(name))
        ]
        raise Failure(f"Format '{format}' has no encryption", hint=f"These have: {', '.join(others)}.")
    values[_option(format)] = _ID
    if format != "luks":
        values.setdefault("encrypt.format", "luks")
    return {_ID: aioblock.Secret(key)}

"""The options of `create` and `amend`, apart from them: every program that guesses a format loads the drivers."""

from typing import Final

from aioblock.core.images import CreateOption
from aioblock.core.secrets import Secret

__all__ = ["AMEND_OPTIONS", "CREATE_OPTIONS", "prefixed"]

_ITER_TIME: Final = CreateOption("iter-time", "int", "Time to spend in PBKDF in milliseconds")

CREATE_OPTIONS: Final = (
    CreateOption("key-secret", "str", "ID of the secret that provides the keyslot passphrase", names=Secret),
    CreateOption("cipher-alg", "str", "Name of encryption cipher algorithm"),
    CreateOption("cipher-mode", "str", "Name of encryption cipher mode"),
    CreateOption("ivgen-alg", "str", "Name of IV generator algorithm"),
    CreateOption("ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    CreateOption("hash-alg", "str", "Name of encryption hash algorithm"),
    _ITER_TIME,
)
"""The options of a new volume, in the order in which `qemu-img create` shows them."""

AMEND_OPTIONS: Final = (
    CreateOption("state", "str", "Select new state of affected keyslots (active/inactive)"),
    CreateOption("keyslot", "int", "Select a single keyslot to modify explicitly"),
    CreateOption("old-secret", "str", "Select all keyslots that match this password", names=Secret),
    CreateOption(
        "new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase", names=Secret
    ),
    _ITER_TIME,
)


def prefixed(options: tuple[CreateOption, ...]) -> tuple[CreateOption, ...]:
    """The same of a format that may hold a volume, where their names begin with `encrypt.`."""
    return tuple(option._replace(name=f"encrypt.{option.name}") for option in options)

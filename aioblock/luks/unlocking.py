"""What it takes to open an encrypted image: the passphrase that the options name, and how long to try it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from aioblock.base.errors import OptionError
from aioblock.base.extras import need_cryptography
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.secrets import Secret

if TYPE_CHECKING:
    from aioblock.base.options import Options

__all__ = ["MAX_ITERATIONS", "Unlocking"]

MAX_ITERATIONS: Final = 1 << 28
"""Iterations that one passphrase may cost, all slots together, unless the caller allows more: about a minute."""


@dataclass(frozen=True, slots=True)
class Unlocking:
    """A passphrase, and how many iterations of PBKDF2 it may cost to try it on all slots."""

    passphrase: bytes
    max_iterations: int = MAX_ITERATIONS

    @classmethod
    def take(cls, options: "Options", objects: Mapping[str, NamedObject], prefix: str = "") -> Self:
        """Take `key-secret` and `max-iterations`; the prefix is for messages.

        Raises: OptionError; NotSupported where the package `cryptography` is missing.
        """
        secret_id = options.take_str("key-secret", None)
        limit = options.take_int("max-iterations", MAX_ITERATIONS)
        if secret_id is None:
            raise OptionError(f"Parameter '{prefix}key-secret' is required for cipher", option=f"{prefix}key-secret")
        passphrase = find_object(objects, secret_id, Secret).passphrase()
        need_cryptography()
        return cls(passphrase, limit)

    @staticmethod
    def leave(options: "Options") -> None:
        """Take the same options where nothing is to be unlocked."""
        options.take("key-secret")
        options.take("max-iterations")

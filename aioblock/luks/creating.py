"""A new volume: its options, a fresh key, the first slot."""

import asyncio
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.extras import need_cryptography
from aioblock.core.secrets import Secret
from aioblock.luks.ciphers import CIPHERS, IV_GENERATORS, MODES, SECTOR, SectorCipher, key_bytes
from aioblock.luks.header import SLOTS, Header, KeySlot, material_bytes
from aioblock.luks.kdf import HASH_NAMES, MIN_ITERATIONS, calibrated, check_hash, pbkdf2
from aioblock.luks.volume import seal

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["NewVolume", "Parameters", "take_parameters"]

OTHER_CIPHERS: Final = (
    "des", "3des", "cast5-128", "serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192",
    "twofish-256",
)  # fmt: skip
"""What QEMU knows by name, and no package that we use has."""

DEFAULT_ITER_TIME: Final = 2000
KEY_ALIGNMENT: Final = 4096
"""Of key material, as every program does it: 4 KiB sectors of a disk hold no two slots."""
DIGEST_SHARE: Final = 8
"""The digest of the key gets that part of the time: nobody guesses at a key of 128 bits and more."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How a new volume shall be made. `iter_time`: milliseconds of CPU time that one guess at a passphrase takes."""

    passphrase: bytes
    cipher: str
    mode: str
    iv_generator: str
    iv_hash: str | None
    hash: str
    iter_time: int

    @property
    def key_bytes(self) -> int:
        """Bytes of the volume key."""
        return key_bytes(self.cipher, self.mode)

    @property
    def material_stride(self) -> int:
        """Bytes from the key material of one slot to that of the next."""
        return -(-material_bytes(self.key_bytes) // KEY_ALIGNMENT) * KEY_ALIGNMENT

    @property
    def payload_offset(self) -> int:
        """Bytes of the header with all key material."""
        return KEY_ALIGNMENT + SLOTS * self.material_stride


def take_parameters(options: Mapping[str, Any], prefix: str = "") -> Parameters:
    """What the options of `create` ask for; each is named with the prefix. Raises: OptionError, NotSupported."""
    secret: Secret | None = options.get(f"{prefix}key-secret")
    if secret is None:
        raise OptionError(f"Parameter '{prefix}key-secret' is required for cipher", option=f"{prefix}key-secret")
    need_cryptography()
    cipher = _choice(options, prefix, "cipher-alg", (*CIPHERS, *OTHER_CIPHERS), "aes-256")
    if cipher not in CIPHERS:
        raise NotSupported(f"Algorithm '{cipher}' not supported")
    mode = _choice(options, prefix, "cipher-mode", MODES, "xts")
    generator = _choice(options, prefix, "ivgen-alg", IV_GENERATORS, "plain64")
    iv_hash = _choice(options, prefix, "ivgen-hash-alg", HASH_NAMES, "sha256" if generator == "essiv" else None)
    hash_name = _choice(options, prefix, "hash-alg", HASH_NAMES, "sha256")
    check_hash(hash_name)
    if iv_hash is not None:
        check_hash(iv_hash)
    SectorCipher(bytes(key_bytes(cipher, mode)), mode, generator, iv_hash)  # whether there is such a combination
    passphrase = secret.passphrase()
    return Parameters(
        passphrase, cipher, mode, generator, iv_hash, hash_name, take_iter_time(options, f"{prefix}iter-time")
    )


def take_iter_time(options: Mapping[str, Any], name: str) -> int:
    """Milliseconds of CPU time. Raises: OptionError."""
    value: int = options.get(name, DEFAULT_ITER_TIME)
    if not 0 < value < 1 << 32:
        raise OptionError(f"Parameter '{name}' expects a number of milliseconds above 0", option=name)
    return value


def _choice(options: Mapping[str, Any], prefix: str, name: str, choices: tuple[str, ...], default: Any) -> Any:
    value = options.get(prefix + name, default)
    if value is not default and value not in choices:
        raise OptionError(f"Parameter '{name}' does not accept value '{value}'", option=prefix + name)
    return value


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that is written nowhere yet: its header, the key material of its first slot, its key."""

    header: Header
    material: bytes
    key: bytes

    @classmethod
    async def make(cls, parameters: Parameters) -> "NewVolume":
        """Make one with a new key. Takes the iteration time and more, in a thread. Raises: NotSupported."""
        return await asyncio.to_thread(_make, parameters)

    async def write_material(self, file: "BlockIO", offset: int) -> None:
        """Write everything but the header, for which the caller waits until this is stable. Raises: OSError."""
        await file.pwrite(offset + self.header.slots[0].offset, self.material)

    async def write_header(self, file: "BlockIO", offset: int) -> None:
        """Write the header, which makes it a volume. Raises: OSError."""
        await file.pwrite(offset, self.header.serialise().ljust(2 * SECTOR, b"\0"))


def _make(parameters: Parameters) -> NewVolume:
    seconds = parameters.iter_time / 1000
    key, salt = os.urandom(parameters.key_bytes), os.urandom(32)
    iterations = max(calibrated(parameters.hash, 20, seconds) // DIGEST_SHARE, MIN_ITERATIONS)
    header = Header(
        parameters.cipher,
        parameters.mode,
        parameters.iv_generator,
        parameters.iv_hash,
        parameters.hash,
        parameters.payload_offset,
        len(key),
        pbkdf2(parameters.hash, key, salt, iterations, 20),
        salt,
        iterations,
        str(uuid.uuid4()),
        [KeySlot(False, 0, bytes(32), KEY_ALIGNMENT + number * parameters.material_stride) for number in range(SLOTS)],
    )
    slot, material = seal(header, header.slots[0].offset, key, parameters.passphrase, seconds)
    header.slots[0] = slot
    return NewVolume(replace(header), material, key)

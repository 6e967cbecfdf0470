"""Sector ciphers: AES over sectors of 512 bytes, in the modes and with the IVs that LUKS names.

Every mode is built from AES on single blocks, over all blocks of a request at once: the package that does AES would
have to be called anew for each sector, which takes longer than the encryption itself.

    xts   C = E1(P ^ T) ^ T, the tweak T of block j being E2(IV) * a^j in GF(2^128)   (IEEE 1619)
    cbc   C = E(P ^ the C before it), the first with the IV
    ctr   C = P ^ E(IV + j)
    ecb   C = E(P)

The IV of a sector: `plain64` its number, 64 bits, little-endian; `plain` its lower 32 bits; `essiv` the number
encrypted with the hash of the key.
"""

import hashlib
import sys
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported
from aioblock.base.extras import need_cryptography

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

__all__ = ["CIPHERS", "IV_GENERATORS", "MODES", "SECTOR", "SectorCipher", "key_bytes"]

SECTOR: Final = 512
BLOCK: Final = 16
BLOCKS: Final = SECTOR // BLOCK

CIPHERS: Final = {"aes-128": 16, "aes-192": 24, "aes-256": 32}
"""The ciphers, and the bytes of a key."""
MODES: Final = ("cbc", "ctr", "ecb", "xts")
IV_GENERATORS: Final = ("essiv", "plain", "plain64")

FEW_SECTORS: Final = 8
"""Up to here xts, and encryption in cbc, are quicker sector by sector: 15 us each, where an array costs 150 or more."""

_LITTLE: Final = sys.byteorder == "little"


def key_bytes(cipher: str, mode: str) -> int:
    """Bytes of the key of a cipher in a mode: xts takes two keys."""
    return CIPHERS[cipher] * (2 if mode == "xts" else 1)


class SectorCipher:
    """Encrypts and decrypts whole sectors with one key. It has no state, so that any thread may use it."""

    def __init__(self, key: bytes, mode: str, iv_generator: str, iv_hash: str | None = None) -> None:
        """`key`: as many bytes as `key_bytes` says. `iv_hash`: with essiv. Raises: NotSupported."""
        need_cryptography()
        import numpy  # noqa: F401  here, because it takes long to load: not within the first request
        from cryptography.hazmat.primitives.ciphers import algorithms

        if mode not in MODES or iv_generator not in IV_GENERATORS:
            raise NotSupported(f"Encryption with '{mode}-{iv_generator}' is not supported")
        self._mode = mode
        self._iv_generator = iv_generator
        half = len(key) // 2 if mode == "xts" else len(key)
        self._aes = algorithms.AES(key[:half])
        self._tweak_aes = algorithms.AES(key[half:]) if mode == "xts" else None
        # The same as a whole, where the package has it: it knows no xts with AES-192.
        self._few = algorithms.AES(key) if mode == "cbc" or (mode == "xts" and len(key) in (32, 64)) else None
        self._essiv_aes = None
        if iv_generator == "essiv":
            digest = hashlib.new(iv_hash or "sha256", key).digest()
            if len(digest) not in CIPHERS.values():
                raise NotSupported(f"No AES cipher with key size {len(digest)} available")
            self._essiv_aes = algorithms.AES(digest)

    def __repr__(self) -> str:
        return f"<SectorCipher aes-{self._aes.key_size}-{self._mode}-{self._iv_generator}>"

    def encrypt(self, sector: int, data: memoryview | bytes) -> bytearray:
        """The encrypted sectors of `data`, the first of which has the number `sector`."""
        result = bytearray(data)
        self._transform(sector, result, encrypt=True)
        return result

    def decrypt_in_place(self, sector: int, data: memoryview | bytearray) -> None:
        """Decrypt the sectors in `data`, the first of which has the number `sector`."""
        self._transform(sector, data, encrypt=False)

    # -- modes -------------------------------------------------------------------------------------------------------

    def _transform(self, sector: int, data: memoryview | bytearray, *, encrypt: bool) -> None:
        import numpy as np

        if len(data) % SECTOR:
            raise ValueError("not whole sectors")
        if not len(data):
            return
        blocks = np.frombuffer(data, np.uint64).reshape(-1, BLOCKS, 2)
        if len(blocks) <= FEW_SECTORS and (self._few is not None) and (encrypt or self._mode == "xts"):
            self._one_by_one(memoryview(data), self._ivs(sector, len(blocks)), encrypt)
            return
        if self._mode == "ecb":
            blocks[:] = _aes(self._aes, blocks, encrypt)
            return
        ivs = self._ivs(sector, len(blocks))
        if self._mode == "xts":
            tweaks = _xts_tweaks(_aes(self._tweak_aes, ivs, True))
            blocks ^= tweaks
            np.bitwise_xor(_aes(self._aes, blocks, encrypt), tweaks, out=blocks)
        elif self._mode == "ctr":
            blocks ^= _aes(self._aes, _counters(ivs), True)
        elif encrypt:
            before = ivs
            for number in range(BLOCKS):  # each needs the one before it, but all sectors go at the same time
                before = _aes(self._aes, blocks[:, number] ^ before, True)
                blocks[:, number] = before
        else:
            plain = _aes(self._aes, blocks, False)
            plain[:, 1:] ^= blocks[:, :-1]
            plain[:, 0] ^= ivs
            blocks[:] = plain

    def _one_by_one(self, data: memoryview, ivs: "Words", encrypt: bool) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        assert self._few is not None
        make = modes.XTS if self._mode == "xts" else modes.CBC
        for number, iv in enumerate(ivs):
            cipher = Cipher(self._few, make(iv.tobytes()))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            part = data[number * SECTOR : (number + 1) * SECTOR]
            part[:] = context.update(part)

    def _ivs(self, sector: int, count: int) -> "Words":
        import numpy as np

        ivs = np.zeros((count, 2), "<u8")
        ivs[:, 0] = np.arange(sector, sector + count, dtype=np.uint64)
        if self._iv_generator == "plain":
            ivs[:, 0] &= 0xFFFFFFFF
        words: Words = ivs.view(np.uint64)
        return words if self._essiv_aes is None else _aes(self._essiv_aes, words, True)


def _aes(algorithm: Any, blocks: "Words", encrypt: bool) -> "Words":
    """Every block of 16 bytes by itself, in an array of the same shape."""
    import numpy as np
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    cipher = Cipher(algorithm, modes.ECB())  # nothing here is secret that this mode would show: see the module
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    source = np.ascontiguousarray(blocks)
    result = np.empty(source.nbytes + BLOCK, np.uint8)
    context.update_into(source.data.cast("B"), result.data)
    return result[: source.nbytes].view(np.uint64).reshape(source.shape)


def _xts_tweaks(first: "Words") -> "Words":
    """The tweaks of all blocks, from those of the first block of each sector.

    They are doubled in number five times: the first 2^k of a sector, times a^(2^k), are the next 2^k.
    """
    import numpy as np

    tweaks = np.empty((len(first), BLOCKS, 2), np.uint64)
    tweaks[:, 0] = first if _LITTLE else first.byteswap()
    have = 1
    while have < BLOCKS:
        shift, back = np.uint64(have), np.uint64(64 - have)
        low, high = tweaks[:, :have, 0], tweaks[:, :have, 1]
        over = high >> back  # what leaves at the top comes back as that times x^7 + x^2 + x + 1
        reduced = over ^ over << np.uint64(1) ^ over << np.uint64(2) ^ over << np.uint64(7)
        tweaks[:, have : 2 * have, 0] = low << shift ^ reduced
        tweaks[:, have : 2 * have, 1] = high << shift ^ low >> back
        have *= 2
    return tweaks if _LITTLE else tweaks.byteswap()


def _counters(ivs: "Words") -> "Words":
    """The counters of all blocks: the IV of the sector, as a big-endian number, plus the number of the block."""
    import numpy as np

    start = ivs.view(">u8").astype(np.uint64)
    counters = np.empty((len(ivs), BLOCKS, 2), np.uint64)
    counters[:, :, 1] = start[:, None, 1] + np.arange(BLOCKS, dtype=np.uint64)
    counters[:, :, 0] = start[:, None, 0] + (counters[:, :, 1] < start[:, None, 1])
    return counters.astype(">u8").view(np.uint64)

"""Sector ciphers: against the modes of the package that does AES, sector by sector, and against known answers."""

import hashlib
import random
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from aioblock.base.errors import NotSupported
from aioblock.luks.ciphers import CIPHERS, FEW_SECTORS, MODES, SectorCipher, _counters, key_bytes

SECTORS = [0, 5, (1 << 32) - 2, (1 << 56) - 1, (1 << 63) // 512]


def reference(key: bytes, mode: str, iv: bytes, data: bytes) -> bytes:
    """One sector, encrypted by the package's own mode."""
    kinds: dict[str, Any] = {"cbc": modes.CBC, "ctr": modes.CTR, "xts": modes.XTS}
    made: Any = Cipher(algorithms.AES(key), kinds[mode](iv) if mode in kinds else modes.ECB())
    encrypted: bytes = made.encryptor().update(data)
    return encrypted


@pytest.mark.parametrize("count", [1, 3, FEW_SECTORS, FEW_SECTORS + 1, 130])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CIPHERS)
def test_as_the_package_does_it(name: str, mode: str, count: int) -> None:
    rng = random.Random(count)
    key, data = rng.randbytes(key_bytes(name, mode)), rng.randbytes(512 * count)
    cipher = SectorCipher(key, mode, "plain64")
    for first in SECTORS:
        encrypted = cipher.encrypt(first, data)
        if (name, mode) != ("aes-192", "xts"):  # the package has no such mode
            for number in range(count):
                part = slice(512 * number, 512 * number + 512)
                assert encrypted[part] == reference(key, mode, (first + number).to_bytes(16, "little"), data[part])
        assert mode == "ecb" or count == 1 or encrypted[:512] != encrypted[512:1024]
        cipher.decrypt_in_place(first, encrypted)
        assert encrypted == data


def test_few_sectors_and_many_are_the_same() -> None:
    rng = random.Random(1)
    for mode in MODES:
        for name in CIPHERS:
            cipher = SectorCipher(rng.randbytes(key_bytes(name, mode)), mode, "plain64")
            data = rng.randbytes(512 * 40)
            whole = cipher.encrypt(7, data)
            assert whole == b"".join(cipher.encrypt(7 + n, data[512 * n : 512 * n + 512]) for n in range(40))


def test_known_answer_of_xts() -> None:
    # IEEE 1619-2007, vector 10: AES-256, data unit 0xff, 512 bytes 00 01 .. ff 00 .. ff
    key = bytes.fromhex(
        "2718281828459045235360287471352662497757247093699959574966967627"
        "3141592653589793238462643383279502884197169399375105820974944592"
    )
    encrypted = SectorCipher(key, "xts", "plain64").encrypt(0xFF, bytes(range(256)) * 2)
    assert encrypted[:32].hex() == "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"


def test_plain_has_32_bits() -> None:
    cipher = SectorCipher(bytes(32), "cbc", "plain")
    data = bytes(1024)
    assert cipher.encrypt(1 << 32, data) == cipher.encrypt(0, data)
    assert SectorCipher(bytes(32), "cbc", "plain64").encrypt(1 << 32, data) != cipher.encrypt(0, data)


def test_essiv_encrypts_the_number_with_the_hash_of_the_key() -> None:
    key = bytes(range(16))
    digest = hashlib.sha256(key).digest()
    iv = Cipher(algorithms.AES(digest), modes.ECB()).encryptor().update((9).to_bytes(16, "little"))
    data = random.Random(2).randbytes(512)
    for mode in ("cbc", "ctr"):
        assert SectorCipher(key, mode, "essiv", "sha256").encrypt(9, data) == reference(key, mode, iv, data)


def test_counters_carry_into_the_upper_half() -> None:
    start = [(5 << 64) - 3, 7, (1 << 128) - 31, (1 << 128) - 1]
    ivs = np.frombuffer(b"".join(number.to_bytes(16, "big") for number in start), np.uint64).reshape(-1, 2)
    counters = _counters(ivs).tobytes()
    expected = [(number + block) % (1 << 128) for number in start for block in range(32)]
    assert counters == b"".join(number.to_bytes(16, "big") for number in expected)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        SectorCipher(bytes(32), "cbc", "plain64").encrypt(0, bytes(100))
    with pytest.raises(NotSupported, match="lrw-plain64"):
        SectorCipher(bytes(32), "lrw", "plain64")
    with pytest.raises(NotSupported, match="No AES cipher with key size 20 available"):
        SectorCipher(bytes(32), "cbc", "essiv", "sha1")


def test_nothing_is_nothing() -> None:
    assert SectorCipher(bytes(32), "cbc", "plain64").encrypt(0, b"") == b""


def test_the_key_is_not_shown() -> None:
    assert repr(SectorCipher(b"k" * 32, "cbc", "plain64")) == "<SectorCipher aes-256-cbc-plain64>"

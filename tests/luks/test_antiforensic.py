"""The anti-forensic split: put together it gives the key; with one bit changed, anything else."""

import hashlib
import random

import pytest

from aioblock.luks.antiforensic import merge, split


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("nbytes", [16, 24, 32, 48, 64])
def test_round_trip(nbytes: int, hash_name: str) -> None:
    key = random.Random(nbytes).randbytes(nbytes)
    material = split(key, 50, hash_name)
    assert len(material) == 50 * nbytes
    assert key not in material
    assert merge(material + b"padding", nbytes, 50, hash_name) == key
    assert split(key, 50, hash_name) != material


def test_one_lost_bit_loses_the_key() -> None:
    key = bytes(range(32))
    material = bytearray(split(key, 20, "sha256"))
    for at in (0, 31, 32, 300, 18 * 32, 19 * 32 + 5):
        material[at] ^= 1
        assert merge(material, 32, 20, "sha256") != key
        material[at] ^= 1
    assert merge(material, 32, 20, "sha256") == key


def test_by_hand() -> None:
    # Two stripes of 24 bytes with sha1: the diffusion works on 20 bytes and the 4 that are left.
    first, second = bytes(range(24)), bytes(range(100, 124))
    diffused = hashlib.sha1(bytes(4) + first[:20]).digest() + hashlib.sha1(b"\0\0\0\1" + first[20:]).digest()[:4]
    assert merge(first + second, 24, 2, "sha1") == bytes(a ^ b for a, b in zip(diffused, second, strict=True))

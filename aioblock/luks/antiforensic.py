"""The anti-forensic split: a key spread over so many stripes that one lost sector of them makes it unreadable.

All stripes but the last are random; each is mixed into a running block, which is then diffused by a hash; the last one
is the block XOR the key. Erasing any of them erases the key.
"""

import hashlib
import os

__all__ = ["merge", "split"]


def split(key: bytes, stripes: int, hash_name: str) -> bytes:
    """The stripes of a key, one after the other."""
    nbytes = len(key)
    random = os.urandom(nbytes * (stripes - 1))
    block = _mixed(random, nbytes, hash_name)
    return random + _xor(block, key)


def merge(material: bytes | bytearray | memoryview, nbytes: int, stripes: int, hash_name: str) -> bytes:
    """The key of `nbytes` in its stripes."""
    last = nbytes * (stripes - 1)
    return _xor(_mixed(material[:last], nbytes, hash_name), material[last : last + nbytes])


def _mixed(stripes: bytes | bytearray | memoryview, nbytes: int, hash_name: str) -> bytes:
    """After each stripe, every part of a digest's length becomes the hash of its number and itself, cut short."""
    empty = hashlib.new(hash_name)
    size = empty.digest_size
    parts = [(number.to_bytes(4, "big"), slice(at, at + size)) for number, at in enumerate(range(0, nbytes, size))]
    block = bytes(nbytes)
    for at in range(0, len(stripes), nbytes):
        block = _xor(block, stripes[at : at + nbytes])
        digests = []
        for number, part in parts:
            state = empty.copy()
            state.update(number + block[part])
            digests.append(state.digest())
        block = b"".join(digests)[:nbytes]
    return block


def _xor(first: bytes, second: bytes | bytearray | memoryview) -> bytes:
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).to_bytes(len(first), "big")

"""PBKDF2, and how many of its iterations this machine does in a given time.

It takes seconds on purpose. It runs in a thread, and lets the interpreter go on meanwhile, but nothing can stop it.
"""

import hashlib
import time
from typing import Final

from aioblock.base.errors import NotSupported

__all__ = ["HASH_NAMES", "MIN_ITERATIONS", "calibrated", "check_hash", "pbkdf2"]

HASH_NAMES: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
"""The hashes that a header may name, in QEMU's words; ripemd160 only where the system's library still has it."""

MIN_ITERATIONS: Final = 1000
MAX_STORED: Final = (1 << 32) - 1
_MEASURED_SECONDS: Final = 0.05
"""Of CPU time: long enough for a clock that counts milliseconds."""


def check_hash(name: str) -> None:
    """Raises: NotSupported where this system has no such hash."""
    try:
        hashlib.new(name)
    except ValueError:
        raise NotSupported(f"Hash algorithm '{name}' is not supported by this system's OpenSSL") from None


def pbkdf2(hash_name: str, password: bytes, salt: bytes, iterations: int, nbytes: int) -> bytes:
    """A key of `nbytes` from a password."""
    return hashlib.pbkdf2_hmac(hash_name, password, salt, iterations, nbytes)


def calibrated(hash_name: str, nbytes: int, seconds: float) -> int:
    """How many iterations for a key of `nbytes` take so many seconds of CPU time here; 1000 at least."""
    iterations = 1 << 12
    while True:
        before = time.thread_time()
        pbkdf2(hash_name, b"password", b"salt" * 8, iterations, nbytes)
        taken = time.thread_time() - before
        if taken >= _MEASURED_SECONDS or iterations >= 1 << 28:
            break
        iterations *= 2 if taken > _MEASURED_SECONDS / 8 else 8
    wanted = int(iterations * seconds / max(taken, 1e-9))
    return min(max(wanted, MIN_ITERATIONS), MAX_STORED)

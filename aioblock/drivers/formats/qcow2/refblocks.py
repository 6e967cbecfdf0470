"""Refcount blocks as arrays of counts: from the bytes of the file and back. Pure encodings, no I/O.

Counts of a byte or more are big-endian; narrower ones are packed from the least significant bits of a byte on. In
memory each count has an item of its own, so that looking for a free cluster is `array.index(0)`.
"""

import sys
from array import array
from functools import cache
from typing import Final

__all__ = ["counts_from_bytes", "counts_to_bytes", "find_run", "find_zero", "zero_counts"]

_CODES: Final = ("B", "B", "B", "B", "H", "I", "Q")
_SWAP: Final = sys.byteorder == "little"


@cache
def _unpacked(order: int) -> tuple[bytes, ...]:
    """For each byte of a block with narrow counts, the counts in it."""
    width = 1 << order
    mask = (1 << width) - 1
    return tuple(bytes(byte >> shift & mask for shift in range(0, 8, width)) for byte in range(256))


def counts_from_bytes(data: bytes | bytearray | memoryview, order: int) -> "array[int]":
    """The counts in the bytes of a block; `order` is log2 of their width in bits."""
    if order < 3:
        return array("B", b"".join(map(_unpacked(order).__getitem__, bytes(data))))
    counts = array(_CODES[order])
    counts.frombytes(data)
    if _SWAP and order > 3:
        counts.byteswap()
    return counts


def counts_to_bytes(counts: "array[int]", order: int) -> bytes:
    """The reverse; `counts` stays as it is. Narrow counts: as many as make whole bytes."""
    if order < 3:
        per_byte = 8 >> order
        # All first counts of a byte at once, as one large number, then all second ones: no carry, they are narrow.
        packed = 0
        for place in range(per_byte):
            packed |= int.from_bytes(counts[place::per_byte].tobytes(), "little") << (place << order)
        return packed.to_bytes(len(counts) // per_byte, "little")
    if _SWAP and order > 3:
        counts = counts[:]
        counts.byteswap()
    return counts.tobytes()


def zero_counts(shift: int, order: int) -> "array[int]":
    """The counts of a new block that covers `1 << shift` clusters, all 0."""
    return array(_CODES[order], bytes(array(_CODES[order]).itemsize << shift))


def find_zero(counts: "array[int]", first: int) -> int:
    """The place of the first count from `first` on that is 0, or -1."""
    if first < len(counts) and not counts[first]:
        return first
    width = counts.itemsize
    raw = counts.tobytes()
    zero = bytes(width)
    at = first * width
    while True:
        at = raw.find(zero, at)
        if at < 0 or not at % width:
            return at if at < 0 else at // width
        at += 1  # the end of one count and the beginning of the next


def find_run(counts: "array[int]", first: int, wanted: int) -> tuple[int, int]:
    """Where `wanted` adjoining clusters are free, the place and how many; `first` is the first free one.

    The first run that is long enough, or else the one at the end of the block, or else the one at `first`.
    """
    end, stop = first + 1, min(first + wanted, len(counts))
    while end < stop and not counts[end]:
        end += 1
    if end == stop:
        return first, end - first
    width = counts.itemsize
    raw = counts.tobytes()
    needle = bytes(width * wanted)
    at = raw.find(needle, end * width)
    while at > 0 and at % width:  # it begins with the end of a count that is not zero
        at = raw.find(needle, at + width - at % width)
    if at > 0:
        return at // width, wanted
    place = -(-len(raw.rstrip(b"\0")) // width)
    return (place, len(counts) - place) if place < len(counts) else (first, end - first)

"""Finding what of a buffer is zeroes, without looking at all of it: data shows in the first word of almost any unit."""

from itertools import groupby
from typing import Final, TypeAlias

from aioblock.base.buffers import is_zero

__all__ = ["Part", "parts"]

Part: TypeAlias = tuple[int, int, bool]
"""Begin and end in the buffer, in bytes, and whether it is data."""

_WORD: Final = 8


def parts(offset: int, view: memoryview, grain: int, sparse: int) -> list[Part]:
    """What becomes of the bytes of `view`, which belong at `offset`: parts of data and parts of zeroes in turns.

    Zeroes are found in whole units of `grain` bytes (a power of two, 8 at least), counted from the beginning of the
    target, and in what the buffer has of the units at its ends. Zeroes shorter than `sparse` bytes stay with their
    neighbours.
    """
    nbytes = len(view)
    head = min(-offset % grain, nbytes)
    tail = head + (nbytes - head) // grain * grain
    first_words = view[head:tail].cast("Q")[:: grain // _WORD].tolist()
    odd_ends = [(begin, end) for begin, end in ((0, head), (tail, nbytes)) if begin < end]
    if 0 not in first_words and not any(is_zero(view[begin:end]) for begin, end in odd_ends):
        return [(0, nbytes, True)]
    if is_zero(view):
        return [(0, nbytes, False)]
    units = [
        (begin, begin + grain, word != 0 or not is_zero(view[begin : begin + grain]))
        for begin, word in zip(range(head, tail, grain), first_words, strict=True)
    ]
    units += [(begin, end, not is_zero(view[begin:end])) for begin, end in odd_ends]
    return _joined(_joined(sorted(units), 0), sparse)


def _joined(found: list[Part], sparse: int) -> list[Part]:
    """Neighbours that are alike as one; zeroes shorter than `sparse` are taken for data."""
    result: list[Part] = []
    for is_data, group in groupby(found, lambda part: part[2] or part[1] - part[0] < sparse):
        alike = list(group)
        result.append((alike[0][0], alike[-1][1], is_data))
    return result

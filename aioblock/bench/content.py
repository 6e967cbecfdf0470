"""Content that can be verified: every block says where it belongs, which write made it, and of which run.

A block has as many bytes as divide all sizes of the job. In it, as little-endian words of 8 bytes:

    0   its offset in the image
    1   the number of the write, counted from 1 in the order in which they begin
    2   the seed
    3.. a pattern made of the three, other for each block and each write, so that every byte is checked

What a read may find follows from the requests that had begun and ended: of writes that overlap in time any may have
won. So a number is right from the oldest that can still be there when the read begins, up to the last that had begun
when it ends. Zeroes are right where a request for zeroes is among these; anything where a discard is, or before the
first write.
"""

import errno
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aioblock import OptionError, VerifyError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Content"]

MAX_BLOCKS = 1 << 25
"""Each takes 24 bytes to remember."""

_MIX_OFFSET = np.uint64(0x9E3779B97F4A7C15)
_MIX_NUMBER = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_WORD = np.uint64(0x165667B19E3779F9)


class Content:
    """What a part of an image has to hold, `begin` to `end` in bytes. All clients of a job share one.

    `sizes` are those of the requests. Raises: OptionError where that is too much to remember.
    """

    def __init__(self, name: str, begin: int, end: int, sizes: "list[int]", seed: int) -> None:
        self.name = name
        self.block = math.gcd(*sizes)
        self._begin = begin
        blocks = (end - begin) // self.block
        if blocks > MAX_BLOCKS:
            raise OptionError(
                f"verify: {blocks} blocks of {self.block} bytes are too many (at most {MAX_BLOCKS}); verify a part of "
                "the image (length), or in larger requests",
                option="verify",
            )
        self._seed = np.uint64(seed & (1 << 64) - 1)
        words = self.block // 8
        with np.errstate(over="ignore"):
            self._pattern = np.arange(words, dtype=np.uint64) * _MIX_WORD ^ (self._seed * _MIX_OFFSET)
        self._number = 0
        self._oldest: npt.NDArray[np.uint32] = np.zeros(blocks, np.uint32)
        """Of each block the least number that can be there once nothing is under way; 0: never written."""
        self._last = np.zeros(blocks, np.uint32)
        """The last that has begun."""
        self._group = np.zeros(blocks, np.uint32)
        """The first of those that are under way now."""
        self._under_way = np.zeros(blocks, np.uint32)
        self._zeroed = np.zeros(blocks, np.uint32)
        self._discarded = np.zeros(blocks, np.uint32)

    def __repr__(self) -> str:
        return f"<Content of {self.name}: {len(self._last)} blocks of {self.block}, {self._number} requests>"

    def begins(self, kind: str, offset: int, nbytes: int, buffer: "memoryview | None") -> Any:
        """A request begins: a write's `buffer` is filled. Returns what `ends` wants."""
        part = self._part(offset, nbytes)
        if kind == "read":
            return self._oldest[part].copy()
        if kind not in ("write", "zeroes", "discard"):
            return None
        self._number += 1
        idle = self._under_way[part] == 0
        self._group[part][idle] = self._number
        self._under_way[part] += 1
        self._last[part] = self._number
        if kind == "zeroes":
            self._zeroed[part] = self._number
        elif kind == "discard":
            self._discarded[part] = self._number
        elif buffer is not None:
            self._blocks(buffer)[:] = self._made(part, np.uint64(self._number))
        return part

    def ends(self, kind: str, offset: int, nbytes: int, buffer: "memoryview | None", begun: Any) -> None:
        """It has ended well. Raises: VerifyError where a read found what it should not."""
        if kind == "read":
            assert buffer is not None
            self._check(self._part(offset, nbytes), buffer, begun)
        elif begun is not None:
            self._under_way[begun] -= 1
            settled = self._under_way[begun] == 0
            self._oldest[begun][settled] = self._group[begun][settled]

    def written(self) -> "list[tuple[int, int]]":
        """The runs (offset, nbytes) that requests have changed, ascending."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], (self._last > 0).astype(np.int8), [0]])))
        return [
            (self._begin + first * self.block, (last - first) * self.block)
            for first, last in edges.reshape(-1, 2).tolist()
        ]

    def _part(self, offset: int, nbytes: int) -> slice:
        first = (offset - self._begin) // self.block
        return slice(first, first + nbytes // self.block)

    def _blocks(self, buffer: memoryview) -> "npt.NDArray[np.uint64]":
        return np.frombuffer(buffer, "<u8").reshape(-1, self.block // 8)

    def _made(self, part: slice, numbers: Any) -> "npt.NDArray[np.uint64]":
        """What blocks hold after a write of that number, or of those numbers."""
        offsets = np.arange(part.start, part.stop, dtype=np.uint64) * np.uint64(self.block) + np.uint64(self._begin)
        with np.errstate(over="ignore"):
            mixed = offsets * _MIX_OFFSET ^ numbers * _MIX_NUMBER
        made: npt.NDArray[np.uint64] = self._pattern ^ mixed[:, np.newaxis]
        made[:, 0] = offsets
        made[:, 1] = numbers
        made[:, 2] = self._seed
        return made

    def _check(self, part: slice, buffer: memoryview, oldest: "npt.NDArray[np.uint32]") -> None:
        found = self._blocks(buffer)
        numbers = found[:, 1]
        right = (numbers >= oldest) & (numbers <= self._last[part]) & (numbers > 0)
        right &= (found == self._made(part, numbers)).all(axis=1)
        if right.all():
            return
        right |= self._discarded[part] >= oldest  # also before the first write, where both are 0
        zeroed = self._zeroed[part]
        right |= (zeroed >= oldest) & (zeroed > 0) & ~found.any(axis=1)
        if not right.all():
            self._complain(part, found, int(np.argmin(right)), oldest)

    def _complain(self, part: slice, found: "npt.NDArray[np.uint64]", place: int, oldest: Any) -> None:
        index = part.start + place
        offset = self._begin + index * self.block
        block = found[place]
        least, last = int(oldest[place]), int(self._last[index])
        wanted = f"write {last}" if least == last else f"one of the writes {least} to {last}"
        said = [int(word) for word in block[:3]]
        made = self._made(slice(index, index + 1), block[1])[0]
        if not block.any():
            seen = "zeroes"
        elif (block == made).all():
            seen = f"write {said[1]}, which is {'older' if said[1] < least else 'none that has begun'}"
        elif said[2] == int(self._seed) and said[0] != offset and said[0] % self.block == 0 and said[1] <= self._number:
            seen = f"what write {said[1]} put at offset {said[0]}"
        elif said[0] == offset and said[2] == int(self._seed):
            wrong = int(np.argmax(block != made)) * 8
            seen = f"write {said[1]}, but damaged from byte {wrong} of the block on"
        elif said[0] == offset and (block[3:] != made[3:]).any():
            seen = f"a block of another run (seed {said[2]})"
        else:
            seen = f"something that was not written here: {block[:2].tobytes().hex()}..."
        raise VerifyError(errno.EIO, f"{self.name}: offset {offset}: {seen}, in place of {wanted}")

"""DirtyBitmap: which parts of a node were written since somebody last looked; a bit for each `granularity` bytes.

The bits are held in chunks of 4 KiB, and a chunk without a dirty bit takes no memory, nor does one that is all dirty:
a bitmap costs what was written, whatever the size of the disk. Packed, as images store them, bit `n` is bit `n % 8` of
byte `n // 8`.

Nothing here suspends: what is marked is marked for everybody at once.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from aioblock.base.errors import BitmapError

__all__ = ["DirtyBitmap", "default_granularity", "mark"]

MIN_GRANULARITY: Final = 512
MAX_GRANULARITY: Final = 1 << 31

CHUNK: Final = 4096
"""Bytes of a chunk."""
_CHUNK_BITS: Final = 8 * CHUNK
_ALL: Final = b"\xff" * CHUNK
_RUN: Final = re.compile("1+")

STEP: Final = 512
"""How many chunks are merged before somebody else gets a turn: 1 ms."""


class DirtyBitmap:
    """A named dirty bitmap of one node. Offsets and lengths in bytes.

    It belongs to the node that it was added to, which marks it and keeps its length; others only read it.
    """

    __slots__ = (
        "_chunks",
        "busy",
        "changed",
        "enabled",
        "granularity",
        "inconsistent",
        "length",
        "loaded",
        "name",
        "persistent",
    )

    def __init__(
        self,
        name: str,
        granularity: int,
        length: int,
        *,
        enabled: bool = True,
        persistent: bool = False,
        inconsistent: bool = False,
    ) -> None:
        """A clean bitmap. Raises: BitmapError for a granularity that is no power of two from 512 to 2 GiB."""
        if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
            raise BitmapError("Granularity must be power of 2 and at least 512", name=name)
        self.name = name
        self.granularity = granularity
        self.length = length
        self.enabled = enabled
        """It is marked by every write. Of an inconsistent one: it was meant to be."""
        self.persistent = persistent
        """It is stored in the image when that is closed."""
        self.inconsistent = inconsistent
        """Writes were missed since it was stored: it can only be removed."""
        self.busy = False
        """Somebody works with it, and nobody else may meanwhile."""
        self.loaded = True
        """Its content is in memory; of a read-only image it comes when it is asked for."""
        self.changed = False
        """Its content is not the one that the image holds."""
        self._chunks: dict[int, bytearray | bytes] = {}
        """By number; one that is not there is clean. Never changed in place where it is `_ALL`."""

    def __repr__(self) -> str:
        state = "inconsistent" if self.inconsistent else "enabled" if self.enabled else "disabled"
        kept = " persistent" if self.persistent else ""
        return f"<DirtyBitmap {self.name!r} {state}{kept} granularity={self.granularity} length={self.length}>"

    @property
    def bits(self) -> int:
        """How many bits there are."""
        return -(-self.length // self.granularity)

    @property
    def packed_bytes(self) -> int:
        """How many bytes they take, packed."""
        return -(-self.bits // 8)

    # -- what may be done with it ------------------------------------------------------------------------------------

    def require(self, *, removing: bool = False) -> None:
        """Raises: BitmapError where somebody works with it or, unless it shall be removed, it is inconsistent."""
        if self.busy:
            raise BitmapError(
                f"Bitmap '{self.name}' is currently in use by another operation and cannot be used", name=self.name
            )
        if self.inconsistent and not removing:
            raise BitmapError(
                f"Bitmap '{self.name}' is inconsistent and cannot be used\n"
                "Try block-dirty-bitmap-remove to delete this bitmap from disk",
                name=self.name,
            )

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise BitmapError(f"The content of bitmap '{self.name}' was not loaded", name=self.name)

    # -- changing ----------------------------------------------------------------------------------------------------

    def set(self, offset: int, nbytes: int) -> None:
        """Mark every unit that a range touches; what lies behind the end is left out."""
        end = min(offset + nbytes, self.length)
        if offset >= end:
            return
        self.changed = True
        self._set_bits(offset // self.granularity, (end - 1) // self.granularity + 1)

    def clear(self, offset: int = 0, nbytes: int | None = None) -> None:
        """Take the mark from every unit that a range touches; from all of them if there is no range."""
        end = self.length if nbytes is None else min(offset + nbytes, self.length)
        self.changed = True
        if offset == 0 and end == self.length:
            self._chunks.clear()
        elif offset < end:
            self._clear_bits(offset // self.granularity, (end - 1) // self.granularity + 1)

    def truncate(self, length: int) -> None:
        """The node has another length: marks behind the end go, what comes is clean."""
        if length == self.length:
            return
        before = self.bits
        self.length = length
        self.changed = True
        if before > self.bits:
            self._clear_bits(self.bits, before)

    def merge(self, source: "DirtyBitmap") -> None:
        """Mark here, too, what is marked in `source`, whose granularity may be another one. Raises: BitmapError."""
        for _ in self.merge_in_steps(source):
            pass

    def merge_in_steps(self, source: "DirtyBitmap") -> Iterator[None]:
        """As `merge`, in pieces of about a millisecond. The caller sees to it that neither changes in between."""
        source._check_loaded()
        self._check_loaded()
        if self.length != source.length:
            raise BitmapError(
                f"Bitmaps are of different sizes (destination size is {self.length}, source size is {source.length})"
                " and can't be merged",
                name=self.name,
            )
        if self is source:
            return
        self.changed = True
        if self.granularity != source.granularity:
            for number, (offset, nbytes) in enumerate(source.ranges(), 1):
                self.set(offset, nbytes)
                if not number % (4 * STEP):
                    yield
            return
        chunks = self._chunks
        for count, (number, theirs) in enumerate(list(source._chunks.items()), 1):
            mine = chunks.get(number)
            if theirs is _ALL or mine is _ALL:
                chunks[number] = _ALL
            elif mine is None:
                chunks[number] = bytearray(theirs)
            else:
                both = int.from_bytes(mine, "little") | int.from_bytes(theirs, "little")
                chunks[number] = bytearray(both.to_bytes(CHUNK, "little"))
            if not count % STEP:
                yield

    def _own(self, number: int) -> bytearray:
        """A chunk that may be changed."""
        chunk = self._chunks.get(number)
        if type(chunk) is bytearray:
            return chunk
        own = self._chunks[number] = bytearray(CHUNK if chunk is None else _ALL)
        return own

    def _set_bits(self, first: int, end: int) -> None:
        for number, low, high in _chunks_of(first, end):
            if high - low == _CHUNK_BITS:
                self._chunks[number] = _ALL
                continue
            if self._chunks.get(number) is _ALL:
                continue
            chunk = self._own(number)
            start, stop = low >> 3, high - 1 >> 3
            head, tail = 0xFF << (low & 7) & 0xFF, 0xFF >> (-high & 7)
            if start == stop:
                chunk[start] |= head & tail
                continue
            chunk[start] |= head
            chunk[start + 1 : stop] = _ALL[: stop - start - 1]
            chunk[stop] |= tail

    def _clear_bits(self, first: int, end: int) -> None:
        chunks = self._chunks
        if end - first > len(chunks) * _CHUNK_BITS:  # most of the range is clean already
            for number in [number for number in chunks if first <= number * _CHUNK_BITS <= end - _CHUNK_BITS]:
                del chunks[number]
            for number in {first // _CHUNK_BITS, (end - 1) // _CHUNK_BITS}:
                self._clear_bits_of(number, first, end)
            return
        for number, _, _ in _chunks_of(first, end):
            self._clear_bits_of(number, first, end)

    def _clear_bits_of(self, number: int, first: int, end: int) -> None:
        """Clear those bits from `first` to before `end` that lie in one chunk."""
        if number not in self._chunks:
            return
        base = number * _CHUNK_BITS
        low, high = max(first - base, 0), min(end - base, _CHUNK_BITS)
        if high - low == _CHUNK_BITS:
            del self._chunks[number]
            return
        chunk = self._own(number)
        start, stop = low >> 3, high - 1 >> 3
        head, tail = 0xFF << (low & 7) & 0xFF, 0xFF >> (-high & 7)
        if start == stop:
            chunk[start] &= ~(head & tail)
            return
        chunk[start] &= ~head
        chunk[start + 1 : stop] = bytes(stop - start - 1)
        chunk[stop] &= ~tail

    # -- looking -----------------------------------------------------------------------------------------------------

    def is_dirty(self, offset: int) -> bool:
        """Whether the unit that holds `offset` is marked."""
        self._check_loaded()
        number, bit = divmod(offset // self.granularity, _CHUNK_BITS)
        chunk = self._chunks.get(number)
        return chunk is not None and bool(chunk[bit >> 3] >> (bit & 7) & 1)

    def count(self) -> int:
        """How many bytes are marked: whole units, except that the last one ends with the node."""
        self._check_loaded()
        bits = sum(
            _CHUNK_BITS if chunk is _ALL else int.from_bytes(chunk, "little").bit_count()
            for chunk in self._chunks.values()
        )
        nbytes = bits * self.granularity
        if rest := self.length % self.granularity:
            nbytes -= (self.granularity - rest) * self.is_dirty(self.length - 1)
        return nbytes

    def ranges(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """`(offset, nbytes)` of each run of marked units, in order; the last ends with the node at the latest.

        What lies in chunks before the one of `start` is left out.

        What is marked or cleared while one goes through them may be seen or not.
        """
        self._check_loaded()
        unit = self.granularity
        first = end = 0
        for low, high in self._runs(start // unit // _CHUNK_BITS):
            if low != end:
                if end > first:
                    yield first * unit, (end - first) * unit
                first = low
            end = high
        if end > first:
            yield first * unit, min(end * unit, self.length) - first * unit

    def _runs(self, first: int) -> Iterator[tuple[int, int]]:
        """The first bit of each run inside a chunk, and the one behind its last, from chunk `first` on."""
        for number in sorted(number for number in self._chunks if number >= first):
            chunk = self._chunks.get(number)
            base = number * _CHUNK_BITS
            if chunk is None:
                continue
            if chunk is _ALL:
                yield base, min(base + _CHUNK_BITS, self.bits)
                continue
            digits = f"{int.from_bytes(chunk, 'little'):b}"[::-1]
            for run in _RUN.finditer(digits):
                yield base + run.start(), base + run.end()

    # -- packed ------------------------------------------------------------------------------------------------------

    def packed(self, at: int, nbytes: int) -> bytes:
        """`nbytes` of the packed bits from byte `at` on."""
        self._check_loaded()
        parts = []
        end = at + nbytes
        while at < end:
            number, start = divmod(at, CHUNK)
            stop = min(CHUNK, start + end - at)
            chunk = self._chunks.get(number)
            parts.append(bytes(stop - start) if chunk is None else bytes(chunk[start:stop]))
            at += stop - start
        return b"".join(parts)

    def dirty_pieces(self, nbytes: int) -> Iterator[int]:
        """Cut into pieces of `nbytes` packed bytes, a power of two: the numbers of those with a marked unit."""
        if nbytes >= CHUNK:
            numbers: Iterable[int] = sorted({number * CHUNK // nbytes for number in self._chunks})
        else:
            per = CHUNK // nbytes
            numbers = (number * per + part for number in sorted(self._chunks) for part in range(per))
        for number in numbers:
            if any(self.packed(number * nbytes, min(nbytes, self.packed_bytes - number * nbytes))):
                yield number

    def unpack(self, at: int, data: bytes | bytearray) -> None:
        """Take over packed bits at byte `at`; those behind the end are left out. It is not `changed` by that."""
        data = data[: max(self.packed_bytes - at, 0)]
        if data and at + len(data) == self.packed_bytes and self.bits % 8:
            data = data[:-1] + bytes([data[-1] & 0xFF >> -self.bits % 8])
        while data:
            number, start = divmod(at, CHUNK)
            part, data = data[: CHUNK - start], data[CHUNK - start :]
            at += len(part)
            if part == _ALL:
                self._chunks[number] = _ALL
            elif any(part) or number in self._chunks:
                self._own(number)[start : start + len(part)] = part


def _chunks_of(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The chunks that bits `first` up to `end` lie in: number, and which bits of it."""
    while first < end:
        number, low = divmod(first, _CHUNK_BITS)
        high = min(_CHUNK_BITS, low + end - first)
        yield number, low, high
        first += high - low


def mark(bitmaps: Iterable[DirtyBitmap], offset: int, nbytes: int, *, grows: bool = False) -> None:
    """Mark a range that is about to be changed in all bitmaps that record. `grows`: the node may get longer by it."""
    for bitmap in bitmaps:
        if bitmap.enabled and not bitmap.inconsistent:
            if grows and offset + nbytes > bitmap.length:
                bitmap.truncate(offset + nbytes)
            bitmap.set(offset, nbytes)


def default_granularity(cluster_size: int | None) -> int:
    """The granularity where nobody asks for one: a cluster, within 4 KiB and 64 KiB; 64 KiB without clusters."""
    return min(max(cluster_size or 65536, 4096), 65536)

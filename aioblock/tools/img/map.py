"""`map`: where the content of every byte comes from. Whole batches of runs are merged and printed at once."""

import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..program import ProgramError, error_text, run
from .asked import Asked, long_options
from .command import SECTOR, opened, parse_size_argument

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] "
    "filename"
)


class _Asked(Asked):
    SHORT = "f:s:l:U"
    LONG = long_options("format", "output", "object", "image-opts", "force-share", start_offset="s:", max_length="l:")

    start = 0
    length: int | None = None

    def take(self, option: str, value: str) -> None:
        if option == "s":
            self.start = parse_size_argument("start offset", value)
        elif option == "l":
            self.length = parse_size_argument("max length", value)
        else:
            super().take(option, value)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    name = asked.one_image()
    asked.check_format()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads that a map has no use for

    async def body() -> None:
        async with opened(name, **asked.how()) as disk:
            await _map(disk, asked.start, asked.length, asked.json)

    return run(body)


async def _map(disk: "BlockBackend", start: int, length: int | None, json: bool) -> None:
    end = -(-disk.length // SECTOR) * SECTOR
    if length is not None:
        end = min(start + length, end)
    writer = _JsonWriter() if json else _HumanWriter()
    writer.begin()
    if start >= min(end, disk.length):
        writer.nothing(start)
        return
    async with aclosing(_tables(disk, start, end)) as tables:
        async for table in tables:
            writer.write(table)
    writer.end()


async def _tables(disk: "BlockBackend", start: int, end: int) -> AsyncGenerator[tuple[Any, list[str]], None]:
    """The runs of a range in tables as `_Runs` makes them. Raises: ProgramError."""
    from aioblock import BlockError

    runs = _Runs(disk)
    try:
        async with aclosing(disk.extent_batches(start, end - start)) as batches:
            async for batch in batches:
                yield runs.take(batch)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Could not read file metadata: {error_text(error)}") from error
    if end > disk.length:
        yield runs.pad(end - disk.length, whole_blocks=_block_of(disk) >= SECTOR)
    yield runs.rest()


def _block_of(disk: "BlockBackend") -> int:
    """The smallest request of the file that holds the image, in bytes: more than one with O_DIRECT."""
    node = disk.node
    while node.file is not None:
        node = node.file.node
    return node.limits.request_alignment


class _Runs:
    """Makes the runs of a chain into those that are shown: neighbours merged, also from batch to batch.

    A table of runs has one column a run, and the rows start, length, kind, offset and file. `kind` packs what is said
    of a run: the bits below, and the depth above them.
    """

    ZERO, DATA, PRESENT, HAS_OFFSET = 1, 2, 4, 8
    DEPTH_SHIFT = 4
    START, LENGTH, KIND, OFFSET, FILE = range(5)

    def __init__(self, disk: "BlockBackend") -> None:
        self._ends = []
        """Where each layer ends, from the top down."""
        node: Any = disk.node
        while node is not None:
            self._ends.append(node.length)
            node = node.below
        self._files: list[Any] = []
        self._pending: Any = None

    def take(self, batch: Any) -> tuple[Any, list[str]]:
        """The runs that are complete now, as a table, and the names of the files that it means."""
        return self._joined(self._table(batch))

    def pad(self, nbytes: int, *, whole_blocks: bool) -> tuple[Any, list[str]]:
        """The rest of the last sector of an image that does not fill it: zeroes, as if they lay in the file.

        `whole_blocks`: nobody reads less than the sector, so its rest is what its beginning is.
        """
        padding = self._pending.copy()
        padding[self.START] += padding[self.LENGTH]
        padding[self.OFFSET] += padding[self.LENGTH]
        padding[self.LENGTH] = nbytes
        if not whole_blocks:
            padding[self.KIND] = padding[self.KIND] & ~self.DATA | self.ZERO
        return self._joined(padding)

    def _joined(self, table: Any) -> tuple[Any, list[str]]:
        import numpy as np

        if self._pending is not None:
            table = np.concatenate((self._pending, table), axis=1)
        kind, offset = table[self.KIND], table[self.OFFSET]
        first = np.ones(table.shape[1], bool)
        moved = (kind[1:] & self.HAS_OFFSET != 0) & (offset[1:] != offset[:-1] + table[self.LENGTH][:-1])
        first[1:] = (kind[1:] != kind[:-1]) | (table[self.FILE][1:] != table[self.FILE][:-1]) | moved
        at = np.flatnonzero(first)
        lengths = np.add.reduceat(table[self.LENGTH], at)
        table = table[:, at]
        table[self.LENGTH] = lengths
        self._pending = table[:, -1:]
        return table[:, :-1], self._names()

    def rest(self) -> tuple[Any, list[str]]:
        """The run that was kept back because it might go on."""
        return self._pending, self._names()

    def _names(self) -> list[str]:
        return [node.filename for node in self._files]

    def _table(self, batch: Any) -> Any:
        import numpy as np

        from aioblock import ALLOCATED, DATA, OFFSET_VALID, ZERO

        stops = batch.offset + np.cumsum(batch.lengths)
        starts = stops - batch.lengths
        flags, depth = batch.flags.astype(np.int64), batch.depth.astype(np.int64)
        has_offset = (flags & OFFSET_VALID != 0) & (flags & (DATA | ZERO) != 0)
        numbers = np.array([self._number(node) for node in batch.files] + [-1], np.int64)
        file = np.where(has_offset, numbers[batch.file_index], -1)
        offset = np.where(has_offset, batch.map, 0)
        # A layer that is shorter than the one above answers behind its end too. What is shown there is the layer
        # above: nothing is present in it, and nothing lies below it. So a run is cut where its layer ends.
        for end in set(self._ends[1:]):
            cut = np.flatnonzero((starts < end) & (stops > end))
            if len(cut):
                at = int(cut[0])
                starts, stops = np.insert(starts, at + 1, end), np.insert(stops, at, end)
                flags, depth, file, has_offset = (
                    np.insert(row, at, row[at]) for row in (flags, depth, file, has_offset)
                )
                offset = np.insert(offset, at + 1, offset[at] + (end - starts[at] if has_offset[at] else 0))
        ends = np.array([0, *self._ends], np.int64)
        behind = (depth > 1) & (starts >= ends[depth])
        # Nobody decides: it is the bottom that says so.
        shown = np.where(behind, depth - 2, np.where(depth > 0, depth - 1, len(self._ends) - 1))
        kind = (
            (flags & ZERO != 0) * self.ZERO
            | (flags & DATA != 0) * self.DATA
            | ((flags & ALLOCATED != 0) & ~behind) * self.PRESENT
            | has_offset * self.HAS_OFFSET
            | shown << self.DEPTH_SHIFT
        )
        return np.stack((starts, stops - starts, kind, offset, file))

    def _number(self, node: Any) -> int:
        if node not in self._files:
            self._files.append(node)
        return self._files.index(node)


def _encoded(text: str) -> bytes:
    return text.encode(sys.stdout.encoding, sys.stdout.errors or "strict")


def _print(text: str | bytes) -> None:
    """Write to stdout, past its text layer, for which a map is too long."""
    sys.stdout.buffer.write(_encoded(text) if isinstance(text, str) else text)


_SEPARATOR = ",\n"


class _JsonWriter:
    """Prints runs as a JSON array, one line each."""

    def __init__(self) -> None:
        self._printed = False

    def begin(self) -> None:
        _print("[")

    def nothing(self, start: int) -> None:
        _print(f'{{ "start": {start}, "length": 0, {self._said(0)}}}')
        self.end()

    def write(self, runs: tuple[Any, list[str]]) -> None:
        import numpy as np

        from .lines import decimal, format_lines

        (starts, lengths, kinds, offsets, _), _ = runs
        found = np.flatnonzero(np.bincount(kinds))
        which = np.zeros(found.max(initial=0) + 1, np.intp)
        which[found] = np.arange(len(found))
        texts = [self._texts(kind) for kind in found.tolist()]
        offsets = np.where(kinds & _Runs.HAS_OFFSET, offsets, -1)
        for piece in format_lines(decimal(), texts, which[kinds], (starts, lengths, offsets)):
            _print(piece if self._printed else piece[len(_SEPARATOR) :])
            self._printed = True

    def end(self) -> None:
        _print("]\n")

    def _texts(self, kind: int) -> list[bytes]:
        """What stands around the numbers in a line, which begins with what parts it from the one before."""
        offset = ', "offset": ' if kind & _Runs.HAS_OFFSET else ""
        texts = f'{_SEPARATOR}{{ "start": ', ', "length": ', f", {self._said(kind)}{offset}", "}"
        return [text.encode() for text in texts]

    @staticmethod
    def _said(kind: int) -> str:
        def has(bit: int) -> str:
            return "true" if kind & bit else "false"

        return (
            f'"depth": {kind >> _Runs.DEPTH_SHIFT}, "present": {has(_Runs.PRESENT)}, '
            f'"zero": {has(_Runs.ZERO)}, "data": {has(_Runs.DATA)}'
        )


class _HumanWriter:
    """Prints the runs of data that lie as they are in some file, as a table."""

    def begin(self) -> None:
        _print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")

    def nothing(self, start: int) -> None:
        pass

    def write(self, runs: tuple[Any, list[str]]) -> None:
        from .lines import format_lines, padded_hex

        table, names = runs
        kind = table[_Runs.KIND]
        data = kind & _Runs.DATA != 0
        lost = (data & (kind & _Runs.HAS_OFFSET == 0)).nonzero()[0]
        stop = int(lost[0]) if len(lost) else len(kind)
        shown = (data & (kind & _Runs.ZERO == 0)).nonzero()[0]
        starts, lengths, _, offsets, files = table[:, shown[shown < stop]]
        texts = [(b"", b"", b"", _encoded(name) + b"\n") for name in names]
        for piece in format_lines(padded_hex(), texts, files, (starts, lengths, offsets)):
            _print(piece)
        if len(lost):
            raise ProgramError("File contains external, encrypted or compressed clusters.")

    def end(self) -> None:
        pass

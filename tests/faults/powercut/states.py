"""From a timeline to the contents that a power cut may leave.

At any moment some changes are *stable* and all others *open*: each open one may be there, or not, or only some of its
sectors. A new state can come into being only when a change begins (then those that have it), or when something was
promised to the guest (then all). So the states of one moment are:

    mHEX    the open changes whose bits are set, whole: all subsets up to `full` open changes, else a choice of them
    rHEX    the same in the reverse order, where some of them overlap
    tN      a choice of them, some torn at sectors of 512 bytes or at pages of 4 KiB
    gN      the same, and what is missing behind the old end of the file holds garbage
    lHEX    as m with one change or none, and the file is as long as if all were there

A discard leaves zeroes, garbage or nothing in the file, by chance and once for all states of a timeline.
"""

import random
from collections.abc import Container, Iterator
from typing import NamedTuple

from tests.faults.powercut.recorder import Change, FlushMark, Timeline

__all__ = ["Effort", "State", "states"]

SECTOR = 512
PAGE = 4096


class Effort(NamedTuple):
    """How many states to look at."""

    full: int = 10
    """With up to so many open changes: all subsets."""
    choices: int = 24
    """With more: so many by chance, beside those that lack one."""
    torn: int = 3
    """Torn ones for each change that can tear."""
    garbage: int = 0


class State(NamedTuple):
    """What may be left of the files, and when the power failed."""

    point: int
    choice: str
    contents: list[bytearray]


def states(timeline: Timeline, seed: str, effort: Effort, points: Container[int] | None = None) -> Iterator[State]:
    """Every state once, as far as `effort` goes, of all moments or of these; the same ones for the same seed."""
    return _Explorer(timeline, seed, effort).run(points)


class _Explorer:
    def __init__(self, timeline: Timeline, seed: str, effort: Effort) -> None:
        self.timeline = timeline
        self.seed = seed
        self.effort = effort
        self.base = [bytearray(file.first) for file in timeline.files]
        self.generation = 0
        """Counts what makes the same content a new state: another base, another promise."""
        self.open: list[Change] = []
        self.seen: set[tuple[int, int]] = set()
        self.point = -1

    def run(self, points: Container[int] | None) -> Iterator[State]:
        if points is None or -1 in points:
            yield State(-1, "m0", [bytearray(content) for content in self.base])
        for point, (what, about) in enumerate(self.timeline.events):
            self.point = point
            wanted = points is None or point in points
            if what == "begin":
                self.open.append(about)
                if wanted:
                    yield from self._fresh(self._with_last())
                    yield from self._torn()
            elif what == "flushed":
                self._settle(about)
            elif what == "spoilt":  # by hand, while nobody has it open
                self.base[0], self.open = bytearray(about), []
                self.generation += 1
            elif what == "promise":
                self.generation += 1
                if wanted:
                    yield from self._fresh(self._all())

    def _settle(self, flush: FlushMark) -> None:
        still = []
        for change in self.open:
            if change.file == flush.file and change.end < flush.begin:
                self._apply(self.base[change.file], change)
            else:
                still.append(change)
        if len(still) < len(self.open):
            self.generation += 1
        self.open = still

    # -- which changes are there -------------------------------------------------------------------------------------

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.point}/{what}")

    def _masks(self, count: int) -> Iterator[int]:
        """Subsets of `count` changes."""
        if count <= self.effort.full:
            yield from range(1 << count)
            return
        everything = (1 << count) - 1
        yield from (0, everything)
        for number in range(count):
            yield everything & ~(1 << number)
        chance = self._chance("m")
        for _ in range(self.effort.choices):
            yield chance.getrandbits(count)

    def _with_last(self) -> Iterator[int]:
        last = len(self.open) - 1
        for mask in self._masks(last):
            yield mask | 1 << last

    def _all(self) -> Iterator[int]:
        yield from self._masks(len(self.open))

    def _fresh(self, masks: Iterator[int]) -> Iterator[State]:
        """The states of these subsets that were not there before."""
        for mask in masks:
            chosen = [change for number, change in enumerate(self.open) if mask >> number & 1]
            yield from self._new(f"m{mask:x}", chosen)
            if _overlap(chosen):
                yield from self._new(f"r{mask:x}", chosen[::-1])
            if len(chosen) < 2 and any(_grows(change, self.base[change.file]) for change in self.open):
                yield from self._new(f"l{mask:x}", chosen, lengthen=True)

    def _new(self, choice: str, chosen: list[Change], *, lengthen: bool = False) -> Iterator[State]:
        contents = [bytearray(content) for content in self.base]
        for change in chosen:
            self._apply(contents[change.file], change)
        if lengthen:
            for change in self.open:
                _lengthen(contents[change.file], change.offset if change.kind == "truncate" else change.stop)
        if self._is_new(contents):
            yield State(self.point, choice, contents)

    def _is_new(self, contents: list[bytearray]) -> bool:
        """States that differ only in what made them are one."""
        parts: list[bytes | int] = []
        for change in self.open:
            content = contents[change.file]
            parts.append(len(content))
            parts.append(bytes(memoryview(content)[change.offset : change.stop]))
        key = self.generation, hash(tuple(parts))
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    # -- torn changes ------------------------------------------------------------------------------------------------

    def _torn(self) -> Iterator[State]:
        if not any(map(_can_tear, self.open)):
            return
        for name, count in (("t", self.effort.torn), ("g", self.effort.garbage)):
            for number in range(count):
                chance = self._chance(f"{name}{number}")
                yield from self._one_torn(f"{name}{number}", chance, garbage=name == "g")

    def _one_torn(self, choice: str, chance: random.Random, *, garbage: bool) -> Iterator[State]:
        contents = [bytearray(content) for content in self.base]
        last = self.open[-1]
        keep = chance.choice((0.0, 0.5, 1.0))
        for change in self.open:
            content = contents[change.file]
            if _can_tear(change) and (change is last or chance.random() < 0.5):
                pieces = _pieces(change, chance)
                kept = _some(len(pieces), chance)
                for (start, stop), there in zip(pieces, kept, strict=True):
                    if there:
                        self._apply(content, change, start, stop)
                    elif garbage and start >= len(self.base[change.file]):
                        _lengthen(content, stop)
                        content[start:stop] = chance.randbytes(stop - start)
            elif change is last or chance.random() < keep:
                self._apply(content, change)
        if self._is_new(contents):
            yield State(self.point, choice, contents)

    # -- what a change does ------------------------------------------------------------------------------------------

    def _apply(self, content: bytearray, change: Change, start: int = 0, stop: int = 1 << 62) -> None:
        if change.kind == "truncate":
            del content[change.offset :]
            _lengthen(content, change.offset)
            return
        start, stop = max(start, change.offset), min(stop, change.stop)
        if change.kind == "discard":
            self._discard(content, change, start, min(stop, len(content)))
            return
        _lengthen(content, start)
        content[start:stop] = change.data[start - change.offset : stop - change.offset]

    def _discard(self, content: bytearray, change: Change, start: int, stop: int) -> None:
        chance = random.Random(f"{self.seed}/{change.begin}/discard")
        leaves = chance.choice(("zeroes", "garbage", "nothing"))
        if stop > start and leaves != "nothing":
            content[start:stop] = bytes(stop - start) if leaves == "zeroes" else chance.randbytes(stop - start)


def _lengthen(content: bytearray, length: int) -> None:
    if len(content) < length:
        content.extend(bytes(length - len(content)))


def _can_tear(change: Change) -> bool:
    """Whether it touches two sectors."""
    return bool(change.data) and change.offset // SECTOR < (change.stop - 1) // SECTOR


def _grows(change: Change, content: bytearray) -> bool:
    return (change.offset if change.kind == "truncate" else change.stop) > len(content)


def _overlap(changes: list[Change]) -> bool:
    for number, one in enumerate(changes):
        for other in changes[:number]:
            if one.file == other.file and (
                "truncate" in (one.kind, other.kind) or (one.offset < other.stop and other.offset < one.stop)
            ):
                return True
    return False


def _pieces(change: Change, chance: random.Random) -> list[tuple[int, int]]:
    """The parts that survive or not: sectors or pages of the file."""
    unit = chance.choice((SECTOR, PAGE)) if len(change.data) > PAGE else SECTOR
    pieces = []
    at = change.offset
    while at < change.stop:
        end = min(change.stop, at - at % unit + unit)
        pieces.append((at, end))
        at = end
    return pieces


def _some(count: int, chance: random.Random) -> list[bool]:
    """Which of so many pieces survive: some, a beginning, an end, all but one."""
    how = chance.randrange(4)
    cut = chance.randrange(count)
    if how == 0:
        return [chance.random() < 0.5 for _ in range(count)]
    if how == 1:
        return [number < cut for number in range(count)]
    if how == 2:
        return [number > cut for number in range(count)]
    return [number != cut for number in range(count)]

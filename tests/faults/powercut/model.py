"""What the guest may find after a power cut: for each sector the last durable value, or any that was issued since.

An operation is durable if it had ended when a flush began that the guest was told of (or if it carried FUA and the
guest was told of it). A discard may leave what was there. An operation on the whole disk, such as going back to a
snapshot, is a write of every sector.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.faults.powercut.contents import SECTOR, Tags
from tests.faults.powercut.fsck import Damage
from tests.faults.powercut.recorder import NEVER

__all__ = ["Expectation", "Model", "Op"]


@dataclass(slots=True, eq=False)
class Op:
    """Something the guest did, from sector `low` on. `begin` and `end` are times."""

    begin: int
    low: int = 0
    tags: Tags = field(default_factory=lambda: np.zeros(0, np.int64))
    keeps_old: bool = False
    """A discard."""
    also: list[tuple[int, Tags]] = field(default_factory=list)
    """What may be there instead."""
    durable: bool = False
    """A flush, or FUA: done means stable."""
    flushes: bool = False
    size: int | None = None
    """The new size of the disk."""
    creates: str | None = None
    """The name of the snapshot made."""
    deletes: str | None = None
    bitmap: str | None = None
    """The name of the bitmap that is added, or removed where `deletes` is set too."""
    touched: tuple[int, int] | None = None
    """Sectors that a bitmap may count as written: of a write that was refused, or a new size."""
    says: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What it changes of the header: the old and the new value, by names of `fsck.Image`."""
    spoils: str | None = None
    """The image is damaged here: what is wrong then, or "" if a reader cannot tell."""
    repairs: bool = False
    """All damage is gone when this is done."""
    end: int = NEVER

    def refuse(self) -> None:
        """It failed before anything was done."""
        self.touched = self.low, self.high
        self.tags = self.tags[:0]
        self.size = self.creates = self.deletes = self.bitmap = None
        self.also, self.says = [], {}

    @property
    def high(self) -> int:
        return self.low + len(self.tags)


@dataclass(slots=True)
class Expectation:
    """What a disk may hold: `exact`, or in a range one of the others."""

    exact: Tags
    others: list[tuple[int, Tags]]
    """Where it begins, and what may be there instead."""
    sizes: set[int]
    cut_off: list[tuple[int, Tags]] = field(default_factory=list)
    """What a shorter disk has lost: a disk of the old size has not, unless it was made longer again."""

    def copy(self) -> "Expectation":
        return Expectation(self.exact.copy(), [(low, tags.copy()) for low, tags in self.others], set(self.sizes))

    def _resized(self) -> None:
        self.others += self.cut_off
        self.cut_off = []

    def settle(self, op: Op) -> None:
        """The operation is durable."""
        if op.size is not None:
            self._resized()
            self.sizes = {op.size}
        if not len(op.tags):
            return
        before = self.exact[op.low : op.high].copy()
        self.exact[op.low : op.high] = op.tags
        if op.keeps_old:
            self.others.append((op.low, before))
            return
        for low, tags in self.others:  # what was possible in this range is so no more
            start, stop = max(low, op.low), min(low + len(tags), op.high)
            if start < stop:
                tags[start - low : stop - low] = self.exact[start:stop]
        self.others += [(low, tags.copy()) for low, tags in op.also]

    def perhaps(self, op: Op) -> None:
        """The operation was issued."""
        if op.size is not None:
            self._resized()
            self.sizes.add(op.size)
        if op.touched is not None and op.size == op.low * SECTOR:
            self.cut_off.append((op.low, op.tags.copy()))
        elif len(op.tags):
            self.others.append((op.low, op.tags.copy()))
            self.others += [(low, tags.copy()) for low, tags in op.also]

    def check(self, found: Tags, size: int, what: str) -> None:
        """Raises: Damage where sectors up to `size` hold anything else."""
        if size not in self.sizes:
            raise Damage("size", f"{what}: {size} bytes long, expected one of {sorted(self.sizes)}")
        count = -(-size // SECTOR)
        found, exact = found[:count], self.exact[:count]
        wrong = found != exact
        if not wrong.any():
            return
        for low, tags in self.others:
            part = tags[: max(count - low, 0)]
            wrong[low : low + len(part)] &= found[low : low + len(part)] != part
        if wrong.any():
            sector = int(np.flatnonzero(wrong)[0])
            value = int(found[sector])
            kind = "neither" if value < 0 else "foreign" if value and value >> 24 != sector else "lost"
            raise Damage(
                kind,
                f"{what}: {int(wrong.sum())} sectors, the first is {sector}: "
                f"found {_show(value)}, the durable one is {_show(int(exact[sector]))}",
            )


def _show(tag: int) -> str:
    return "garbage" if tag < 0 else f"write {tag & 0xFFFFFF} of sector {tag >> 24}" if tag else "zeroes"


class Model:
    """The disk of a guest: what it was in the beginning, and what was done since."""

    def __init__(
        self,
        tags: Tags,
        size: int,
        snapshots: dict[str, Expectation] | None = None,
        bitmaps: dict[str, Tags | None] | None = None,
        serial: int = 0,
    ) -> None:
        self.first = Expectation(tags, [], {size})
        self.ops: list[Op] = []
        self.serial = serial
        self.snapshots: dict[str, Expectation] = dict(snapshots or {})
        """What each snapshot that was ever made must hold."""
        self.first_snapshots = frozenset(self.snapshots)
        self.first_bitmaps: dict[str, Tags | None] = bitmaps or {}
        """What is marked in each; None: it is inconsistent for good."""

    def tags(self, low: int, high: int) -> Tags:
        """Those of a new write."""
        self.serial += 1
        return (np.arange(low, high, dtype=np.int64) << 24) + self.serial

    def latest(self) -> Expectation:
        """What the guest sees now, with nothing under way. What failed may be done or not."""
        found = self.first.copy()
        for op in self.ops:
            (found.perhaps if op.end == NEVER else found.settle)(op)
        return found

    def lose(self) -> None:
        """The image was closed with an error: what was not durable is done or not, and no later flush changes that."""
        stable = max((op.begin for op in self.ops if op.flushes and op.end != NEVER), default=-1)
        for op in self.ops:
            if op.end > stable and not op.durable and not op.flushes:
                op.end = NEVER

    def at(self, point: int) -> tuple[Expectation, set[str], set[str]]:
        """When the power fails after event `point`: the disk, the snapshots that must be there, those that may be."""
        stable = max((op.begin for op in self.ops if op.flushes and op.end <= point), default=-1)
        found = self.first.copy()
        must, may = set(self.first_snapshots), set(self.first_snapshots)
        for op in self.ops:
            if op.begin > point:
                continue
            durable = op.end <= stable or (op.durable and op.end <= point)
            (found.settle if durable else found.perhaps)(op)
            if op.creates is not None:
                may.add(op.creates)
                must |= {op.creates} if durable else set()
            if op.deletes is not None and op.bitmap is None:
                must.discard(op.deletes)
                if durable:
                    may.discard(op.deletes)
        return found, must, may

    def says(self, point: int) -> dict[str, set[Any]]:
        """When the power fails after event `point`: what may be in those fields of the header that were changed."""
        found: dict[str, set[Any]] = {}
        for op in self.ops:
            if op.begin <= point:
                for name, (old, new) in op.says.items():
                    found[name] = {new} if op.end <= point else {*found.get(name, {old}), new}
        return found

    def spoilt(self, point: int) -> tuple[str, bool]:
        """When the power fails after event `point`: what is wrong with the image on purpose, and whether it was just
        repaired, so that nothing at all may be wrong.
        """
        text, exact = "", False
        for op in self.ops:
            if op.begin <= point:
                exact = op.repairs and op.end <= point
                text = op.spoils if op.spoils is not None else "" if exact else text
        return text, exact

    def bitmaps(self, point: int) -> dict[str, Tags | None]:
        """When the power fails after event `point`: what each bitmap that may be there says of the sectors:
        1 where it is marked, 2 where it may be.
        """
        marks = {name: None if tags is None else tags.copy() for name, tags in self.first_bitmaps.items()}
        for op in self.ops:
            if op.begin > point:
                continue
            if op.bitmap is not None and op.deletes is None:
                marks[op.bitmap] = np.zeros(len(self.first.exact), np.int8)
            elif op.bitmap is not None and op.end <= point:
                marks.pop(op.bitmap, None)
            for marked in marks.values():
                if marked is not None and op.touched is None:
                    marked[op.low : op.high] = 1
                elif marked is not None and op.touched is not None:
                    low, high = op.touched
                    marked[low:high] = 2
        return marks

"""One workload: play it, look at every state that a power cut may leave, and go on from some of them.

A seed names a layout, a workload, a moment and a choice, and where it went on from there, the same again:
`c4k/wfd/17/m5`, `c4k/wfd/17/m5/on/80/m1`. A seed that ends early stands for all that begins with it.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from aioblock.graph.backend import BlockBackend
from tests.faults.powercut.contents import SECTOR, Tags, tags_of, tags_of_bytes
from tests.faults.powercut.fsck import Damage, Image
from tests.faults.powercut.guest import Guest
from tests.faults.powercut.layouts import LAYOUTS, UNKNOWN_AUTOCLEAR, Layout, Start, make_start
from tests.faults.powercut.model import Expectation, Model, Op
from tests.faults.powercut.recorder import RecordedFile, Timeline
from tests.faults.powercut.states import Effort, State, states
from tests.faults.powercut.workloads import Player

__all__ = ["Failure", "Plan", "Tally", "explore", "play", "quiet", "start_of", "verify"]


@contextmanager
def quiet() -> Iterator[None]:
    """Repairs tell what they find, and there are thousands of them."""
    log = logging.getLogger("aioblock")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


class Failure(NamedTuple):
    """A state that must not be."""

    seed: str
    kind: str
    text: str


class Plan(NamedTuple):
    """How far to go."""

    effort: Effort = Effort()
    go_on: float = 0.02
    """From how many of the states to go on: open, write, verify."""
    deeper: int = 3
    """At how many moments to cut the power again while going on."""


@dataclass
class Tally:
    """What was looked at, and found."""

    workloads: int = 0
    states: int = 0
    """Different contents and promises."""
    went_on: int = 0
    second_cuts: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Sum up."""
        self.workloads += other.workloads
        self.states += other.states
        self.went_on += other.went_on
        self.second_cuts += other.second_cuts
        self.kinds.update(other.kinds)
        self.failures += other.failures


class Cut(NamedTuple):
    """A state, read."""

    image: Image
    tags: Tags
    snapshots: dict[str, Tags]
    bitmaps: dict[str, Tags | None]


@lru_cache(maxsize=4)
def start_of(name: str) -> Start:
    """The image of a layout, made once."""
    return asyncio.run(make_start(LAYOUTS[name]))


@quiet()
def play(seed: str) -> tuple[Timeline, Model]:
    """What happens in the workload of a seed. Raises: whatever goes wrong in it."""
    name, workload = seed.split("/")[:2]
    start = start_of(name)
    timeline = Timeline(f"{name}/{workload}")
    files = [timeline.file(content) for content in start.contents]
    model = start.model()
    asyncio.run(_play(LAYOUTS[name], timeline, files, model, workload))
    return timeline, model


async def _play(layout: Layout, timeline: Timeline, files: list[RecordedFile], model: Model, workload: str) -> None:
    guest = Guest(timeline, model, await layout.open(files), layout.cluster)
    await Player(layout, files, guest).play(workload)


@quiet()
def explore(seed: str, plan: Plan, *, stop: int = 1 << 62) -> Tally:
    """Look at all states of a seed (see above), until `stop` failures are found."""
    name, workload, *rest = seed.split("/")
    return _Exploration(LAYOUTS[name], f"{name}/{workload}", plan, rest, stop).run()


class _Exploration:
    def __init__(self, layout: Layout, prefix: str, plan: Plan, only: list[str], stop: int) -> None:
        self.layout, self.prefix, self.plan, self.stop = layout, prefix, plan, stop
        self.only = only
        self.tally = Tally()

    def run(self) -> Tally:
        self.tally.workloads += 1
        try:
            timeline, model = play(self.prefix)
        except Exception as error:  # whatever it is, it should not be
            self._failed(self.prefix, "failed", f"{type(error).__name__}: {error}")
            return self.tally
        for state in self._states(timeline):
            self.tally.states += 1
            self._look(state, model)
            if len(self.tally.failures) >= self.stop:
                break
        return self.tally

    def _states(self, timeline: Timeline) -> Iterator[State]:
        points = {int(self.only[0])} if self.only else None
        for state in states(timeline, self.prefix, self.plan.effort, points):
            if len(self.only) < 2 or state.choice == self.only[1]:
                yield state

    def _failed(self, seed: str, kind: str, text: str) -> None:
        self.tally.kinds[kind] += 1
        self.tally.failures.append(Failure(seed, kind, text))

    def _look(self, state: State, model: Model) -> None:
        seed = f"{self.prefix}/{state.point}/{state.choice}"
        try:
            cut = verify(self.layout, state, model)
        except Damage as damage:
            self._failed(seed, damage.kind, str(damage))
            return
        chance = random.Random(seed)
        if "on" in self.only or (len(self.only) != 2 and chance.random() < self.plan.go_on):
            self._go_on(seed, state, cut, model, chance)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _go_on(self, seed: str, state: State, cut: Cut, of: Model, chance: random.Random) -> None:
        """Open the state as it is, write, and verify; then cut the power during that."""
        self.tally.went_on += 1
        seed += "/on"
        timeline = Timeline(seed)
        files = [timeline.file(bytes(content)) for content in state.contents]
        model = Model(
            cut.tags,
            cut.image.size,
            {each.name: Expectation(cut.snapshots[each.name], [], {each.disk_size}) for each in cut.image.snapshots},
            cut.bitmaps,
            of.serial,
        )
        wrong = of.spoilt(state.point)[0]
        if wrong:  # it is repaired on the way, and may be wrong until then
            model.ops.append(Op(-1, spoils=wrong, end=-1))
        try:
            asyncio.run(self._open_and_go_on(timeline, files, model, chance, bool(wrong)))
        except Exception as error:  # whatever it is, it should not be
            self._failed(seed, "reopen", f"{type(error).__name__}: {error}")
            return
        points = {len(timeline.events) - 1}
        points |= {chance.randrange(len(timeline.events)) for _ in range(self.plan.deeper)}
        for later in states(timeline, seed, Effort(full=2, choices=4, torn=1), points):
            self.tally.second_cuts += 1
            try:
                verify(self.layout, later, model)
            except Damage as damage:
                self._failed(f"{seed}/{later.point}/{later.choice}", damage.kind, str(damage))

    async def _open_and_go_on(
        self, timeline: Timeline, files: list[RecordedFile], model: Model, chance: random.Random, spoilt: bool
    ) -> None:
        disk = await self.layout.open(files)
        if spoilt:
            await _repair(disk)
        data = await disk.pread(0, disk.length)
        found = tags_of_bytes(data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0"))
        if (found != model.first.exact[: len(found)]).any():
            raise Damage("open", "the disk reads otherwise than its bytes say")
        if chance.random() < 0.3:
            await _repair(disk)
        guest = Guest(timeline, model, disk, self.layout.cluster)
        player = Player(self.layout, files, guest)
        await player.by_chance(chance, 20)
        await guest.flush()
        await guest.close()


async def _repair(disk: BlockBackend) -> None:
    """Nothing is left to be repaired afterwards."""
    await disk.check(fix_leaks=True, fix_errors=True)
    after = await disk.check()
    if after.corruptions or after.leaks or after.check_errors:
        raise Damage("check", f"after a repair {after.corruptions} corruptions and {after.leaks} leaks are left")


def verify(layout: Layout, state: State, model: Model) -> Cut:
    """Raises: Damage where the state is not sound, or does not hold what the guest may expect."""
    image = Image(state.contents[0])
    wrong, exact = model.spoilt(state.point)
    if image.corrupt and not wrong:
        raise Damage("corrupt", "marked so, and it was not")
    try:
        image.check(exact=exact)
    except Damage as damage:
        if str(damage) != wrong:
            raise
    for name, allowed in model.says(state.point).items():
        if getattr(image, name) not in allowed:
            raise Damage("header", f"{name} is {getattr(image, name)!r}, expected one of {allowed}")
    expected, must, may = model.at(state.point)
    data_file = state.contents[1] if len(state.contents) > 1 else None
    tags = tags_of(image, image.active, layout.below, data_file)
    tags[-(-image.size // SECTOR) :] = 0
    expected.check(tags, image.size, "the disk")
    if image.autoclear & UNKNOWN_AUTOCLEAR and (tags != model.first.exact).any():
        raise Damage("autoclear", "a bit that nobody knows is still set, and the disk was written")
    snapshots = {}
    for name, tree in image.snapshot_trees.items():
        snapshots[name] = tags_of(image, tree, layout.below, data_file)
    if not must <= snapshots.keys() <= may:
        raise Damage("snapshot", f"found {sorted(snapshots)}, expected {sorted(must)}, allowed {sorted(may)}")
    for snapshot in image.snapshots:
        wanted = model.snapshots[snapshot.name].copy()
        wanted.sizes = {snapshot.disk_size}
        try:
            wanted.check(snapshots[snapshot.name], snapshot.disk_size, f"snapshot {snapshot.name}")
        except Damage as damage:
            raise Damage("snapshot", str(damage)) from None
    return Cut(image, tags, snapshots, check_bitmaps(layout, image, state, model))


def check_bitmaps(layout: Layout, image: Image, state: State, model: Model) -> dict[str, Tags | None]:
    """The marks of the bitmaps; None where one says that it was in use.

    Raises: Damage where a bitmap that does not say so lacks a mark, or has one too many.
    """
    if not image.bitmaps:
        return {}
    found: dict[str, Tags | None] = {}
    expected = model.bitmaps(state.point)
    count = image.size // SECTOR
    for bitmap in image.bitmaps:
        if bitmap.name not in expected:
            raise Damage("bitmap", f"{bitmap.name} should not be there")
        wanted = expected[bitmap.name]
        found[bitmap.name] = None
        if bitmap.in_use:
            continue
        if wanted is None:
            raise Damage("bitmap", f"{bitmap.name} was inconsistent, and says that it is not")
        marks = found[bitmap.name] = np.zeros(layout.most_sectors, np.int8)
        marks[:count] = image.marks(bitmap, count)
        wrong = (marks[:count] != wanted[:count]) & (wanted[:count] != 2)
        if wrong.any():
            raise Damage("bitmap", f"{bitmap.name} is wrong in {int(wrong.sum())} sectors, from {int(wrong.argmax())}")
    return found

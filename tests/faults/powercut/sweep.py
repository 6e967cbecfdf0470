"""The fault sweep: the first request to the files fails, then the second, and so on until a run needs no more of them.

A run does forty operations. A failure is told to the guest, by the operation or by a later flush; what comes after it
works, at the latest when the image was closed and opened again; the files are sound, and hold old or new data.
"""

import asyncio
import errno
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.powercut.contents import SECTOR
from tests.faults.powercut.explore import quiet, start_of, verify
from tests.faults.powercut.fsck import Damage
from tests.faults.powercut.guest import Guest
from tests.faults.powercut.layouts import LAYOUTS, Layout
from tests.faults.powercut.recorder import RecordedFile, Timeline
from tests.faults.powercut.states import State
from tests.faults.powercut.workloads import Player

__all__ = ["FAULTS", "FORTY", "Fault", "Outcome", "run_with_fault", "sites"]

FORTY = "wWfozcudkFgsWfarxbWkdfRrwkzWocfgsxWfbkdw"


class Fault(NamedTuple):
    """How a request fails."""

    code: int
    for_good: bool = False
    """All later ones fail too."""
    short: bool = False
    """A write does half of its sectors before."""


FAULTS = {
    "EIO": Fault(errno.EIO),
    "ENOSPC": Fault(errno.ENOSPC),
    "short": Fault(errno.EIO, short=True),
    "EIO for good": Fault(errno.EIO, for_good=True),
    "ENOSPC for good": Fault(errno.ENOSPC, for_good=True),
}

WRITES_ONLY = (errno.ENOSPC,)
"""What reading and flushing never fail with."""


class Outcome(NamedTuple):
    """What became of a run."""

    verb: str
    """Which request failed; "": none, the run needs fewer."""
    reported: bool
    reopened: bool


class _Trap:
    """Fails the request with this number, and maybe all that follow."""

    def __init__(self, number: int, fault: Fault) -> None:
        self.left, self.fault = number, fault
        self.verb = ""
        self.armed = True

    async def before(self, file: RecordedFile, verb: str, offset: int, data: memoryview | None) -> None:
        fault = self.fault
        if not self.armed or (fault.code in WRITES_ONLY and verb in ("read", "flush")):
            return
        self.left -= 1
        if self.left == 0 or (self.left < 0 and fault.for_good):
            self.verb = self.verb or verb
            if fault.short and data is not None:
                whole = (offset + len(data) // 2) // SECTOR * SECTOR - offset  # a sector is written or not
                if whole > 0:
                    file.write(offset, data[:whole])
            raise OSError(fault.code, "it was told to fail")


async def run_with_fault(layout: Layout, number: int, fault: Fault, workload: str = FORTY) -> Outcome:
    """One run whose request `number` fails. Raises: Damage where it goes on badly."""
    start = start_of(layout.name)
    timeline = Timeline("sweep")
    files = [timeline.file(content) for content in start.contents]
    model = start.model()
    guest = Guest(timeline, model, await layout.open(files), layout.cluster)
    player = Player(layout, files, guest)
    trap = _Trap(number, fault)
    for file in files:
        file.before = trap.before
    reported = reopened = False
    for letter in workload:
        if letter not in layout.kinds:
            continue
        try:
            await player.fixed(letter)
        except OSError as error:
            if not trap.verb or (error.errno != fault.code and not reported) or reopened:
                raise Damage("sweep", f"{letter} should not have failed: {error}") from error
            reported = True
            if letter == "k":  # it is closed all the same
                model.lose()
            if fault.for_good:
                break
            reopened = await _again(layout, files, guest, trap) or reopened
    try:
        await guest.close()
    except OSError:
        reported = True
        model.lose()
    trap.armed = False
    contents = [bytearray(file.content()) for file in files]
    cut = verify(layout, State(timeline.now, "end", contents), model)
    guest.disk = await layout.open(files)
    data = await guest.disk.pread(0, guest.disk.length)
    await guest.write(0, 1)
    await guest.close()
    verify(layout, State(timeline.now, "end", [bytearray(file.content()) for file in files]), model)
    if len(data) != cut.image.size:
        raise Damage("sweep", f"{len(data)} bytes long, the image says {cut.image.size}")
    return Outcome(trap.verb, reported, reopened)


async def _again(layout: Layout, files: list[RecordedFile], guest: Guest, trap: _Trap) -> bool:
    """After a failure: the image still works, or does when it is opened anew, which is told."""
    try:
        await guest.flush()
        return False
    except OSError:
        guest.model.lose()
    try:
        await guest.close()
    except OSError:
        pass
    guest.disk = await layout.open(files)
    return True


def sites(name: str, kind: str, step: int = 1, first: int = 1, longest: int = 100_000) -> Iterator[tuple[int, Outcome]]:
    """Run after run, each `step`-th request failing, until one needs fewer. Raises: Damage naming the site."""
    layout, fault = LAYOUTS[name], FAULTS[kind]
    start_of(name)
    for number in range(first, longest, step):
        try:
            with quiet():
                outcome = asyncio.run(run_with_fault(layout, number, fault))
        except Exception as error:
            raise Damage("sweep", f"{name}, {kind}, request {number}: {type(error).__name__}: {error}") from error
        if not outcome.verb:
            return
        if outcome.verb != "discard" and not outcome.reported:
            raise Damage("sweep", f"{name}, {kind}, request {number} ({outcome.verb}): nobody was told")
        yield number, outcome

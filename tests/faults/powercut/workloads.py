"""Workloads: sequences of operations, each a letter, at fixed places ("wfz") or by chance ("random7").

w  write a part of a cluster            f  flush
W  write several clusters               F  write with FUA
o  write in place, a part               c  write a cluster compressed
z  write zeroes, unmap                  g  two writes at a time into one cluster, or near each other
u  write zeroes, keep the clusters      r  resize: longer; at its longest, shorter
d  discard                              k  close and open again
s  make a snapshot                      a  go back to the first snapshot
x  delete the first snapshot            b  add a persistent bitmap, or remove the first of two
R  resize: shorter                      m  amend: refcounts of another width, lazy or not
B  remove all bitmaps                   V  amend: version 2; or version 3 again
N  another name of the backing file     A  amend: longer
T  amend: the data file is not raw      O  read-only, and writable again
C  check, and repair                    M  read it all, and find damage
                                        1  close, damage (see `spoil`), open again; 2, 3 ... likewise
"""

import asyncio
import itertools
import random
from collections.abc import Iterator

from tests.faults.powercut.contents import SECTOR
from tests.faults.powercut.guest import Guest
from tests.faults.powercut.layouts import Layout
from tests.faults.powercut.recorder import RecordedFile

__all__ = ["TWELVE", "Player", "sequences", "valid"]

TWELVE = "wWozdfFcgrsk"
"""The operations whose sequences of up to three are gone through without exception."""


WHOLE = "fkrRsaxbmBVNATOMC1234567"
"""Operations that concern the image as a whole, and come alone."""


AMENDED = (("32", "off"), ("64", "on"), ("16", "off"), ("64", "off"))
"""What amending makes of an image: width of refcounts, lazy refcounts."""


NAMES = ("a" * 90, "b" * 600)
"""Names of a backing file."""


def sequences(kinds: str, longest: int) -> Iterator[str]:
    """Every sequence of up to so many operations."""
    letters = sorted(set(kinds))
    for length in range(1, longest + 1):
        for sequence in itertools.product(letters, repeat=length):
            yield "".join(sequence)


def valid(workload: str, layout: Layout) -> bool:
    """Whether the name is that of a workload."""
    if workload.startswith("random"):
        return workload.removeprefix("random").isdigit()
    return set(workload) <= set(layout.kinds)


class Player:
    """Plays workloads to a guest."""

    def __init__(self, layout: Layout, files: list[RecordedFile], guest: Guest) -> None:
        self.layout, self.files, self.guest = layout, files, guest
        self.unit = layout.cluster // SECTOR
        self.count = 0
        """How many operations there were: the same one does something else the next time."""

    async def play(self, workload: str) -> None:
        """The workload, then flush and close."""
        if workload.startswith("random"):
            await self.by_chance(random.Random(f"{self.layout.name}/{workload}"), 20)
        else:
            for letter in workload:
                await self.fixed(letter)
        await self.guest.flush()
        await self.guest.close()

    # -- at fixed places ---------------------------------------------------------------------------------------------

    async def fixed(self, letter: str) -> None:
        """One operation. Places overlap, so that sequences mean something."""
        guest, unit = self.guest, self.unit
        again = self.count
        self.count += 1
        first, other = self.layout.regions[0] * unit, self.layout.regions[1] * unit
        part = max(unit // 2, 1)
        if letter == "w":
            at = first + 4 * unit if again % 2 == 0 else other - unit
            await guest.write(at, at + part)
        elif letter == "W":
            at = other + unit
            await guest.write(at, at + 3 * unit + (part if unit > 1 else 0))
        elif letter == "o":
            await guest.write(first + unit - part, first + unit + part)
        elif letter in "zu":
            await guest.zero(first + unit, first + 3 * unit, unmap=letter == "z")
        elif letter == "d":
            await guest.discard(first, first + 2 * unit)
        elif letter == "F":
            await guest.write(other + 4 * unit, other + 4 * unit + part, fua=True)
        elif letter == "c":
            await guest.compress(other + 3 * unit, other + 5 * unit)
        elif letter == "g":
            at = first + 3 * unit
            await asyncio.gather(guest.write(at, at + part), guest.write(at + 2 * unit - part, at + 2 * unit))
        else:
            await self._whole(letter)

    async def _whole(self, letter: str) -> None:
        """What concerns the image as a whole."""
        guest = self.guest
        if letter == "f":
            await guest.flush()
        elif letter == "k":
            await guest.close()
            guest.disk = await self.layout.open(self.files)
        elif letter in "rR":
            least, most = self.layout.sectors - 2 * self.unit, self.layout.most_sectors
            await guest.resize(most if letter == "r" and guest.sectors < most else least)
        elif letter == "b":
            await guest.bitmap()
        elif letter == "m":
            bits, lazy = AMENDED[self.count % len(AMENDED)]
            order = int(bits).bit_length() - 1
            await guest.amend({"refcount_bits": bits, "lazy_refcounts": lazy}, refcount_order=order, lazy=lazy == "on")
        elif letter in "BVNATOMC1234567":
            await self._image(letter)
        elif letter == "s":
            if len(guest.names()) < 3:
                await guest.snapshot()
        elif names := guest.names():
            await (guest.apply if letter == "a" else guest.delete)(names[0])

    async def _image(self, letter: str) -> None:
        """What is seldom done to an image."""
        guest = self.guest
        if letter == "B":
            await guest.remove_bitmaps()
        elif letter == "V":
            version = 5 - guest.version
            await guest.amend({"compat": "v2" if version == 2 else "v3"}, version=version)
        elif letter == "N":
            await guest.rename_backing(NAMES[guest.backing_name == NAMES[0]])
        elif letter == "A":
            await guest.amend_size(min(guest.sectors + 4 * self.unit, self.layout.most_sectors))
        elif letter == "T":
            await guest.amend({"data_file_raw": "off"}, raw=False)
        elif letter == "O":
            await guest.reopen()
        elif letter == "M":
            await guest.find_damage()
        elif letter == "C":
            await guest.repair()
        else:
            await guest.close()
            guest.spoil(letter)
            guest.disk = await self.layout.open(self.files)

    # -- by chance ---------------------------------------------------------------------------------------------------

    async def by_chance(self, chance: random.Random, steps: int) -> None:
        """Operations by chance, sometimes several at a time."""
        for _ in range(steps):
            self.count += 1
            letter = chance.choice(self.layout.kinds)
            if letter in WHOLE:
                await self._whole(letter)
                continue
            spans = self._places(chance)[: 1 if letter in "cF" else 2]
            jobs = [self._somewhere(chance, letter, span, len(spans) == 1) for span in spans]
            if chance.random() < 0.15:
                jobs.append(self.guest.flush())
            await asyncio.gather(*jobs)

    def _places(self, chance: random.Random) -> list[tuple[int, int]]:
        """Ranges of sectors that do not overlap, one or some, near the regions."""
        end = self.guest.sectors // self.unit - 4
        region = chance.choice((*self.layout.regions, *self.layout.regions, end)) * self.unit
        end = min(region + 6 * self.unit, self.guest.sectors)
        cuts = sorted(chance.sample(range(region, end + 1), min(chance.choice((2, 2, 4)), end - region)))
        return list(zip(cuts[::2], cuts[1::2], strict=False))

    async def _somewhere(self, chance: random.Random, letter: str, span: tuple[int, int], alone: bool) -> None:
        guest, unit = self.guest, self.unit
        low, high = span
        whole = low // unit * unit, min(-(-high // unit) * unit, guest.sectors)
        if alone and chance.random() < 0.4:
            low, high = whole
        if letter == "c":
            low, high = whole[0], whole[0] + unit * chance.randint(1, 2)
            if high <= guest.sectors:
                await guest.compress(low, high)
        elif letter in "zu":
            await guest.zero(low, high, unmap=letter == "z")
        elif letter == "d":
            await guest.discard(*(whole if alone else span))
        else:
            await guest.write(low, high, fua=letter == "F")

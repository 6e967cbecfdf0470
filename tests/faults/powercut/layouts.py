"""The images that workloads begin with: small, and with something of everything in them."""

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import aioblock
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.graph.backend import BlockBackend
from tests.faults.powercut.contents import SECTOR, Tags, bytes_of
from tests.faults.powercut.guest import Guest
from tests.faults.powercut.model import Model
from tests.faults.powercut.recorder import RecordedFile, Timeline
from tests.kit.memory_io import MemoryIO

__all__ = ["LAYOUTS", "UNKNOWN_AUTOCLEAR", "Layout", "Start", "make_start"]

BACKING_SERIAL = 0xFFFFFF
UNKNOWN_AUTOCLEAR = 1 << 17


@dataclass(frozen=True)
class Layout:
    """How to create an image, how to open it, and what to do with it."""

    name: str
    create: dict[str, Any]
    clusters: int
    """Guest clusters of the disk."""
    regions: tuple[int, ...]
    """The guest clusters from which on things are done, a few each."""
    backing: int = 0
    """Sectors of the backing file; 0: none."""
    kinds: str = "wWozudfFcgrRksaxb"
    """The operations that make sense here: see `workloads`."""
    options: dict[str, Any] = field(default_factory=lambda: {"l2-cache-size": 512})
    fill_to: int = 0
    """Host clusters that are in use in the beginning, about; more than the content needs: more is written."""
    autoclear: int = 0
    """Autoclear bits that nobody knows: set in the beginning."""
    rare: bool = False
    """It takes long: it comes less often than others."""
    reclaims: bool = False
    """Clusters that wait to become free are made so before the file grows, as in larger images; here it is at once."""
    data_file: bool = False
    """Guest data lies in a file of its own."""

    @property
    def cluster(self) -> int:
        return int(self.create["cluster_size"])

    @property
    def sectors(self) -> int:
        return self.clusters * self.cluster // SECTOR

    @property
    def most_sectors(self) -> int:
        """As many as any state of it may have."""
        return (self.clusters + 8) * self.cluster // SECTOR

    @property
    def below(self) -> Tags:
        """What the backing file shows, and zeroes behind it."""
        tags = np.zeros(self.most_sectors, np.int64)
        shown = self._backing_tags[: self.most_sectors]
        tags[: len(shown)] = shown
        return tags

    @property
    def _backing_tags(self) -> Tags:
        return (np.arange(self.backing, dtype=np.int64) << 24) + BACKING_SERIAL

    async def open(self, files: list[RecordedFile], *, writable: bool = True) -> BlockBackend:
        """Open the image in `files`."""
        described: dict[str, Any] = {"driver": "qcow2", "file": files[0].options(), **self.options}
        described["backing"] = None
        if self.backing:
            quiet = Timeline("backing").file(bytes_of(self._backing_tags))
            described["backing"] = {"driver": "raw", "file": quiet.options()}
        if len(files) > 1:
            described["data-file"] = {"driver": "raw", "file": files[1].options()}
        disk = await aioblock.open(
            described, writable=writable, resize=writable, discard="unmap", trust=aioblock.TRUST_ALL
        )
        if not self.reclaims:
            disk.node.driver.image.reclaim_share = 0  # type: ignore[attr-defined]
        return disk


@dataclass
class Start:
    """An image to begin with: its files, and what is in it."""

    layout: Layout
    contents: list[bytes]
    tags: Tags
    size: int
    serial: int

    def model(self) -> Model:
        return Model(self.tags.copy(), self.size, serial=self.serial)


async def make_start(layout: Layout) -> Start:
    """Create the image and fill some of it: data, zeroes, a hole, a compressed cluster."""
    timeline = Timeline(layout.name)
    files = [timeline.file() for _ in range(1 + layout.data_file)]
    await _create(layout, files)
    disk = await layout.open(files)
    tags = layout.below
    tags[layout.sectors :] = 0  # what the disk gets when it is made longer
    model = Model(tags, layout.sectors * SECTOR)
    guest = Guest(timeline, model, disk, layout.cluster)
    unit = layout.cluster // SECTOR
    for number, region in enumerate(layout.regions):
        low = region * unit
        await guest.write(low, low + 2 * unit)
        if number == 0:
            await guest.write(low + 2 * unit, low + 3 * unit)
            await guest.zero(low + 2 * unit, low + 3 * unit, unmap=False)
        elif "c" in layout.kinds:
            await guest.compress(low + 2 * unit, low + 3 * unit)
            await guest.compress(low + 3 * unit, low + 4 * unit)
    at = (layout.regions[0] + 8) * unit
    while (missing := layout.fill_to - files[0].size // layout.cluster) > 0:
        await guest.write(at, at + max(missing // 2, 1) * unit)
        at += max(missing // 2, 1) * unit
        await guest.flush()
    await guest.close()
    contents = [each.content() for each in files]
    if layout.autoclear:
        contents[0] = contents[0][:88] + struct.pack(">Q", layout.autoclear) + contents[0][96:]
    return Start(layout, contents, model.latest().exact, layout.sectors * SECTOR, model.serial)


async def _create(layout: Layout, files: list[RecordedFile]) -> None:
    options: dict[str, Any] = {"size": layout.sectors * SECTOR, **layout.create}
    made = [MemoryIO() for _ in files]
    if layout.data_file:
        options = {"data_file": "data", **options, "data-file": made[1]}
    await Qcow2Driver.create(made[0], options)
    for file, content in zip(files, made, strict=True):
        file.write(0, memoryview(bytes(content.data)))


def _layout(name: str, cluster: int, clusters: int, regions: tuple[int, ...], **more: Any) -> Layout:
    create = {"cluster_size": cluster, **more.pop("create", {})}
    return Layout(name, create, clusters, regions, **more)


_V2 = {"create": {"compat": "0.10"}, "kinds": "wWozudfFcgrRksax"}
_EXTERNAL = {"data_file": True, "kinds": "wWozudfFgrRkb"}
_LAZY = {"lazy_refcounts": True}

_ALL = (
    _layout("c512", 512, 442, (1, 62, 130, 260)),
    _layout("c4k", 4096, 20, (1, 9)),
    _layout("autoclear", 4096, 20, (1, 9), autoclear=UNKNOWN_AUTOCLEAR),
    _layout("amend", 512, 188, (1, 60), kinds="wWozdfrRksaxbmm", backing=101),
    _layout("c4k2", 4096, 1020, (1, 1008)),
    _layout("c64k", 65536, 10, (0, 5)),
    _layout("reclaim512", 512, 442, (1, 62, 130, 260), reclaims=True),
    _layout("reclaim4k", 4096, 20, (1, 9), backing=85, reclaims=True),
    _layout("ext", 16384, 12, (1, 7), create={"extended_l2": True}),
    _layout("back512", 512, 188, (1, 60), backing=101),
    _layout("back4k", 4096, 20, (1, 9), backing=85),
    _layout("backlong", 4096, 20, (1, 9), backing=300),
    _layout("backext", 16384, 12, (1, 6), backing=270, create={"extended_l2": True}),
    _layout("zstd", 4096, 20, (1, 9), kinds="wczudfgks", create={"compression_type": "zstd"}),
    _layout("packed", 2048, 40, (1, 15), kinds="wcccudfgksax", create={"refcount_bits": 8}),
    _layout("v2", 512, 188, (1, 62), **_V2),
    _layout("v2back", 512, 188, (1, 62), backing=99, **_V2),
    _layout("rc1", 512, 188, (1, 62), kinds="wWozudfFgrRkb", create={"refcount_bits": 1}),
    _layout("rc2", 512, 188, (1, 62), create={"refcount_bits": 2}),
    _layout("rc4", 1024, 140, (1, 120), create={"refcount_bits": 4}),
    _layout("rc8", 1024, 140, (1, 120), create={"refcount_bits": 8}),
    _layout("rc32", 512, 188, (1, 62), create={"refcount_bits": 32}),
    _layout("edge", 512, 188, (1, 62), create={"refcount_bits": 64}, fill_to=60),
    _layout("table", 512, 4600, (1, 62), create={"refcount_bits": 64}, fill_to=4096, rare=True),
    _layout("lazy512", 512, 188, (1, 62), create=_LAZY, fill_to=60),
    _layout("lazy4k", 4096, 20, (1, 9), create=_LAZY),
    _layout("lazyback", 4096, 20, (1, 9), backing=85, create=_LAZY),
    _layout("data", 4096, 20, (1, 9), **_EXTERNAL),
    _layout("databack", 4096, 20, (1, 9), backing=85, **_EXTERNAL),
    _layout("spoilt", 4096, 20, (1, 9), kinds="wWzsxkC1235"),
    _layout("named", 8192, 12, (1, 6), kinds="wWzrbBBNNks", create={"backing_file": "a", "backing_fmt": "raw"}),
    _layout("foreign", 8192, 12, (1, 6), kinds="wWbBk7"),
    _layout("straddle", 4096, 20, (1, 9), data_file=True, kinds="wWrbBk", create={"data_file": "d" * 376}),
    _layout("down", 512, 188, (1, 60), kinds="wWzurRsaxVVA", backing=101),
    _layout("raw", 4096, 20, (1, 9), data_file=True, kinds="wWTzdfrk", create={"data_file_raw": True}),
    _layout("cut", 512, 66, (1, 62), kinds="wWzfRrdA", create={"refcount_bits": 64}, fill_to=62),
    _layout("dataext", 16384, 12, (1, 6), backing=270, create={"extended_l2": True}, **_EXTERNAL),
)
LAYOUTS = {layout.name: layout for layout in _ALL}

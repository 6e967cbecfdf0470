"""The same random changes made by us and by QEMU's programs: content, map and check of the two images agree."""

import json
import random
from pathlib import Path

import pytest

import aioblock
from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.oracle import assert_clean, assert_same, qemu_img, qemu_io

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

SHAPES = {
    "usual": ["-o", "cluster_size=64k"],
    "small": ["-o", "cluster_size=1k,refcount_bits=64"],
    "extended": ["-o", "extended_l2=on,cluster_size=16k"],
    "old": ["-o", "compat=0.10,cluster_size=4k"],
    "backed": ["-o", "cluster_size=4k", "-b", "base", "-F", "raw"],
}


class QemuCorruptedIt(Exception):
    """QEMU 7.2 found fault with what it had made itself: a compressed write over an L2 table."""


class Twins:
    """An image twice; each step is done to both."""

    def __init__(self, folder: Path, shape: str, seed: int) -> None:
        self.shape = shape
        self.chance = random.Random(seed)
        self.theirs, self.ours = folder / f"theirs{seed}", folder / f"ours{seed}"
        self.size = 2 << 20
        self.unit = {"usual": 65536, "small": 1024, "extended": 16384}.get(shape, 4096)
        self.written: set[int] = set()
        args = [str(folder / "base") if arg == "base" else arg for arg in SHAPES[shape]]
        for path in (self.theirs, self.ours):
            qemu_img("create", "-q", "-f", "qcow2", *args, path, str(self.size))

    async def requests(self) -> None:
        """Some requests of the guest, by one run of qemu-io and by one open of ours."""
        steps = []
        for number in range(self.chance.randrange(1, 8)):
            offset = self.chance.randrange(self.size // 512) * 512
            nbytes = min(self.chance.choice((512, 4096, 70_000 // 512 * 512, 300 << 10)), self.size - offset)
            kind = self.chance.choice(("write", "write", "write -z", "write -zu", "discard", "write -c"))
            if kind == "write -c":
                offset -= offset % self.unit
                nbytes = min(self.unit, self.size - offset)
            steps.append((kind, offset, nbytes, number + 1))
        commands = [
            f"{kind} {f'-P {tag}' if kind in ('write', 'write -c') else ''} {offset} {nbytes}"
            for kind, offset, nbytes, tag in steps
        ]
        done = qemu_io(self.theirs, *commands, fmt="qcow2", options=["-d", "unmap"], check=False)
        if "corrupt" in done.stderr:
            raise QemuCorruptedIt
        said = done.stdout
        async with await aioblock.open(
            self.ours, format="qcow2", writable=True, discard="unmap", trust=aioblock.TRUST_ALL
        ) as image:
            for kind, offset, nbytes, tag in steps:
                if kind == "write -c" and f"wrote {nbytes}/{nbytes} bytes at offset {offset}\n" not in said:
                    continue  # QEMU stores no cluster compressed that has a place already
                if kind.startswith("write -z"):
                    await image.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP if kind.endswith("u") else 0)
                elif kind == "discard":
                    await image.pdiscard(offset, nbytes)
                else:
                    await image.pwrite(offset, bytes([tag]) * nbytes, REQ_COMPRESSED if kind == "write -c" else 0)

    async def resize(self) -> None:
        """Another size."""
        self.size = self.chance.randrange(200, 6000) * 512
        qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.theirs, str(self.size))
        async with await aioblock.open(
            self.ours, format="qcow2", writable=True, resize=True, trust=aioblock.TRUST_ALL
        ) as image:
            await image.truncate(self.size)

    async def amend(self) -> None:
        """Another version, width of refcounts, or lazy refcounts."""
        wishes = ["compat=1.1", "compat=1.1,refcount_bits=32", "compat=1.1,lazy_refcounts=on"]
        if self.shape not in ("extended", "backed"):
            wishes.append("compat=0.10,refcount_bits=16,lazy_refcounts=off")
        wish = self.chance.choice(wishes)
        qemu_img("amend", "-f", "qcow2", "-o", wish, self.theirs)
        async with await aioblock.open(self.ours, format="qcow2", writable=True, trust=aioblock.TRUST_ALL) as image:
            await image.amend(dict(part.split("=") for part in wish.split(",")))

    def compare(self) -> None:
        assert_clean(self.ours, "qcow2")
        assert_clean(self.theirs, "qcow2")
        assert_same(self.theirs, self.ours, ("qcow2", "qcow2"))
        theirs, ours = (json.loads(qemu_img("info", "--output=json", path).stdout) for path in (self.theirs, self.ours))
        for key in ("virtual-size", "format-specific"):
            assert theirs[key] == ours[key]
        assert self._map(self.theirs) == self._map(self.ours)

    def _map(self, path: Path) -> list[tuple[int, int, bool, bool, bool, int]]:
        """What each run is, without its place in the file; whether zeroes are stored is the file system's business."""
        runs: list[tuple[int, int, bool, bool, bool, int]] = []
        for run in json.loads(qemu_img("map", "--output=json", path).stdout):
            zero = run["zero"] and not run["data"]
            # QEMU marks the rest of the last cluster when it grows; here subclusters without data may stay as they are.
            present = run["present"] and not (zero and self.shape == "extended")
            what = run["data"], zero, present, run["depth"]
            start, length = run["start"], run["length"]
            if runs and runs[-1][2:] == what:
                start, length = runs[-1][0], runs[-1][1] + length
                runs.pop()
            runs.append((start, length, *what))
        return runs


@pytest.mark.parametrize("shape", SHAPES)
async def test_twins(tmp_path: Path, shape: str) -> None:
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "2M")
    qemu_io(tmp_path / "base", "write -P 99 0 1500k", fmt="raw")
    compared = 0
    for seed in range(4):
        twins = Twins(tmp_path, shape, seed)
        try:
            for _ in range(8):
                await twins.chance.choice((twins.requests, twins.requests, twins.resize, twins.amend))()
        except QemuCorruptedIt:
            continue
        twins.compare()
        compared += 1
    assert compared >= 3

"""Random operations, several at a time, against a bytearray; then QEMU looks at what is left."""

import asyncio
import random
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from aioblock.graph.backend import BlockBackend
from tests.kit.oracle import require
from tests.kit.qcow2_images import assert_image, new_image, open_disk
from tests.kit.recorded_disk import Hook, RecordedDisk


@dataclass(frozen=True)
class Shape:
    """What kind of image."""

    cluster_bits: int
    version: int
    refcount_bits: int
    extended: bool
    compression: str
    clusters: int
    tail: int
    backing: int | None
    """Length of the backing file, or None."""

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def size(self) -> int:
        return self.clusters * self.cluster + self.tail

    def create_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cluster_size": self.cluster, "compat": "1.1" if self.version == 3 else "0.10"}
        if self.version == 3:
            options |= {"refcount_bits": self.refcount_bits, "compression_type": self.compression}
            options |= {"extended_l2": self.extended}
        return options


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    bits = draw(st.sampled_from([9, 10, 12, 14, 16]))
    version = draw(st.sampled_from([2, 3, 3, 3]))
    extended = version == 3 and bits >= 14 and draw(st.booleans())
    clusters = draw(st.integers(3, 200 if bits < 12 else 24))
    tail = draw(st.integers(0, (1 << bits) // 512 - 1)) * 512
    size = clusters * (1 << bits) + tail
    backing = draw(st.one_of(st.none(), st.integers(1, size // 512 + 8).map(lambda sectors: sectors * 512)))
    return Shape(
        bits,
        version,
        draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64])) if version == 3 else 16,
        extended,
        draw(st.sampled_from(["zlib", "zstd"])) if version == 3 else "zlib",
        clusters,
        tail,
        backing,
    )


class Runner:
    """An image, a model, and operations that are done to both."""

    def __init__(self, shape: Shape, image: BlockBackend, model: bytearray) -> None:
        self.shape, self.image, self.model = shape, image, model

    async def batch(self, data: st.DataObject) -> None:
        """Some operations at a time, on ranges that do not overlap."""
        size = self.shape.size
        cuts = sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=9), label="cuts"))
        plan = []
        for low, high in pairwise(cuts):
            kind = data.draw(
                st.sampled_from(["write", "write", "write", "zero", "unmap", "discard", "compress", "read"]),
                label="kind",
            )
            plan.append((kind, low, high, data.draw(st.integers(1, 255), label="byte")))
        flush = data.draw(st.booleans(), label="flush")
        await asyncio.gather(*(self.job(*step) for step in plan), *([self.image.flush()] if flush else []))

    async def job(self, kind: str, low: int, high: int, byte: int) -> None:
        image, model, cluster = self.image, self.model, self.shape.cluster
        if kind == "read":
            expected = bytes(model[low:high])
            assert await image.pread(low, high - low) == expected
        elif kind == "write":
            content = bytes((byte + place) % 251 for place in range(min(high - low, 600)))
            content = (content * ((high - low) // len(content) + 1))[: high - low]
            await image.pwrite(low, content)
            model[low:high] = content
        elif kind in ("zero", "unmap"):
            await image.pwrite_zeroes(low, high - low, REQ_MAY_UNMAP if kind == "unmap" else 0)
            model[low:high] = bytes(high - low)
        elif kind == "discard":
            await image.pdiscard(low, high - low)
            first = -(-low // cluster) * cluster
            last = high if high == self.shape.size else high // cluster * cluster
            if first < last and not (self.shape.version == 2 and self.shape.backing is not None):
                model[first:last] = bytes(last - first)
        else:
            first = -(-low // cluster) * cluster
            last = high if high == self.shape.size else high // cluster * cluster
            if first < last:
                content = (b"%08d" % byte * ((last - first) // 8 + 1))[: last - first]
                await image.pwrite(first, content, REQ_COMPRESSED)
                model[first:last] = content


def jitter(seed: int) -> Hook:
    """Requests of the disk take a few turns of the loop each, so that they overtake each other."""
    chance = random.Random(seed)

    async def before(verb: str, offset: int, nbytes: int) -> None:
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)

    return before


@pytest.mark.slow
@pytest.mark.oracle
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shape=shapes(), data=st.data())
async def test_random_operations(shape: Shape, data: st.DataObject) -> None:
    require("qemu-img")
    below = None
    model = bytearray(shape.size)
    if shape.backing is not None:
        below = RecordedDisk(bytes(place * 7 % 253 for place in range(shape.backing)))
        shown = min(shape.backing, shape.size)
        model[:shown] = below.content()[:shown]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = shape.create_options()
        if below is not None:
            (folder / "base.raw").write_bytes(below.content())
            options |= {"backing_file": str(folder / "base.raw"), "backing_fmt": "raw"}
        disk = RecordedDisk(await new_image(shape.size, **options))
        disk.before = jitter(data.draw(st.integers(0, 99), label="seed"))
        for _ in range(data.draw(st.integers(1, 3), label="sessions")):
            image = await open_disk(disk, {"l2-cache-size": shape.cluster * 2}, backing=below)
            runner = Runner(shape, image, model)
            for _ in range(data.draw(st.integers(1, 5), label="batches")):
                await runner.batch(data)
            assert await image.pread(0, shape.size) == model
            await image.close()
        assert_image(folder, disk.content(), model)
        image = await open_disk(disk, backing=below, writable=False)
        assert await image.pread(0, shape.size) == model
        await image.close()

"""`memory`: the disk as a sparse thing, and as a node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import DATA, OFFSET_VALID, ZERO
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.memory import CHUNK, MemoryDisk, MemoryDriver
from tests.kit.fake_context import open_driver

END = 5 * CHUNK
OFFSETS = st.integers(0, END)
LENGTHS = st.integers(1, 2 * CHUNK + 10)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["write", "zero", "resize"]), OFFSETS, LENGTHS), max_size=12))
def test_against_a_bytearray(steps: list[tuple[str, int, int]]) -> None:
    disk, model = MemoryDisk(), bytearray()
    for number, (verb, offset, nbytes) in enumerate(steps):
        if verb == "write":
            data = bytes([number + 1]) * nbytes
            disk.write(offset, memoryview(data))
            model.extend(bytes(max(0, offset + nbytes - len(model))))
            model[offset : offset + nbytes] = data
        elif verb == "zero":
            disk.zero(offset, nbytes)
            inside = max(0, min(nbytes, len(model) - offset))
            model[offset : offset + inside] = bytes(inside)
        else:
            disk.resize(offset)
            model = model[:offset].ljust(offset, b"\0")
        assert disk.content() == model
        at = 0
        while at < disk.size:
            data_there, end = disk.run_at(at, disk.size)
            assert end > at
            assert data_there or not any(model[at:end])
            at = end


def test_holes_cost_nothing() -> None:
    disk = MemoryDisk(1 << 62)
    disk.write(1 << 61, memoryview(b"x"))
    assert disk.allocated == CHUNK
    assert disk.run_at(0, 1 << 62) == (False, 1 << 61)
    assert disk.run_at(1 << 61, 1 << 62) == (True, (1 << 61) + CHUNK)
    assert disk.run_at((1 << 61) + CHUNK, 1 << 62) == (False, 1 << 62)
    disk.zero(0, 1 << 62)
    assert disk.allocated == 0
    assert repr(disk) == f"MemoryDisk(size={1 << 62}, allocated=0)"


async def test_options() -> None:
    driver = await open_driver(MemoryDriver, {"size": "64k"})
    assert await driver.getlength() == 64 << 10
    driver = await open_driver(MemoryDriver)
    assert await driver.getlength() == 0
    disk = MemoryDisk(content=b"content")
    driver = await open_driver(MemoryDriver, {"disk": disk})
    assert driver.disk is disk
    assert await driver.getlength() == 7
    with pytest.raises(OptionError, match="together"):
        await open_driver(MemoryDriver, {"disk": disk, "size": 1})
    with pytest.raises(OptionError, match="MemoryDisk"):
        await open_driver(MemoryDriver, {"disk": "name"})


async def test_status_and_preallocation() -> None:
    driver = await open_driver(MemoryDriver, {"size": 4 * CHUNK})
    await driver.pwritev(CHUNK + 100, memoryview(b"x"), 0)
    assert await driver.block_status(0, 4 * CHUNK, True) == (ZERO | OFFSET_VALID, CHUNK, 0, None)
    assert await driver.block_status(CHUNK + 1, 4 * CHUNK, True) == (DATA | OFFSET_VALID, CHUNK - 1, CHUNK + 1, None)
    assert await driver.allocated_size() == CHUNK
    with pytest.raises(NotSupported, match="preallocation"):
        await driver.truncate(8 * CHUNK, exact=True, prealloc=Prealloc.FULL, flags=0)

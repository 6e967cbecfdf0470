"""`copy-on-read`: one flag on reads, and nothing else."""

import pytest

from aioblock.base.errors import NotSupported, PermissionConflict
from aioblock.base.flags import (
    OFFSET_VALID,
    RAW,
    REQ_COMPRESSED,
    REQ_COPY_ON_READ,
    REQ_FUA,
    REQ_MAY_UNMAP,
)
from aioblock.core.images import Prealloc, Role
from aioblock.drivers.filters.copy_on_read import CopyOnReadDriver
from tests.kit.fake_context import open_driver
from tests.kit.memory_io import MemoryIO


async def test_all_verbs() -> None:
    child = MemoryIO(bytes(8192))
    driver = await open_driver(CopyOnReadDriver, children={Role.FILE: child})
    await driver.preadv(512, memoryview(bytearray(1024)), 0)
    await driver.pwritev(0, memoryview(b"data"), REQ_FUA)
    await driver.pwritev_compressed(0, memoryview(b"data"))
    await driver.pwrite_zeroes(0, 512, REQ_MAY_UNMAP)
    await driver.pdiscard(512, 512)
    await driver.truncate(16384, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert [tuple(call) for call in child.log] == [
        ("pread", 512, 1024, REQ_COPY_ON_READ),
        ("pwrite", 0, 4, REQ_FUA),
        ("pwrite", 0, 4, REQ_COMPRESSED),
        ("pwrite_zeroes", 0, 512, REQ_MAY_UNMAP),
        ("pdiscard", 512, 512, 0),
        ("truncate off", 0, 16384, 0),
    ]
    assert await driver.getlength() == 16384
    assert await driver.block_status(1, 2, True) == (RAW | OFFSET_VALID, 2, 1, child)


async def test_bottom_is_refused() -> None:
    with pytest.raises(NotSupported, match="bottom"):
        await open_driver(CopyOnReadDriver, {"bottom": "node"}, children={Role.FILE: MemoryIO()})


async def test_an_image_that_cannot_be_written_is_refused() -> None:
    child = MemoryIO(bytes(8192))
    child.node.read_only = True
    with pytest.raises(PermissionConflict, match="read-only"):
        await open_driver(CopyOnReadDriver, children={Role.FILE: child})

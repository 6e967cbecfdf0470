"""The contract of `aioblock.core.driver`, over every driver.

Requests are what the generic code would send: inside the node, aligned to `request_alignment`, no longer than the
limits.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioblock.base.errors import NotSupported
from aioblock.base.flags import (
    ALLOCATED,
    COMPRESSED,
    DATA,
    EOF,
    OFFSET_VALID,
    RAW,
    RECURSE,
    REQ_COMPRESSED,
    REQ_FUA,
    REQ_MAY_UNMAP,
    REQ_NO_FALLBACK,
    REQ_UNCHANGED,
    ZERO,
)
from aioblock.core.driver import BlockDriver
from aioblock.core.images import CreateOption, DriverInfo, Prealloc
from aioblock.core.io import StoredData
from aioblock.drivers.protocols.posix.file import FileDriver
from tests.contract.subjects import SIZE, SUBJECTS, Subject
from tests.kit.fake_context import open_driver, read_from
from tests.kit.memory_io import MemoryIO

PIECE = 4096
POISON = 0xA5
DRIVERS = list(dict.fromkeys(subject.driver for subject in SUBJECTS.values()))


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    with ExitStack() as stack:
        yield SUBJECTS[request.param](tmp_path, stack)


@pytest_asyncio.fixture
async def driver(subject: Subject) -> AsyncIterator[BlockDriver]:
    opened = await subject.open()
    yield opened
    await opened.drain_begin()
    opened.drain_end()
    await opened.close()


def pattern(nbytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(nbytes)


# -- what a class says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DRIVERS, ids=lambda driver: driver.name)
def test_declarations(kind: type[BlockDriver]) -> None:
    assert kind.kind in ("protocol", "format", "filter")
    assert kind.name
    assert kind.__doc__
    assert not kind.supported_write_flags & ~(REQ_FUA | REQ_COMPRESSED | REQ_UNCHANGED)
    assert not kind.supported_zero_flags & ~(REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK)
    assert not kind.can_grow or kind.kind == "protocol"
    assert all(isinstance(option, CreateOption) for option in kind.create_options)
    assert all(option.kind in ("size", "int", "bool", "str") for option in kind.create_options)
    assert all(option.help and not option.help.endswith(".") for option in kind.create_options)
    assert len({option.name for option in kind.create_options}) == len(kind.create_options)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.binary(max_size=2048))
def test_probe_answers_for_any_bytes(head: bytes) -> None:
    for kind in DRIVERS:
        assert 0 <= kind.probe(head, "name") <= 100


async def test_limits_make_sense(driver: BlockDriver) -> None:
    limits = driver.limits
    alignment = limits.request_alignment
    assert alignment >= 1
    for field in (alignment, limits.memory_alignment):
        assert field & (field - 1) == 0
    for field in (limits.max_transfer, limits.max_pwrite_zeroes, limits.max_pdiscard):
        assert field % alignment == 0


async def test_length_and_description(driver: BlockDriver) -> None:
    assert await driver.getlength() == SIZE
    assert isinstance(driver.info(), DriverInfo)
    assert isinstance(driver.has_zero_init(), bool)
    assert type(driver).__name__ in repr(driver)
    if driver.kind == "protocol":
        used = await driver.allocated_size()
        assert used is None or used >= 0


# -- data ------------------------------------------------------------------------------------------


async def test_what_nobody_wrote_reads_as_zeroes(driver: BlockDriver) -> None:
    assert await read_from(driver, 0, SIZE) == bytes(SIZE)


async def test_what_was_written_is_read_back(subject: Subject, driver: BlockDriver) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    alignment = driver.limits.request_alignment
    model = bytearray(SIZE)
    rng = random.Random(7)
    for _ in range(40):
        offset = rng.randrange(SIZE // alignment) * alignment
        nbytes = min(rng.randrange(1, 1 + (200_000 // alignment)) * alignment, SIZE - offset)
        data = rng.randbytes(nbytes)
        await driver.pwritev(offset, memoryview(data), 0)
        model[offset : offset + nbytes] = data
        offset = rng.randrange(SIZE // alignment) * alignment
        nbytes = min(rng.randrange(1, 1 + (200_000 // alignment)) * alignment, SIZE - offset)
        assert await read_from(driver, offset, nbytes) == model[offset : offset + nbytes]
    assert await read_from(driver, 0, SIZE) == model


async def test_requests_at_the_same_time(subject: Subject, driver: BlockDriver) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    data = pattern(SIZE)

    piece = 4 * PIECE

    async def write(offset: int) -> None:
        await driver.pwritev(offset, memoryview(data)[offset : offset + piece], 0)
        assert await read_from(driver, offset, piece) == data[offset : offset + piece]

    await asyncio.gather(*(write(offset) for offset in range(0, SIZE, piece)))
    assert await read_from(driver, 0, SIZE) == data


async def test_overlapping_writes_leave_one_or_the_other(subject: Subject, driver: BlockDriver) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    alignment = driver.limits.request_alignment
    writes = [bytes([number + 1]) * PIECE for number in range(8)]
    await asyncio.gather(*(driver.pwritev(PIECE, memoryview(data), 0) for data in writes))
    found = await read_from(driver, PIECE, PIECE)
    for offset in range(0, PIECE, alignment):
        assert found[offset : offset + alignment] in {data[:alignment] for data in writes}


async def test_what_was_written_is_there_after_reopening(subject: Subject) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    data = pattern(64 << 10)
    first = await subject.open()
    await first.pwritev(PIECE, memoryview(data), 0)
    await first.flush()
    await first.close()
    second = await subject.open(read_only=True)
    assert await read_from(second, PIECE, len(data)) == data
    await second.close()


async def test_a_read_only_node_writes_nothing(subject: Subject) -> None:
    await (await subject.open()).close()
    before = subject.storage()
    if before is None:
        pytest.skip("nobody can tell")
    driver = await subject.open(read_only=True)
    await read_from(driver, 0, SIZE)
    await driver.flush()
    await driver.close()
    assert subject.storage() == before


async def test_a_cancelled_read_leaves_the_buffer_alone(subject: Subject) -> None:
    driver = await subject.open()
    buffers = [bytearray([POISON]) * (256 << 10) for _ in range(8)]
    reads = [asyncio.ensure_future(_reading(driver, buffer)) for buffer in buffers]
    await asyncio.sleep(0)
    for task in reads:
        task.cancel()
    results = await asyncio.gather(*reads, return_exceptions=True)
    cancelled = [buffer for buffer, result in zip(buffers, results, strict=True) if result is not None]
    for buffer in cancelled:
        buffer[:] = bytes([POISON ^ 0xFF]) * len(buffer)
    await driver.drain_begin()
    await driver.close()
    assert all(buffer == bytes([POISON ^ 0xFF]) * len(buffer) for buffer in cancelled)


async def _reading(driver: BlockDriver, buffer: bytearray) -> None:
    await driver.preadv(0, memoryview(buffer), 0)


# -- zeroes, discard, length ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, REQ_MAY_UNMAP])
async def test_zeroes(subject: Subject, driver: BlockDriver, flags: int) -> None:
    data = pattern(SIZE)
    await driver.pwritev(0, memoryview(data), 0)
    try:
        await driver.pwrite_zeroes(64 << 10, 128 << 10, flags & driver.supported_zero_flags)
    except NotSupported:
        if subject.keeps:
            assert await read_from(driver, 0, SIZE) == data
        return
    if subject.keeps:
        model = bytearray(data)
        model[64 << 10 : 192 << 10] = bytes(128 << 10)
        assert await read_from(driver, 0, SIZE) == model


async def test_discard_touches_nothing_else(subject: Subject, driver: BlockDriver) -> None:
    data = pattern(SIZE)
    await driver.pwritev(0, memoryview(data), 0)
    try:
        await driver.pdiscard(64 << 10, 128 << 10)
    except NotSupported:
        pass
    if subject.keeps:
        assert await read_from(driver, 0, 64 << 10) == data[: 64 << 10]
        assert await read_from(driver, 192 << 10, SIZE - (192 << 10)) == data[192 << 10 :]
    assert await driver.getlength() == SIZE


async def test_truncate(subject: Subject, driver: BlockDriver) -> None:
    data = pattern(SIZE)
    await driver.pwritev(0, memoryview(data), 0)
    try:
        await driver.truncate(SIZE + (64 << 10), exact=True, prealloc=Prealloc.OFF, flags=0)
    except NotSupported:
        assert await driver.getlength() == SIZE
        return
    assert await driver.getlength() == SIZE + (64 << 10)
    assert await read_from(driver, 0, SIZE) == data
    if subject.grows_with_zeroes:
        assert await read_from(driver, SIZE, 64 << 10) == bytes(64 << 10)
    try:
        await driver.truncate(64 << 10, exact=True, prealloc=Prealloc.OFF, flags=0)
    except NotSupported:
        assert await read_from(driver, 0, SIZE) == data
        return
    assert await driver.getlength() == 64 << 10
    await driver.truncate(SIZE, exact=True, prealloc=Prealloc.OFF, flags=0)
    if subject.grows_with_zeroes:
        assert await read_from(driver, 0, SIZE) == data[: 64 << 10] + bytes(SIZE - (64 << 10))


async def test_growing_by_writing(driver: BlockDriver) -> None:
    if not driver.can_grow:
        pytest.skip("has the length it has")
    data = pattern(PIECE)
    await driver.pwritev(SIZE + PIECE, memoryview(data), 0)
    assert await driver.getlength() == SIZE + 2 * PIECE
    assert await read_from(driver, SIZE - PIECE, 3 * PIECE) == bytes(2 * PIECE) + data
    for flags in (0, REQ_MAY_UNMAP):
        length = await driver.getlength()
        try:
            await driver.pwrite_zeroes(length - PIECE, 4 * PIECE, flags & driver.supported_zero_flags)
        except NotSupported:
            continue
        assert await driver.getlength() == length + 3 * PIECE
        assert await read_from(driver, length - PIECE, 4 * PIECE) == bytes(4 * PIECE)


# -- status ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_zero", [True, False])
async def test_status(subject: Subject, driver: BlockDriver, want_zero: bool) -> None:
    await _scatter(driver)
    content = await read_from(driver, 0, SIZE)
    offset = 0
    while offset < SIZE:
        try:
            flags, pnum, where, file = await driver.block_status(offset, SIZE - offset, want_zero)
        except NotSupported:
            return
        assert pnum > 0
        pnum = min(pnum, SIZE - offset)
        assert not flags & ~(DATA | ZERO | OFFSET_VALID | RAW | RECURSE | COMPRESSED)
        if flags & ZERO:
            assert content[offset : offset + pnum] == bytes(pnum)
        if flags & RAW:
            assert file is not None
        if flags & OFFSET_VALID and driver.kind == "protocol":
            assert where == offset
        if flags & OFFSET_VALID and flags & (DATA | RAW) and file is not None:
            assert await file.pread(where, pnum) == content[offset : offset + pnum]
        offset += pnum


async def test_status_sees_the_last_change(subject: Subject, driver: BlockDriver) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    data = pattern(256 << 10)
    for change in (driver.pwrite_zeroes, driver.pdiscard):
        await driver.pwritev(0, memoryview(data), 0)
        try:
            flags, _, _, _ = await driver.block_status(0, len(data), True)
            assert flags & (DATA | RAW)
            if change == driver.pdiscard:
                await driver.pdiscard(64 << 10, 64 << 10)
            else:
                await driver.pwrite_zeroes(64 << 10, 64 << 10, 0)
            flags, pnum, _, _ = await driver.block_status(64 << 10, 64 << 10, True)
        except NotSupported:
            continue
        found = await read_from(driver, 64 << 10, pnum)
        if flags & ZERO:
            assert found == bytes(pnum)
        flags, pnum, _, _ = await driver.block_status(0, len(data), True)
        if flags & ZERO:
            assert not any(await read_from(driver, 0, pnum))


async def test_extents_say_the_same_as_status(driver: BlockDriver) -> None:
    await _scatter(driver)
    try:
        batch = await driver.extents(PIECE, SIZE - PIECE, True)
    except NotSupported:
        return
    assert batch.offset == PIECE
    assert 0 < batch.nbytes <= SIZE - PIECE
    offset = PIECE
    for pnum, flags, where in zip(batch.lengths, batch.flags, batch.map, strict=True):
        assert pnum > 0
        same = await driver.block_status(offset, int(pnum), True)
        assert same.flags & (DATA | ZERO | RAW) == flags & (DATA | ZERO | RAW)
        assert same.pnum >= pnum
        if flags & OFFSET_VALID:
            assert where == same.map
        assert not flags & (ALLOCATED | EOF) or flags & (DATA | ZERO)
        offset += int(pnum)


async def _scatter(driver: BlockDriver) -> None:
    """Data here and there."""
    for offset in range(0, SIZE, 256 << 10):
        await driver.pwritev(offset + (64 << 10), memoryview(pattern(64 << 10, offset)), 0)
    await driver.pwritev(SIZE - PIECE, memoryview(pattern(PIECE)), 0)


# -- copying inside the storage ---------------------------------------------------------------------


async def test_stored_data_is_taken_or_refused(subject: Subject, driver: BlockDriver, tmp_path: Path) -> None:
    """It is there then as if it had been written; refused at once, nothing has changed."""
    path, data = tmp_path / "source", pattern(SIZE, 5)
    path.write_bytes(data)
    source = await open_driver(FileDriver, {"filename": str(path)}, read_only=True)
    begin, nbytes = 64 << 10, 128 << 10
    try:
        await driver.copy_range_to(begin, StoredData(source, 4 * PIECE, nbytes))
    except NotSupported:
        taken = bytes(nbytes)
    else:
        taken = data[4 * PIECE :][:nbytes]
    finally:
        await source.close()
    if subject.keeps:
        assert await read_from(driver, begin - PIECE, nbytes + 2 * PIECE) == bytes(PIECE) + taken + bytes(PIECE)


async def test_a_range_is_copied_out_or_refused(subject: Subject, driver: BlockDriver) -> None:
    if not subject.keeps:
        pytest.skip("keeps nothing")
    await _scatter(driver)
    target = MemoryIO(b"x" * SIZE)
    try:
        await driver.copy_range_from(PIECE, SIZE - 2 * PIECE, target, 2 * PIECE, 0)
    except NotSupported:
        assert target.data.count(b"x") > 0
        return
    content = await read_from(driver, PIECE, SIZE - 2 * PIECE)
    assert bytes(target.data) == b"x" * (2 * PIECE) + content


# -- the rest ------------------------------------------------------------------------------------------


async def test_flush_twice(driver: BlockDriver) -> None:
    await driver.pwritev(0, memoryview(pattern(PIECE)), 0)
    await driver.flush()
    await asyncio.gather(driver.flush(), driver.flush())


async def test_drain_with_requests_running(driver: BlockDriver) -> None:
    reads = [asyncio.ensure_future(read_from(driver, offset, PIECE)) for offset in range(0, SIZE, 64 << 10)]
    await driver.drain_begin()
    await asyncio.gather(*reads)
    driver.drain_end()


async def test_reopen_in_another_mode(subject: Subject, driver: BlockDriver) -> None:
    data = pattern(PIECE)
    await driver.pwritev(0, memoryview(data), 0)
    await driver.flush()
    await driver.reopen(read_only=True, direct=False, no_flush=False)
    if subject.keeps:
        assert await read_from(driver, 0, PIECE) == data
    await driver.reopen(read_only=False, direct=False, no_flush=True)
    await driver.pwritev(PIECE, memoryview(data), 0)
    await driver.flush()
    if subject.keeps:
        assert await read_from(driver, 0, 2 * PIECE) == data + data


async def test_permissions_are_taken_and_given_back(driver: BlockDriver) -> None:
    await driver.set_permissions(0x0B, 0x05)
    await driver.set_permissions(0x01, 0x0F)
    await driver.set_permissions(0, 0x0F)

"""`file`: zeroes, holes, and what it says about them."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from aioblock.base.errors import NotSupported
from aioblock.base.flags import DATA, OFFSET_VALID, REQ_MAY_UNMAP, ZERO
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.posix import fallocate, holes
from aioblock.drivers.protocols.posix import file as module
from aioblock.drivers.protocols.posix.file import FileDriver
from tests.kit.fake_context import open_driver, refuse
from tests.kit.oracle import qemu_map
from tests.kit.thread_gate import ThreadGate

SIZE = 1 << 20


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_zeroes_stay_allocated_unless_they_may_go(driver: FileDriver, path: Path) -> None:
    await driver.flush()
    before = allocated(path)
    await driver.pwrite_zeroes(0, SIZE // 2, 0)
    assert allocated(path) >= before
    await driver.pwrite_zeroes(0, SIZE // 2, REQ_MAY_UNMAP)
    assert allocated(path) <= before - SIZE // 2
    await driver.pdiscard(SIZE // 2, SIZE // 4)
    assert allocated(path) <= before - SIZE * 3 // 4
    assert path.read_bytes()[: SIZE * 3 // 4] == bytes(SIZE * 3 // 4)


class Fallocate:
    """A filesystem that refuses some modes of fallocate."""

    def __init__(self, *refused: int, code: int = errno.EOPNOTSUPP) -> None:
        self.refused = refused
        self.code = code
        self.calls: list[tuple[int, int, int]] = []
        self.real = fallocate.fallocate

    def __call__(self, fd: int, mode: int, offset: int, nbytes: int) -> None:
        self.calls.append((mode, offset, nbytes))
        if mode in self.refused:
            raise OSError(self.code, os.strerror(self.code))
        self.real(fd, mode, offset, nbytes)


PUNCH, ZERO_RANGE, ALLOCATE = fallocate.PUNCH_HOLE, fallocate.ZERO_RANGE, fallocate.ALLOCATE


@pytest.mark.parametrize(
    ("refused", "flags", "expected"),
    [
        ((), 0, [ZERO_RANGE]),
        ((), REQ_MAY_UNMAP, [PUNCH]),
        ((PUNCH,), REQ_MAY_UNMAP, [PUNCH, ZERO_RANGE]),
        ((ZERO_RANGE,), 0, [ZERO_RANGE, PUNCH, ALLOCATE]),
        ((ZERO_RANGE,), REQ_MAY_UNMAP, [PUNCH]),
    ],
)
async def test_ways_to_zeroes(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, ...], flags: int, expected: Any
) -> None:
    content = path.read_bytes()
    calls = Fallocate(*refused)
    monkeypatch.setattr(fallocate, "fallocate", calls)
    await driver.pwrite_zeroes(4096, 8192, flags)
    assert [mode for mode, _, _ in calls.calls] == expected
    assert path.read_bytes() == content[:4096] + bytes(8192) + content[12288:]
    calls.calls.clear()
    await driver.pwrite_zeroes(65536, 8192, flags)  # what was refused once is not asked again
    assert [mode for mode, _, _ in calls.calls] == [mode for mode in expected if mode not in refused]


@pytest.mark.parametrize("flags", [0, REQ_MAY_UNMAP])
async def test_no_way_to_zeroes(driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    content = path.read_bytes()
    calls = Fallocate(PUNCH, ZERO_RANGE, ALLOCATE)
    monkeypatch.setattr(fallocate, "fallocate", calls)
    for _ in range(3):
        with pytest.raises(NotSupported):
            await driver.pwrite_zeroes(4096, 8192, flags)
        with pytest.raises(NotSupported):
            await driver.pdiscard(4096, 8192)
    assert len(calls.calls) == 2
    assert path.read_bytes() == content


async def test_a_range_that_does_not_suit_the_filesystem(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Fallocate(PUNCH, ZERO_RANGE, code=errno.EINVAL)
    monkeypatch.setattr(fallocate, "fallocate", calls)
    for count in (1, 2):
        with pytest.raises(NotSupported):
            await driver.pdiscard(1, 1)
        assert len(calls.calls) == count  # another range may suit


async def test_real_failures_of_fallocate_are_raised(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallocate, "fallocate", Fallocate(PUNCH, ZERO_RANGE, code=errno.ENOSPC))
    for call in (driver.pwrite_zeroes(0, 4096, 0), driver.pwrite_zeroes(0, 4096, 2), driver.pdiscard(0, 4096)):
        with pytest.raises(OSError) as caught:
            await call
        assert caught.value.errno == errno.ENOSPC


async def test_holes_past_the_end_grow_the_file_and_cut_off_nothing(driver: FileDriver, path: Path) -> None:
    await asyncio.gather(
        *(driver.pwrite_zeroes(SIZE + number * 8192 - 4096, 8192, REQ_MAY_UNMAP) for number in range(16)),
        *(driver.pwritev(2 * SIZE + number * 4096, memoryview(b"z" * 4096), 0) for number in range(16)),
    )
    assert await driver.getlength() == 2 * SIZE + 65536
    assert path.read_bytes()[2 * SIZE :] == b"z" * 65536


async def test_only_calls_that_cannot_cut_off_make_it_grow(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    monkeypatch.setattr(os, "ftruncate", refuse(errno.EIO))
    await driver.pwrite_zeroes(SIZE - 4096, 8192, REQ_MAY_UNMAP)
    assert path.read_bytes() == content[: SIZE - 4096] + bytes(8192)


async def test_status_of_a_sparse_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await FileDriver.create_file(str(tmp_path / "sparse"), {"size": SIZE})
    driver = await open_driver(FileDriver, {"filename": str(tmp_path / "sparse")})
    await driver.pwritev(SIZE // 2, memoryview(b"x" * 65536), 0)
    found, offset = [], 0
    while offset < SIZE:
        flags, pnum, where, _ = await driver.block_status(offset, SIZE - offset, True)
        assert where == offset
        assert flags in (DATA | OFFSET_VALID, ZERO | OFFSET_VALID)
        found.append((offset, pnum, bool(flags & DATA)))
        offset += pnum
    assert [
        {"start": start, "length": pnum, "depth": 0, "present": True, "zero": not data, "data": data, "offset": start}
        for start, pnum, data in found
    ] == qemu_map(tmp_path / "sparse", fmt="raw")
    batch = await driver.extents(0, SIZE, True)
    assert list(batch.lengths) == [pnum for _, pnum, _ in found]
    # Data is remembered; nobody is asked again.
    await driver.block_status(SIZE // 2, 4096, True)
    monkeypatch.setattr(holes, "_lseek", refuse(errno.EIO))
    assert await driver.block_status(SIZE // 2 + 512, 4096, True) == (DATA | OFFSET_VALID, 4096, SIZE // 2 + 512, None)
    assert (await driver.block_status(0, SIZE, False)).flags == DATA | OFFSET_VALID
    with pytest.raises(OSError):
        await driver.block_status(0, 4096, True)
    await driver.close()


@pytest.mark.parametrize("verb", ["zeroes", "discard", "truncate"])
async def test_a_hole_is_seen_although_data_was_remembered(driver: FileDriver, verb: str) -> None:
    await driver.flush()  # what is dirty counts as data for the kernel, also when it is zeroes
    assert (await driver.block_status(0, SIZE, True)).flags & DATA
    if verb == "zeroes":
        await driver.pwrite_zeroes(65536, 65536, 0)
    elif verb == "discard":
        await driver.pdiscard(65536, 65536)
    else:
        await driver.truncate(65536, exact=True, prealloc=Prealloc.OFF, flags=0)
        await driver.truncate(131072, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert await driver.block_status(65536, 65536, True) == (ZERO | OFFSET_VALID, 65536, 65536, None)


async def test_a_question_under_way_while_a_hole_is_made_is_not_remembered(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUICK", -1.0)
    await driver.block_status(SIZE, 1, True)  # slower than that: from now on in threads
    gate = ThreadGate(os.lseek)
    monkeypatch.setattr(holes, "_lseek", gate)
    question = asyncio.ensure_future(driver.block_status(0, SIZE, True))
    await gate.arrival()
    await driver.pdiscard(0, SIZE)
    driver._data.remember(0, SIZE, driver._data.generation - 1)
    gate.open()
    assert (await question).flags & ZERO
    assert driver._data.span == (0, 0)


async def test_a_filesystem_that_cannot_tell_holes(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_lseek", refuse(errno.EINVAL))
    assert await driver.block_status(4096, 8192, True) == (DATA | OFFSET_VALID, 8192, 4096, None)
    monkeypatch.setattr(holes, "_lseek", refuse(errno.EIO))  # it is not asked again
    assert await driver.block_status(4096, 8192, True) == (DATA | OFFSET_VALID, 8192, 4096, None)
    assert list((await driver.extents(4096, 8192, True)).lengths) == [8192]


async def test_status_behind_the_end(driver: FileDriver, path: Path) -> None:
    os.truncate(path, 4096)
    assert await driver.block_status(8192, 4096, True) == (ZERO | OFFSET_VALID, 4096, 8192, None)

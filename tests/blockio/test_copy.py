"""copy_range: the storage copies between graphs; what a node checks, tracks and marks on the way."""

import asyncio
import errno
import os
import random

import pytest

import aioblock
from aioblock import NotSupported
from aioblock.base.flags import REQ_SERIALISING
from aioblock.core.io import StoredData
from aioblock.drivers.protocols.posix import file as file_driver
from aioblock.drivers.protocols.posix import transfer
from tests.kit.cancel_points import cancelled_at
from tests.kit.model import pattern
from tests.kit.oracle import assert_clean, assert_same, qemu_img, qemu_io
from tests.kit.thread_gate import ThreadGate
from tests.kit.watching import assert_idle

CLUSTER = 65536
SIZE = 16 * CLUSTER


def raw_file(path, content=bytes(SIZE)):
    path.write_bytes(content)
    return path


async def opened_raw(path, **how):
    return await aioblock.open(path, format="raw", **how)


@pytest.fixture
def pair(tmp_path):
    """A file of data, and one of zeroes."""
    return raw_file(tmp_path / "source", pattern(SIZE, 1)), raw_file(tmp_path / "target")


async def test_a_range_is_copied_and_nothing_else(pair):
    source, target = pair
    async with await opened_raw(source) as disk, await opened_raw(target, writable=True) as out:
        await disk.copy_range(1000, 5000, out, 70_000)
        assert out.statistics.bytes_written == disk.statistics.bytes_read == 5000
    expected = bytearray(SIZE)
    expected[70_000:75_000] = source.read_bytes()[1000:6000]
    assert target.read_bytes() == expected


@pytest.mark.oracle
@pytest.mark.parametrize("cluster", [4096, 65536])
@pytest.mark.parametrize("extended", [False, True])
async def test_chains_of_qcow2(tmp_path, cluster, extended):
    """Random pieces, out of a chain into one, against a model; what cannot be copied is written, as convert does."""
    if extended and cluster < 16384:
        cluster = 16384
    rng = random.Random(cluster + extended)
    options = f"cluster_size={cluster}" + (",extended_l2=on" if extended else "")
    model = bytearray(SIZE)
    base, top, target = tmp_path / "base", tmp_path / "top", tmp_path / "target"
    qemu_img("create", "-f", "qcow2", "-o", options, base, str(SIZE // 2))  # shorter than what lies above
    qemu_img("create", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", top, str(SIZE))
    for path, length in ((base, SIZE // 2), (top, SIZE)):
        for number in range(1, 6):
            begin = rng.randrange(length // 512) * 512
            nbytes = min(rng.randrange(1, 200) * 512, length - begin)
            qemu_io(path, f"write -P {number + (path == top) * 16} {begin} {nbytes}", fmt="qcow2")
            model[begin : begin + nbytes] = bytes([number + (path == top) * 16]) * nbytes
    qemu_img("create", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", target, str(SIZE))
    expected = bytearray(SIZE)
    copied = 0
    async with await aioblock.open(target, format="qcow2", writable=True) as out:
        expected[:] = await out.pread(0, SIZE)
        async with await aioblock.open(top, format="qcow2") as disk:
            assert await disk.pread(0, SIZE) == model
            for _ in range(30):
                unit = rng.choice([512, cluster])
                begin = rng.randrange(SIZE // unit) * unit
                place = rng.randrange(SIZE // unit) * unit
                nbytes = min(rng.randrange(1, 9) * unit, SIZE - begin, SIZE - place)
                try:
                    await disk.copy_range(begin, nbytes, out, place)
                    copied += 1
                except NotSupported:  # a part of a new cluster
                    await out.pwrite(place, model[begin : begin + nbytes])
                expected[place : place + nbytes] = model[begin : begin + nbytes]
            assert_idle(disk)
        assert await out.pread(0, SIZE) == expected
    assert copied > 10
    assert_clean(target, "qcow2")
    assert_same(raw_file(tmp_path / "expected", expected), target, ("raw", "qcow2"))


@pytest.mark.oracle
async def test_compressed_and_encrypted_clusters_are_not_copied(tmp_path, pair):
    source, target = pair
    packed = tmp_path / "packed"
    raw_file(source, b"text" * (SIZE // 4))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", source, packed)
    async with await aioblock.open(packed, format="qcow2") as disk, await opened_raw(target, writable=True) as out:
        with pytest.raises(NotSupported):
            await disk.copy_range(0, SIZE, out, 0)


async def test_the_bitmaps_of_the_target_are_marked(pair):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True) as out:
        await out.bitmap_add("b", 4096, persistent=False)
        await disk.copy_range(0, 8192, out, 16384)
        assert list((await out.bitmap("b")).ranges()) == [(16384, 8192)]


@pytest.mark.parametrize(
    ("offset", "nbytes", "place", "code"),
    [(SIZE - 512, 1024, 0, errno.EIO), (-512, 512, 0, errno.EIO), (0, 1024, SIZE - 512, errno.EIO)],
)
async def test_ranges_outside(pair, offset, nbytes, place, code):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True) as out:
        with pytest.raises(OSError) as caught:
            await disk.copy_range(offset, nbytes, out, place)
        assert caught.value.errno == code
    assert pair[1].read_bytes() == bytes(SIZE)


async def test_a_read_only_target(pair):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1]) as out:
        with pytest.raises(OSError) as caught:
            await disk.copy_range(0, 512, out, 0)
        assert caught.value.errno == errno.EACCES


async def test_an_image_is_not_copied_into_itself(pair):
    async with await opened_raw(pair[0], writable=True) as disk:
        with pytest.raises(NotSupported, match="share no file"):
            await disk.copy_range(0, 512, disk, 4096)
        assert_idle(disk)
    assert pair[0].read_bytes() == pattern(SIZE, 1)


async def test_who_looks_for_zeroes_or_copies_on_read_reads(pair):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True, detect_zeroes="on") as out:
        with pytest.raises(NotSupported):
            await disk.copy_range(0, 512, out, 0)


async def test_data_that_lies_elsewhere_is_sliced_as_a_buffer():
    class Driver:
        pass

    data = StoredData(Driver(), 1000, 500)
    part = data[100:][:50]
    assert (len(data), part.offset, len(part), len(data[500:])) == (500, 1100, 50, 0)
    assert bool(data)
    assert not data[:0]
    with pytest.raises(ValueError):
        data[::2]


async def test_a_source_that_was_cut_behind_our_back(pair):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True) as out:
        os.truncate(pair[0], 1000)
        with pytest.raises(NotSupported, match="ends before"):
            await disk.copy_range(0, 4096, out, 0)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_what_the_kernel_refuses_is_not_asked_again(pair, monkeypatch, code):
    asked = []

    def refuse(*args):
        asked.append(args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(transfer, "_copy_file_range", refuse)
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True) as out:
        for _ in range(3):
            with pytest.raises(NotSupported):
                await disk.copy_range(0, 4096, out, 0)
        assert_idle(disk)
        assert_idle(out)
    assert len(asked) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_an_error_of_the_storage_is_told(tmp_path, pair, monkeypatch, code):
    """In the second of two parts, into qcow2: the first one is there, the second is not, and its clusters are free."""
    target = tmp_path / "target.qcow2"
    await aioblock.create(target, "qcow2", {"size": SIZE})
    really = transfer._copy_file_range
    asked = []

    def fail(*args):
        asked.append(args)
        if len(asked) == 2:
            raise OSError(code, os.strerror(code))
        return really(*args)

    monkeypatch.setattr(transfer, "_copy_file_range", fail)
    async with await opened_raw(pair[0]) as disk, await aioblock.open(target, format="qcow2", writable=True) as out:
        await disk.copy_range(0, CLUSTER, out, 0)
        with pytest.raises(OSError) as caught:
            await disk.copy_range(CLUSTER, CLUSTER, out, CLUSTER)
        assert caught.value.errno == code
        assert out.statistics.failed == 1
        assert await out.pread(0, 2 * CLUSTER) == pattern(SIZE, 1)[:CLUSTER] + bytes(CLUSTER)
        await out.pwrite(CLUSTER, b"works still")
    assert_clean(target, "qcow2")


async def test_requests_that_overlap_wait_and_a_drain_waits_for_both(pair, monkeypatch):
    gate = ThreadGate(transfer.copy_range)
    monkeypatch.setattr(file_driver, "copy_range", gate)
    async with await opened_raw(pair[0], writable=True) as disk, await opened_raw(pair[1], writable=True) as out:
        copying = asyncio.create_task(disk.copy_range(0, 8192, out, 0))
        await gate.arrival()
        assert (disk.in_flight, out.in_flight) == (1, 1)
        over = asyncio.create_task(out.pwrite(4096, b"y" * 4096, REQ_SERIALISING))
        into = asyncio.create_task(disk.pwrite(0, b"z" * 4096, REQ_SERIALISING))

        async def drain(backend):
            async with backend.drained():
                assert copying.done()

        drains = [asyncio.create_task(drain(backend)) for backend in (disk, out)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(task.done() for task in (over, into, *drains))
        gate.open()
        await asyncio.gather(copying, over, into, *drains)
        assert await out.pread(0, 8192) == pattern(SIZE, 1)[:4096] + b"y" * 4096
        assert await disk.pread(0, 4096) == b"z" * 4096


async def test_cancelled_it_goes_on_and_the_files_stay_open_for_it(pair, monkeypatch):
    gate = ThreadGate(transfer.copy_range)
    monkeypatch.setattr(file_driver, "copy_range", gate)
    disk, out = await opened_raw(pair[0]), await opened_raw(pair[1], writable=True)
    copying = asyncio.create_task(disk.copy_range(0, SIZE, out, 0))
    await gate.arrival()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    closing = asyncio.gather(disk.close(), out.close())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    gate.open()
    await closing
    assert pair[1].read_bytes() == pair[0].read_bytes()


@pytest.mark.slow
async def test_cancelled_at_every_await(pair, tmp_path):
    number = 1
    while True:
        target = tmp_path / f"target{number}"
        await aioblock.create(target, "qcow2", {"size": SIZE})
        async with await opened_raw(pair[0]) as disk, await aioblock.open(target, format="qcow2", writable=True) as out:
            run = await cancelled_at(disk.copy_range(0, SIZE, out, 0), number)
            await out.flush()
            async with out.drained():
                assert_idle(out)
            assert_idle(disk)
            content = await out.pread(0, SIZE)
        assert content in (bytes(SIZE), pattern(SIZE, 1))
        assert_clean(target, "qcow2")
        if not run.reached:
            break
        number += 1
    assert number > 1


async def test_two_that_copy_into_each_other_with_one_place_each(pair):
    """Who waits for a turn there keeps none here: else each would keep what the other needs."""
    async with (
        await opened_raw(pair[0], writable=True, max_in_flight=1) as one,
        await opened_raw(pair[1], writable=True, max_in_flight=1) as other,
    ):
        copies = [
            copy
            for at in range(0, 16 * 4096, 4096)
            for copy in (
                one.copy_range(at, 4096, other, at),
                other.copy_range(at + SIZE // 2, 4096, one, at + SIZE // 2),
            )
        ]
        await asyncio.gather(*copies)
        assert await other.pread(0, 65536) == pattern(SIZE, 1)[:65536]


async def test_a_copy_waits_while_the_target_is_drained_and_does_not_stop_the_source(pair):
    async with await opened_raw(pair[0]) as disk, await opened_raw(pair[1], writable=True) as out:
        async with out.drained():
            copying = asyncio.create_task(disk.copy_range(0, 4096, out, 0))
            await asyncio.sleep(0)
            async with disk.drained():  # would never begin if the copy had kept its turn there
                assert not copying.done()
        await copying
        assert await out.pread(0, 4096) == pattern(SIZE, 1)[:4096]

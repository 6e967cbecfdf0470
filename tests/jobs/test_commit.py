"""commit: the disk reads as before at every moment, and the base gets what the layers above it hold, and no more."""

import asyncio
import random

import pytest

import aioblock
from aioblock.base.errors import JobError
from aioblock.base.flags import DATA, ZERO
from aioblock.jobs.commit import commit
from aioblock.jobs.errors import PositionedError
from tests.kit.cancel_points import cancelled_at
from tests.kit.watching import assert_idle

K = 1024


async def _chain(folder, *sizes, cluster=4 * K):
    """qcow2 images base, 1, 2 ... on top of each other; the name of the top."""
    below = None
    for number, size in enumerate(sizes):
        options = {"cluster_size": cluster}
        if below is not None:
            options |= {"backing_file": below.name, "backing_fmt": "qcow2"}
        below = folder / f"{number}.qcow2"
        await aioblock.create(below, "qcow2", options, size=size)
    return below


def _opened(path, **how):
    return aioblock.open(path, format="qcow2", **how)


async def _content(path, **how):
    async with await _opened(path, **how) as disk:
        return bytes(await disk.pread(0, disk.length))


async def _fill(path, rng, times=12):
    async with await _opened(path, writable=True) as disk:
        for _ in range(times):
            offset = rng.randrange(disk.length)
            nbytes = rng.randint(1, min(20 * K, disk.length - offset))
            if rng.random() < 0.3:
                await disk.pwrite_zeroes(offset, nbytes)
            else:
                await disk.pwrite(offset, bytes([rng.randint(1, 255)]) * nbytes)


async def _clean(path):
    async with await _opened(path) as disk:
        result = await disk.check()
        assert not result.corruptions, path
        assert not result.leaks, path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_against_plain_bytes(tmp_path, seed):
    rng = random.Random(seed)
    sizes = [rng.randint(20, 90) * K for _ in range(3)]
    top = await _chain(tmp_path, *sizes)
    paths = [tmp_path / f"{number}.qcow2" for number in range(3)]
    for path in paths:
        await _fill(path, rng)
    before = [await _content(path) for path in paths]
    depth = rng.randint(1, 2)
    async with await _opened(top, writable=True) as disk:
        base = disk.node.below if depth == 1 else disk.node.below.below
        await commit(disk, base, workers=rng.randint(1, 4))
        assert bytes(await disk.pread(0, disk.length)) == before[2]
        assert_idle(disk)
        assert base.read_only
    assert await _content(top) == before[2]
    target = paths[2 - depth]
    content = await _content(target)
    assert content[: len(before[2])] == before[2]
    assert len(content) == max(sizes[2], sizes[2 - depth])
    assert content[len(before[2]) :] == before[2 - depth][len(before[2]) :]
    for path in paths:
        await _clean(path)
    async with await _opened(top) as disk:
        empty = [status.pnum async for status in _top_runs(disk) if status.flags & (DATA | ZERO)]
    assert depth == 2 or not empty


async def _top_runs(disk):
    at = 0
    while at < disk.length:
        status = await disk.block_status(at, disk.length - at)
        yield status
        at += status.pnum


async def test_only_what_the_top_holds_is_written(tmp_path):
    top = await _chain(tmp_path, 1 << 20, 1 << 20)
    async with await _opened(top, writable=True) as disk:
        await disk.pwrite(64 * K, b"x" * 4 * K)
        await disk.pwrite_zeroes(128 * K, 512 * K)
        told = []
        await commit(disk, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (4 * K, 4 * K)  # zeroes are not copied
        # 4 KiB of data, the L2 table, and the headers that a new image has.
        assert (tmp_path / "0.qcow2").stat().st_size < 64 * K
        assert bytes(await disk.pread(64 * K, 4 * K)) == b"x" * 4 * K


async def test_keep_keeps_the_top(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    async with await _opened(top, writable=True) as disk:
        await disk.pwrite(0, b"x" * 4 * K)
        await commit(disk, keep=True)
        assert (await disk.block_status(0, 4 * K)).flags & DATA
        await commit(disk)
        assert not (await disk.block_status(0, 4 * K)).flags & DATA
        assert bytes(await disk.pread(0, 4 * K)) == b"x" * 4 * K
        await disk.pwrite(0, b"y")  # and it goes on
        assert bytes(await disk.pread(0, 2)) == b"yx"
    assert (await _content(tmp_path / "0.qcow2"))[:2] == b"xx"


async def test_what_is_written_meanwhile_is_not_lost(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    async with await _opened(top, writable=True) as disk:
        await disk.pwrite(0, b"x" * 8 * K)
        writes = []

        def progress(done, total):
            if not writes:
                writes.append(asyncio.get_running_loop().create_task(disk.pwrite(0, b"late")))

        with pytest.raises(OSError, match="written meanwhile"):
            await commit(disk, progress=progress)
        await writes[0]
        assert bytes(await disk.pread(0, 5)) == b"latex"


async def test_a_disk_without_a_backing_file_and_a_layer_of_another_chain(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    async with await _opened(tmp_path / "0.qcow2") as other:
        with pytest.raises(JobError, match="does not have a backing file"):
            await commit(other)
        async with await _opened(top, writable=True) as disk:
            with pytest.raises(JobError, match="not in the backing chain"):
                await commit(disk, other.node)


async def test_a_base_in_use_is_refused(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    async with await _opened(top, writable=True) as disk:
        await disk.pwrite(0, b"x" * 4 * K)
        async with await _opened(tmp_path / "0.qcow2"):
            with pytest.raises(OSError, match='Failed to get "write" lock'):
                await commit(disk)
        assert (await disk.block_status(0, 4 * K)).flags & DATA
        await commit(disk)


async def test_a_failed_write_leaves_the_disk_as_it_was(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    rules = [{"event": "write_aio", "errno": 28, "once": True}]
    image = {"driver": "file", "filename": str(tmp_path / "0.qcow2")}
    backing = {"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error": rules, "image": image}}
    async with await _opened(top, writable=True, options={"backing": backing}) as disk:
        await disk.pwrite(0, b"x" * 4 * K)
        with pytest.raises(PositionedError, match="No space left on device") as caught:
            await commit(disk)
        assert (caught.value.action, caught.value.offset) == ("write", 0)
        assert bytes(await disk.pread(0, 4 * K)) == b"x" * 4 * K
        assert disk.node.below.read_only
        assert_idle(disk)
    assert (await _content(top))[: 4 * K] == b"x" * 4 * K


async def test_the_top_is_not_emptied_before_the_base_is_stable(tmp_path):
    top = await _chain(tmp_path, 64 * K, 64 * K)
    rules = [{"event": "flush_to_disk", "errno": 5}]
    image = {"driver": "file", "filename": str(tmp_path / "0.qcow2")}
    backing = {"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error": rules, "image": image}}
    async with await _opened(top, writable=True, options={"backing": backing}) as disk:
        await disk.pwrite(0, b"x" * 4 * K)
        with pytest.raises(OSError, match="Input/output error"):
            await commit(disk)
        assert (await disk.block_status(0, 4 * K)).flags & DATA
        with pytest.raises(OSError, match="Input/output error"):
            await disk.close()
    assert (await _content(top))[: 4 * K] == b"x" * 4 * K


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_every_await_the_disk_reads_as_before(tmp_path, again):
    number = 1
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        top = await _chain(folder, 24 * K, 64 * K)
        await _fill(top, random.Random(number), 5)
        before = await _content(top)
        async with await _opened(top, writable=True) as disk:
            run = await cancelled_at(commit(disk, workers=2), number, again=again)
            assert run.cancelled or run.error is None, run
            assert bytes(await disk.pread(0, disk.length)) == before
        assert await _content(top) == before
        await _clean(top)
        await _clean(folder / "0.qcow2")
        if not run.reached:
            break
        number += 1 + number // 10
    assert number > 10

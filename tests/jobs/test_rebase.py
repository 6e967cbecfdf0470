"""rebase: the disk reads as before, over any two chains; what need not be read is not read."""

import asyncio
import random

import pytest

import aioblock
from aioblock.base.flags import DATA, ZERO
from aioblock.jobs.rebase import BUFFER, rebase
from tests.jobs.test_commit import K, _clean, _content, _fill, _opened
from tests.kit.cancel_points import cancelled_at
from tests.kit.watching import assert_idle


async def _image(path, size, backing=None, cluster=4 * K, **options):
    if backing is not None:
        options |= {"backing_file": backing, "backing_fmt": "qcow2"}
    await aioblock.create(path, "qcow2", {"cluster_size": cluster, **options}, size=size)
    return path


async def _rebase(top, new, **how):
    async with await _opened(top, writable=True) as disk:
        if new is None:
            await rebase(disk, None, None, **how)
        else:
            async with await _opened(top.parent / new) as backing:
                await rebase(disk, backing, new, "qcow2", **how)
                assert_idle(backing)
        assert_idle(disk)


async def _backing_name(path):
    async with await _opened(path, backing=False) as disk:
        name = disk.node.backing_name
        return None if name is None else name.filename


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
async def test_against_plain_bytes(tmp_path, seed):
    rng = random.Random(seed)

    def size():
        return rng.randint(20, 90) * K + rng.choice((0, 512))

    await _image(tmp_path / "old", size())
    await _image(tmp_path / "mid", size(), "old", cluster=rng.choice((512, 64 * K)))
    await _image(tmp_path / "new", size(), cluster=rng.choice((512, 4 * K)))
    await _image(tmp_path / "side", size(), "old")
    top = await _image(tmp_path / "top", size(), "mid", compat=rng.choice(("0.10", "1.1")))
    for path in ("old", "mid", "new", "side", "top"):
        await _fill(tmp_path / path, rng, 6)
    before = await _content(top)
    others = [(tmp_path / name).read_bytes() for name in ("old", "mid", "new", "side")]
    names = [rng.choice(("new", "old", "mid", "side", None)) for _ in range(4)]
    for name in names:
        await _rebase(top, name, workers=rng.randint(1, 3))
        assert await _content(top) == before, names
        assert await _backing_name(top) == name
        await _clean(top)
    assert [(tmp_path / name).read_bytes() for name in ("old", "mid", "new", "side")] == others


async def test_what_is_the_same_is_not_stored_and_what_is_known_not_read(tmp_path):
    size = 4 * BUFFER
    await _image(tmp_path / "old", size)
    await _image(tmp_path / "mid", size, "old")
    await _image(tmp_path / "new", size)
    top = await _image(tmp_path / "top", size, "mid")
    async with await _opened(tmp_path / "old", writable=True) as disk:
        await disk.pwrite(0, b"o" * 64 * K)
    async with await _opened(tmp_path / "mid", writable=True) as disk:
        await disk.pwrite(BUFFER, b"m" * 64 * K)
    async with await _opened(tmp_path / "new", writable=True) as disk:
        await disk.pwrite(BUFFER, b"m" * 32 * K)
    async with await _opened(top, writable=True) as disk, await _opened(tmp_path / "old") as old:
        told = []
        await rebase(disk, old, "old", "qcow2", progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (size, size)
        # Both chains have `old`; only what `mid` holds is compared, and then stored.
        assert old.statistics.bytes_read == 0
        assert disk.statistics.bytes_read == 128 * K
    async with await _opened(top, writable=True) as disk, await _opened(tmp_path / "new") as new:
        assert (await disk.block_status(BUFFER, 64 * K)).flags & DATA
        assert not (await disk.block_status(0, 64 * K)).flags & (DATA | ZERO)
        await rebase(disk, new, "new", "qcow2")
        assert new.statistics.bytes_read == 0  # it holds nothing where the old chain has data, or the top has its own
        assert disk.statistics.bytes_read == 128 * K


async def test_two_overlays_of_one_file_are_compared_where_either_holds_something(tmp_path):
    await _image(tmp_path / "old", 64 * K)
    await _image(tmp_path / "mid", 64 * K, "old")
    await _image(tmp_path / "side", 64 * K, "old")
    top = await _image(tmp_path / "top", 64 * K, "mid")
    for name, offset, nbytes in (("old", 0, 64), ("mid", 8, 8), ("side", 12, 8), ("side", 32, 4)):
        async with await _opened(tmp_path / name, writable=True) as disk:
            await disk.pwrite(offset * K, name[:1].encode() * nbytes * K)
    before = await _content(top)
    await _rebase(top, "side")
    assert await _content(top) == before
    async with await _opened(top) as disk:
        held = [offset // K for offset in range(0, 64 * K, 4 * K) if (await disk.block_status(offset, 1)).flags & DATA]
    assert held == [8, 12, 16, 32]


@pytest.mark.slow
async def test_a_guest_that_writes_meanwhile_loses_nothing(tmp_path):
    size = 256 * K
    await _image(tmp_path / "old", size)
    await _image(tmp_path / "new", size)
    top = await _image(tmp_path / "top", size, "old")
    async with await _opened(tmp_path / "old", writable=True) as disk:
        await disk.pwrite(0, b"o" * size)
    model = bytearray(b"o" * size)
    rng = random.Random(1)
    async with await _opened(top, writable=True) as disk, await _opened(tmp_path / "new") as new:
        job = asyncio.create_task(rebase(disk, new, "new", "qcow2", workers=2))
        while not job.done():
            offset = rng.randrange(size - 700)
            data = bytes([rng.randint(1, 255)]) * rng.randint(1, 700)
            await disk.pwrite(offset, data)
            model[offset : offset + len(data)] = data
        await job
    assert await _content(top) == bytes(model)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_every_await_the_disk_reads_as_before(tmp_path, again):
    await _image(tmp_path / "old", 48 * K)
    await _image(tmp_path / "new", 64 * K)
    await _fill(tmp_path / "old", random.Random(1), 6)
    await _fill(tmp_path / "new", random.Random(2), 6)
    number = 1
    while True:
        top = await _image(tmp_path / f"top{number}", 64 * K, "old")
        before = await _content(top)
        async with await _opened(top, writable=True) as disk, await _opened(tmp_path / "new") as new:
            run = await cancelled_at(rebase(disk, new, "new", "qcow2", workers=2), number, again=again)
            assert run.cancelled or run.error is None, run
            async with disk.drained():
                assert_idle(disk)
        assert await _content(top) == before
        await _clean(top)
        if not run.reached:
            break
        number += 1 + number // 10
    assert number > 5

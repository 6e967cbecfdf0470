"""Copy-on-read: what comes from below is kept, once, in whole clusters; the reader sees no difference."""

import asyncio
import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.flags import DATA, REQ_COPY_ON_READ, ZERO
from tests.kit.model import ModelDisk, pattern
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

CLUSTER = 1024


def pair(length: int = 8192, below: int = 8192, **how: Any) -> tuple[Script, Script]:
    """An empty layer in clusters over one that is full of data."""
    return Script(length, cluster=CLUSTER, **how), Script(below, content=pattern(below, 1))


@pytest.mark.slow
@given(st.data(), st.sampled_from([8192, 8000, 7680]), st.sampled_from([8192, 5000, 1024]), st.sampled_from([1, 512]))
async def test_reads_and_writes_in_any_order_against_a_model(
    data: st.DataObject, length: int, below: int, alignment: int
) -> None:
    """Every read copies; afterwards the layer alone says the same. The drivers assert bounds, alignment and lengths."""
    limits = {"request_alignment": alignment, "max_transfer": data.draw(st.sampled_from([0, 2048]))}
    top, low = pair(length, below, limits=limits)
    low.content[2048:3072] = bytes(len(low.content[2048:3072]))
    model = ModelDisk(length, bytes(low.content[:length]))
    touched: set[int] = set()

    async def later(call: object) -> None:
        for _ in range(data.draw(st.integers(0, 2))):
            await asyncio.sleep(0)

    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        for seed in range(2, 6):
            offset = data.draw(st.integers(0, length - 1))
            nbytes = data.draw(st.integers(1, length - offset))
            kind = data.draw(st.sampled_from(["read", "read", "write", "both"]))
            top.before = low.before = later if kind == "both" else None
            if kind == "read":
                assert await disk.pread(offset, nbytes) == model.read(offset, nbytes)
            elif kind == "write":
                await disk.pwrite(offset, pattern(nbytes, seed))
                model.write(offset, pattern(nbytes, seed))
            else:
                await asyncio.gather(
                    disk.pread(0, length), disk.pwrite(offset, pattern(nbytes, seed)), disk.pread(offset, nbytes)
                )
                model.write(offset, pattern(nbytes, seed))
                touched.update(range(-(-length // CLUSTER)))
            touched.update(range(offset // CLUSTER, (offset + nbytes - 1) // CLUSTER + 1))
        top.before = low.before = None
        assert await disk.pread(0, length) == model.data
        assert touched <= top.clusters.keys()
        low.content[:] = bytes(len(low.content))  # nothing is read from below any more
        low.log.clear()
        assert await disk.pread(0, length) == model.data
        assert not low.calls("preadv")
        assert disk.length == length
        assert_idle(disk)


async def test_whole_clusters_are_copied_once() -> None:
    top, low = pair()
    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        assert await disk.pread(1500, 10) == pattern(8192, 1)[1500:1510]
        assert top.clusters == {1: DATA}
        assert await disk.pread(1024, 1024) == pattern(8192, 1)[1024:2048]
    assert [call.where for call in top.calls("pwritev")] == [(1024, 1024)]


async def test_by_the_request_alone() -> None:
    top, low = pair()
    async with opened(top, low, writable=True) as disk:
        await disk.pread(0, 10)
        assert not top.clusters
        await disk.pread(0, 10, REQ_COPY_ON_READ)
        assert top.clusters == {0: DATA}


async def test_zeroes_are_kept_as_zeroes() -> None:
    top, low = pair(below=1024)
    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        assert await disk.pread(0, 10) == pattern(1024, 1)[:10]
        assert await disk.pread(1024, 1976) == bytes(1976)
    assert top.clusters == {0: DATA, 1: ZERO, 2: ZERO}


async def test_a_read_only_layer_only_reads() -> None:
    top, low = pair()
    async with opened(top, low, copy_on_read=True) as disk:
        assert await disk.pread(0, 4096) == pattern(8192, 1)[:4096]
    assert not top.clusters


@pytest.mark.parametrize("broken", ["below", "here"])
async def test_an_error_is_raised_and_nothing_is_kept_in_flight(broken: str) -> None:
    top, low = pair()
    if broken == "below":
        low.fail("preadv", OSError(errno.EIO, "broken"))
    else:
        top.fail("pwritev", OSError(errno.EIO, "broken"))
    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        with pytest.raises(OSError, match="broken"):
            await disk.pread(0, 10)
        assert_idle(disk)
        assert await disk.pread(0, 10) == pattern(8192, 1)[:10]


@pytest.mark.parametrize(("layer", "verb"), [("top", "block_status"), ("low", "preadv"), ("top", "pwritev")])
async def test_a_cancelled_reader_leaves_the_copying_to_go_on_and_its_buffer_alone(layer: str, verb: str) -> None:
    top, low = pair()
    held = top if layer == "top" else low
    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        held.hold(verb)
        buffer = bytearray(b"\xee" * 100)
        task = asyncio.create_task(disk.readinto(0, buffer))
        await until(lambda: held.held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.in_flight == 0 and disk.node.in_flight > 0
        writing = asyncio.create_task(disk.pwrite(0, b"new"))  # waits: what is copied must not overwrite it
        for _ in range(5):
            await asyncio.sleep(0)
        assert not writing.done()

        async def drain() -> None:
            async with disk.drained():
                pass

        draining = asyncio.create_task(drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        held.release()
        await draining
        await writing
        assert buffer == b"\xee" * 100
        assert top.clusters == {0: DATA}
        assert await disk.pread(0, 100) == b"new" + pattern(8192, 1)[3:100]
        await until(lambda: not disk.node.tasks)
        assert_idle(disk)


async def test_closing_waits_for_a_copy_whose_reader_has_gone() -> None:
    top, low = pair()
    async with opened(top, low, writable=True, copy_on_read=True) as disk:
        low.hold("preadv")
        task = asyncio.create_task(disk.pread(0, 10))
        await until(lambda: low.held)
        task.cancel()
        closing = asyncio.create_task(disk.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert task.cancelled() and not closing.done() and not top.calls("close")
        low.release()
        await closing
        assert top.clusters == {0: DATA}
        assert [call.verb for call in top.log[-3:]] == ["pwritev", "flush", "close"]


async def test_a_part_of_the_layer_that_was_cut_while_it_waited_is_not_copied() -> None:
    top, low = pair()
    async with opened(top, low, writable=True, resize=True, copy_on_read=True) as disk:
        top.hold("truncate")
        cutting = asyncio.create_task(disk.truncate(1500))
        await until(lambda: top.held)
        reading = asyncio.create_task(disk.pread(1000, 3000))
        for _ in range(5):
            await asyncio.sleep(0)
        top.release()
        await cutting
        assert await reading == pattern(8192, 1)[1000:1500] + bytes(2500)
        assert top.clusters == {0: DATA, 1: DATA}
        assert disk.length == 1500
        assert_idle(disk)


async def test_the_filter_of_that_name() -> None:
    top, low = pair()
    options = {
        "driver": "copy-on-read",
        "file": {"driver": "scripted", "script": top, "backing": {"driver": "scripted", "script": low}},
    }
    async with opened(options=options, writable=True) as disk:
        assert await disk.pread(1500, 10) == pattern(8192, 1)[1500:1510]
        assert top.clusters == {1: DATA}
        assert (await disk.block_status_above(None, 0, 8192)).depth == 2
        assert (await disk.block_status_above(None, 1024, 8192)).depth == 1
        assert_idle(disk)

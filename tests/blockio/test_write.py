"""Write: padding by read-modify-write, splitting, growth, detection of zeroes, FUA, compressed data."""

import asyncio
import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.flags import REQ_COMPRESSED, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_SERIALISING
from aioblock.blockio.write import write
from tests.kit.model import ModelDisk, pattern
from tests.kit.scripted import Script, layers_of, opened
from tests.kit.watching import assert_idle, until


def verbs(script: Script) -> list[str]:
    """What reached the driver since it was opened, without the opening."""
    return [call.verb for call in script.log if call.verb not in ("open", "getlength", "close")]


# -- against a model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    st.data(),
    st.sampled_from([1, 511, 512, 513, 4096, 10_000, 12_288]),
    st.sampled_from([1, 512, 4096]),
    st.sampled_from([0, 1, 2]),
)
async def test_any_writes_are_what_the_model_says(
    data: st.DataObject, length: int, alignment: int, transfer: int
) -> None:
    """The driver asserts that each request is inside, aligned, and not too long. The length stays."""
    limits = {"request_alignment": alignment, "max_transfer": transfer * max(alignment, 100) // alignment * alignment}
    script = Script(length, content=pattern(length, 1), limits=limits)
    model = ModelDisk(length, pattern(length, 1))
    async with opened(script, writable=True) as disk:
        for seed in range(2, 7):
            offset = data.draw(st.integers(0, length))
            nbytes = data.draw(st.one_of(st.integers(0, min(600, length - offset)), st.integers(0, length - offset)))
            await disk.pwrite(offset, pattern(nbytes, seed))
            model.write(offset, pattern(nbytes, seed))
        assert await disk.pread(0, length) == model.data == script.content
        assert disk.length == length
        assert_idle(disk)


@pytest.mark.slow
@given(st.data(), st.sampled_from([512, 4096]), st.integers(2, 6))
async def test_concurrent_writes_into_the_same_blocks_lose_nothing(
    data: st.DataObject, alignment: int, count: int
) -> None:
    """Ranges that do not overlap, in blocks that do: each read-modify-write keeps what the others wrote."""
    script = Script(16_384, content=pattern(16_384, 1), limits={"request_alignment": alignment})

    async def later(call: object) -> None:
        for _ in range(data.draw(st.integers(0, 4))):
            await asyncio.sleep(0)

    cuts = sorted(data.draw(st.sets(st.integers(0, 16_384), min_size=count + 1, max_size=count + 1)))
    order = data.draw(st.permutations(range(count)))
    model = ModelDisk(16_384, pattern(16_384, 1))
    async with opened(script, writable=True) as disk:
        script.before = later
        tasks = []
        for number in order:
            piece = pattern(cuts[number + 1] - cuts[number], number + 2)
            model.write(cuts[number], piece)
            tasks.append(asyncio.create_task(disk.pwrite(cuts[number], piece)))
        await asyncio.gather(*tasks)
        script.before = None
        assert script.content == model.data
        assert_idle(disk)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2000)), max_size=5), st.sampled_from([1, 512]))
async def test_a_protocol_that_can_grow_grows_up_to_the_end_of_what_was_written(
    writes: list[tuple[int, int]], alignment: int
) -> None:
    script = Script(1000, content=pattern(1000, 1), limits={"request_alignment": alignment})
    data = bytearray(pattern(1000, 1))
    async with opened(options={"driver": "scripted-protocol", "script": script}, writable=True) as disk:
        for seed, (offset, nbytes) in enumerate(writes, 2):
            await write(disk.node, offset, memoryview(pattern(nbytes, seed)))
            if nbytes:
                data = data.ljust(offset + nbytes, b"\0")
                data[offset : offset + nbytes] = pattern(nbytes, seed)
                if (offset | nbytes) % alignment:  # the padding of the last block is written too
                    end = -(-(offset + nbytes) // alignment) * alignment
                    data = data.ljust(end, b"\0")
            assert disk.length == script.length == len(data)
        assert script.content == data


# -- what reaches the driver ----------------------------------------------------------------------------------------


async def test_an_aligned_write_reads_nothing_and_is_split() -> None:
    script = Script(8192, limits={"request_alignment": 512, "max_transfer": 1024})
    async with opened(script, writable=True) as disk:
        await disk.pwrite(512, pattern(2560, 1))
    assert [call.where for call in script.calls("pwritev")] == [(512, 1024), (1536, 1024), (2560, 512)]
    assert not script.calls("preadv")


@pytest.mark.parametrize(
    ("offset", "nbytes", "reads", "written"),
    [
        (100, 10, [(0, 512)], (0, 512)),
        (512, 10, [(512, 512)], (512, 512)),
        (100, 412, [(0, 512)], (0, 512)),
        (100, 1000, [(0, 512), (1024, 512)], (0, 1536)),
        (512, 1000, [(1024, 512)], (512, 1024)),
        (100, 924, [(0, 512)], (0, 1024)),
    ],
)
async def test_only_the_blocks_that_are_partly_written_are_read_before(
    offset: int, nbytes: int, reads: list[tuple[int, int]], written: tuple[int, int]
) -> None:
    script = Script(8192, limits={"request_alignment": 512})
    async with opened(script, writable=True) as disk:
        await disk.pwrite(offset, pattern(nbytes, 1))
    assert [call.where for call in script.calls("preadv")] == reads
    assert [call.where for call in script.calls("pwritev")] == [written]


@pytest.mark.parametrize("offset", [0, 8192])
async def test_an_empty_write_does_not_reach_the_driver(offset: int) -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(offset, b"")
    assert not script.calls("pwritev")


async def test_the_padding_behind_an_unaligned_end_makes_the_node_no_longer() -> None:
    script = Script(1000, content=pattern(1000, 1), limits={"request_alignment": 512})
    async with opened(script, writable=True) as disk:
        await disk.pwrite(990, pattern(10, 2))
        assert [call.where for call in script.calls("pwritev")] == [(512, 512)]
        assert disk.length == disk.node.length == 1000
        assert script.content == pattern(1000, 1)[:990] + pattern(10, 2)


async def test_a_read_only_node_and_a_range_outside_are_refused() -> None:
    script = Script(8192)
    async with opened(script) as disk:
        with pytest.raises(OSError) as caught:
            await disk.pwrite(0, b"x")
        assert caught.value.errno == errno.EACCES
        assert_idle(disk)
    async with opened(script, writable=True) as disk:
        for offset in (8192, 8191, -1, 1 << 62):
            with pytest.raises(OSError) as caught:
                await disk.pwrite(offset, b"xx")
            assert caught.value.errno == errno.EIO
        for offset in (8191, -1, (1 << 63) - 1):
            with pytest.raises(OSError) as caught:
                await write(disk.node, offset, memoryview(b"xx"))
            assert caught.value.errno == errno.EIO
        assert_idle(disk)
    assert not script.calls("pwritev")


async def test_a_write_that_waited_while_the_node_was_cut_is_out_of_range() -> None:
    script = Script(2048, content=pattern(2048, 1))
    async with opened(script, writable=True, resize=True) as disk:
        script.hold("truncate")
        cutting = asyncio.create_task(disk.truncate(1024))
        await until(lambda: script.held)
        writing = asyncio.create_task(disk.pwrite(1000, b"x" * 100))
        for _ in range(5):
            await asyncio.sleep(0)
        script.release()
        await cutting
        with pytest.raises(OSError) as caught:
            await writing
        assert caught.value.errno == errno.EIO
        assert script.content == pattern(2048, 1)[:1024]
        assert_idle(disk)


async def test_plain_writes_do_not_wait_for_each_other_and_serialising_ones_do() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        script.hold("pwritev")
        plain = [asyncio.create_task(disk.pwrite(0, pattern(512, at))) for at in range(2)]
        await until(lambda: len(script.held) == 2)
        alone = asyncio.create_task(disk.pwrite(0, pattern(512, 2), REQ_SERIALISING))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(script.held) == 2
        for call in list(script.held):
            script.release(call)
        await until(lambda: script.held)
        await asyncio.gather(*plain)
        after = asyncio.create_task(disk.pwrite(0, pattern(512, 3)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(script.held) == 1 and not after.done()
        script.release(script.held[0])
        await alone
        await until(lambda: script.held)
        script.release()
        await after
        assert script.content[:512] == pattern(512, 3)


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["preadv", "pwritev"])
async def test_an_error_of_the_driver_is_raised_and_frees_the_range(verb: str) -> None:
    script = Script(8192, content=pattern(8192, 1), limits={"request_alignment": 512})
    script.fail(verb, OSError(errno.ENOSPC, "full"))
    async with opened(script, writable=True) as disk:
        with pytest.raises(OSError, match="full"):
            await disk.pwrite(100, b"x")
        assert_idle(disk)
        assert disk.statistics.failed == 1 and disk.statistics.writes == 0
        await disk.pwrite(100, b"x")
        assert script.content[100] == ord("x")


async def test_part_of_a_write_that_failed_may_be_there_so_the_next_flush_is_not_free() -> None:
    script = Script(8192, limits={"max_transfer": 4096})
    script.fail("pwritev", OSError(errno.ENOSPC, "full"), 2)
    async with opened(script, writable=True) as disk:
        with pytest.raises(OSError, match="full"):
            await disk.pwrite(0, pattern(8192, 1))
        await disk.flush()
        assert len(script.calls("flush")) == 1


# -- zeroes among what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "flags"), [("off", None), ("on", 0), ("unmap", REQ_MAY_UNMAP)])
async def test_detect_zeroes(mode: str, flags: int | None) -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script, writable=True, detect_zeroes=mode, discard="unmap") as disk:
        await disk.pwrite(0, bytes(1000))
        await disk.pwrite(2000, bytes(999) + b"x")
        assert script.content[:1000] == bytes(1000)
    assert [call.flags for call in script.calls("pwrite_zeroes")] == ([] if flags is None else [flags])
    assert len(script.calls("pwritev")) == (2 if flags is None else 1)


async def test_zeroes_are_looked_for_at_the_top_alone() -> None:
    top = Script(8192)
    file = Script(8192)
    async with opened(top, files={top: file}, writable=True, detect_zeroes="on") as disk:
        assert disk.node.detect_zeroes == "on"
        assert disk.node.file is not None and disk.node.file.node.detect_zeroes == "off"


# -- FUA ------------------------------------------------------------------------------------------------------------


async def test_fua_is_passed_to_a_driver_that_does_it_itself() -> None:
    script = Script(8192, attributes={"supported_write_flags": REQ_FUA}, limits={"max_transfer": 1024})
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, pattern(2048, 1), REQ_FUA)
        assert [call.flags for call in script.calls("pwritev")] == [REQ_FUA] * 2
        assert not script.calls("flush")


@pytest.mark.parametrize("request_flags", [0, REQ_FUA])
@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
async def test_fua_is_a_flush_behind_where_the_driver_cannot(cache: str, request_flags: int) -> None:
    script = Script(8192)
    async with opened(script, writable=True, cache=cache) as disk:
        await disk.pwrite(0, b"x", request_flags)
        expected = ["pwritev", "flush"] if request_flags or cache == "writethrough" else ["pwritev"]
        assert verbs(script) == expected
        await disk.pwrite_zeroes(0, 512, request_flags)
        assert verbs(script) == [*expected, "pwrite_zeroes", *expected[1:]]


async def test_that_flush_comes_before_the_write_is_acknowledged_and_its_error_is_the_writes() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        script.hold("flush")
        task = asyncio.create_task(disk.pwrite(0, b"x", REQ_FUA))
        await until(lambda: script.held)
        assert not task.done()
        script.release()
        await task
        script.fail("flush", OSError(errno.EIO, "lost"))
        with pytest.raises(OSError) as caught:
            await disk.pwrite(0, b"x", REQ_FUA)
        assert caught.value.errno == errno.EIO
        assert_idle(disk)
        with pytest.raises(OSError):
            await disk.flush()
        disk.node.flush_state.error = None  # or else closing says so too


# -- compressed -----------------------------------------------------------------------------------------------------


async def test_compressed_writes_are_whole_clusters() -> None:
    script = Script(10_000, cluster=4096)
    async with opened(script, writable=True, cache="writethrough") as disk:
        await disk.pwrite(4096, pattern(4096, 1), REQ_COMPRESSED)
        assert verbs(script) == ["pwritev_compressed", "flush"]
        await disk.pwrite(8192, pattern(1808, 1), REQ_COMPRESSED)  # the last one is short
        for offset, nbytes in ((0, 100), (100, 4096), (4096, 5000)):
            with pytest.raises(OSError) as caught:
                await disk.pwrite(offset, pattern(nbytes, 1), REQ_COMPRESSED)
            assert caught.value.errno == errno.EINVAL
        assert_idle(disk)
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        with pytest.raises(OSError) as caught:
            await disk.pwrite(0, pattern(4096, 1), REQ_COMPRESSED)
        assert caught.value.errno == errno.ENOTSUP


# -- cancelled ------------------------------------------------------------------------------------------------------


def changes(disk: Any) -> list[Any]:
    return [
        lambda: disk.pwrite(100, b"x" * 100),
        lambda: disk.pwrite_zeroes(100, 1000, REQ_NO_FALLBACK),
        lambda: disk.pdiscard(512, 1024),
        lambda: disk.flush(),
        lambda: disk.truncate(4096),
    ]


@pytest.mark.parametrize("number", range(5))
async def test_a_detached_request_stays_in_flight_and_drain_and_close_wait_for_it(number: int) -> None:
    script = Script(8192, content=pattern(8192, 1), limits={"request_alignment": 512})
    held = ("pwritev", "pwrite_zeroes", "pdiscard", "flush", "truncate")[number]
    async with opened(script, writable=True, resize=True) as disk:
        await disk.pwrite(0, b"x")
        script.hold(held)
        task = asyncio.create_task(changes(disk)[number]())
        await until(lambda: script.held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.in_flight == 1 and disk.node.in_flight == 1

        async def drain() -> None:
            async with disk.drained():
                assert disk.node.in_flight == 0

        draining = asyncio.create_task(drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        waiting = asyncio.create_task(disk.pread(0, 1))  # new requests wait meanwhile
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        script.release()
        await draining
        assert await waiting == b"x"
        assert script.calls(held)[-1].outcome == "done"
        assert_idle(disk)

        script.hold(held)
        await disk.pwrite(0, b"y") if held == "flush" else None
        task = asyncio.create_task(changes(disk)[number]())
        await until(lambda: script.held)
        task.cancel()
        closing = asyncio.create_task(disk.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done() and script.held
        script.release()
        await closing
        assert script.calls("close") and script.calls(held)[-1].outcome == "done"
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_one_that_waits_its_turn_has_not_begun_when_it_is_cancelled() -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script, writable=True, max_in_flight=1) as disk:
        script.hold("pwritev")
        first = asyncio.create_task(disk.pwrite(0, b"a"))
        await until(lambda: script.held)
        second = asyncio.create_task(disk.pwrite(1, b"b"))
        third = asyncio.create_task(disk.pwrite(2, b"c"))
        for _ in range(5):
            await asyncio.sleep(0)
        second.cancel()
        script.release()
        await asyncio.gather(first, third)
        assert second.cancelled()
        assert script.content[:4] == b"a" + pattern(8192, 1)[1:2] + b"c" + pattern(8192, 1)[3:4]
        assert_idle(disk)


async def test_a_lower_layer_is_never_written() -> None:
    top, low = Script(8192, cluster=512), Script(8192, content=pattern(8192, 1))
    async with opened(top, low, writable=True) as disk:
        assert [node.read_only for node in layers_of(disk)] == [False, True]
        await disk.pwrite(100, b"new")
        await disk.flush()
        assert await disk.pread(0, 512) == pattern(100, 1) + b"new" + pattern(8192, 1)[103:512]
    assert not low.calls("pwritev") and not low.calls("flush")

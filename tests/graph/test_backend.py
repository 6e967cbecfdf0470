"""The user's handle: bounds, buffers, event loops, counters, writethrough, extents."""

import asyncio
import errno
import threading

import pytest

from aioblock.base.errors import NotSupported
from aioblock.base.flags import ALLOCATED, DATA, EOF, REQ_COMPRESSED, REQ_FUA, REQ_NO_FALLBACK, ZERO
from tests.kit.scripted import Script, layers_of, opened
from tests.kit.watching import assert_idle

SIZE = 65536
BLOCK = 4096


def started(*coros):
    return [asyncio.create_task(coro) for coro in coros]


async def ended(tasks):
    """Let tasks come to their end, and give their errors, or None."""
    return [
        result if isinstance(result, BaseException) else None
        for result in await asyncio.gather(*tasks, return_exceptions=True)
    ]


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 1), (-5, 10), (1 << 63, 1), (1 << 70, 5)]
)
async def test_out_of_range_is_an_input_output_error(offset, nbytes):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        for coro in (
            disk.pread(offset, nbytes),
            disk.readinto(offset, bytearray(nbytes)),
            disk.pwrite(offset, bytes(nbytes)),
            disk.pwrite_zeroes(offset, nbytes),
            disk.pdiscard(offset, nbytes),
        ):
            with pytest.raises(OSError) as caught:
                await coro
            assert caught.value.errno == errno.EIO
        assert disk.statistics.failed == 5
        assert {call.verb for call in script.log} <= {"open", "getlength"}
        assert_idle(disk)


async def test_a_huge_read_takes_no_memory():
    async with opened(Script(SIZE)) as disk:
        for nbytes in (1 << 50, -1):
            with pytest.raises(OSError):
                await disk.pread(0, nbytes)


async def test_requests_of_no_bytes():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        for offset in (0, 5, SIZE):
            assert await disk.pread(offset, 0) == b""
            await disk.pwrite(offset, b"")
            await disk.pwrite_zeroes(offset, 0)
            await disk.pdiscard(offset, 0)
        assert not script.calls("preadv") and not script.calls("pwritev")
        assert (await disk.block_status(SIZE, 10)).flags == EOF
        assert (await disk.block_status(0, 0)).pnum == 0


async def test_a_read_only_image_is_not_written():
    async with opened(Script(SIZE)) as disk:
        assert not disk.writable
        for coro in (disk.pwrite(0, b"x"), disk.pwrite_zeroes(0, 1), disk.truncate(5), disk.pdiscard(0, BLOCK)):
            with pytest.raises(PermissionError):
                await coro
        await disk.flush()  # nothing to be done


@pytest.mark.parametrize(
    "make", [bytearray, lambda n: memoryview(bytearray(n)), lambda n: memoryview(bytearray(n)).cast("H")]
)
async def test_buffers_of_any_kind(make):
    async with opened(Script(SIZE, content=b"abcdef"), writable=True) as disk:
        buffer = make(6)
        await disk.readinto(0, buffer)
        assert bytes(buffer) == b"abcdef"
        await disk.pwrite(2, buffer)
        assert await disk.pread(0, 8) == b"ababcdef"


async def test_scattered_memory_is_refused_before_anything_happens():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        with pytest.raises(TypeError):
            await disk.pwrite(0, memoryview(bytes(8))[::2])
        with pytest.raises(TypeError):
            await disk.readinto(0, memoryview(bytearray(8))[::2])
        assert not script.calls("pwritev")
        assert_idle(disk)


async def test_compressed_writes_are_whole_clusters():
    async with opened(Script(SIZE + 100, cluster=BLOCK), writable=True) as disk:
        for offset, nbytes in ((1, BLOCK), (0, BLOCK - 1), (SIZE, 50)):
            with pytest.raises(OSError) as caught:
                await disk.pwrite(offset, bytes(nbytes), REQ_COMPRESSED)
            assert caught.value.errno == errno.EINVAL
        await disk.pwrite(SIZE, b"x" * 100, REQ_COMPRESSED)  # the last one may be short
    async with opened(Script(SIZE), writable=True) as disk:
        with pytest.raises(NotSupported):
            await disk.pwrite(0, bytes(BLOCK), REQ_COMPRESSED)


# -- other loops and threads -----------------------------------------------------------------------------------------


async def test_another_event_loop_is_refused():
    async with opened(Script(SIZE), writable=True) as disk:
        for make in (
            lambda: disk.pread(0, 1),
            lambda: disk.readinto(0, bytearray(1)),
            lambda: disk.pwrite(0, b"x"),
            lambda: disk.flush(),
            lambda: disk.block_status(0, 1),
            lambda: disk.close(),
            lambda: disk.reopen(writable=False),
        ):
            errors = []

            def elsewhere(make=make, errors=errors):
                async def use():
                    await make()

                try:
                    asyncio.run(use())
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(errors) == 1 and "belongs to another event loop" in errors[0]
        assert_idle(disk)
        assert len(await disk.pread(0, 1)) == 1


# -- statistics ------------------------------------------------------------------------------------------------------


async def test_requests_are_counted():
    async with opened(Script(SIZE), writable=True) as disk:
        await disk.pread(0, 10)
        await disk.readinto(5, bytearray(20))
        await disk.pwrite(0, b"x" * 7)
        await disk.pwrite_zeroes(0, 9)
        await disk.pdiscard(0, BLOCK)
        await disk.flush()
        await disk.block_status(0, 1)
        await disk.block_status_above(None, 0, 1)
        counted = {name: value for name, value in disk.statistics.as_dict().items() if not name.startswith("probes")}
        assert counted == {
            "reads": 2,
            "bytes_read": 30,
            "writes": 1,
            "bytes_written": 7,
            "zeroes": 1,
            "bytes_zeroed": 9,
            "discards": 1,
            "bytes_discarded": BLOCK,
            "flushes": 1,
            "status": 2,
            "failed": 0,
        }


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("preadv", lambda disk: disk.pread(0, 10)),
        ("pwritev", lambda disk: disk.pwrite(0, b"x")),
        ("flush", lambda disk: disk.flush()),
    ],
)
async def test_failures_are_counted_once_and_not_as_done(verb, call):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        before = disk.statistics.as_dict()
        script.fail(verb, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError):
            await call(disk)
        assert disk.statistics.as_dict() == before | {"failed": 1}
        assert_idle(disk)
        if verb == "flush":  # it is told again
            with pytest.raises(OSError):
                await disk.close()
    assert script.calls("close")


# -- writethrough ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "flags", "flushes"), [("writeback", 0, 0), ("writeback", REQ_FUA, 1), ("writethrough", 0, 1)]
)
async def test_a_write_is_followed_by_a_flush_where_it_must(cache, flags, flushes):
    script = Script(SIZE, attributes={"supported_write_flags": 0, "supported_zero_flags": 0})
    async with opened(script, writable=True, cache=cache) as disk:
        await disk.pwrite(0, b"x" * 512, flags)
        assert len(script.calls("flush")) == flushes
        await disk.pwrite_zeroes(0, 512, flags)
        assert len(script.calls("flush")) == 2 * flushes


async def test_zeroes_without_a_fall_back():
    script = Script(SIZE, lacks=("pwrite_zeroes", "extents"))
    async with opened(script, writable=True) as disk:
        with pytest.raises(NotSupported):
            await disk.pwrite_zeroes(0, 512, REQ_NO_FALLBACK)
        assert not script.calls("pwritev")
        await disk.pwrite_zeroes(0, 512)
        assert len(script.calls("pwritev")) == 1


# -- extents ---------------------------------------------------------------------------------------------------------


async def test_extents_merge_neighbours_that_say_the_same():
    runs = [(DATA, 4096), (DATA, 4096), (ZERO, 8192), (ZERO, 4096), (0, SIZE - 20480)]
    script = Script(SIZE, runs)
    async with opened(script) as disk:
        found = [
            (extent.offset, extent.length, extent.flags & (DATA | ZERO | ALLOCATED)) async for extent in disk.extents()
        ]
        assert found == [(0, 8192, DATA | ALLOCATED), (8192, 12288, ZERO | ALLOCATED), (20480, SIZE - 20480, ZERO)]
        last = [extent async for extent in disk.extents()][-1]
        assert last.flags & EOF and last.depth == 0
        assert str(last) == "0x5000+0xb000 ZERO|EOF depth 0"


async def test_extents_of_each_layer_by_itself():
    """`top` is the layer to begin with, `base` where to end: each says what it would say alone, whatever hides it."""
    upper = Script(SIZE, runs=[(DATA, 4096), (0, SIZE - 4096)])
    lower = Script(SIZE // 2, runs=[(ZERO, 8192), (DATA, SIZE // 2 - 8192)])
    async with opened(upper, lower) as disk:
        first, second = disk.layers()
        assert (first, second) == tuple(layers_of(disk))
        of_upper = [
            (run.offset, run.length, run.flags & (DATA | ZERO | ALLOCATED), run.depth)
            async for run in disk.extents(top=first, base=second, want_zero=False)
        ]
        assert of_upper == [(0, 4096, DATA | ALLOCATED, 1), (4096, SIZE - 4096, 0, 0)]
        of_lower = [
            (run.offset, run.length, run.flags & (DATA | ZERO | ALLOCATED), run.depth)
            async for run in disk.extents(top=second)
        ]
        assert of_lower == [(0, 8192, ZERO | ALLOCATED, 1), (8192, SIZE // 2 - 8192, DATA | ALLOCATED, 1)]


async def test_extents_of_a_part():
    async with opened(Script(SIZE, [(DATA, 8192), (ZERO, SIZE - 8192)])) as disk:
        found = [(extent.offset, extent.length) async for extent in disk.extents(4096, 8192)]
        assert found == [(4096, 4096), (8192, 4096)]
        assert [extent async for extent in disk.extents(0, 0)] == []


async def test_extents_that_nobody_finishes_leave_nothing_behind():
    script = Script(SIZE, [(DATA if number % 2 else ZERO, 512) for number in range(128)])
    async with opened(script) as disk:
        async for _ in disk.extents():
            break
        runs = disk.extent_batches()
        await anext(runs)
        await runs.aclose()
        assert_idle(disk)

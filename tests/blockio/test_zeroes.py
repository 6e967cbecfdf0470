"""Write-zeroes: splitting at the driver's alignment, the fall-back, and the flags that reach the driver."""

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.blockio.write import write
from aioblock.blockio.zeroes import BOUNCE_BYTES, write_zeroes
from tests.kit.model import ModelDisk, pattern
from tests.kit.scripted import Call, Script, opened
from tests.kit.watching import assert_idle, until

K = 1024


def zeroed(script: Script) -> list[tuple[int, int]]:
    return [call.where for call in script.calls("pwrite_zeroes")]


def written(script: Script) -> list[tuple[int, int]]:
    return [call.where for call in script.calls("pwritev")]


@pytest.mark.slow
@given(st.data(), st.sampled_from([1, 511, 512, 4096, 10_000, 12_288]), st.sampled_from([1, 512, 1024]))
async def test_any_zeroing_is_what_the_model_says(data: st.DataObject, length: int, alignment: int) -> None:
    """The driver asserts that each request is inside, aligned, and not too long; and refuses some."""
    limits = {
        "request_alignment": alignment,
        "max_transfer": alignment * data.draw(st.sampled_from([0, 512])),
        "pwrite_zeroes_alignment": data.draw(st.sampled_from([0, 512, 2048])),
        "max_pwrite_zeroes": data.draw(st.sampled_from([0, 2048, 5000])),
    }
    lacks = data.draw(st.sampled_from([("extents",), ("extents", "pwrite_zeroes")]))
    script = Script(length, content=pattern(length, 1), limits=limits, lacks=lacks)
    refused = data.draw(st.sets(st.integers(0, 5)))

    async def refuse(call: Call) -> None:
        if call.verb == "pwrite_zeroes" and len(script.calls("pwrite_zeroes")) in refused:
            raise NotSupported

    script.before = refuse
    model = ModelDisk(length, pattern(length, 1))
    async with opened(script, writable=True) as disk:
        for _ in range(4):
            offset = data.draw(st.integers(0, length))
            nbytes = data.draw(st.integers(0, length - offset))
            await disk.pwrite_zeroes(offset, nbytes)
            model.zero(offset, nbytes)
            assert script.content == model.data
        assert disk.length == length
        assert_idle(disk)


@pytest.mark.parametrize(
    ("offset", "nbytes", "pieces"),
    [
        (0, 192 * K, [(0, 128 * K), (128 * K, 64 * K)]),
        (4 * K, 8 * K, [(4 * K, 8 * K)]),
        (4 * K, 64 * K, [(4 * K, 60 * K), (64 * K, 4 * K)]),
        (60 * K, 72 * K, [(60 * K, 4 * K), (64 * K, 64 * K), (128 * K, 4 * K)]),
        (4 * K, 300 * K, [(4 * K, 60 * K), (64 * K, 128 * K), (192 * K, 64 * K), (256 * K, 48 * K)]),
    ],
)
async def test_head_and_tail_come_alone(offset: int, nbytes: int, pieces: list[tuple[int, int]]) -> None:
    limits = {"request_alignment": 512, "pwrite_zeroes_alignment": 64 * K, "max_pwrite_zeroes": 150 * K}
    script = Script(512 * K, limits=limits)
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(offset, nbytes)
    assert zeroed(script) == pieces and not written(script)


async def test_parts_of_request_aligned_blocks_are_read_and_written() -> None:
    script = Script(8 * K, content=pattern(8 * K, 1), limits={"request_alignment": 512})
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(100, 2000)
    assert zeroed(script) == [(512, 1536)] and written(script) == [(0, 512), (2048, 512)]
    assert script.content == pattern(8 * K, 1)[:100] + bytes(2000) + pattern(8 * K, 1)[2100:]


async def test_an_empty_range_does_not_reach_the_driver() -> None:
    script = Script(8 * K)
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(8 * K, 0)
    assert not zeroed(script)


# -- the fall-back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("able", [True, False])
async def test_where_the_driver_cannot_zeroes_are_written_in_pieces(able: bool) -> None:
    length = 2 * BOUNCE_BYTES + 4 * K
    script = Script(length, content=b"x" * length, lacks=["extents"] if able else ["extents", "pwrite_zeroes"])
    if able:
        script.fail("pwrite_zeroes", NotSupported())
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(0, length)
    assert not any(script.content)
    assert written(script) == [(0, BOUNCE_BYTES), (BOUNCE_BYTES, BOUNCE_BYTES), (2 * BOUNCE_BYTES, 4 * K)]


async def test_only_the_piece_that_was_refused_falls_back() -> None:
    script = Script(64 * K, content=pattern(64 * K, 1), limits={"pwrite_zeroes_alignment": 4 * K})
    script.fail("pwrite_zeroes", NotSupported())  # the head
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(K, 62 * K)
    assert written(script) == [(K, 3 * K)]
    assert zeroed(script) == [(K, 3 * K), (4 * K, 56 * K), (60 * K, 3 * K)]
    assert not any(script.content[K : 63 * K])


@pytest.mark.parametrize("able", [True, False])
async def test_no_fallback(able: bool) -> None:
    script = Script(8 * K, content=pattern(8 * K, 1), lacks=["extents"] if able else ["extents", "pwrite_zeroes"])
    if able:
        script.fail("pwrite_zeroes", NotSupported())
    async with opened(script, writable=True) as disk:
        with pytest.raises(NotSupported):
            await disk.pwrite_zeroes(0, 8 * K, REQ_NO_FALLBACK)
        assert script.content == pattern(8 * K, 1) and not written(script)
        assert_idle(disk)
        await disk.flush()  # nothing was changed, and so there may be nothing to flush: it must not fail
        assert disk.statistics.failed == 1


async def test_an_error_is_not_a_reason_to_fall_back() -> None:
    script = Script(8 * K)
    script.fail("pwrite_zeroes", OSError(errno.ENOSPC, "full"))
    async with opened(script, writable=True) as disk:
        with pytest.raises(OSError, match="full"):
            await disk.pwrite_zeroes(0, 8 * K)
        assert not written(script)
        assert_idle(disk)
        await disk.flush()
        assert script.calls("flush")  # something may have been changed


# -- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supported", [0, REQ_MAY_UNMAP, REQ_NO_FALLBACK | REQ_MAY_UNMAP])
async def test_only_flags_that_the_driver_understands_come_through(supported: int) -> None:
    script = Script(8 * K, attributes={"supported_zero_flags": supported})
    async with opened(script, writable=True, discard="unmap") as disk:
        await disk.pwrite_zeroes(0, 4 * K, REQ_MAY_UNMAP | REQ_NO_FALLBACK)
        await disk.pwrite_zeroes(0, 4 * K)
    assert [call.flags for call in script.calls("pwrite_zeroes")] == [supported, 0]


@pytest.mark.parametrize("refused", [True, False])
async def test_fua_flushes_behind_all_pieces(refused: bool) -> None:
    script = Script(8 * K, limits={"pwrite_zeroes_alignment": 4 * K})
    if refused:
        script.fail("pwrite_zeroes", NotSupported())
    async with opened(script, writable=True) as disk:
        await disk.pwrite_zeroes(K, 4 * K, REQ_FUA)
        verbs = [call.verb for call in script.log[2:]]
        assert verbs == ["pwrite_zeroes", *(["pwritev"] if refused else []), "pwrite_zeroes", "flush"]


# -- beside others --------------------------------------------------------------------------------------------------


async def test_it_waits_for_what_is_in_flight_there_and_others_wait_for_it() -> None:
    script = Script(64 * K, content=pattern(64 * K, 1), limits={"pwrite_zeroes_alignment": 4 * K})
    async with opened(script, writable=True) as disk:
        script.hold("preadv")
        script.hold("pwrite_zeroes")
        reading = asyncio.create_task(disk.pread(0, 10))  # in the unit that may be given back
        await until(lambda: script.held)
        zeroing = asyncio.create_task(disk.pwrite_zeroes(2 * K, 2 * K))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not zeroed(script)
        script.release(script.held[0])
        await until(lambda: script.held)
        writing = asyncio.create_task(disk.pwrite(K, b"new"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not written(script)
        script.release()
        await asyncio.gather(reading, zeroing, writing)
        assert [call.verb for call in script.log if call.verb in ("pwritev", "pwrite_zeroes")] == [
            "pwrite_zeroes",
            "pwritev",
        ]
        assert script.content[K : K + 3] == b"new"
        assert_idle(disk)


async def test_refused_when_read_only_or_out_of_range_also_after_it_waited() -> None:
    async with opened(Script(8 * K)) as disk:
        with pytest.raises(OSError) as caught:
            await disk.pwrite_zeroes(0, 1)
        assert caught.value.errno == errno.EACCES
    script = Script(8 * K)
    async with opened(script, writable=True, resize=True) as disk:
        for offset, nbytes in ((0, 8 * K + 1), (-1, 1), (0, -1), (1 << 63, 1)):
            with pytest.raises(OSError) as caught:
                await disk.pwrite_zeroes(offset, nbytes)
            assert caught.value.errno == errno.EIO
        script.hold("truncate")
        cutting = asyncio.create_task(disk.truncate(4 * K))
        await until(lambda: script.held)
        zeroing = asyncio.create_task(disk.pwrite_zeroes(2 * K, 4 * K))
        for _ in range(5):
            await asyncio.sleep(0)
        script.release()
        await cutting
        with pytest.raises(OSError) as caught:
            await zeroing
        assert caught.value.errno == errno.EIO
        assert not zeroed(script)
        assert_idle(disk)


@pytest.mark.parametrize("alignment", [1, 512])
@pytest.mark.parametrize("able", [True, False])
async def test_a_protocol_that_can_grow_grows(alignment: int, able: bool) -> None:
    lacks = ["extents"] if able else ["extents", "pwrite_zeroes"]
    script = Script(K, content=pattern(K, 1), limits={"request_alignment": alignment}, lacks=lacks)
    async with opened(options={"driver": "scripted-protocol", "script": script}, writable=True) as disk:
        await write_zeroes(disk.node, 512, 2 * K)
        assert disk.length == script.length == 2 * K + 512
        assert script.content == pattern(K, 1)[:512].ljust(2 * K + 512, b"\0")
        await write(disk.node, 4 * K, memoryview(b"x" * 512))
        assert disk.length == script.length == 4 * K + 512

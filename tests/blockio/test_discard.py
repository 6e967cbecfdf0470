"""Discard: advisory, cut to whole units, split; and nobody reads or writes what is being given back."""

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import NotSupported
from tests.kit.model import pattern
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

K = 1024


def discarded(script: Script) -> list[tuple[int, int]]:
    return [call.where for call in script.calls("pdiscard")]


@pytest.mark.parametrize(
    ("offset", "nbytes", "pieces"),
    [
        (0, 64 * K, [(0, 32 * K), (32 * K, 32 * K)]),
        (4 * K, 8 * K, [(4 * K, 8 * K)]),
        (K, 8 * K, [(4 * K, 4 * K)]),  # parts of units are left as they are
        (K, 6 * K, []),
        (K, 2 * K, []),
        (60 * K, 5 * K, [(60 * K, 5 * K)]),  # a unit that the node ends in is whole
        (61 * K, 4 * K, [(64 * K, K)]),
        (64 * K, 0, []),
    ],
)
async def test_whole_units_reach_the_driver(offset: int, nbytes: int, pieces: list[tuple[int, int]]) -> None:
    limits = {"request_alignment": 512, "pdiscard_alignment": 4 * K, "max_pdiscard": 35 * K}
    script = Script(65 * K, content=pattern(65 * K, 1), limits=limits)
    async with opened(script, writable=True, discard="unmap") as disk:
        await disk.pdiscard(offset, nbytes)
        assert_idle(disk)
    assert discarded(script) == pieces


@pytest.mark.slow
@given(
    st.sampled_from([1, 512, 1000, 8192, 10_000]),
    st.sampled_from([1, 512]),
    st.sampled_from([0, 512, 4096]),
    st.sampled_from([0, 512, 5000]),
    st.data(),
)
async def test_nothing_outside_the_range_is_touched(
    length: int, alignment: int, unit: int, longest: int, data: st.DataObject
) -> None:
    """The driver asserts units, lengths and bounds. What lies inside in whole units is gone."""
    limits = {"request_alignment": alignment, "pdiscard_alignment": unit, "max_pdiscard": longest}
    script = Script(length, content=pattern(length, 1), limits=limits)
    offset = data.draw(st.integers(0, length))
    nbytes = data.draw(st.integers(0, length - offset))
    async with opened(script, writable=True, discard="unmap") as disk:
        await disk.pdiscard(offset, nbytes)
    whole = max(unit, alignment)
    for at, byte in enumerate(script.content):
        first = at // whole * whole
        last = min(first + whole, length)
        inside = nbytes > 0 and offset <= first and last <= offset + nbytes
        assert (byte == 0) == inside


@pytest.mark.parametrize("able", [True, False])
async def test_a_driver_that_cannot_is_no_error(able: bool) -> None:
    script = Script(8 * K, content=pattern(8 * K, 1), lacks=["extents"] if able else ["extents", "pdiscard"])
    if able:
        script.fail("pdiscard", NotSupported())
    async with opened(script, writable=True, discard="unmap") as disk:
        await disk.pdiscard(0, 8 * K)
        assert_idle(disk)
    assert script.content == pattern(8 * K, 1)


async def test_an_error_is_raised() -> None:
    script = Script(8 * K)
    script.fail("pdiscard", OSError(errno.EIO, "broken"))
    async with opened(script, writable=True, discard="unmap") as disk:
        with pytest.raises(OSError, match="broken"):
            await disk.pdiscard(0, 8 * K)
        assert_idle(disk)
        await disk.pdiscard(0, 8 * K)


async def test_refused_when_read_only_or_out_of_range() -> None:
    async with opened(Script(8 * K)) as disk:
        with pytest.raises(OSError) as caught:
            await disk.pdiscard(0, K)
        assert caught.value.errno == errno.EACCES
    script = Script(8 * K)
    async with opened(script, writable=True, discard="unmap") as disk:
        for offset, nbytes in ((0, 8 * K + 1), (-1, 1), (0, -1), (1 << 63, 1)):
            with pytest.raises(OSError) as caught:
                await disk.pdiscard(offset, nbytes)
            assert caught.value.errno == errno.EIO
        assert_idle(disk)
    assert not discarded(script)


async def test_who_reads_or_writes_there_goes_first_or_waits() -> None:
    script = Script(64 * K, content=pattern(64 * K, 1), limits={"pdiscard_alignment": 4 * K})
    async with opened(script, writable=True, discard="unmap") as disk:
        script.hold("preadv", "pdiscard")
        reading = asyncio.create_task(disk.pread(4 * K, 10))
        await until(lambda: script.held)
        discarding = asyncio.create_task(disk.pdiscard(0, 8 * K))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not discarded(script)
        script.release(script.held[0])
        assert await reading == pattern(64 * K, 1)[4 * K : 4 * K + 10]
        await until(lambda: script.held)
        writing = asyncio.create_task(disk.pwrite(K, b"new"))
        beside = asyncio.create_task(disk.pwrite(8 * K, b"new"))
        await beside
        assert len(script.calls("pwritev")) == 1
        script.release()
        await asyncio.gather(discarding, writing)
        assert script.content[K : K + 4] == b"new\0"
        assert_idle(disk)


async def test_cut_to_what_is_left_of_a_node_that_was_cut_meanwhile() -> None:
    script = Script(8 * K, content=pattern(8 * K, 1))
    async with opened(script, writable=True, resize=True, discard="unmap") as disk:
        script.hold("truncate")
        cutting = asyncio.create_task(disk.truncate(4 * K))
        await until(lambda: script.held)
        discarding = asyncio.create_task(disk.pdiscard(2 * K, 6 * K))
        for _ in range(5):
            await asyncio.sleep(0)
        script.release()
        await asyncio.gather(cutting, discarding)
        assert discarded(script) == [(2 * K, 2 * K)]
        assert_idle(disk)

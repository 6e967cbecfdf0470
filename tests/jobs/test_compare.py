"""compare: the first difference, what is read for it, how many at a time, and what failures leave behind."""

import asyncio
import errno

import pytest

from aioblock.base.flags import DATA, OFFSET_VALID, ZERO
from aioblock.jobs.compare import AHEAD, BUFFER, Difference, compare
from aioblock.jobs.errors import PositionedError
from tests.kit.cancel_points import cancelled_at
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

SIZE = 64 * 1024


@pytest.mark.parametrize("offset", [0, 511, 512, 40_000, SIZE - 1])
async def test_the_first_block_that_differs(offset):
    changed = bytearray(b"a" * SIZE)
    changed[offset] = 0
    changed[SIZE - 1] = 0
    async with (
        opened(Script(SIZE, content=b"a" * SIZE)) as first,
        opened(Script(SIZE, content=bytes(changed))) as second,
    ):
        assert await compare(first, second) == Difference("content", offset // 512 * 512)
        assert await compare(second, first) == Difference("content", offset // 512 * 512)
        assert await compare(first, first) is None


async def test_a_length_that_is_no_multiple_of_anything():
    first, second = Script(1003, content=b"a" * 1003), Script(1003, content=b"a" * 1002 + b"b")
    async with opened(first) as one, opened(second) as two:
        assert await compare(one, one) is None
        assert await compare(one, two) == Difference("content", 512)


async def test_what_both_know_to_be_zeroes_is_not_read():
    first = Script(SIZE, runs=[(ZERO, SIZE // 2), (DATA, SIZE // 2)], content=bytes(SIZE // 2) + b"x" * (SIZE // 2))
    second = Script(
        SIZE, runs=[(ZERO, SIZE // 4), (DATA, SIZE * 3 // 4)], content=bytes(SIZE // 2) + b"x" * (SIZE // 2)
    )
    async with opened(first) as one, opened(second) as two:
        assert await compare(one, two) is None
        assert [call.where for call in first.calls("preadv")] == [(SIZE // 2, SIZE // 2)]
        assert [call.where for call in second.calls("preadv")] == [(SIZE // 4, SIZE // 4), (SIZE // 2, SIZE // 2)]


async def test_what_is_behind_the_end_of_one_must_be_zeroes():
    short, long = Script(SIZE, content=b"a" * SIZE), Script(2 * SIZE, content=b"a" * SIZE)
    more = Script(2 * SIZE, content=b"a" * SIZE + bytes(1000) + b"b")
    async with opened(short) as one, opened(long) as two, opened(more) as three:
        assert await compare(one, two) is None
        assert await compare(two, one) is None
        assert await compare(one, three) == Difference("content", SIZE + 512)
        assert await compare(one, two, strict=True) == Difference("length", SIZE)


async def test_strict_minds_what_is_allocated():
    one_run = Script(SIZE, runs=[(DATA, SIZE)])
    two_runs = Script(SIZE, runs=[(DATA, SIZE // 2), (ZERO, SIZE // 2)])
    async with opened(one_run) as one, opened(two_runs) as two:
        assert await compare(one, two) is None
        assert await compare(one, two, strict=True) == Difference("status", SIZE // 2)
        assert await compare(two, two, strict=True) is None


async def test_strict_tells_a_different_content_that_comes_first():
    one_run = Script(SIZE, runs=[(DATA, SIZE)])
    two_runs = Script(SIZE, runs=[(DATA, SIZE // 2), (ZERO, SIZE // 2)], content=bytes(1024) + b"x")
    async with opened(one_run) as one, opened(two_runs) as two:
        assert await compare(one, two, strict=True) == Difference("content", 1024)


async def test_where_runs_begin_in_the_file_does_not_matter():
    content = b"x" * SIZE
    file = Script(4 * SIZE)
    split = Script(
        SIZE, runs=[(DATA | OFFSET_VALID, 4096, SIZE), (DATA | OFFSET_VALID, SIZE - 4096, 0)], content=content
    )
    whole = Script(SIZE, runs=[(DATA | OFFSET_VALID, SIZE, 0)], content=content)
    async with opened(split, files={split: file}) as one, opened(whole, files={whole: Script(4 * SIZE)}) as two:
        assert await compare(one, two, strict=True) is None


async def test_the_lowest_difference_is_told_although_a_later_one_is_seen_first():
    first, second = Script(4 * BUFFER), Script(4 * BUFFER)
    second.content[10] = second.content[3 * BUFFER] = 1
    second.hold("preadv")
    async with opened(first) as one, opened(second) as two:
        job = asyncio.create_task(compare(one, two))
        await until(lambda: len(second.held) == AHEAD)
        for call in reversed(list(second.held)):
            second.release(call)
            for _ in range(10):
                await asyncio.sleep(0)
        assert await job == Difference("content", 0)
        assert_idle(one)


async def test_so_many_reads_are_under_way_and_no_more():
    first, second = Script(8 * BUFFER), Script(8 * BUFFER)
    first.hold("preadv")
    second.hold("preadv")
    async with opened(first) as one, opened(second) as two:
        job = asyncio.create_task(compare(one, two))
        await until(lambda: len(first.held) == len(second.held) == AHEAD)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(first.held) == len(second.held) == AHEAD
        first.release()
        second.release()
        assert await job is None


@pytest.mark.parametrize("number", [0, 1])
async def test_a_failed_read_says_of_which(number):
    scripts = (Script(SIZE), Script(SIZE))
    scripts[number].fail("preadv", OSError(errno.EIO, "Input/output error"))
    async with opened(scripts[0]) as one, opened(scripts[1]) as two:
        with pytest.raises(PositionedError) as caught:
            await compare(one, two)
        assert (caught.value.action, caught.value.offset, caught.value.source) == ("read", 0, number)
        assert_idle(one)
        assert_idle(two)


@pytest.mark.parametrize("number", [0, 1])
async def test_a_failed_question_says_of_which(number):
    def runs(offset, nbytes, want_zero):
        if offset >= SIZE // 2:
            raise OSError(errno.EIO, "Input/output error")
        return DATA, SIZE // 2

    scripts = [Script(SIZE), Script(SIZE)]
    scripts[number].runs = runs
    async with opened(scripts[0]) as one, opened(scripts[1]) as two:
        with pytest.raises(PositionedError) as caught:
            await compare(one, two)
        assert (caught.value.action, caught.value.source) == ("status", number)
        assert_idle(one)


async def test_progress_ends_with_all_of_it():
    told = []
    runs = [(DATA, SIZE // 2), (ZERO, SIZE // 2)]
    async with opened(Script(SIZE, runs=runs)) as one, opened(Script(2 * SIZE)) as two:
        assert await compare(one, two, progress=lambda done, total: told.append((done, total))) is None
    assert told == sorted(told)
    assert told[-1] == (2 * SIZE, 2 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_every_await_it_leaves_nothing_running(again):
    async def before(call):
        await asyncio.sleep(0)

    number = 1
    while True:
        scripts = [Script(SIZE, runs=[(DATA, SIZE // 2), (ZERO, SIZE // 2)]), Script(SIZE, runs=[(DATA, SIZE)])]
        for script in scripts:
            script.before = before
        async with opened(scripts[0]) as one, opened(scripts[1]) as two:
            run = await cancelled_at(compare(one, two), number, again=again)
            assert_idle(one)
            assert_idle(two)
            assert run.error is None
            assert run.cancelled or run.result is None
        if not run.reached:
            break
        number += 1
    assert number > 4

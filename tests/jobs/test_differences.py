"""differences: every range that differs, against a plain model; failures and early ends leave nothing behind."""

import asyncio
import errno
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioblock
from aioblock import DifferentRange, PositionedError
from aioblock.base.flags import DATA, ZERO
from aioblock.jobs.compare import BUFFER
from aioblock.jobs.differences import differences
from tests.kit.cancel_points import cancelled_at
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle

SIZE = 64 * 1024
SECTOR = 512


def model(first, second):
    """The differing blocks of two byte strings, the shorter one filled up with zeroes."""
    length = max(len(first), len(second))
    first, second = first.ljust(length, b"\0"), second.ljust(length, b"\0")
    found = []
    for at in range(0, length, SECTOR):
        end = min(at + SECTOR, length)
        if first[at:end] == second[at:end]:
            continue
        if found and sum(found[-1]) == at:
            found[-1] = DifferentRange(found[-1].offset, end - found[-1].offset)
        else:
            found.append(DifferentRange(at, end - at))
    return found


async def every(first, second, **kwargs):
    return [run async for run in differences(first, second, **kwargs)]


async def test_ranges_that_meet_are_one_also_from_piece_to_piece():
    size = 3 * BUFFER
    changed = bytearray(size)
    changed[0] = 1
    changed[BUFFER - 1 : BUFFER + 1] = b"xy"
    changed[2 * BUFFER + 1024 : 2 * BUFFER + 2048] = b"z" * 1024
    told = []
    async with opened(Script(size)) as first, opened(Script(size, content=bytes(changed))) as second:
        found = await every(first, second, progress=lambda done, total: told.append((done, total)))
    assert found == [
        DifferentRange(0, SECTOR),
        DifferentRange(BUFFER - SECTOR, 2 * SECTOR),
        DifferentRange(2 * BUFFER + 1024, 1024),
    ]
    assert told[-1] == (size, size)
    assert told == sorted(told)


async def test_a_disk_counts_as_zeroes_behind_its_end():
    content = b"a" * 1024 + bytes(512) + b"a" * 1000
    async with (
        opened(Script(1024, content=b"a" * 1024)) as short,
        opened(Script(len(content), content=content)) as long,
    ):
        assert await every(short, long) == await every(long, short) == [DifferentRange(1536, 1000)]


async def test_what_both_know_to_be_zeroes_is_not_read():
    runs = [(ZERO, SIZE // 2), (DATA, SIZE // 2)]
    first, second = Script(SIZE, runs=runs), Script(SIZE, runs=runs)
    async with opened(first) as one, opened(second) as two:
        assert await every(one, two) == []
    assert [call.where for call in first.calls("preadv")] == [(SIZE // 2, SIZE // 2)]


@pytest.mark.slow
@given(data=st.data())
async def test_the_model_agrees(data):
    """Random contents of random lengths."""
    contents = []
    for _ in range(2):
        parts = data.draw(
            st.lists(st.sampled_from([bytes(512), b"a" * 512, b"b" * 512, b"a" * 500 + bytes(12)]), max_size=12)
        )
        contents.append(b"".join(parts) or b"c" * 512)
    scripts = [Script(len(content), content=content) for content in contents]
    async with opened(scripts[0]) as first, opened(scripts[1]) as second:
        assert await every(first, second) == model(*contents)


async def test_closed_early_it_leaves_nothing_running():
    content = bytearray(6 * BUFFER)
    content[0] = content[SECTOR * 4] = 1
    second = Script(6 * BUFFER, content=bytes(content))
    async with opened(Script(6 * BUFFER)) as one, opened(second) as two:
        async with aclosing(differences(one, two)) as found:
            assert await anext(found) == DifferentRange(0, SECTOR)
        assert_idle(one)
        assert_idle(two)
    assert len(second.calls("preadv")) < 6


@pytest.mark.parametrize("number", [0, 1])
async def test_a_failed_read_says_of_which(number):
    scripts = (Script(SIZE), Script(SIZE))
    scripts[number].fail("preadv", OSError(errno.EIO, "Input/output error"))
    async with opened(scripts[0]) as one, opened(scripts[1]) as two:
        with pytest.raises(PositionedError) as caught:
            await every(one, two)
        assert (caught.value.action, caught.value.offset, caught.value.source) == ("read", 0, number)
        assert_idle(one)
        assert_idle(two)


@pytest.mark.slow
async def test_cancelled_at_every_await_it_leaves_nothing_running():
    async def before(call):
        await asyncio.sleep(0)

    number = 1
    while True:
        scripts = [Script(SIZE, runs=[(DATA, SIZE // 2), (ZERO, SIZE // 2)]), Script(SIZE, runs=[(DATA, SIZE)])]
        for script in scripts:
            script.before = before
        async with opened(scripts[0]) as one, opened(scripts[1]) as two:
            done = await cancelled_at(every(one, two), number)
            assert_idle(one)
            assert_idle(two)
            assert done.error is None
        if not done.reached:
            break
        number += 1
    assert number > 4


async def test_by_name_the_images_are_opened_and_closed(tmp_path):
    first, second = str(tmp_path / "a.raw"), str(tmp_path / "b.raw")
    for name, content in ((first, b"a" * SIZE), (second, b"a" * 1024 + b"b" * 512 + b"a" * (SIZE - 1536))):
        (tmp_path / name).write_bytes(content)
    found = [run async for run in aioblock.differences(first, second, format="raw", second_format="raw")]
    assert found == [DifferentRange(1024, 512)]
    async with aclosing(aioblock.differences(first, second)) as early:
        await anext(early)


async def test_by_name_a_failure_says_which_file(tmp_path):
    good, spoilt = tmp_path / "good.raw", tmp_path / "spoilt.raw"
    for path in (good, spoilt):
        path.write_bytes(b"a" * SIZE)
    bad = {
        "driver": "raw",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(spoilt)},
            "inject-error": [{"event": "none", "iotype": "read", "errno": errno.EIO}],
        },
    }
    with pytest.raises(PositionedError) as caught:
        await anext(aioblock.differences(str(good), bad))
    assert caught.value.source == 1 and "spoilt.raw" in str(caught.value)

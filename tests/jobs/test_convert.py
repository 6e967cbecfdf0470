"""convert: what is read and written, in which order, how many at a time, and what failures leave behind."""

import asyncio
import errno

import pytest

import aioblock
from aioblock.base.errors import NotSupported
from aioblock.base.flags import DATA, ZERO
from aioblock.drivers.protocols.posix import file as file_driver
from aioblock.drivers.protocols.posix import transfer
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.convert import BUFFER, convert
from aioblock.jobs.errors import PositionedError
from tests.kit.cancel_points import cancelled_at
from tests.kit.model import pattern
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

PIECES = 6


def _data(nbytes):
    """Bytes without a zero among them."""
    return (pattern(4096, 1) * -(-nbytes // 4096))[:nbytes]


def _big(pieces=PIECES):
    """A source of several whole pieces."""
    return Script(pieces * BUFFER, content=_data(pieces * BUFFER))


def _where(script, verb):
    return [call.where for call in script.calls(verb)]


async def test_zeroes_are_neither_read_nor_written_as_data():
    source = Script(
        65536, runs=[(DATA, 8192), (ZERO, 49152), (DATA, 8192)], content=_data(8192) + bytes(49152) + _data(8192)
    )
    target = Script(65536, content=b"x" * 65536, lacks=("extents", "pwritev_compressed"))
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out)
        assert bytes(target.content) == bytes(source.content)
        assert _where(source, "preadv") == [(0, 8192), (57344, 8192)]
        assert _where(target, "pwrite_zeroes") == [(0, 65536)]  # the whole of it at once, before anything else
        assert _where(target, "pwritev") == [(0, 8192), (57344, 8192)]
        assert target.log[-1].verb == "flush"


async def test_a_target_that_cannot_be_cleared_at_once_is_cleared_where_it_must_be():
    source = Script(65536, runs=[(DATA, 8192), (ZERO, 57344)], content=_data(8192))
    target = Script(65536, content=b"x" * 65536)
    target.attributes["pwrite_zeroes"] = _refuse
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out)
        assert bytes(target.content) == bytes(source.content)


async def _refuse(self, offset, nbytes, flags):
    raise NotSupported


async def test_nothing_is_written_where_the_target_is_zero_anyhow():
    source = Script(65536, runs=[(DATA, 16384), (ZERO, 49152)], content=_data(4096) + bytes(8192) + _data(4096))
    target = Script(65536)
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, target_is_zero=True)
        assert bytes(target.content) == bytes(source.content)
        assert not target.calls("pwrite_zeroes")
        assert _where(target, "pwritev") == [(0, 4096), (12288, 4096)]


@pytest.mark.parametrize(
    ("sparse", "written"),
    [
        (4096, [(0, 4096), (8192, 4096), (16384, 4096)]),
        (8192, [(0, 24576)]),
        (512, [(0, 512), (8192, 512), (17408, 512)]),
        (0, [(0, 65536)]),
    ],
)
async def test_only_zeroes_that_are_long_enough_are_left_out(sparse, written):
    content = bytearray(65536)
    for at in (0, 8192, 17408):
        content[at : at + 512] = b"x" * 512
    source, target = Script(65536, content=bytes(content)), Script(65536)
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, sparse=sparse, target_is_zero=True)
        assert bytes(target.content) == bytes(content)
        assert _where(target, "pwritev") == written


async def test_so_many_pieces_are_under_way_and_no_more():
    source, target = _big(), Script(PIECES * BUFFER)
    source.hold("preadv")
    async with opened(source) as disk, opened(target, writable=True) as out:
        job = asyncio.create_task(convert([disk], out, workers=3, target_is_zero=True))
        await until(lambda: len(source.held) == 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(source.held) == 3
        source.release()
        await job
        assert target.content == source.content


@pytest.mark.parametrize("in_order", [True, False])
async def test_writes_begin_in_order_unless_they_need_not(in_order):
    source, target = _big(3), Script(3 * BUFFER)
    source.hold("preadv")
    async with opened(source) as disk, opened(target, writable=True) as out:
        job = asyncio.create_task(convert([disk], out, workers=3, in_order=in_order, target_is_zero=True))
        await until(lambda: len(source.held) == 3)
        for call in reversed(list(source.held)):
            source.release(call)
            await until(lambda call=call: call.outcome == "done")
            for _ in range(20):
                await asyncio.sleep(0)
        await job
        offsets = [call.offset for call in target.calls("pwritev")]
        assert offsets == sorted(offsets, reverse=not in_order)
        assert target.content == source.content


async def test_the_next_write_begins_before_the_last_one_is_done():
    source, target = _big(3), Script(3 * BUFFER)
    target.hold("pwritev")
    async with opened(source) as disk, opened(target, writable=True) as out:
        job = asyncio.create_task(convert([disk], out, workers=3, target_is_zero=True))
        await until(lambda: len(target.held) == 3)
        assert [call.offset for call in target.held] == [0, BUFFER, 2 * BUFFER]
        target.release()
        await job


async def test_a_failed_write_is_told_with_its_place_and_ends_all():
    source, target = _big(), Script(PIECES * BUFFER)
    target.fail("pwritev", OSError(errno.ENOSPC, "No space left on device"), 2)
    async with opened(source) as disk, opened(target, writable=True) as out:
        with pytest.raises(PositionedError) as caught:
            await convert([disk], out, target_is_zero=True)
        assert (caught.value.action, caught.value.offset) == ("write", BUFFER)
        assert str(caught.value) == f"error while writing at byte {BUFFER}: No space left on device"
        assert isinstance(caught.value.error, OSError)
        async with out.drained():
            assert_idle(disk)
            assert_idle(out)


async def test_a_failed_read_names_its_source():
    first, second = Script(4096, content=_data(4096)), Script(4096, content=_data(4096))
    second.fail("preadv", OSError(errno.EIO, "Input/output error"))
    target = Script(8192)
    async with opened(first) as one, opened(second) as two, opened(target, writable=True) as out:
        with pytest.raises(PositionedError, match="error while reading at byte 4096: Input/output error") as caught:
            await convert([one, two], out, target_is_zero=True)
        assert (caught.value.action, caught.value.offset, caught.value.source) == ("read", 4096, 1)
        assert_idle(out)


async def test_a_failed_question_is_told():
    source = Script(8192, runs=lambda offset, nbytes, want_zero: _raise(OSError(errno.EIO, "Input/output error")))
    async with opened(source) as disk, opened(Script(8192), writable=True) as out:
        with pytest.raises(PositionedError, match="error while reading block status at offset 0: Input/output error"):
            await convert([disk], out, target_is_zero=True)
        assert_idle(out)


def _raise(error):
    raise error


async def test_salvage_gives_up_only_the_sectors_that_cannot_be_read():
    source, target = Script(65536, content=_data(65536)), Script(65536, content=b"x" * 65536)

    async def before(call):
        if call.verb == "preadv" and any(call.offset <= at < call.offset + call.nbytes for at in (1024, 5000)):
            raise OSError(errno.EIO, "Input/output error")

    source.before = before
    told = []
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, salvage=lambda offset, error: told.append((offset, error.errno)))
    expected = bytearray(source.content)
    for at in (1024, 4608):
        expected[at : at + 512] = bytes(512)
    assert target.content == expected
    assert told == [(1024, errno.EIO), (4608, errno.EIO)]


async def test_salvage_copies_what_nobody_can_ask_about():
    source = Script(8192, runs=lambda offset, nbytes, want_zero: _raise(OSError(errno.EIO, "")), content=_data(8192))
    target = Script(8192)
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, salvage=lambda offset, error: None)
    assert target.content == source.content


@pytest.mark.parametrize(
    ("skip", "nbytes"), [(0, 100), (513, 40000), (4096, None), (65536, None), (60000, 90000), (70000, 5)]
)
async def test_a_part_of_a_source(skip, nbytes):
    source = Script(65536, runs=[(DATA, 20480), (ZERO, 8192), (DATA, 36864)], content=_data(65536))
    source.content[20480:28672] = bytes(8192)
    expected = bytes(source.content[skip : skip + nbytes if nbytes is not None else None])
    target = Script(len(expected) + 1000)
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, skip=skip, nbytes=nbytes)
        assert bytes(target.content) == expected.ljust(len(expected) + 1000, b"\0")
        assert all(skip <= at and at + count <= skip + len(expected) for at, count in _where(source, "preadv"))


async def test_what_the_top_leaves_open_is_left_to_the_backing_file():
    top = Script(16384, runs=[(0, 4096), (DATA, 4096), (ZERO, 4096), (0, 4096)], content=_data(16384))
    base = Script(16384, runs=[(DATA, 16384)], content=b"b" * 16384)
    overlay = Script(16384, cluster=4096)
    async with opened(top, base) as disk, opened(overlay, Script(16384, content=b"b" * 16384), writable=True) as out:
        await convert([disk], out, keep_backing=True)
        assert overlay.clusters == {1: DATA, 2: ZERO}
        assert await out.pread(0, 16384) == b"b" * 4096 + _data(4096) + bytes(4096) + b"b" * 4096


async def test_compressed_clusters_are_written_whole():
    content = bytes(4096) + _data(1000) + bytes(20000) + _data(300)
    source, target = Script(len(content), content=content), Script(28672, cluster=4096)
    target.attributes["supports_backing"] = False
    async with opened(source) as disk, opened(target, writable=True) as out:
        await convert([disk], out, compressed=True, target_is_zero=True)
        assert bytes(target.content).startswith(content)
        assert _where(target, "pwritev_compressed") == [(4096, 4096), (24576, 4096)]
        assert not target.calls("pwritev")


async def test_only_a_format_with_clusters_compresses():
    async with opened(Script(4096)) as disk, opened(Script(4096), writable=True) as out:
        with pytest.raises(NotSupported, match="Compression not supported"):
            await convert([disk], out, compressed=True)


async def test_only_one_source_can_leave_something_to_a_backing_file():
    async with opened(Script(4096)) as disk, opened(Script(8192), writable=True) as out:
        with pytest.raises(ValueError, match="only one source"):
            await convert([disk, disk], out, keep_backing=True)


async def test_progress_is_told_in_bytes_that_are_copied():
    source = Script(3 * BUFFER, runs=[(DATA, BUFFER), (ZERO, BUFFER), (DATA, BUFFER)], content=_data(3 * BUFFER))
    told = []
    async with opened(source) as disk, opened(Script(3 * BUFFER), writable=True) as out:
        await convert([disk], out, target_is_zero=True, progress=lambda done, total: told.append((done, total)))
    assert told == [(BUFFER, 2 * BUFFER), (2 * BUFFER, 2 * BUFFER)]


async def test_a_rate_is_kept_to(monkeypatch):
    waits = []
    real_sleep = asyncio.sleep

    async def sleep(seconds, *args):
        if seconds:
            waits.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with opened(_big(2)) as disk, opened(Script(2 * BUFFER), writable=True) as out:
        await convert([disk], out, workers=1, target_is_zero=True, bytes_per_second=BUFFER // 100)
    assert [round(wait, -1) for wait in waits] == [100, 200]


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_every_await_it_leaves_nothing_running(again):
    number = 1
    while True:
        source = Script(24576, runs=[(DATA, 8192), (ZERO, 8192), (DATA, 8192)], content=_data(24576))
        target = Script(24576, content=b"x" * 24576)

        async def before(call):
            await asyncio.sleep(0)

        source.before = target.before = before
        async with opened(source) as disk, opened(target, writable=True) as out:
            run = await cancelled_at(convert([disk], out, workers=2), number, again=again)
            async with out.drained():
                pass
            assert_idle(disk)
            assert_idle(out)
            if not run.reached:
                assert run.error is None
                assert target.content[:8192] == source.content[:8192]
                break
            assert run.cancelled or run.error is None, run
        number += 1
    assert number > 10


async def _copy_files(tmp_path, content, **how):
    """Convert a raw file of such content with `offload`; what became of it."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.write_bytes(bytes(len(content)))
    async with (
        await aioblock.open(source, format="raw") as disk,
        await aioblock.open(target, format="raw", writable=True) as out,
    ):
        await convert([disk], out, offload=True, target_is_zero=True, **how)
        assert_idle(disk)
        assert_idle(out)
    return target.read_bytes()


async def test_the_storage_copies_where_it_can(tmp_path, monkeypatch):
    content = _data(2 * BUFFER + 1000)
    copied, told = [], []
    real = transfer.copy_range

    def copy(*args):
        copied.append(args[-1])
        real(*args)

    monkeypatch.setattr(file_driver, "copy_range", copy)
    monkeypatch.setattr(BlockBackend, "readinto", None)  # nothing is read
    assert await _copy_files(tmp_path, content, progress=lambda done, total: told.append((done, total))) == content
    assert sum(copied) == len(content)
    assert told[-1] == (len(content), len(content))


@pytest.mark.parametrize("number", [1, 2, 5])
async def test_what_the_storage_cannot_copy_is_read_and_written(tmp_path, monkeypatch, number):
    """From one piece on it refuses, after it has copied a part."""
    content = _data(4 * BUFFER)
    asked = 0
    real = transfer.copy_range

    def copy(source, source_offset, fd, offset, nbytes):
        nonlocal asked
        asked += 1
        if asked >= number:
            real(source, source_offset, fd, offset, nbytes // 2)
            raise NotSupported
        real(source, source_offset, fd, offset, nbytes)

    monkeypatch.setattr(file_driver, "copy_range", copy)
    assert await _copy_files(tmp_path, content) == content
    assert asked <= number + 8


async def test_an_error_of_a_copy_ends_all_and_says_where(tmp_path, monkeypatch):
    asked = 0
    real = transfer.copy_range

    def copy(source, source_offset, fd, offset, nbytes):
        nonlocal asked
        asked += 1
        if asked == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, source_offset, fd, offset, nbytes)

    monkeypatch.setattr(file_driver, "copy_range", copy)
    with pytest.raises(PositionedError) as caught:
        await _copy_files(tmp_path, _data(5 * BUFFER), workers=1)
    assert (caught.value.action, caught.value.offset) == ("write", 2 * BUFFER)
    assert caught.value.error.errno == errno.ENOSPC


async def test_sources_behind_each_other_are_copied_each(tmp_path):
    """The second one begins at a multiple of 512; a piece that holds parts of both is read and written."""
    sources, target = [tmp_path / "one", tmp_path / "two"], tmp_path / "target"
    sources[0].write_bytes(_data(BUFFER + 700))
    sources[1].write_bytes(_data(BUFFER)[::-1])
    target.write_bytes(bytes(2 * BUFFER + 1024))
    async with (
        await aioblock.open(sources[0], format="raw") as one,
        await aioblock.open(sources[1], format="raw") as two,
        await aioblock.open(target, format="raw", writable=True) as out,
    ):
        await convert([one, two], out, offload=True, target_is_zero=True)
    assert target.read_bytes() == _data(BUFFER + 700) + bytes(324) + _data(BUFFER)[::-1]


async def test_the_storage_does_not_compress():
    async with opened(Script(4096)) as disk, opened(Script(4096, cluster=4096), writable=True) as out:
        with pytest.raises(ValueError, match="does not compress"):
            await convert([disk], out, offload=True, compressed=True)


@pytest.mark.slow
async def test_cancelled_at_every_await_while_the_storage_copies(tmp_path):
    number = 1
    content = _data(300_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    while True:
        target.write_bytes(bytes(len(content)))
        async with (
            await aioblock.open(source, format="raw") as disk,
            await aioblock.open(target, format="raw", writable=True) as out,
        ):
            run = await cancelled_at(convert([disk], out, offload=True, workers=2, target_is_zero=True), number)
            async with out.drained():
                pass
            assert_idle(disk)
            assert_idle(out)
        assert run.cancelled or run.error is None, run
        if not run.reached:
            assert target.read_bytes() == content
            break
        number += 1
    assert number > 2

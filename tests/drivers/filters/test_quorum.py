"""`quorum`: votes on reads, writes, flushes and status; what loses is told apart, and may be written over."""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NotSupported, OptionError, PermissionConflict
from aioblock.base.flags import DATA, REQ_FUA, REQ_MAY_UNMAP, ZERO
from aioblock.core.images import Prealloc
from aioblock.drivers.filters.quorum import QuorumDriver
from tests.kit import oracle
from tests.kit.fake_context import open_driver, read_from
from tests.kit.memory_io import Call, MemoryIO
from tests.kit.watching import until

SIZE = 16384


def failing(code: int, *verbs: str) -> MemoryIO:
    """A child that fails with `code` in those verbs, always."""

    async def before(call: Call) -> None:
        if call.verb in verbs:
            raise OSError(code, os.strerror(code))

    child = MemoryIO(bytes(SIZE))
    child.before = before
    return child


async def over(*children: MemoryIO, threshold: int = 2, read_only: bool = False, **options: Any) -> QuorumDriver:
    named = {f"children.{number}": child for number, child in enumerate(children)}
    given = {"vote-threshold": threshold, "children": [{} for _ in children]}
    given |= {name.replace("_", "-"): value for name, value in options.items()}
    return await open_driver(QuorumDriver, given, children=named, read_only=read_only)


def three() -> list[MemoryIO]:
    return [MemoryIO(bytes(SIZE)) for _ in range(3)]


# -- reads ----------------------------------------------------------------------------------------------------------


async def test_most_children_are_right_and_the_others_stay_as_they_are() -> None:
    children = three()
    driver = await over(*children)
    await driver.pwritev(512, memoryview(b"x" * 512), 0)
    for wrong in range(3):
        kept = bytes(children[wrong].data)
        children[wrong].data[600] ^= 1
        assert await read_from(driver, 0, 2048) == bytes(512) + b"x" * 512 + bytes(1024)
        assert children[wrong].data[600] == ord("x") ^ 1
        children[wrong].data[:] = kept


async def test_what_loses_is_written_over_where_that_is_asked_for() -> None:
    children = three()
    driver = await over(*children, rewrite_corrupted=True)
    children[1].data[600] = 1
    assert await read_from(driver, 512, 512) == bytes(512)
    assert children[1].data == bytes(SIZE)
    assert [child.calls("pwrite") for child in children] == [[], [Call("pwrite", 512, 512)], []]


async def test_too_few_that_agree_are_an_error_and_change_nothing() -> None:
    children = three()
    for number, child in enumerate(children):
        child.data[0] = number
    driver = await over(*children, rewrite_corrupted=True)
    with pytest.raises(OSError) as caught:
        await read_from(driver, 0, 512)
    assert caught.value.errno == errno.EIO
    assert [child.data[0] for child in children] == [0, 1, 2]
    assert await read_from(driver, 1, 511) == bytes(511)


async def test_of_versions_with_as_many_votes_the_last_one_wins() -> None:
    children = [MemoryIO(bytes([byte]) * SIZE) for byte in (1, 2, 2, 1)]
    assert await read_from(await over(*children), 0, 4) == b"\2" * 4


@pytest.mark.parametrize(
    ("codes", "seen"),
    [((28, 0, 0), 0), ((28, 5, 0), 5), ((5, 28, 0), 28), ((5, 28, 5), 5), ((0, 0, 5), 0), ((28, 28, 5), 28)],
)
@pytest.mark.parametrize("verb", ["pread", "pwrite", "pwrite_zeroes", "flush"])
async def test_errors_are_voted_on(verb: str, codes: tuple[int, ...], seen: int) -> None:
    driver = await over(*(failing(code, verb) if code else MemoryIO(bytes(SIZE)) for code in codes))
    requests = {
        "pread": lambda: read_from(driver, 0, 512),
        "pwrite": lambda: driver.pwritev(0, memoryview(b"x" * 512), 0),
        "pwrite_zeroes": lambda: driver.pwrite_zeroes(0, 512, 0),
        "flush": driver.flush,
    }
    if not seen:
        await requests[verb]()
        return
    with pytest.raises(OSError) as caught:
        await requests[verb]()
    assert caught.value.errno == seen


async def test_a_child_that_cannot_read_has_no_vote() -> None:
    children = [failing(5, "pread"), MemoryIO(b"\1" * SIZE), MemoryIO(b"\2" * SIZE)]
    with pytest.raises(OSError):
        await read_from(await over(*children), 0, 4)
    children[2].data[:] = children[1].data
    assert await read_from(await over(*children), 0, 4) == b"\1" * 4


async def test_fifo_asks_one_after_the_other() -> None:
    children = [failing(5, "pread"), MemoryIO(b"\1" * SIZE), MemoryIO(b"\2" * SIZE)]
    driver = await over(*children, read_pattern="fifo", rewrite_corrupted=True)
    assert await read_from(driver, 0, 4) == b"\1" * 4
    assert [len(child.log) for child in children] == [1, 1, 0]
    driver = await over(failing(5, "pread"), failing(28, "pread"), read_pattern="fifo")
    with pytest.raises(OSError) as caught:
        await read_from(driver, 0, 4)
    assert caught.value.errno == 28


async def test_blkverify_says_where_two_differ() -> None:
    children = MemoryIO(bytes(SIZE)), MemoryIO(bytes(SIZE))
    driver = await over(*children, blkverify=True)
    assert await read_from(driver, 512, 512) == bytes(512)
    children[1].data[700] = 1
    with pytest.raises(aioblock.VerifyError, match="quorum: offset=512 bytes=512 contents mismatch at offset 700"):
        await read_from(driver, 512, 512)


# -- changes, status, the whole -------------------------------------------------------------------------------------


async def test_changes_go_to_all() -> None:
    children = three()
    driver = await over(*children)
    await driver.pwritev(0, memoryview(b"x" * 512), REQ_FUA)
    await driver.pwrite_zeroes(512, 512, REQ_MAY_UNMAP)
    await driver.flush()
    for child in children:
        assert [tuple(call) for call in child.log] == [
            ("pwrite", 0, 512, REQ_FUA),
            ("pwrite_zeroes", 512, 512, REQ_MAY_UNMAP),
            ("flush", 0, 0, 0),
        ]


async def test_what_it_does_not_do() -> None:
    driver = await over(*three())
    for request in (
        lambda: driver.truncate(512, exact=True, prealloc=Prealloc.OFF, flags=0),
        lambda: driver.pdiscard(0, 512),
        lambda: driver.pwritev_compressed(0, memoryview(bytes(512))),
    ):
        with pytest.raises(NotSupported):
            await request()


async def test_status_is_zero_only_where_all_have_zeroes() -> None:
    children = three()
    driver = await over(*children)
    assert await driver.block_status(0, SIZE, True) == (ZERO, SIZE, 0, None)
    children[1].data[5000] = 1
    assert await driver.block_status(0, SIZE, True) == (ZERO, 4096, 0, None)
    assert await driver.block_status(4096, SIZE - 4096, True) == (DATA, 4096, 0, None)
    assert await driver.block_status(8192, 8192, True) == (ZERO, 8192, 0, None)
    failing_one = await over(*children[:1], failing(5, "block_status_above"), children[2])
    assert await failing_one.block_status(0, SIZE, True) == (DATA, SIZE, 0, None)


async def test_children_of_different_lengths_are_refused() -> None:
    driver = await over(MemoryIO(bytes(SIZE)), MemoryIO(bytes(SIZE + 512)))
    with pytest.raises(OSError, match="the children differ in length: 16384, 16896"):
        await driver.getlength()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"children": []}, "Number of provided children must be 1 or more"),
        ({"children": "x"}, "Number of provided children must be 1 or more"),
        ({"children": {"0": {}, "2": {}}}, "Option children is not a valid array"),
        ({"vote-threshold": 0}, "Parameter 'vote-threshold' expects a value >= 1"),
        ({"vote-threshold": 3}, "threshold may not exceed children count"),
        ({"read-pattern": "x"}, "Please set read-pattern as fifo or quorum"),
        ({"vote-threshold": 1, "blkverify": True}, "blkverify=on can only be set if there are exactly two files"),
        ({"blkverify": True, "rewrite-corrupted": True}, "rewrite-corrupted=on cannot be used with blkverify=on"),
    ],
)
async def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        await open_driver(QuorumDriver, {"vote-threshold": 2, "children": [{}, {}]} | options)


async def test_all_that_must_be_written_can_be() -> None:
    child = MemoryIO(bytes(SIZE))
    child.node.read_only = True
    with pytest.raises(PermissionConflict, match="read-only"):
        await over(child, threshold=1)
    await over(child, threshold=1, read_only=True)
    with pytest.raises(PermissionConflict, match="read-only"):
        await over(child, threshold=1, read_only=True, rewrite_corrupted=True)


# -- beside each other, and cancelled -------------------------------------------------------------------------------


def held(children: list[MemoryIO], verb: str) -> tuple[asyncio.Event, list[Call]]:
    """Have a verb of all children wait for an event; the calls that wait."""
    gate, waiting = asyncio.Event(), []

    async def hold(call: Call) -> None:
        if call.verb == verb:
            waiting.append(call)
            await gate.wait()

    for child in children:
        child.before = hold
    return gate, waiting


async def test_a_read_does_not_see_half_a_write() -> None:
    children = three()
    driver = await over(*children, threshold=3)
    gate, waiting = held(children, "pwrite")
    children[2].before = None  # the last one is written before the others
    write = asyncio.create_task(driver.pwritev(0, memoryview(b"x" * 512), 0))
    await until(lambda: len(waiting) == 2)
    read = asyncio.create_task(read_from(driver, 0, 1024))
    assert await read_from(driver, 512, 512) == bytes(512)
    assert not read.done()
    gate.set()
    assert await read == b"x" * 512 + bytes(512)
    await write


async def test_a_cancelled_read_leaves_nothing_behind() -> None:
    children = three()
    driver = await over(*children)
    _, waiting = held(children, "pread")
    read = asyncio.create_task(read_from(driver, 0, 512))
    await until(lambda: len(waiting) == 3)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    assert not driver._ranges


async def test_what_a_cancelled_read_rewrites_is_awaited_by_drain_and_close() -> None:
    children = three()
    driver = await over(*children, rewrite_corrupted=True)
    children[0].data[0] = 1
    gate, waiting = held(children, "pwrite")
    read = asyncio.create_task(read_from(driver, 0, 512))
    await until(lambda: len(waiting) == 1)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    draining = asyncio.create_task(driver.drain_begin())
    closing = asyncio.create_task(driver.close())
    await asyncio.sleep(0)
    assert not draining.done() and not closing.done()
    gate.set()
    await draining
    await closing
    assert children[0].data[0] == 0 and not driver._ranges


# -- in a graph -----------------------------------------------------------------------------------------------------


def described(*paths: Path, **options: Any) -> dict[str, Any]:
    children = [{"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}} for path in paths]
    return {"driver": "quorum", "vote-threshold": 2, "children": children} | options


async def made(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.qcow2" for number in range(3)]
    for path in paths:
        await aioblock.create(path, "qcow2", size=1 << 20)
    return paths


async def test_a_graph_of_images(tmp_path: Path) -> None:
    paths = await made(tmp_path)
    async with await aioblock.open(described(*paths), writable=True) as disk:
        await disk.pwrite(1000, b"data")
        await disk.flush()
        name = disk.name
        assert json.loads(name.removeprefix("json:"))["children"][2]["file"]["filename"] == str(paths[2])
        sizes = [path.stat().st_blocks * 512 for path in paths]
        assert await disk.allocated_size() == sum(sizes)
    for path in paths:
        async with await aioblock.open(path) as disk:
            assert await disk.pread(998, 8) == b"\0\0data\0\0"
    async with await aioblock.open(name) as disk:
        assert await disk.pread(1000, 4) == b"data"
        await disk.reopen(writable=True)
        await disk.pwrite(0, b"more")


async def test_a_child_whose_flush_fails_is_outvoted_also_at_the_end(tmp_path: Path) -> None:
    paths = await made(tmp_path)
    options = described(*paths)
    broken = {"driver": "blkdebug", "image": options["children"][1], "inject-error": [{"event": "none", "errno": 5}]}
    broken["inject-error"][0]["iotype"] = "flush"
    options["children"][1] = broken
    async with await aioblock.open(options, writable=True) as disk:
        await disk.pwrite(0, b"data")
        await disk.flush()
    options["vote-threshold"] = 3
    disk = await aioblock.open(options, writable=True)
    await disk.pwrite(0, b"data")
    with pytest.raises(OSError):
        await disk.flush()
    with pytest.raises(OSError):
        await disk.close()


@pytest.mark.oracle
@pytest.mark.slow
async def test_qemu_reads_what_it_wrote_and_the_other_way_round(tmp_path: Path) -> None:
    paths = await made(tmp_path)
    text = "driver=quorum,vote-threshold=2"
    for number, path in enumerate(paths):
        text += f",children.{number}.driver=qcow2,children.{number}.file.filename={path}"
    async with await aioblock.open(described(*paths), writable=True) as disk:
        await disk.pwrite(0, b"\7" * 65536)
    oracle.qemu_io(paths[1], "write -P 9 0 64k", fmt="qcow2")
    done = oracle.run("qemu-io", "--image-opts", "-c", "read -P 7 0 64k", "-c", "write -P 8 4k 64k", text)
    assert "failed" not in done.stdout
    async with await aioblock.open(described(*paths), writable=True) as disk:
        assert await disk.pread(0, 69632) == b"\7" * 4096 + b"\10" * 65536
    oracle.run("qemu-io", "--image-opts", "-c", "read 0 64k", text + ",rewrite-corrupted=on")
    oracle.assert_same(paths[1], paths[0], ("qcow2", "qcow2"))
    oracle.qemu_io(paths[2], "write -P 9 0 64k", fmt="qcow2")
    options = described(*paths) | {"rewrite-corrupted": True}
    async with await aioblock.open(options, writable=True) as disk:
        await disk.pread(0, 65536)
    oracle.assert_same(paths[2], paths[0], ("qcow2", "qcow2"))

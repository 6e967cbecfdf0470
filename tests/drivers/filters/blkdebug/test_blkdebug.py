"""The filter in a graph: what fails, what stops, and what qcow2 tells it."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.core.debugger import Debugger
from aioblock.core.images import Role
from aioblock.core.node import BlockNode
from aioblock.drivers.filters.blkdebug import BlkdebugDriver
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver
from tests.kit import oracle
from tests.kit.fake_context import open_driver
from tests.kit.memory_io import MemoryIO

SIZE = 1 << 20


def over(disk: MemoryDisk | None = None, **options: Any) -> dict[str, Any]:
    return {"driver": "blkdebug", "image": {"driver": "memory", "disk": disk or MemoryDisk(SIZE)}} | options


def rule(event: str = "none", **fields: Any) -> dict[str, Any]:
    return {"event": event} | fields


async def code_of(request: Any) -> int:
    """The errno with which a request fails; 0: it does not."""
    try:
        await request
    except OSError as error:
        return error.errno or -1
    return 0


def debugger_of(node: BlockNode) -> Debugger:
    while node.debugger is None:
        assert node.file is not None
        node = node.file.node
    return node.debugger


async def test_each_kind_of_request_fails_by_its_rule() -> None:
    for kind in ("read", "write", "write-zeroes", "discard", "flush", "block-status"):
        options = over(**{"inject-error": [rule(iotype=kind, errno=errno.ENOSPC)]})
        disk = await aioblock.open(options, writable=True)
        codes = {
            "read": await code_of(disk.pread(0, 512)),
            "write": await code_of(disk.pwrite(0, b"x" * 512)),
            "write-zeroes": await code_of(disk.pwrite_zeroes(0, 4096, aioblock.REQ_NO_FALLBACK)),
            "discard": await code_of(disk.pdiscard(0, 4096)),
            "flush": await code_of(disk.flush()),
            "block-status": await code_of(disk.block_status(0, 512)),
        }
        assert codes == {other: errno.ENOSPC if other == kind else 0 for other in codes}
        assert await code_of(disk.close()) == codes["flush"]


async def test_a_failed_request_does_not_reach_the_image() -> None:
    disk = MemoryDisk(SIZE)
    options = over(disk, **{"inject-error": [rule("pwritev", once=True)]})
    async with await aioblock.open(options, writable=True) as image:
        with pytest.raises(OSError, match="Input/output error"):
            await image.pwrite(0, b"x" * 512)
        assert disk.content() == bytes(SIZE)
        await image.pwrite(0, b"y" * 512)
        assert disk.content()[:512] == b"y" * 512


async def test_errno_zero_fails_nothing() -> None:
    async with await aioblock.open(over(**{"inject-error": [rule(errno=0)]})) as disk:
        assert await disk.pread(0, 512) == bytes(512)


async def test_limits_are_those_asked_for() -> None:
    limits = {
        "align": 4096,
        "max-transfer": 8192,
        "opt-write-zero": 12288,
        "max-write-zero": "24k",
        "opt-discard": 12288,
        "max-discard": 12288,
    }
    async with await aioblock.open(over(**limits), writable=True) as disk:
        found = disk.node.limits
        assert (found.request_alignment, found.max_transfer) == (4096, 8192)
        assert (found.pwrite_zeroes_alignment, found.max_pwrite_zeroes) == (12288, 24576)
        model = bytearray(SIZE)
        for offset, nbytes in ((1000, 30000), (4095, 2), (50000, 4096)):
            await disk.pwrite(offset, b"w" * nbytes)
            model[offset : offset + nbytes] = b"w" * nbytes
        await disk.pwrite_zeroes(5000, 60001)
        model[5000:65001] = bytes(60001)
        assert await disk.pread(0, SIZE) == model


async def test_discards_are_cut_at_their_unit() -> None:
    image = MemoryIO(b"d" * SIZE)
    image.node.set_driver(MemoryDriver(MemoryDisk()), 0)
    options = {"align": 4096, "opt-discard": 12288, "max-discard": 24576}
    options |= {"inject-error": [rule("none", iotype="discard", sector=400)]}
    driver = await open_driver(BlkdebugDriver, options, children={Role.IMAGE: image})
    await driver.pdiscard(4096, 28672)
    assert [(call.offset, call.nbytes) for call in image.log] == [(4096, 8192), (12288, 12288), (24576, 8192)]
    with pytest.raises(OSError, match="Input/output error"):
        await driver.pdiscard(143360, 143360)
    assert [(call.offset, call.nbytes) for call in image.log[3:]] == [(143360, 4096), (147456, 24576), (172032, 24576)]


@pytest.mark.oracle
async def test_permissions_beside_those_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    options = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}}

    def writing() -> bool:
        return oracle.run("qemu-io", "-f", "raw", "-c", "write -q 0 512", path, check=False).returncode == 0

    async with await aioblock.open(options):
        assert writing()
    async with await aioblock.open(options | {"unshare-child-perms": ["write"]}):
        assert not writing()
    assert writing()
    for name, value in (("take-child-perms", ["all"]), ("unshare-child-perms", "write")):
        with pytest.raises(OptionError, match=name):
            await aioblock.open(options | {name: value})


# -- breakpoints -------------------------------------------------------------------------------------------------------


async def test_a_suspended_request_goes_on_when_it_is_resumed() -> None:
    store = MemoryDisk(SIZE)
    lines: list[str] = []
    async with await aioblock.open(over(store), writable=True) as disk:
        debugger = debugger_of(disk.node)
        debugger.announce = lines.append
        debugger.set_break("pwritev", "A")
        write = asyncio.create_task(disk.pwrite(0, b"x" * 512))
        await debugger.suspended("A")
        await disk.pwrite(4096, b"y" * 512)
        assert not write.done()
        assert store.content()[:512] == bytes(512)
        debugger.resume("A")
        await write
        assert store.content()[:512] == b"x" * 512
        with pytest.raises(FileNotFoundError):
            debugger.resume("A")
    assert lines == ["blkdebug: Suspended request 'A'", "blkdebug: Resuming request 'A'"]


async def test_two_breakpoints_hold_one_request_together() -> None:
    async with await aioblock.open(over(), writable=True) as disk:
        debugger = debugger_of(disk.node)
        debugger.set_break("pwritev", "A")
        debugger.set_break("pwritev", "B")
        write = asyncio.create_task(disk.pwrite(0, b"x" * 512))
        await debugger.suspended("A")
        await debugger.suspended("B")
        debugger.resume("B")
        await asyncio.sleep(0)
        assert not write.done()
        debugger.resume("A")
        await write


async def test_removing_a_breakpoint_lets_go_what_it_holds() -> None:
    async with await aioblock.open(over(), writable=True) as disk:
        debugger = debugger_of(disk.node)
        debugger.set_break("pwritev", "A")
        debugger.remove_break("A")
        await disk.pwrite(0, b"x" * 512)
        debugger.set_break("pwritev", "A")
        write = asyncio.create_task(disk.pwrite(0, b"x" * 512))
        await debugger.suspended("A")
        with pytest.raises(FileNotFoundError):  # it was used up; what it held goes on all the same
            debugger.remove_break("A")
        await write
        with pytest.raises(FileNotFoundError):
            debugger.set_break("never", "A")


async def test_who_waits_for_a_breakpoint_may_leave() -> None:
    async with await aioblock.open(over(), writable=True) as disk:
        debugger = debugger_of(disk.node)
        for _ in range(2):
            waiter = asyncio.create_task(debugger.suspended("A"))
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        debugger.set_break("pwritev", "A")
        waiter = asyncio.create_task(debugger.suspended("A"))
        await asyncio.sleep(0)
        write = asyncio.create_task(disk.pwrite(0, b"x" * 512))
        await waiter
        debugger.resume("A")
        await write


async def test_a_cancelled_read_is_held_no_more(tmp_path: Path) -> None:
    path = await qcow2_image(tmp_path)
    async with await aioblock.open(f"blkdebug::{path}", format="qcow2") as disk:
        debugger = debugger_of(disk.node)
        debugger.set_break("read_aio", "A")
        read = asyncio.create_task(disk.pread(0, 512))
        await debugger.suspended("A")
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        with pytest.raises(FileNotFoundError):
            debugger.resume("A")
        assert disk.node.in_flight == 0


# -- names -------------------------------------------------------------------------------------------------------------


async def qcow2_image(folder: Path, **options: Any) -> Path:
    path = folder / "image.qcow2"
    await aioblock.create(path, "qcow2", options, size=SIZE)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"\x11" * 65536)
    return path


async def test_names(tmp_path: Path) -> None:
    path = await qcow2_image(tmp_path)
    config = tmp_path / "rules.conf"
    config.write_text('[inject-error]\nevent = "read_aio"\n')
    async with await aioblock.open(f"blkdebug:{config}:{path}", format="qcow2") as disk:
        assert disk.name == f"blkdebug:{config}:{path}"
        assert await code_of(disk.pread(0, 512)) == errno.EIO
    async with await aioblock.open(f"blkdebug::{path}") as disk:
        assert disk.node.driver.name == "qcow2"
        assert disk.name == f"blkdebug::{path}"
    described = {"driver": "qcow2", "file": over(align=4096) | {"image": {"driver": "file", "filename": str(path)}}}
    async with await aioblock.open(described) as disk:
        assert disk.name.startswith('json:{"driver": "qcow2", "file": {"driver": "blkdebug"')
        again = disk.name
    async with await aioblock.open(again) as disk:
        assert disk.node.file is not None
        assert disk.node.file.node.limits.request_alignment == 4096


async def test_a_backing_file_is_looked_for_beside_the_image(tmp_path: Path) -> None:
    await aioblock.create(tmp_path / "base.raw", "raw", size=SIZE)
    (tmp_path / "base.raw").write_bytes(b"b" * SIZE)
    path = tmp_path / "top.qcow2"
    await aioblock.create(path, "qcow2", {"backing_file": "base.raw", "backing_fmt": "raw"})
    async with await aioblock.open(f"blkdebug::{path}", format="qcow2") as disk:
        assert await disk.pread(0, 512) == b"b" * 512


# -- what qcow2 tells --------------------------------------------------------------------------------------------------


class Listener(Debugger):
    """Notes events."""

    def __init__(self, below: Debugger) -> None:
        self.below = below
        self.events: list[str] = []

    async def event(self, name: str) -> None:
        self.events.append(name)
        await self.below.event(name)

    def set_break(self, event: str, tag: str) -> None:
        raise NotImplementedError

    remove_break = resume = set_break  # type: ignore[assignment]

    async def suspended(self, tag: str) -> None:
        raise NotImplementedError


async def listened(
    monkeypatch: pytest.MonkeyPatch, path: Path, **options: Any
) -> tuple[aioblock.BlockBackend, Listener]:
    made: list[Listener] = []
    original = BlockNode.set_driver

    def set_driver(node: BlockNode, driver: Any, length: int) -> None:
        original(node, driver, length)
        if driver.name == "blkdebug":
            made.append(Listener(driver.debugger))
            node.debugger = made[0]

    monkeypatch.setattr(BlockNode, "set_driver", set_driver)
    disk = await aioblock.open(f"blkdebug::{path}", format="qcow2", writable=True)
    return disk, made[0]


async def test_the_steps_of_writes_and_reads_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = await qcow2_image(tmp_path)
    disk, listener = await listened(monkeypatch, path)
    async with disk:
        assert listener.events == ["reftable_load"]
        told: dict[str, list[str]] = {}
        for name, request in {
            "load": disk.pread(0, 512),
            "read": disk.pread(0, 512),
            "overwrite": disk.pwrite(0, b"x" * 512),
            "allocate": disk.pwrite(65536, b"x" * 512),
            "flush": disk.flush(),
            "compressed": disk.pwrite(2 * 65536, b"x" * 65536, aioblock.REQ_COMPRESSED),
            "read compressed": disk.pread(2 * 65536, 512),
            "discard": disk.pdiscard(65536, 65536),
            "flush again": disk.flush(),
        }.items():
            listener.events.clear()
            await request
            told[name] = list(listener.events)
    assert told["load"] == ["l2_load", "read_aio"]
    assert told["read"] == ["read_aio"]
    assert told["overwrite"] == ["write_aio"]
    assert told["allocate"] == ["cluster_alloc", "refblock_alloc", "refblock_load", "cow_write", "write_aio"]
    assert told["flush"] == ["flush_to_os", "refblock_update_part", "l2_update", "flush_to_disk"]
    assert told["compressed"] == ["cluster_alloc_bytes", "cluster_alloc", "refblock_alloc", "write_compressed"]
    assert told["read compressed"] == ["read_compressed"]
    assert "cluster_free" in told["flush again"]


async def test_without_the_filter_nothing_is_told_and_the_short_way_is_taken(tmp_path: Path) -> None:
    path = await qcow2_image(tmp_path)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        assert disk.node.driver.image.event is None  # type: ignore[attr-defined]
        await disk.pread(0, 512)
        assert disk.node.driver.preadv_now(0, memoryview(bytearray(512)))
    async with await aioblock.open(f"blkdebug::{path}", format="qcow2", writable=True) as disk:
        await disk.pread(0, 512)
        assert not disk.node.driver.preadv_now(0, memoryview(bytearray(512)))


EVENTS = """
    l2_load l2_update l1_update l2_alloc_write write_aio read_aio cow_read cow_write refblock_load refblock_update_part
    cluster_alloc cluster_free flush_to_os flush_to_disk pwritev pwritev_done pwritev_zero
"""


@pytest.mark.slow
@pytest.mark.parametrize("event", EVENTS.split())
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
async def test_an_image_survives_an_error_behind_any_step(tmp_path: Path, event: str, once: bool) -> None:
    path = await qcow2_image(tmp_path)
    options = {"driver": "qcow2", "file": {"driver": "blkdebug", "inject-error": [rule(event, once=once)]}}
    options["file"]["image"] = {"driver": "file", "filename": str(path)}  # type: ignore[index]
    disk = await aioblock.open(options, writable=True)
    for number in range(12):
        await code_of(disk.pwrite(number * 40000, bytes([number + 1]) * 3000))
        if number % 3 == 0:
            await code_of(disk.flush())
        if number % 4 == 1:
            await code_of(disk.pdiscard(0, 65536))
        if number % 5 == 2:
            await code_of(disk.pwrite_zeroes(131072, 65536))
        await code_of(disk.pread(number * 40000, 3000))
    await code_of(disk.close())
    async with await aioblock.open(path, format="qcow2") as image:
        assert (await image.check()).corruptions == 0


async def test_what_is_copied_on_read_is_told_before_it_is_written(tmp_path: Path) -> None:
    await aioblock.create(tmp_path / "base.raw", "raw", size=SIZE)
    (tmp_path / "base.raw").write_bytes(b"b" * SIZE)
    await aioblock.create(tmp_path / "x.qcow2", "qcow2", {"backing_file": "base.raw", "backing_fmt": "raw"}, size=SIZE)
    image = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "x.qcow2")}}
    inject = [rule("cor_write", sector=128, errno=errno.ENOSPC, iotype="write")]
    filtered = {"driver": "blkdebug", "image": image, "inject-error": inject}
    options = {"driver": "copy-on-read", "file": filtered}
    async with await aioblock.open(options, writable=True, trust=aioblock.TRUST_ALL) as disk:
        assert await disk.pread(0, 4) == b"bbbb"
        assert await code_of(disk.pread(65536, 4)) == errno.ENOSPC
    async with await aioblock.open(tmp_path / "x.qcow2") as disk:
        first, second = await disk.block_status(0, 65536), await disk.block_status(65536, 65536)
        assert (first.flags & aioblock.ALLOCATED, second.flags & aioblock.ALLOCATED) == (aioblock.ALLOCATED, 0)

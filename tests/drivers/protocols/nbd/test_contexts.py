"""Metadata contexts: several in one request, each by itself, and through the layers above."""

import errno
from pathlib import Path

import pytest

import aioblock
from aioblock.base.errors import NotSupported, OptionError
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.nbd.constants import CMD_BLOCK_STATUS, Mode
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.requests import Request
from tests.kit.fake_context import open_driver
from tests.kit.nbd_server import FakeServer, Session

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(SIZE)


ALLOCATION, DEPTH, BITMAP = "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"


def different(session: Session, request: Request) -> bytes | None:
    """Each context has runs of other lengths and flags, those of the context `id` end at `64 KiB * id`."""
    if request.command != CMD_BLOCK_STATUS:
        return None
    assert session.ready is not None
    packer, asked = ReplyPacker(session.ready.mode), request.contexts or tuple(session.ready.contexts)
    chunks = [
        packer.extents(
            request, id, pack_extents([4096] * 16 * id, [id] * 16 * id, wide=packer.mode is Mode.EXTENDED), last=False
        )
        for id in asked
    ]
    return b"".join(chunks) + packer.success(request)


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_several_contexts_in_one_request(path: str, disk: MemoryDisk, mode: Mode) -> None:
    names = (ALLOCATION, DEPTH, BITMAP)
    async with FakeServer(disk, mode=mode, contexts=names, script=different).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "contexts": [DEPTH, BITMAP]})
        assert driver.contexts == names
        found = await driver.context_runs(0, SIZE, names)
        assert len(server.requests) == 1
        for id, name in enumerate(names, 1):
            assert list(found[name].lengths) == [4096] * 16 * id and set(found[name].flags) == {id}
        assert (await driver.extents(0, SIZE, True)).nbytes == 65536, "block status comes from its own context"
        assert (await driver.context_runs(0, SIZE, [BITMAP])).keys() == {BITMAP}
        filtered = [request.contexts for request in server.requests]
        assert filtered == ([None, (1,), (3,)] if mode is Mode.EXTENDED else [None] * 3)
        await driver.close()


async def test_contexts_through_raw(path: str, disk: MemoryDisk) -> None:
    """Cut to what was asked where the server wants larger blocks, and moved by the offset of `raw`."""
    async with FakeServer(disk, contexts=(ALLOCATION, DEPTH), script=different, min_block=4096).serving(path) as server:
        name = {"driver": "raw", "offset": 8192, "file": {"driver": "nbd", "path": path, "contexts": DEPTH}}
        async with await aioblock.open(name) as opened:
            found = await opened.context_runs(100, 10000)
            assert list(found[ALLOCATION].lengths) == [3996, 4096, 1908]
            assert found[DEPTH].flags == [2, 2, 2]
            assert (server.requests[-1].offset, server.requests[-1].length) == (8192, 12288)
            assert await opened.context_runs(100, 10000, []) == {}
            with pytest.raises(NotSupported, match=f"not open with the metadata context '{BITMAP}'"):
                await opened.context_runs(0, 512, [BITMAP])
            for offset, nbytes, code in ((SIZE, 512, errno.EIO), (0, 0, errno.EINVAL)):
                with pytest.raises(OSError) as caught:
                    await opened.context_runs(offset, nbytes)
                assert caught.value.errno == code


async def test_contexts_that_there_are_not(path: str, disk: MemoryDisk, tmp_path: Path) -> None:
    async with FakeServer(disk).serving(path):
        with pytest.raises(OSError, match=f"does not offer the metadata context '{DEPTH}'") as caught:
            await open_driver(NbdDriver, {"path": path, "contexts": [DEPTH]})
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OptionError, match="expects a list of strings"):
            await open_driver(NbdDriver, {"path": path, "contexts": {"a": "b"}})
    await aioblock.create(str(tmp_path / "image"), "qcow2", {"size": SIZE})
    async with await aioblock.open(str(tmp_path / "image")) as image:
        with pytest.raises(NotSupported, match="has no metadata contexts"):
            await image.context_runs(0, SIZE)

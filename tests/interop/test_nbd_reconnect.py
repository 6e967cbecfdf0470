"""reconnect-delay and open-timeout, beside qemu-io with the same options: when a server goes, and another one comes."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

import aioblock
from tests.kit.nbd_programs import nbdkit
from tests.kit.qemu_io_session import QemuIo, holding

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


class Client(Protocol):
    """What both can: whether it succeeded; otherwise it was EIO."""

    async def read(self) -> bool: ...
    async def write(self) -> bool: ...
    async def flush(self) -> bool: ...


class Ours:
    def __init__(self, disk: aioblock.BlockBackend) -> None:
        self.disk = disk

    async def read(self) -> bool:
        return await self._succeeds(self.disk.pread(0, 512))

    async def write(self) -> bool:
        return await self._succeeds(self.disk.pwrite(0, b"x" * 512))

    async def flush(self) -> bool:
        return await self._succeeds(self.disk.flush())

    async def _succeeds(self, verb: Any) -> bool:
        try:
            await verb
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True


class Qemus:
    def __init__(self, session: QemuIo) -> None:
        self.session = session

    async def read(self) -> bool:
        return await self._succeeds("read 0 512")

    async def write(self) -> bool:
        return await self._succeeds("write 0 512")

    async def flush(self) -> bool:
        return await self._succeeds("flush")

    async def _succeeds(self, command: str) -> bool:
        printed = await asyncio.to_thread(self.session.ask, command)
        assert "failed" not in printed or "Input/output error" in printed
        return "failed" not in printed


@asynccontextmanager
async def ours(path: str, **options: int) -> AsyncIterator[Client]:
    file = {"driver": "nbd", "path": path} | {name.replace("_", "-"): value for name, value in options.items()}
    disk = await aioblock.open({"driver": "raw", "file": file}, writable=True)
    yield Ours(disk)
    await disk.close()


@asynccontextmanager
async def qemus(path: str, **options: int) -> AsyncIterator[Client]:
    words = [f",{name.replace('_', '-')}={value}" for name, value in options.items()]
    session = holding(f"driver=nbd,server.type=unix,server.path={path}{''.join(words)}", "--image-opts")
    try:
        yield Qemus(await asyncio.to_thread(session.__enter__))
    finally:
        await asyncio.to_thread(session.__exit__, None, None, None)


def serving(tmp_path: Path) -> AbstractContextManager[str]:
    return nbdkit(tmp_path, "memory", "1M", dies=True)


every_client = pytest.mark.parametrize("client_of", [ours, qemus])


@every_client
@pytest.mark.parametrize("verb", ["read", "write", "flush"])
async def test_requests_wait_for_the_server_to_come_back(tmp_path: Path, client_of: Any, verb: str) -> None:
    """And are done then, all kinds of them."""
    with serving(tmp_path) as path:
        client = client_of(path, reconnect_delay=30)
        asking = await client.__aenter__()
        assert await asking.write()
    waiting = asyncio.ensure_future(getattr(asking, verb)())
    await asyncio.sleep(0)
    with serving(tmp_path):
        assert await waiting
        assert await asking.read() and await asking.write() and await asking.flush()
        await client.__aexit__(None, None, None)


@every_client
async def test_the_delay_is_over(tmp_path: Path, client_of: Any) -> None:
    """Requests fail at once until there is a server, which is still looked for."""
    with serving(tmp_path) as path:
        client = client_of(path, reconnect_delay=1)
        asking = await client.__aenter__()
        assert await asking.read()
    assert not await asking.read()
    assert not await asking.write()
    with serving(tmp_path):
        while not await asking.read():
            pass
        assert await asking.write() and await asking.flush()
        await client.__aexit__(None, None, None)


@every_client
async def test_opening_waits_for_a_server(tmp_path: Path, client_of: Any) -> None:
    client = client_of(str(tmp_path / "socket"), open_timeout=30)
    opening = asyncio.ensure_future(client.__aenter__())
    await asyncio.sleep(0)
    with serving(tmp_path):
        assert await (await opening).read()
        await client.__aexit__(None, None, None)


async def test_without_a_delay_only_reads_are_sent_again(tmp_path: Path) -> None:
    """QEMU's driver never connects again then; ours does, and says with the first flush that writes may be lost."""
    with serving(tmp_path) as path:
        client, qemu = ours(path), qemus(path)
        mine, theirs = await client.__aenter__(), await qemu.__aenter__()
        assert await mine.write() and await theirs.write()
    with serving(tmp_path):
        assert await mine.read() and not await theirs.read()
        assert not await mine.flush()
        assert await mine.write() and not await theirs.write()
        with pytest.raises(OSError, match="The connection was lost with data that was not flushed"):
            await client.__aexit__(None, None, None)
        await qemu.__aexit__(None, None, None)

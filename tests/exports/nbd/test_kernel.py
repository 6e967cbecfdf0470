"""The kernel as a client. There is none here: FakeKernel takes its place, and speaks NBD over its socket."""

import asyncio
import errno

import pytest

from aioblock.base.errors import OptionRefused
from aioblock.exports.nbd.kernel import (
    CLEAR_QUE,
    CLEAR_SOCK,
    DISCONNECT,
    DO_IT,
    SET_BLKSIZE,
    SET_FLAGS,
    SET_SIZE_BLOCKS,
    SET_SOCK,
    KernelDevice,
    disconnect_device,
)
from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import FLAG_READ_ONLY, FLAG_SEND_FLUSH
from tests.kit.fake_kernel import DEVICE, NOT_NBD, FakeKernel
from tests.kit.scripted import Script, assert_idle, opened

MIB = 1 << 20


async def test_the_kernel_reads_and_writes_until_it_is_disconnected() -> None:
    kernel = FakeKernel()
    async with opened(Script(MIB), writable=True) as disk:
        async with await serve({"disk": disk}) as server:
            async with await KernelDevice.connect(server, DEVICE, "disk", calls=kernel) as device:
                assert (kernel.size, kernel.block) == (MIB, 512)
                assert kernel.flags & FLAG_SEND_FLUSH and not kernel.flags & FLAG_READ_ONLY
                await asyncio.to_thread(kernel.running.wait, 20)
                await asyncio.to_thread(kernel.write, 4096, b"hello" * 1000)
                await asyncio.to_thread(kernel.flush)
                assert await asyncio.to_thread(kernel.read, 4096, 5000) == b"hello" * 1000
                (client,) = server.clients()
                assert (client.export, client.requests, client.bytes_written) == ("disk", 3, 5000)
                assert not device.gone.done()
            assert device.gone.result() is None
            while server.connections:
                await asyncio.wait([connection.gone for connection in server.connections])
        assert await disk.pread(4096, 5) == b"hello"
        assert_idle(disk)
    assert kernel.all_closed
    requests = [request for request, _ in kernel.log]
    assert requests[:5] == [SET_SOCK, SET_BLKSIZE, SET_SIZE_BLOCKS, SET_FLAGS, DO_IT]
    ending = [CLEAR_QUE, DISCONNECT, CLEAR_SOCK, CLEAR_QUE, CLEAR_SOCK]  # of two threads, in any order
    assert sorted(requests[5:]) == sorted(ending)


def test_requests_are_those_of_linux_nbd_h() -> None:
    numbers = {"SET_SOCK": 0, "SET_BLKSIZE": 1, "DO_IT": 3, "CLEAR_SOCK": 4, "CLEAR_QUE": 5, "SET_SIZE_BLOCKS": 7}
    numbers |= {"DISCONNECT": 8, "SET_FLAGS": 10}
    from aioblock.exports.nbd import kernel

    assert {name: getattr(kernel, name) for name in numbers} == {
        name: ord("\xab") << 8 | number for name, number in numbers.items()
    }


async def test_somebody_else_disconnects_it() -> None:
    kernel = FakeKernel()
    async with opened(Script(MIB)) as disk, await serve(disk) as server:
        device = await KernelDevice.connect(server, DEVICE, calls=kernel)
        assert kernel.flags & FLAG_READ_ONLY
        await asyncio.to_thread(kernel.running.wait, 20)
        await asyncio.to_thread(disconnect_device, DEVICE, calls=kernel)
        await device.gone
        await device.disconnect()  # nothing left to do
    assert kernel.all_closed


async def test_a_server_that_stops_ends_it() -> None:
    kernel = FakeKernel()
    async with opened(Script(MIB)) as disk:
        async with await serve(disk) as server:
            device = await KernelDevice.connect(server, DEVICE, calls=kernel)
            await asyncio.to_thread(kernel.running.wait, 20)
        await device.gone
    assert kernel.all_closed


async def test_what_the_kernel_gives_up_with_is_told() -> None:
    kernel = FakeKernel()
    kernel.refuse[DO_IT] = errno.EIO
    async with opened(Script(MIB)) as disk, await serve(disk) as server:
        device = await KernelDevice.connect(server, DEVICE, calls=kernel)
        with pytest.raises(OSError, match=f"{DEVICE}: Input/output error"):
            await device.gone
    assert kernel.all_closed


@pytest.mark.parametrize(
    ("device", "refused", "words"),
    [
        ("/dev/none", None, "Failed to open /dev/none: No such file or directory"),
        (NOT_NBD, None, "Failed to set NBD socket: Inappropriate ioctl for device"),
        (DEVICE, SET_SOCK, "Failed to set NBD socket: Device or resource busy"),
        (DEVICE, SET_SIZE_BLOCKS, f"Failed to set up {DEVICE}: Device or resource busy"),
    ],
)
async def test_failures_leave_nothing_connected(device: str, refused: int | None, words: str) -> None:
    kernel = FakeKernel()
    if refused is not None:
        kernel.refuse[refused] = errno.EBUSY
    async with opened(Script(MIB)) as disk, await serve(disk) as server:
        with pytest.raises(OSError, match=words):
            await KernelDevice.connect(server, device, calls=kernel)
        while server.connections:
            await asyncio.wait([connection.gone for connection in server.connections])
    assert kernel.all_closed
    if refused == SET_SIZE_BLOCKS:
        assert kernel.log[-1][0] == CLEAR_SOCK


async def test_cancelled_while_it_is_opened() -> None:
    kernel = FakeKernel()
    kernel.may_open.clear()
    async with opened(Script(MIB)) as disk, await serve(disk) as server:
        connecting = asyncio.create_task(KernelDevice.connect(server, DEVICE, calls=kernel))
        await asyncio.to_thread(kernel.opening.wait, 20)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        kernel.may_open.set()
        await asyncio.to_thread(kernel.closed.wait, 20)
        assert kernel.all_closed
        assert not server.connections and not kernel.log


async def test_an_export_that_is_not_there() -> None:
    kernel = FakeKernel()
    async with opened(Script(MIB)) as disk, await serve({"disk": disk}) as server:
        with pytest.raises(OptionRefused):
            await KernelDevice.connect(server, DEVICE, "other", calls=kernel)
    assert kernel.all_closed and not kernel.log


def test_what_cannot_be_disconnected() -> None:
    with pytest.raises(OSError, match="Cannot open /dev/none: No such file"):
        disconnect_device("/dev/none", calls=FakeKernel())
    with pytest.raises(OSError, match="Failed to disconnect /dev/null: Inappropriate ioctl"):
        disconnect_device(NOT_NBD)  # the real one

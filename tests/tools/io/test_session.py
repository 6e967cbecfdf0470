"""Requests beside the commands, with a disk that answers when it is told to."""

import asyncio
import errno

import pytest

from aioblock.tools.io.interpreter import execute
from aioblock.tools.io.session import Session


class Disk:
    """Every request waits at its gate, in the order of arrival."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Future[None]] = []
        self.closed = False
        self.writable = True
        self.length = 4096

    async def _wait(self) -> None:
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate

    async def readinto(self, offset, buffer, flags=0):
        await self._wait()
        buffer[:] = bytes(len(buffer))

    async def pwrite(self, offset, data, flags=0):
        await self._wait()

    async def pwrite_zeroes(self, offset, nbytes, flags=0):
        await self._wait()

    async def getlength(self):
        return self.length

    async def close(self):
        self.closed = True


@pytest.fixture
def disk():
    return Disk()


async def until(condition):
    """Let the others run until it holds."""
    while True:
        if found := condition():
            return found
        await asyncio.sleep(0)


def verbs(capsys):
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if " bytes at offset " in line]


async def test_a_request_has_begun_when_its_command_is_done(disk):
    async with Session() as session:
        session.adopt(disk)
        await execute(session, "aio_write 0 512")
        assert len(disk.gates) == 1
        disk.gates[0].set_result(None)


async def test_what_became_of_it_is_printed_in_the_order_of_the_ends(disk, capsys):
    async with Session() as session:
        session.adopt(disk)
        await execute(session, "aio_write 0 512")
        await execute(session, "aio_read 0 512")
        await execute(session, "length")
        assert capsys.readouterr().out == "4 KiB\n"
        disk.gates[1].set_result(None)
        flush = asyncio.create_task(execute(session, "aio_flush"))
        assert await until(lambda: verbs(capsys)) == ["read"]
        assert not flush.done()
        disk.gates[0].set_result(None)
        await flush
        assert verbs(capsys) == ["wrote"]


async def test_close_waits_for_all_of_them(disk, capsys):
    async with Session() as session:
        session.adopt(disk)
        for offset in range(3):
            await execute(session, f"aio_write -z {offset} 1")
        closing = asyncio.create_task(execute(session, "close"))
        await asyncio.sleep(0)
        for gate in disk.gates:
            assert not disk.closed
            gate.set_result(None)
        await closing
        assert disk.closed
        assert not session.is_open
        assert verbs(capsys) == ["wrote"] * 3


async def test_the_end_of_the_program_waits_for_all_of_them(disk, capsys):
    async def program():
        async with Session() as session:
            session.adopt(disk)
            await execute(session, "aio_read 0 1")
            await execute(session, "quit")
        return session

    running = asyncio.create_task(program())
    await until(lambda: disk.gates)
    disk.gates[0].set_result(None)
    session = await running
    assert disk.closed
    assert session.over
    assert not session.failed
    assert verbs(capsys) == ["read"]


async def test_a_request_that_fails_is_told_and_does_not_count(disk, capsys):
    async with Session() as session:
        session.adopt(disk)
        await execute(session, "aio_write 0 1")
        await execute(session, "aio_read 0 1")
        for gate in disk.gates:
            gate.set_exception(OSError(errno.ENOSPC, "long story"))
        await execute(session, "aio_flush")
    assert not session.failed
    assert capsys.readouterr().out == (
        "aio_write failed: No space left on device\nreadv failed: No space left on device\n"
    )


async def test_a_command_that_fails_counts(disk, capsys):
    async with Session() as session:
        session.adopt(disk)
        reading = asyncio.create_task(execute(session, "read 0 1"))
        await until(lambda: disk.gates)
        disk.gates[0].set_exception(OSError(errno.EIO, "long story"))
        await reading
        assert session.failed
    assert capsys.readouterr().out == "read failed: Input/output error\n"


async def test_cancelled_it_leaves_no_request_and_closes_the_image(disk):
    async def program():
        async with Session() as session:
            session.adopt(disk)
            await execute(session, "aio_read 0 1")
            await execute(session, "aio_write 0 1")
            await execute(session, "sleep 3600000")

    running = asyncio.create_task(program())
    await until(lambda: len(disk.gates) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert disk.closed
    assert all(gate.cancelled() for gate in disk.gates)


async def test_an_image_that_fails_to_close_counts(disk, capsys):
    async def fail():
        raise OSError(errno.EIO, "the last flush failed")

    disk.close = fail
    async with Session() as session:
        session.adopt(disk)
    assert session.failed
    assert capsys.readouterr().err.endswith(": the last flush failed\n")

"""The driver nbd against nbdkit's filters, each for what it is about; `log` tells what reaches the server."""

import asyncio
import errno
import re
from pathlib import Path

import pytest

import aioblock
from aioblock.base.flags import DATA, REQ_FUA, ZERO
from tests.kit.nbd_programs import nbdkit

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MIB = 1 << 20


def named(path: str, **more: object) -> dict[str, object]:
    return {"driver": "raw", "file": {"driver": "nbd", "path": path} | more}


def logged(log: Path, *verbs: str) -> list[str]:
    """The calls of these names, in order, with `fua=1` where it is set."""
    found = []
    for line in log.read_text().splitlines():
        match = re.search(r"connection=\d+ (\w+)", line)
        if match and match[1] in verbs and not line.split(match[1])[1].lstrip().startswith("..."):
            found.append(match[1] + (" fua=1" if "fua=1" in line else ""))
    return found


@pytest.mark.parametrize("fuamode", ["native", "emulate", "pass"])
async def test_fua_is_left_to_a_server_that_has_it(tmp_path: Path, fuamode: str) -> None:
    log = tmp_path / "log"
    words = ["--filter=log", "--filter=fua", "memory", "1M", f"fuamode={fuamode}", f"logfile={log}"]
    with nbdkit(tmp_path, *words) as path:
        async with await aioblock.open(named(path), writable=True) as disk:
            await disk.pwrite(0, b"x" * 512, REQ_FUA)
            await disk.pwrite(512, b"x" * 512)
    assert logged(log, "Write", "Flush") == ["Write fua=1", "Write", "Flush"], "the flush is that of closing"


async def test_fua_is_a_flush_where_the_server_has_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    able = ["can_write=exit 0", "can_flush=exit 0", "can_fua=echo none"]
    verbs = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "flush=exit 0"]
    with nbdkit(tmp_path, "--filter=log", "eval", *able, *verbs, f"logfile={log}") as path:
        async with await aioblock.open(named(path), writable=True) as disk:
            await disk.pwrite(0, b"x" * 512, REQ_FUA)
            assert logged(log, "Write", "Flush") == ["Write", "Flush"]


@pytest.mark.parametrize(("mode", "connections"), [("disable", 1), ("emulate", 4), ("plugin", 4)])
async def test_several_connections_where_the_server_lets_them(tmp_path: Path, mode: str, connections: int) -> None:
    log = tmp_path / "log"
    words = ["--filter=log", "--filter=multi-conn", "memory", "1M", f"multi-conn-mode={mode}", f"logfile={log}"]
    with nbdkit(tmp_path, *words) as path:
        async with await aioblock.open(named(path, connections=4), writable=True) as disk:
            await asyncio.gather(*(disk.pwrite(number * 512, bytes([number]) * 512) for number in range(64)))
            await disk.flush()
            data = await disk.pread(0, 64 * 512)
            assert data == b"".join(bytes([number]) * 512 for number in range(64))
    assert len(logged(log, "Connect")) == connections
    used = set(re.findall(r"(connection=\d+) Write", log.read_text()))
    assert len(used) == connections, "all of them are used"


async def test_noextents_is_all_data(tmp_path: Path) -> None:
    for filters, flags in ([], ZERO), (["--filter=noextents"], DATA):
        with nbdkit(tmp_path, *filters, "memory", "8M") as path:
            async with await aioblock.open(named(path)) as disk:
                runs = [run async for run in disk.extents()]
        assert [(run.length, run.flags & (DATA | ZERO)) for run in runs] == [(8 * MIB, flags)]


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EPERM", "ENOMEM", "EINVAL"])
async def test_some_requests_fail(tmp_path: Path, code: str) -> None:
    """Each by itself: the others are done, and the connection goes on."""
    words = ["--filter=error", "pattern", "1M", f"error={code}", "error-pread-rate=50%"]
    with nbdkit(tmp_path, *words) as path:
        async with await aioblock.open(named(path)) as disk:
            found = await asyncio.gather(*(disk.pread(at * 512, 8) for at in range(200)), return_exceptions=True)
            assert disk.in_flight == 0
    failed = [result for result in found if isinstance(result, OSError)]
    assert 0 < len(failed) < 200 and {error.errno for error in failed} == {getattr(errno, code)}
    assert all(
        isinstance(result, OSError) or result == (at * 512).to_bytes(8, "big") for at, result in enumerate(found)
    )


async def test_blocks_that_a_server_insists_on(tmp_path: Path) -> None:
    """Every request is whole blocks, and no longer than it may be: anything else would be refused."""
    log = tmp_path / "log"
    policy = ["blocksize-minimum=4K", "blocksize-preferred=64K", "blocksize-maximum=128K"]
    words = ["--filter=blocksize-policy", "--filter=log", "memory", "1M", f"logfile={log}"]
    with nbdkit(tmp_path, *words, *policy, "blocksize-error-policy=error") as path:
        async with await aioblock.open(named(path), writable=True) as disk:
            await disk.pwrite(1000, b"x" * 300_000)
            assert await disk.pread(999, 300_002) == b"\0" + b"x" * 300_000 + b"\0"
            await disk.pwrite_zeroes(5000, 20_000)
            assert await disk.pread(4999, 20_002) == b"x" + bytes(20_000) + b"x"
    sizes = [int(size, 0) for size in re.findall(r"(?:Read|Write) id=\d+ offset=\S+ count=(\S+)", log.read_text())]
    assert len(sizes) > 6 and not [size for size in sizes if size % 4096 or size > 128 << 10]


async def test_slow_answers_are_awaited_together(tmp_path: Path) -> None:
    """All reads are at the server before the first is answered."""
    log = tmp_path / "log"
    words = ["--filter=log", "--filter=delay", "pattern", "1M", f"logfile={log}", "rdelay=300ms"]
    with nbdkit(tmp_path, "--threads=16", *words) as path:
        async with await aioblock.open(named(path)) as disk:
            await asyncio.gather(*(disk.pread(at * 4096, 512) for at in range(16)))
    lines = [line for line in log.read_text().splitlines() if "Read" in line]
    assert ["..." in line.split("Read")[0] for line in lines[:16]] == [False] * 16

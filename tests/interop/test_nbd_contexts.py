"""Metadata contexts that our client asks for in one request, beside what nbdinfo shows of each; and prefetch."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

import aioblock
from aioblock.base.flags import DATA
from tests.kit import oracle
from tests.kit.nbd_programs import nbdkit, qemu_nbd

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MIB = 1 << 20
DEPTH, BITMAPS = "qemu:allocation-depth", ["qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"]
ALL = ["base:allocation", DEPTH, *BITMAPS]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A chain of three layers with data, zeroes, holes, and bitmaps of what was written last."""
    layers = [tmp_path / f"layer{number}.qcow2" for number in range(3)]
    for number, layer in enumerate(layers):
        backing = ["-b", layers[number - 1], "-F", "qcow2"] if number else []
        oracle.qemu_img("create", "-q", "-f", "qcow2", *backing, layer, *(["64M"] if not number else []))
        writes = [f"write -q {at * 7 + number * 3}M 1M" for at in range(8)]
        oracle.qemu_io(layer, *writes, f"write -q -z {20 + number}M 512k", fmt="qcow2")
    oracle.qemu_img("bitmap", "--add", layers[-1], "b0")
    oracle.qemu_io(layers[-1], *(f"write -q {at * 5}M 64k" for at in range(10)), fmt="qcow2")
    oracle.qemu_img("bitmap", "--add", layers[-1], "b1")
    oracle.qemu_io(layers[-1], "write -q 50M 3M", fmt="qcow2")
    return layers[-1]


@asynccontextmanager
async def theirs(image: Path, folder: Path) -> AsyncIterator[str]:
    with qemu_nbd(folder, "-r", "-A", "-B", "b0", "-B", "b1", "-f", "qcow2", image) as path:
        yield path


@asynccontextmanager
async def ours(image: Path, folder: Path) -> AsyncIterator[str]:
    async with await aioblock.open(str(image), format="qcow2", trust=aioblock.TRUST_ALL) as disk:
        export = aioblock.NbdExport(disk, allocation_depth=True, bitmaps=["b0", "b1"])
        async with await aioblock.serve(export, str(folder / "ours")):
            yield str(folder / "ours")


Serving = Callable[[Path, Path], AbstractAsyncContextManager[str]]
SERVERS: dict[str, Serving] = {"qemu-nbd": theirs, "ours": ours}


async def runs_of(disk: aioblock.BlockBackend, name: str) -> list[tuple[int, int]]:
    """The whole export, neighbours that say the same merged."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < disk.length:
        runs = (await disk.context_runs(at, disk.length - at))[name]
        for nbytes, flags in zip(runs.lengths, runs.flags, strict=True):
            at += nbytes
            if found and found[-1][1] == flags:
                nbytes += found.pop()[0]
            found.append((nbytes, flags))
    return found


async def shown(path: str, name: str) -> list[tuple[int, int]]:
    """What nbdinfo shows of a context."""
    words = [f"--map={name}", "--json", f"nbd+unix://?socket={path}"]
    printed = (await asyncio.to_thread(oracle.run, "nbdinfo", *words)).stdout
    return [(run["length"], run["type"]) for run in json.loads(printed)]


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
async def test_each_context_is_what_nbdinfo_shows(tmp_path: Path, image: Path, serving: Serving) -> None:
    async with serving(image, tmp_path) as path:
        name = {"driver": "raw", "file": {"driver": "nbd", "path": path, "contexts": [DEPTH, *BITMAPS]}}
        async with await aioblock.open(name) as disk:
            first = await disk.context_runs(0, disk.length)
            assert sorted(first) == sorted(ALL), "all of them in one request"
            assert all(runs.lengths for runs in first.values())
            for context in ALL:
                assert len(await runs_of(disk, context)) > 2
                assert await runs_of(disk, context) == await shown(path, context), context
        (listed,) = await aioblock.list_exports(path)
        assert sorted(listed.contexts) == sorted(ALL)


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
async def test_status_beside_other_contexts(tmp_path: Path, image: Path, serving: Serving) -> None:
    """Block status is what it is without them."""
    async with serving(image, tmp_path) as path:
        maps = []
        for contexts in ([], [DEPTH, *BITMAPS]):
            name = {"driver": "raw", "file": {"driver": "nbd", "path": path, "contexts": contexts}}
            async with await aioblock.open(name) as disk:
                maps.append([(run.offset, run.length, run.flags) async for run in disk.extents()])
                first = await disk.block_status(0, disk.length)
                assert 0 < first.pnum <= maps[0][0][1] and first.flags & DATA
        assert len(maps[0]) > 5 and maps[0] == maps[1]


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
async def test_a_context_that_is_not_there(tmp_path: Path, image: Path, serving: Serving) -> None:
    async with serving(image, tmp_path) as path:
        name = {"driver": "raw", "file": {"driver": "nbd", "path": path, "contexts": ["qemu:dirty-bitmap:none"]}}
        with pytest.raises(OSError, match="does not offer the metadata context 'qemu:dirty-bitmap:none'"):
            await aioblock.open(name)


@pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)
async def test_servers_prefetch(tmp_path: Path, image: Path, serving: Serving) -> None:
    """In pieces: no server takes a request for all of it."""
    async with serving(image, tmp_path) as path:
        async with await aioblock.open(f"nbd+unix://?socket={path}", format="raw") as disk:
            assert disk.length == 64 * MIB
            await disk.prefetch(0, disk.length)
            assert disk.statistics.failed == 0


async def test_nbdkit_prefetches(tmp_path: Path) -> None:
    """Its filter `cache` reads on CACHE, its log tells."""
    log = tmp_path / "log"
    words = ["--filter=cache", "--filter=log", "pattern", "8M", f"logfile={log}", "cache-on-read=off"]
    with nbdkit(tmp_path, *words) as path:
        async with await aioblock.open(f"nbd+unix://?socket={path}", format="raw") as disk:
            await disk.prefetch(MIB, MIB)
    read = [line for line in log.read_text().splitlines() if " Read " in line and "..." in line]
    assert read and all(MIB <= int(line.split("offset=")[1].split()[0], 0) < 2 * MIB for line in read)

"""The driver nbd against the servers of others."""

import asyncio
import contextlib
import errno
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NbdError
from aioblock.base.flags import DATA, ZERO
from tests.kit import oracle
from tests.kit.nbd_programs import nbdkit, qemu_nbd

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MIB = 1 << 20


def ours(*args: str) -> str:
    """What `aioblock-img ARGS` prints."""
    command = [sys.executable, "-c", "from aioblock.tools.img import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """8 MiB with data here and there."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for number in range(0, 8, 2):
            file.seek(number * MIB + 4096)
            file.write(random.Random(number).randbytes(300_000))
    return path


@pytest.mark.parametrize("command", ["info", "map", "map --output=json", "info --output=json"])
def test_our_program_prints_what_qemus_does(tmp_path: Path, image: Path, command: str) -> None:
    with qemu_nbd(tmp_path, "-f", "raw", "-x", "disk", image) as path:
        for name in (f"nbd:unix:{path}:exportname=disk", f"nbd+unix:///disk?socket={path}"):
            words = [*command.split(), name]
            assert ours(*words) == oracle.qemu_img(*words).stdout
        assert ours("compare", name, str(image)) == oracle.qemu_img("compare", name, image).stdout


def test_convert_both_ways(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, "-f", "raw", image) as path:
        ours("convert", "-O", "qcow2", f"nbd:unix:{path}", str(tmp_path / "copy.qcow2"))
    oracle.assert_same(image, tmp_path / "copy.qcow2")
    target = tmp_path / "target"
    with target.open("wb") as file:
        file.truncate(8 * MIB)
    with qemu_nbd(tmp_path, "-f", "raw", target, socket="second") as path:
        ours("convert", "-n", "-O", "raw", str(tmp_path / "copy.qcow2"), f"nbd+unix://?socket={path}")
    oracle.assert_same(image, target)


async def _compare_with_model(name: dict[str, Any], model: bytearray, *, align: int = 1, writes: bool = True) -> None:
    """Random requests, many at the same time, against plain memory."""
    rng = random.Random(1)
    size = len(model)
    async with await aioblock.open(name, format="raw", writable=writes) as disk:
        assert disk.length == size
        for _ in range(20):
            ranges = []
            at = 0
            while at < size - MIB:  # ranges that do not overlap, so that the order does not matter
                at += rng.randrange(0, MIB // align) * align
                nbytes = min(rng.randrange(1, MIB // align) * align, size - at)
                ranges.append((at, nbytes))
                at += nbytes

            async def change(offset: int, nbytes: int) -> None:
                kind = rng.randrange(3) if writes else 2
                if kind == 0:
                    data = rng.randbytes(nbytes)
                    model[offset : offset + nbytes] = data
                    await disk.pwrite(offset, data)
                elif kind == 1:
                    model[offset : offset + nbytes] = bytes(nbytes)
                    await disk.pwrite_zeroes(offset, nbytes)
                assert await disk.pread(offset, nbytes) == model[offset : offset + nbytes]

            await asyncio.gather(*(change(*part) for part in ranges if part[1]))
        if writes:
            await disk.flush()
        offset = 0
        async for run in disk.extents(0, size):
            assert run.flags & (DATA | ZERO)
            if run.flags & ZERO:
                assert not any(model[offset : offset + run.length])
            offset += run.length
        assert offset == size


FILTERS: dict[str, list[str]] = {
    "memory": ["memory", "8M"],
    "delay": ["--filter=delay", "memory", "8M", "delay-read=1ms", "delay-write=1ms"],
    "noextents": ["--filter=noextents", "memory", "8M"],
    "fua": ["--filter=fua", "memory", "8M", "fuamode=emulate"],
    "multi-conn": ["--filter=multi-conn", "memory", "8M", "multi-conn-mode=emulate"],
    "one request at a time": ["--filter=noparallel", "memory", "8M", "serialize=all-requests"],
    "no zeroes": ["--filter=nozero", "memory", "8M"],
    "simple replies": ["--no-sr", "memory", "8M"],
}


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdkit(tmp_path: Path, kind: str, connections: int) -> None:
    with nbdkit(tmp_path, *FILTERS[kind]) as path:
        name = {"driver": "raw", "file": {"driver": "nbd", "path": path, "connections": connections}}
        await _compare_with_model(name, bytearray(8 * MIB))


async def test_nbdkit_with_blocks_of_its_own(tmp_path: Path) -> None:
    policy = [
        "blocksize-minimum=4K",
        "blocksize-preferred=64K",
        "blocksize-maximum=256K",
        "blocksize-error-policy=error",
    ]
    with nbdkit(tmp_path, "--filter=blocksize-policy", "memory", "8M", *policy) as path:
        name = {"driver": "raw", "file": {"driver": "nbd", "path": path}}
        await _compare_with_model(name, bytearray(8 * MIB), align=512)


async def test_qemu_nbd(tmp_path: Path, image: Path) -> None:
    model = bytearray(image.read_bytes())
    with qemu_nbd(tmp_path, "-f", "raw", "--discard=unmap", image) as path:
        name = {"driver": "raw", "file": {"driver": "nbd", "path": path, "connections": 3}}
        await _compare_with_model(name, model)
    assert image.read_bytes() == model


@pytest.mark.parametrize("connections", [1, 4])
async def test_our_own_server(tmp_path: Path, image: Path, connections: int) -> None:
    model = bytearray(image.read_bytes())
    copy = tmp_path / "copy.qcow2"
    oracle.qemu_img("convert", "-O", "qcow2", image, copy)
    async with await aioblock.open(str(copy), format="qcow2", writable=True) as served:
        async with await aioblock.serve(served, str(tmp_path / "socket")):
            file = {"driver": "nbd", "path": str(tmp_path / "socket"), "connections": connections}
            await _compare_with_model({"driver": "raw", "file": file}, model)
    image.write_bytes(model)
    oracle.assert_same(image, copy, ("raw", "qcow2"))
    oracle.assert_clean(copy, "qcow2")


async def test_a_sparse_disk_of_nbdkit(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "sparse-random", "64M", "seed=1", "percent=20") as path:
        uri = f"nbd+unix://?socket={path}"
        async with await aioblock.open(uri, format="raw") as disk:
            found = [(run.length, bool(run.flags & DATA)) async for run in disk.extents(0, disk.length)]
        merged: list[tuple[int, bool]] = []
        for nbytes, data in found:
            if merged and merged[-1][1] == data:
                nbytes += merged.pop()[0]
            merged.append((nbytes, data))
        listed = json.loads(oracle.run("nbdinfo", "--map", "--json", uri).stdout)
        assert merged == [(run["length"], run["type"] == 0) for run in listed]


async def test_the_oldest_form_of_the_protocol(tmp_path: Path) -> None:
    """Reading only: nbdkit 1.32 offers writes in that form, and then refuses them, from QEMU's programs too."""
    with nbdkit(tmp_path, "--oldstyle", "-r", "pattern", "8M") as path:
        async with await aioblock.open(f"nbd:unix:{path}", format="raw") as disk:
            assert await disk.pread(4096, 16) == (4096).to_bytes(8, "big") + (4104).to_bytes(8, "big")
        with pytest.raises(NbdError, match="does not support export names"):
            await aioblock.open(f"nbd:unix:{path}:exportname=x", format="raw")


async def test_errors_of_nbdkit(tmp_path: Path) -> None:
    errors = ["error=ENOSPC", "error-pwrite-rate=100%"]
    with nbdkit(tmp_path, "--filter=error", "memory", "1M", *errors) as path:
        async with await aioblock.open(f"nbd:unix:{path}", format="raw", writable=True) as disk:
            results = await asyncio.gather(
                *(disk.pwrite(number * 4096, b"x" * 4096) for number in range(8)),
                *(disk.pread(number * 4096, 4096) for number in range(8)),
                return_exceptions=True,
            )
        assert [getattr(result, "errno", None) for result in results[:8]] == [errno.ENOSPC] * 8
        assert results[8:] == [bytes(4096)] * 8


async def test_an_export_of_another_name(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, "-f", "raw", "-x", "disk", image) as path:
        with pytest.raises(NbdError) as caught:
            await aioblock.open(f"nbd:unix:{path}:exportname=x", format="raw")
        printed = oracle.qemu_img("info", f"nbd:unix:{path}:exportname=x", check=False).stderr
        assert printed.endswith(f"{caught.value}\n")


async def test_a_chain_of_exports(tmp_path: Path) -> None:
    """Each layer of a chain behind a server of its own, with a delay: the map is QEMU's."""
    with contextlib.ExitStack() as stack:
        path = ""
        for number in range(4):
            layer = tmp_path / f"layer{number}.qcow2"
            backing = ["-b", f"nbd+unix:///?socket={path}", "-F", "qcow2"] if number else []
            oracle.qemu_img("create", "-q", "-f", "qcow2", *backing, layer, "2G")
            oracle.qemu_io(layer, *(f"write -q {at * 7 + number * 3}M 1M" for at in range(0, 200, 20)), fmt="qcow2")
            kit = nbdkit(tmp_path, "--filter=delay", "file", layer, "rdelay=1ms", socket=f"socket{number}")
            path = stack.enter_context(kit)
        name = f"nbd+unix:///?socket={path}"
        assert ours("map", "--output=json", name) == oracle.qemu_img("map", "--output=json", name).stdout

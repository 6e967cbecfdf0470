"""Our NBD server, and the clients that there are: libnbd's and QEMU's programs, fio, nbdkit as a proxy."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.server import NbdServer, serve
from tests.kit import oracle
from tests.kit.certificates import Authority

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        yield str(Path(folder) / "socket")


def uri(path: str, export: str = "", scheme: str = "nbd+unix") -> str:
    return f"{scheme}:///{export}?socket={path}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 image of 8 MiB: data, zeroes, holes, and a bitmap of what was written last."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    oracle.qemu_img("create", "-q", "-f", "qcow2", base, "8M")
    oracle.qemu_io(base, "write -P 1 0 1M", "write -P 2 3M 64k", fmt="qcow2")
    oracle.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    oracle.qemu_io(top, "write -P 3 512k 64k", "write -z 2M 1M", fmt="qcow2")
    oracle.qemu_img("bitmap", "--add", top, "b0")
    oracle.qemu_io(top, "write -P 4 5M 128k", fmt="qcow2")
    return top


@asynccontextmanager
async def serving(image: Path, path: str, *, writable: bool = False, **how: Any) -> AsyncIterator[NbdServer]:
    async with await aioblock.open(image, format="qcow2", writable=writable) as disk:
        export = NbdExport(disk, allocation_depth=True, bitmaps=["b0"], description="a test")
        async with await serve(export, path, **how) as server:
            yield server


async def run(program: str, *args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(oracle.run, program, *map(str, args), check=check)


@asynccontextmanager
async def qemu_nbd(image: Path, path: str) -> AsyncIterator[None]:
    """QEMU's own server, for what it says about the same image."""
    oracle.require("qemu-nbd")
    words = ["-r", "-t", "-e", "4", "-A", "-B", "b0", "-D", "a test", "-f", "qcow2", "-k", path, str(image)]
    process = await asyncio.to_thread(subprocess.Popen, [oracle.find("qemu-nbd") or "qemu-nbd", *words])
    try:
        while not Path(path).exists():
            assert process.poll() is None
            await asyncio.sleep(0.01)
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def test_nbdinfo_says_the_same_of_qemu(image: Path, path: str) -> None:
    async def ask() -> list[Any]:
        found = [json.loads((await run("nbdinfo", "--json", uri(path))).stdout)]
        for context in ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"):
            found.append((await run("nbdinfo", f"--map={context}", uri(path))).stdout)
        return found

    async with serving(image, path):
        ours = await ask()
    async with qemu_nbd(image, path):
        theirs = await ask()
    for found in (ours, theirs):
        for export in found[0]["exports"]:
            export.pop("content", None)
    assert ours == theirs


@pytest.mark.parametrize("scheme", ["nbd+unix"])
async def test_nbdcopy_both_ways(image: Path, path: str, tmp_path: Path, scheme: str) -> None:
    copy, back = tmp_path / "copy.raw", tmp_path / "back.qcow2"
    shutil.copy(image, back)
    async with serving(image, path):
        await run("nbdcopy", uri(path), copy)
    oracle.assert_same(copy, image, ("raw", "qcow2"))
    copy.write_bytes(os.urandom(5 * MIB) + bytes(3 * MIB))
    async with serving(back, path, writable=True):
        await run("nbdcopy", "--flush", copy, uri(path))
    oracle.assert_same(copy, back, ("raw", "qcow2"))
    oracle.assert_clean(back, "qcow2")


async def test_qemu_img_and_qemu_io(image: Path, path: str, tmp_path: Path) -> None:
    async with serving(image, path, writable=True) as server:
        await run("qemu-io", "-f", "raw", "-c", "write -P 9 1000 70000", "-c", "write -zu 6M 1M", uri(path))
        done = await run("qemu-io", "-f", "raw", "-c", "read -P 9 1000 70000", "-c", "discard 0 512", uri(path))
        assert "failed" not in done.stdout
        await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(path), tmp_path / "copy.qcow2")
        runs = json.loads((await run("qemu-img", "map", "-f", "raw", "--output=json", uri(path))).stdout)
        assert sum(run["length"] for run in runs) == 8 * MIB
        assert server.resources.budget.held == 0
    oracle.assert_same(tmp_path / "copy.qcow2", image, ("qcow2", "qcow2"))


async def test_fio_verifies_what_it_wrote(image: Path, path: str) -> None:
    async with serving(image, path, writable=True):
        await run(
            "fio", "--name=x", "--ioengine=nbd", f"--uri={uri(path)}", "--rw=randwrite", "--bsrange=512-128k",
            "--bs_unaligned", "--iodepth=16", "--size=8m", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", "--randseed=1",
        )  # fmt: skip
    oracle.assert_clean(image, "qcow2")


async def test_nbdkit_as_a_proxy(image: Path, path: str) -> None:
    oracle.require("nbdkit")
    async with serving(image, path):
        command = f"nbdinfo --map $uri && qemu-img compare -f raw -F qcow2 -U $uri {image}"
        done = await run("nbdkit", "-U", "-", "nbd", f"socket={path}", "--run", command)
    assert "Images are identical" in done.stdout


NBDSH = """
import nbd, errno
h.set_strict_mode(0)
buf = h.pread(4096, 512 * 1024)
assert buf == b"\\3" * 4096
def error(call, *args, **how):
    try:
        call(*args, **how)
    except nbd.Error as failed:
        return failed.errnum
    return 0
assert error(h.pread, 1, h.get_size()) == errno.EINVAL
assert error(h.pwrite, b"x", h.get_size()) == errno.ENOSPC
assert error(h.pread, 512, 0, flags=nbd.CMD_FLAG_FAST_ZERO) == errno.EINVAL
assert error(h.trim, 512, 0, flags=nbd.CMD_FLAG_FUA) == 0
assert error(h.zero, 512, 4096, flags=nbd.CMD_FLAG_FAST_ZERO) in (0, errno.ENOTSUP)
assert error(h.cache, 4096, 0) == 0
cookies = [h.aio_pread(nbd.Buffer(4096), at * 4096) for at in range(100)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert error(h.pwrite, b"x" * 33 * 1024 * 1024, 0) != 0
"""


async def test_nbdsh(image: Path, path: str) -> None:
    oracle.require("nbdsh")
    async with serving(image, path, writable=True):
        await run("/usr/bin/python3", "-m", "nbd", "-u", uri(path), "-c", NBDSH)


async def test_certificates(image: Path, path: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    _, creds = aioblock.make_object(f"tls-creds-x509,id=t,endpoint=server,dir={authority.server()}", {})
    _, allowed = aioblock.make_object("authz-simple,id=a,identity=CN=alice,,O=aioblock", {})
    alice, bob = authority.client("alice"), authority.client("bob")
    stranger = Authority(tmp_path, "other").client("alice")
    async with serving(image, path, tls=creds, authorization=allowed):

        async def compare(folder: Path) -> subprocess.CompletedProcess[str]:
            options = f"driver=nbd,server.type=unix,server.path={path},tls-creds=t,tls-hostname=localhost"
            return await run(
                "qemu-img", "compare", "-U", "--object", f"tls-creds-x509,id=t,endpoint=client,dir={folder}",
                "--image-opts", options, f"driver=qcow2,file.driver=file,file.filename={image}", check=False,
            )  # fmt: skip

        assert "identical" in (await compare(alice)).stdout
        assert (await compare(bob)).returncode == 2
        assert (await compare(stranger)).returncode == 2
        assert (await run("nbdinfo", uri(path), check=False)).returncode == 1
        for name in ("client-cert", "client-key"):
            assert (alice / f"{name}.pem").exists()
        secure = f"nbds+unix://localhost/?socket={path}&tls-certificates={alice}"
        found = json.loads((await run("nbdinfo", "--json", secure, check=False)).stdout or "{}")
        assert found.get("TLS", True)

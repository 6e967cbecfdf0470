"""make_empty: the disk is what the backing file says, the file is small and clean, snapshots and bitmaps stay."""

import pytest

import aioblock
from tests.kit.oracle import run

K = 1024

LAYOUTS = {
    "plain": {},
    "small": {"cluster_size": 512},
    "old": {"compat": "0.10"},
    "extended": {"extended_l2": True, "cluster_size": 16 * K},
    "lazy": {"lazy_refcounts": True},
    "data file": {"data_file": "data"},
}


@pytest.fixture
async def base(tmp_path):
    await aioblock.create(tmp_path / "base", "qcow2", size=512 * K)
    async with await aioblock.open(tmp_path / "base", format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"b" * 512 * K)
    return tmp_path / "base"


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
async def test_it_reads_as_the_backing_file(tmp_path, base, layout):
    top = tmp_path / "top"
    options = {"backing_file": "base", "backing_fmt": "qcow2", **LAYOUTS[layout]}
    if "data_file" in options:
        options["data_file"] = str(tmp_path / "data")
    await aioblock.create(top, "qcow2", options, size=1 << 20)
    fresh = top.stat().st_size
    async with await aioblock.open(top, format="qcow2", writable=True) as disk:
        await disk.pwrite(1000, b"x" * 300 * K)
        await disk.pwrite_zeroes(400 * K, 64 * K)
        if layout not in ("data file", "old"):
            await disk.pwrite(700 * K // disk.node.driver.cluster_size * disk.node.driver.cluster_size, bytes(64 * K))
        await disk.make_empty()
        assert bytes(await disk.pread(0, 1 << 20)) == b"b" * 512 * K + bytes(512 * K)
        assert top.stat().st_size <= fresh + 3 * 64 * K
        checked = await disk.check()
        assert not checked.corruptions
        assert not checked.leaks
        await disk.pwrite(5, b"again")
        assert bytes(await disk.pread(4, 7)) == b"bagainb"
    assert run("qemu-img", "check", "-f", "qcow2", str(top)).returncode == 0


async def test_snapshots_stay(tmp_path, base):
    top = tmp_path / "top"
    await aioblock.create(top, "qcow2", {"backing_file": "base", "backing_fmt": "qcow2"}, size=512 * K)
    async with await aioblock.open(top, format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"x" * 100 * K)
        await disk.snapshot_create("one")
        await disk.pwrite(50 * K, b"y" * 100 * K)
        await disk.make_empty()
        assert bytes(await disk.pread(0, 512 * K)) == b"b" * 512 * K
        checked = await disk.check()
        assert not checked.corruptions
        assert not checked.leaks
        await disk.snapshot_apply("one")
        assert bytes(await disk.pread(0, 512 * K)) == b"x" * 100 * K + b"b" * 412 * K


async def test_a_raw_data_file_and_a_format_that_cannot(tmp_path):
    options = {"data_file": str(tmp_path / "data"), "data_file_raw": True}
    await aioblock.create(tmp_path / "top", "qcow2", options, size=64 * K)
    async with await aioblock.open(tmp_path / "top", format="qcow2", writable=True) as disk:
        with pytest.raises(aioblock.NotSupported):
            await disk.make_empty()
    async with await aioblock.open(tmp_path / "data", format="raw", writable=True) as disk:
        with pytest.raises(aioblock.NotSupported, match="'raw' cannot make an image empty"):
            await disk.make_empty()

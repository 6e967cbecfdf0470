"""compress: writes of any size become compressed clusters."""

from pathlib import Path

import pytest

import aioblock
from aioblock import OptionError
from tests.kit.oracle import assert_clean, qemu_img, qemu_io
from tests.kit.qcow2_images import host_entries, new_image
from tests.kit.recorded_disk import RecordedDisk

COMPRESSED = 1 << 62


async def test_writes_of_any_size() -> None:
    disk = RecordedDisk(await new_image(1_000_448))
    inner = {"driver": "qcow2", "file": disk.options()}
    model = bytearray(1_000_448)
    async with await aioblock.open({"driver": "compress", "file": inner}, writable=True) as image:
        for offset, nbytes in ((10_000, 100_000), (5000, 10), (990_000, 10_448), (300_000, 200_000)):
            await image.pwrite(offset, b"x" * nbytes, aioblock.REQ_FUA)
            model[offset : offset + nbytes] = b"x" * nbytes
        await image.pwrite_zeroes(65536, 65536)
        model[65536:131_072] = bytes(65536)
        assert await image.pread(0, image.length) == model
    entries = host_entries(disk.content())
    assert set(entries) == {0, 1, 4, 5, 6, 7, 15}
    assert all(entry & COMPRESSED for cluster, (entry,) in entries.items() if cluster != 1)


async def test_an_image_that_compresses_nothing_is_refused() -> None:
    inner = {"driver": "raw", "file": RecordedDisk(bytes(1 << 20)).options()}
    with pytest.raises(OptionError, match="Compression is not supported for underlying format: raw"):
        await aioblock.open({"driver": "compress", "file": inner}, writable=True)


@pytest.mark.oracle
async def test_qemu_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "2M")
    described = {"driver": "compress", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}}
    async with await aioblock.open(described, writable=True) as image:
        await image.pwrite(0, b"\1" * 229_376)
        await image.pwrite(278_528, b"\2" * 229_376)
    qemu_io(path, "read -P 1 0 224k", "read -P 0 224k 48k", "read -P 2 272k 224k", "read -P 0 496k 1552k", fmt="qcow2")
    assert '"compressed-clusters": 8' in qemu_img("check", "--output=json", path).stdout
    assert_clean(path, "qcow2")

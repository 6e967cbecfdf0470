"""External data files: guest clusters lie in a file of their own, at their own offset, and are not counted."""

import asyncio
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.oracle import assert_clean, assert_same, qemu_img, qemu_io, qemu_map, require
from tests.kit.qcow2_images import header_of, host_entries

SIZE = 1 << 20
CLUSTER = 4096


async def new(folder: Path, **options: Any) -> Path:
    image = folder / "image.qcow2"
    await aioblock.create(
        image, "qcow2", {"cluster_size": CLUSTER, "data_file": str(folder / "data.raw"), **options}, size=SIZE
    )
    return image


async def opened(image: Path, **kwargs: Any) -> aioblock.BlockBackend:
    return await aioblock.open(image, format="qcow2", **kwargs)


async def test_data_goes_to_the_data_file_at_its_own_offset(tmp_path: Path) -> None:
    image = await new(tmp_path)
    async with await opened(image, writable=True) as disk:
        await disk.pwrite(3 * CLUSTER + 5, b"three")
        await disk.pwrite(0, b"zero")
    data = (tmp_path / "data.raw").read_bytes()
    assert len(data) == SIZE
    assert data[:4] == b"zero"
    assert data[3 * CLUSTER + 5 : 3 * CLUSTER + 10] == b"three"
    assert host_entries(image.read_bytes()) == {0: (1 << 63,), 3: (1 << 63 | 3 * CLUSTER,)}


async def test_offset_zero_counts_as_allocated(tmp_path: Path) -> None:
    image = await new(tmp_path)
    async with await opened(image, writable=True) as disk:
        await disk.pwrite(0, b"x" * CLUSTER)
        await disk.pwrite(100, b"y" * 7)
        assert await disk.pread(98, 11) == b"xxyyyyyyyxx"
        status = await disk.block_status(0, SIZE)
        assert (status.flags & 7, status.pnum, status.map) == (aioblock.DATA | aioblock.OFFSET_VALID, CLUSTER, 0)
        assert status.file is disk.node.children["data-file"]  # type: ignore[index]
        (first, *_) = [extent async for extent in disk.extents()]
        assert (first.length, first.map) == (CLUSTER, 0)


@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"data_file_raw": True}, {"preallocation": "falloc"}], ids=str)
async def test_like_qemu(tmp_path: Path, options: dict[str, Any]) -> None:
    require("qemu-img", "qemu-io")
    image = await new(tmp_path, **options)
    assert_clean(image)
    async with await opened(image, writable=True) as disk:
        await disk.pwrite(SIZE // 8, b"\x11" * (SIZE // 2))
        await disk.pdiscard(SIZE // 4, SIZE // 4)
        await disk.pwrite_zeroes(SIZE * 3 // 8, SIZE // 2)
        ours = [(e.offset, e.length, e.flags & 3) async for e in disk.extents()]
    assert_clean(image)
    theirs = [(r["start"], r["length"], r["data"] * 1 | r["zero"] * 2) for r in qemu_map(image)]
    assert ours == theirs
    qemu_io(image, f"read -P 0x11 {SIZE // 8} {SIZE // 8}", f"read -P 0 {SIZE // 4} {SIZE // 4}", fmt="qcow2")


async def test_a_raw_data_file_reads_like_the_disk(tmp_path: Path) -> None:
    image = await new(tmp_path, data_file_raw=True)
    model = bytearray(SIZE)
    async with await opened(image, writable=True) as disk:
        for verb, low, high in (("w", 100, 90_000), ("z", 5000, 6001), ("u", 20_000, 70_000), ("d", 8192, 16_384)):
            if verb == "w":
                await disk.pwrite(low, b"\xab" * (high - low))
                model[low:high] = b"\xab" * (high - low)
                continue
            if verb == "d":
                await disk.pdiscard(low, high - low)
            else:
                await disk.pwrite_zeroes(low, high - low, REQ_MAY_UNMAP if verb == "u" else 0)
            model[low:high] = bytes(high - low)
        assert await disk.pread(0, SIZE) == model
    assert (tmp_path / "data.raw").read_bytes() == model
    assert header_of(image.read_bytes()).autoclear_features == 2, "the promise was kept, and its bit with it"


@pytest.mark.oracle
async def test_a_raw_data_file_is_what_the_disk_shows_when_it_grows(tmp_path: Path) -> None:
    require("qemu-img")
    image = await new(tmp_path, data_file_raw=True)
    data = tmp_path / "data.raw"
    data.write_bytes(b"r" * (SIZE + 8 * CLUSTER))
    async with await opened(image, writable=True, resize=True) as disk:
        for size in (SIZE + 8 * CLUSTER, SIZE + 16 * CLUSTER):
            await disk.truncate(size)
            assert await disk.pread(0, size) == (b"r" * (SIZE + 8 * CLUSTER)).ljust(size, b"\0")
    assert_clean(image)
    assert_same(data, image, ("raw", "qcow2"))


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("extended", [False, True])
async def test_random_operations(tmp_path: Path, extended: bool) -> None:
    require("qemu-img")
    cluster = 16384 if extended else CLUSTER
    (tmp_path / "base.raw").write_bytes(bytes(place % 249 for place in range(SIZE // 3 // 512 * 512)))
    image = await new(
        tmp_path,
        cluster_size=cluster,
        extended_l2=extended,
        backing_file=str(tmp_path / "base.raw"),
        backing_fmt="raw",
    )
    model = bytearray((tmp_path / "base.raw").read_bytes().ljust(SIZE, b"\0"))
    chance = random.Random(extended)
    for _ in range(4):
        async with await opened(image, writable=True) as disk:
            for _ in range(40):
                low = chance.randrange(0, SIZE - 512)
                high = min(low + chance.choice([100, 512, cluster, 5 * cluster + 700]), SIZE)
                match chance.choice("wwwzudf"):
                    case "w":
                        content = bytes([chance.randrange(1, 256)]) * (high - low)
                        half = (high - low) // 2
                        await asyncio.gather(
                            disk.pwrite(low, content[:half]), disk.pwrite(low + half, content[: high - low - half])
                        )
                        model[low:high] = content
                    case "z" | "u" as kind:
                        await disk.pwrite_zeroes(low, high - low, REQ_MAY_UNMAP if kind == "u" else 0)
                        model[low:high] = bytes(high - low)
                    case "d":
                        low, high = -(-low // cluster) * cluster, high // cluster * cluster
                        if low < high:
                            await disk.pdiscard(low, high - low)
                            model[low:high] = bytes(high - low)
                    case _:
                        await disk.flush()
            assert await disk.pread(0, SIZE) == model
        assert_clean(image)
        (tmp_path / "model.raw").write_bytes(model)
        assert_same(image, tmp_path / "model.raw", ("qcow2", "raw"))


async def test_a_discarded_cluster_that_is_written_again_keeps_its_new_data(tmp_path: Path) -> None:
    image = await new(tmp_path)
    async with await opened(image, writable=True) as disk:
        await disk.pwrite(0, b"a" * 3 * CLUSTER)
        await disk.flush()
        await disk.pdiscard(0, 3 * CLUSTER)
        await disk.pwrite(CLUSTER, b"b" * CLUSTER)
        await disk.flush()
        assert await disk.pread(0, 3 * CLUSTER) == bytes(CLUSTER) + b"b" * CLUSTER + bytes(CLUSTER)
    data = (tmp_path / "data.raw").read_bytes()
    assert data[: 3 * CLUSTER] == bytes(CLUSTER) + b"b" * CLUSTER + bytes(CLUSTER), "the rest was given back"


async def test_what_it_cannot_do(tmp_path: Path) -> None:
    image = await new(tmp_path)
    async with await opened(image, writable=True) as disk:
        with pytest.raises(aioblock.NotSupported):
            await disk.pwrite(0, bytes(CLUSTER), REQ_COMPRESSED)
    with pytest.raises(aioblock.OptionError, match="data-file-raw requires data-file"):
        await aioblock.create(tmp_path / "x.qcow2", "qcow2", {"data_file_raw": True}, size=SIZE)
    with pytest.raises(aioblock.OptionError, match="only supported with compatibility"):
        await new(tmp_path, compat="0.10")
    with pytest.raises(aioblock.OptionError, match="Backing file and data-file-raw"):
        await new(tmp_path, data_file_raw=True, backing_file="other.qcow2", backing_fmt="qcow2")


async def test_which_file_it_is(tmp_path: Path) -> None:
    image = await new(tmp_path)
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(SIZE))
    async with await opened(image, writable=True, options={"data-file.filename": str(other)}) as disk:
        await disk.pwrite(0, b"elsewhere")
    assert other.read_bytes()[:9] == b"elsewhere"
    with pytest.raises(OSError, match="No such file"):
        await opened(image, options={"data-file.filename": str(tmp_path / "none")})
    async with await opened(image, metadata_only=True, options={"data-file": None}) as disk:
        assert disk.length == SIZE
        with pytest.raises(OSError, match="metadata alone"):
            await disk.pread(0, 512)
    plain = tmp_path / "plain.qcow2"
    await aioblock.create(plain, "qcow2", size=SIZE)
    with pytest.raises(aioblock.OptionError, match="can only be set for images with an external data file"):
        await opened(plain, options={"data-file.filename": str(other)})


@pytest.mark.parametrize("name", ["image.qcow2", "../outside.raw"])
async def test_a_name_in_a_hostile_image(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    image = await new(folder)
    (tmp_path / "outside.raw").write_bytes(b"secret".ljust(SIZE, b"\0"))
    content = bytearray(image.read_bytes())
    place = content.index(b"DATA")
    room = len(str(folder / "data.raw").encode())
    struct.pack_into(">I", content, place + 4, len(name))
    content[place + 8 : place + 8 + room] = name.encode().ljust(room, b"\0")
    # What is left of the longer name must not look like further extensions.
    end = place + 8 + (len(name) + 7 & ~7)
    content[end : place + 8 + (room + 7 & ~7)] = bytes((place + 8 + (room + 7 & ~7)) - end)
    image.write_bytes(content)
    with pytest.raises((aioblock.InvalidImage, aioblock.UntrustedReference, aioblock.PermissionConflict)):
        await opened(image)


@pytest.mark.oracle
async def test_one_made_by_qemu(tmp_path: Path) -> None:
    require("qemu-img", "qemu-io")
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data.raw'}", image, str(SIZE))
    qemu_io(image, "write -P 7 0 100k", "write -P 8 300k 10k", fmt="qcow2")
    async with await opened(image, writable=True) as disk:
        assert await disk.pread(0, 102_400) == b"\7" * 102_400
        assert await disk.pread(307_200, 10_240) == b"\x08" * 10_240
        await disk.pwrite(0, b"ours")
    assert_clean(image)
    qemu_io(image, "read -P 7 4 1k", "read -P 0x6f 0 1", fmt="qcow2")

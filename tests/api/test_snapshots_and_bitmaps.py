"""Snapshots and bitmaps by name: qemu-img sees what was done, and the other way round."""

import json

import pytest

import aioblock
from tests.api.conftest import MIB, content
from tests.kit.oracle import assert_clean, qemu_img, require

HOW = {"format": "qcow2"}


@pytest.mark.oracle
async def test_snapshots(chain):
    require("qemu-img")
    made = await aioblock.snapshot_create("top.qcow2", "before", **HOW)
    assert (made.id, made.name, made.disk_size) == ("1", "before", 4 * MIB)
    await aioblock.resize("top.qcow2", 8 * MIB, **HOW)
    async with await aioblock.open("top.qcow2", writable=True, **HOW) as disk:
        await disk.pwrite(0, b"after")
    assert " before " in qemu_img("snapshot", "-l", "top.qcow2").stdout
    await aioblock.snapshot_apply("top.qcow2", "before", **HOW)
    assert await content("top.qcow2") == chain.data
    await aioblock.snapshot_delete("top.qcow2", "1", **HOW)
    assert await aioblock.snapshots("top.qcow2") == ()
    assert_clean("top.qcow2", "qcow2")
    for verb in (aioblock.snapshot_apply, aioblock.snapshot_delete):
        with pytest.raises(FileNotFoundError, match="nosuch"):
            await verb("top.qcow2", "nosuch", **HOW)


async def test_snapshots_of_what_cannot_have_any(tmp_path):
    await aioblock.create(tmp_path / "x", "raw", size=MIB)
    assert await aioblock.snapshots(tmp_path / "x", format="raw") == ()
    with pytest.raises(aioblock.NotSupported):
        await aioblock.snapshot_create(tmp_path / "x", "s", format="raw")


def _theirs(name):
    found = json.loads(qemu_img("info", "--output=json", name).stdout)
    return {bitmap["name"]: bitmap for bitmap in found["format-specific"]["data"].get("bitmaps", [])}


@pytest.mark.slow
@pytest.mark.oracle
async def test_bitmaps(chain):
    require("qemu-img")
    await aioblock.bitmap_add("top.qcow2", "b", granularity=4096, **HOW)
    assert _theirs("top.qcow2")["b"] == {"flags": ["auto"], "name": "b", "granularity": 4096}
    async with await aioblock.open("top.qcow2", writable=True, **HOW) as disk:
        await disk.pwrite(8192, b"x")
    await aioblock.bitmap_disable("top.qcow2", "b", **HOW)
    assert _theirs("top.qcow2")["b"]["flags"] == []
    await aioblock.bitmap_add("top.qcow2", "sum", disabled=True, **HOW)
    await aioblock.bitmap_merge("top.qcow2", "sum", "b", **HOW)
    await aioblock.bitmap_enable("top.qcow2", "sum", **HOW)
    async with await aioblock.open("top.qcow2", **HOW) as disk:
        assert list((await disk.bitmap("b")).ranges()) == [(8192, 4096)]
        assert list((await disk.bitmap("sum")).ranges()) == [(0, 65536)]
    await aioblock.bitmap_clear("top.qcow2", "sum", **HOW)
    await aioblock.bitmap_remove("top.qcow2", "b", **HOW)
    assert list(_theirs("top.qcow2")) == ["sum"]
    async with await aioblock.open("top.qcow2", **HOW) as disk:
        assert not list((await disk.bitmap("sum")).ranges())
    with pytest.raises(aioblock.BitmapError, match="already exists"):
        await aioblock.bitmap_add("top.qcow2", "sum", **HOW)
    with pytest.raises(aioblock.BitmapError, match="not found"):
        await aioblock.bitmap_clear("top.qcow2", "nosuch", **HOW)


async def test_merge_from_another_image(chain):
    for name in ("top.qcow2", "base.qcow2"):
        await aioblock.bitmap_add(name, "b", **HOW)
    async with await aioblock.open("base.qcow2", writable=True, **HOW) as disk:
        await disk.pwrite(MIB, b"x")
    await aioblock.bitmap_merge("top.qcow2", "b", "b", source_image="base.qcow2", source_format="qcow2", **HOW)
    async with await aioblock.open("top.qcow2", **HOW) as disk:
        assert list((await disk.bitmap("b")).ranges()) == [(MIB, 65536)]


async def test_copying_bitmaps_that_are_lost(chain):
    """Those that were not stored are left out where that is asked for, and are an error where it is not."""
    for name in ("good", "lost"):
        await aioblock.bitmap_add("top.qcow2", name, **HOW)
    await aioblock.create("other.qcow2", "qcow2", size=4 * MIB)
    async with (
        await aioblock.open("top.qcow2", writable=True, **HOW) as source,
        await aioblock.open("other.qcow2", writable=True, **HOW) as target,
    ):
        source.bitmaps()["lost"].inconsistent = True
        with pytest.raises(aioblock.BitmapError, match="inconsistent bitmap 'lost'"):
            await aioblock.copy_bitmaps(source, target)
        assert not target.bitmaps()
        assert await aioblock.copy_bitmaps(source, target, skip_inconsistent=True) == ["lost"]
        assert list(target.bitmaps()) == ["good"]
        with pytest.raises(aioblock.BitmapError, match="Failed to create bitmap good: Bitmap already exists"):
            await aioblock.copy_bitmaps(source, target, skip_inconsistent=True)

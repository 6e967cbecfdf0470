"""Bitmaps of QEMU's making and of ours: the same writes mark the same, and each reads what the other stored."""

import asyncio
import json
import random

import pytest

import aioblock
from aioblock import REQ_MAY_UNMAP
from tests.kit import oracle
from tests.kit.oracle import assert_clean, qemu_img, qemu_io, require

pytestmark = pytest.mark.oracle

GRANULARITIES = (512, 4096, 65536, 1 << 20)


def make(path, cluster_size, size):
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", path, str(size))
    for granularity in GRANULARITIES:
        qemu_img("bitmap", "--add", "-g", str(granularity), path, f"g{granularity}")


def some_operations(chance, cluster_size, size):
    """(verb, offset, nbytes) of each; of a truncate the new size."""
    found = []
    for _ in range(chance.randrange(1, 10)):
        verb = chance.choice(("write", "write", "zero", "unmap", "discard", "truncate"))
        if verb == "truncate":
            size += chance.choice((0, 512, cluster_size, 69632))
            found.append((verb, 0, size))
            continue
        unit = chance.choice((1, 512, cluster_size))
        offset = chance.randrange(size) // unit * unit
        nbytes = min(max(unit, chance.randrange(1, 300000) // unit * unit), size - offset)
        found.append((verb, offset, nbytes))
    return found


QEMU_IO = {"write": "write", "zero": "write -z", "unmap": "write -z -u", "discard": "discard"}


async def by_us(path, operations, discard):
    async with await aioblock.open(path, format="qcow2", writable=True, discard=discard) as disk:
        for verb, offset, nbytes in operations:
            if verb == "truncate":
                await disk.truncate(nbytes)
            elif verb == "discard":
                await disk.pdiscard(offset, nbytes)
            elif verb == "write":
                await disk.pwrite(offset, b"\xcd" * nbytes)
            else:
                await disk.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP if verb == "unmap" else 0)


async def found_by_us(path):
    async with await aioblock.open(path, format="qcow2") as disk:
        return {name: list((await disk.bitmap(name)).ranges()) for name in disk.bitmaps()}


async def found_by_qemu(path, name):
    """What QEMU's server says of a bitmap."""
    server = oracle.find("qemu-nbd") or "qemu-nbd"
    served = ("[", server, "-r", "-f", "qcow2", "-B", name, path, "]")
    done = await asyncio.to_thread(oracle.run, "nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", "--", *served)
    found = []
    for run in json.loads(done.stdout):
        if run["type"] & 1:
            if found and sum(found[-1]) == run["offset"]:
                found[-1] = found[-1][0], found[-1][1] + run["length"]
            else:
                found.append((run["offset"], run["length"]))
    return found


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("seed", range(12))
async def test_twins(tmp_path, seed):
    require("qemu-img", "qemu-io")
    chance = random.Random(seed)
    cluster_size = chance.choice((512, 4096, 65536))
    size = chance.choice((1 << 20, 3 << 20, (1 << 20) + 512 * 77))
    discard = chance.choice(("unmap", "ignore"))
    theirs, ours = tmp_path / "theirs.qcow2", tmp_path / "ours.qcow2"
    make(theirs, cluster_size, size)
    make(ours, cluster_size, size)
    operations = some_operations(chance, cluster_size, size)
    commands = [
        f"truncate {nbytes}" if verb == "truncate" else f"{QEMU_IO[verb]} {offset} {nbytes}"
        for verb, offset, nbytes in operations
    ]
    await asyncio.to_thread(qemu_io, theirs, *commands, fmt="qcow2", options=["-d", discard])
    await by_us(ours, operations, discard)
    assert await found_by_us(ours) == await found_by_us(theirs)
    assert_clean(ours, "qcow2")


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("cluster_size", [512, 65536])
async def test_qemu_reads_ours(tmp_path, cluster_size):
    require("qemu-img", "qemu-nbd", "nbdinfo")
    path = tmp_path / "ours.qcow2"
    await aioblock.create(path, "qcow2", {"cluster_size": cluster_size}, size=8 << 20)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        for granularity in GRANULARITIES:
            await disk.bitmap_add(f"g{granularity}", granularity)
        await disk.pwrite(1000, b"x")
        await disk.pwrite_zeroes(1 << 20, 5 << 20)
        await disk.pwrite((8 << 20) - 1, b"x")
        await disk.bitmap_add("none")
    found = await found_by_us(path)
    assert found["g512"] == [(512, 512), (1 << 20, 5 << 20), ((8 << 20) - 512, 512)]
    for name, runs in found.items():
        assert await found_by_qemu(path, name) == runs
    assert_clean(path, "qcow2")


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_there_and_back(tmp_path):
    """Each writes in turn, and adds, removes and merges; nothing is ever inconsistent."""
    require("qemu-img", "qemu-io")
    path = tmp_path / "image.qcow2"
    make(path, 65536, 4 << 20)
    model = set()
    for turn in range(6):
        at = turn * 524288
        if turn % 2:
            await asyncio.to_thread(qemu_io, path, f"write {at} 65536", fmt="qcow2")
            qemu_img("bitmap", "--add", "--merge", "g65536", "--disable", path, f"t{turn}")
            qemu_img("bitmap", "--remove", path, f"t{turn - 1}")
        else:
            async with await aioblock.open(path, format="qcow2", writable=True) as disk:
                await disk.pwrite(at, b"x" * 65536)
                await disk.bitmap_add(f"t{turn}", disabled=True)
                await disk.bitmap_merge(f"t{turn}", "g65536")
                if turn:
                    await disk.bitmap_remove(f"t{turn - 1}")
        model.add((at, 65536))
        found = await found_by_us(path)
        assert found["g65536"] == found[f"t{turn}"] == sorted(model)
        assert len(found) == len(GRANULARITIES) + 1
        assert_clean(path, "qcow2")


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_qemu_takes_ours_for_inconsistent_too(tmp_path):
    require("qemu-img")
    path, crashed = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    await aioblock.create(path, "qcow2", size=1 << 20)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await disk.bitmap_add("b")
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        crashed.write_bytes(path.read_bytes())
        assert disk.writable
    assert_clean(crashed, "qcow2")
    done = qemu_img("bitmap", "--clear", crashed, "b", check=False)
    assert "Bitmap 'b' is inconsistent and cannot be used" in done.stderr
    async with await aioblock.open(crashed, format="qcow2") as disk:
        with pytest.raises(aioblock.BitmapError, match="Bitmap 'b' is inconsistent and cannot be used"):
            await disk.bitmap("b")
    qemu_img("bitmap", "--remove", crashed, "b")
    qemu_img("bitmap", "--clear", path, "b")
    assert_clean(crashed, "qcow2")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["10M", "100G"])
@pytest.mark.parametrize("cluster_size", [512, 65536])
async def test_size_for_measure(tmp_path, size, cluster_size):
    require("qemu-img")
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    qemu_img("bitmap", "--add", "-g", "1M", path, "one")
    qemu_img("bitmap", "--add", "-g", "64k", "--disable", path, "two")
    said = json.loads(
        qemu_img("measure", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", "--output=json", path).stdout
    )
    from aioblock.drivers.formats.qcow2.bitmaps import bitmaps_size

    async with await aioblock.open(path, format="qcow2") as disk:
        assert bitmaps_size(disk.bitmaps().values(), cluster_size) == said["bitmaps"]

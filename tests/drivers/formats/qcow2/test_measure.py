"""Measure: QEMU's figures exactly, and files that are really as large."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import Measurement, NotSupported, OptionError
from tests.kit.oracle import qemu_img, qemu_io
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk


def qemu_measure(format: str, options: dict[str, Any], *args: str) -> Measurement:
    given = ",".join(f"{name}={value}" for name, value in options.items())
    argv = ["measure", "--output=json", "-O", format, *(["-o", given] if given else []), *args]
    found = json.loads(qemu_img(*argv).stdout)
    return Measurement(found["required"], found["fully-allocated"], found.get("bitmaps"))


def random_options(chance: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if chance.random() < 0.8:
        options["cluster_size"] = 1 << chance.randrange(9, 22)
    if chance.random() < 0.5:
        options["refcount_bits"] = 1 << chance.randrange(7)
    if chance.random() < 0.3:
        options["preallocation"] = chance.choice(("off", "metadata", "falloc", "full"))
    if chance.random() < 0.3 and options.get("cluster_size", 65536) >= 16384:
        options["extended_l2"] = "on"
    if chance.random() < 0.2:
        options |= {"compat": "0.10", "refcount_bits": 16}
    return options


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_any_geometry() -> None:
    chance = random.Random(7)
    refused = 0
    for _ in range(120):
        options, size = random_options(chance), chance.randrange(1 << chance.randrange(1, 46))
        given = ",".join(f"{name}={value}" for name, value in options.items())
        if (
            "large"
            in qemu_img("measure", "-O", "qcow2", "-o", f"{given},size=1", "--size", str(size), check=False).stderr
        ):
            refused += 1
            with pytest.raises(OptionError, match="The image size is too large"):
                await aioblock.measure("qcow2", options, size=size)
        else:
            found = await aioblock.measure("qcow2", options, size=size)
            assert found == qemu_measure("qcow2", options, "--size", str(size))
    assert refused < 30


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_any_image(tmp_path: Path) -> None:
    chance = random.Random(8)
    base, path = tmp_path / "base", tmp_path / "image"
    qemu_img("create", "-q", "-f", "raw", base, "8M")
    qemu_io(base, "write -P 9 1000k 300k", "write -P 9 5M 100k", fmt="raw")
    for number in range(12):
        backed = number % 3 == 0
        qemu_img("create", "-q", "-f", "qcow2", *(["-b", str(base), "-F", "raw"] if backed else []), path, "16M")
        commands = []
        for _ in range(chance.randrange(12)):
            kind = chance.choice(("write", "write -z", "write -zu", "discard"))
            commands.append(f"{kind} {chance.randrange(30000) * 512} {chance.randrange(1, 2000) * 512}")
        qemu_io(path, *commands, fmt="qcow2", check=False)
        for bitmap in range(number % 4):
            qemu_img("bitmap", "--add", "-g", str(512 << 4 * bitmap), path, f"bitmap{bitmap}")
        async with await aioblock.open(path, format="qcow2", trust=aioblock.TRUST_ALL) as source:
            for _ in range(3):
                options = random_options(chance)
                found = await aioblock.measure("qcow2", options, source=source)
                assert found == qemu_measure("qcow2", options, "-f", "qcow2", str(path))
            options = {"backing_file": "somewhere", "backing_fmt": "raw"}
            found = await aioblock.measure("qcow2", options, source=source)
            assert found == qemu_measure("qcow2", options, "-f", "qcow2", str(path))
            assert await aioblock.measure("raw", source=source) == (16 << 20, 16 << 20, None)


@pytest.mark.parametrize("prealloc", ["off", "metadata", "full"])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
async def test_files_are_as_large_as_was_measured(cluster_size: int, prealloc: str) -> None:
    options = {"cluster_size": cluster_size, "preallocation": prealloc}
    found = await aioblock.measure("qcow2", options, size=3_000_320)
    disk = RecordedDisk(await new_image(3_000_320, **options))
    assert prealloc != "full" or len(disk.content()) == found.required
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 3_000_320)
    assert len(disk.content()) <= found.fully_allocated + cluster_size * (
        found.fully_allocated // cluster_size // 100 + 8
    )


async def test_what_cannot_be_measured() -> None:
    with pytest.raises(NotSupported, match="Block driver 'null-co' does not support size measurement"):
        await aioblock.measure("null-co", size=1)
    with pytest.raises(OptionError, match="Invalid parameter 'nonsense'"):
        await aioblock.measure("qcow2", {"nonsense": 1}, size=1)
    with pytest.raises(OptionError, match="Cluster size must be"):
        await aioblock.measure("qcow2", {"cluster_size": 3000}, size=1)
    with pytest.raises(OptionError, match="too large"):
        await aioblock.measure("qcow2", {}, size=1 << 60)

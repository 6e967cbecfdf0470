"""Images for the tests of the library, and what they hold."""

import asyncio
from pathlib import Path

import pytest

import aioblock
from tests.kit.model import ModelDisk, pattern

MIB = 1 << 20


async def fill(path: Path, fmt: str, model: ModelDisk, ranges: list[tuple[int, int]], seed: int, **options) -> None:
    """Make an image, over a backing file if `options` say so, and write the ranges, in the model too."""
    await aioblock.create(path, fmt, options, size=model.length)
    async with await aioblock.open(path, format=fmt, writable=True) as disk:
        for offset, nbytes in ranges:
            data = pattern(nbytes, seed)
            model.write(offset, data)
            await disk.pwrite(offset, data)


async def content(path: Path, fmt: str | None = None) -> bytes:
    async with await aioblock.open(path, format=fmt) as disk:
        return bytes(await disk.pread(0, disk.length))


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """base.qcow2, top.qcow2 over it, in the working directory; the model of what the top reads as."""
    monkeypatch.chdir(tmp_path)
    model = ModelDisk(4 * MIB)

    async def make() -> None:
        await fill(Path("base.qcow2"), "qcow2", model, [(0, 100_000), (2 * MIB, 65536)], 1)
        top = [(50_000, 70_000), (3 * MIB, 1000)]
        await fill(Path("top.qcow2"), "qcow2", model, top, 2, backing_file="base.qcow2", backing_fmt="qcow2")

    asyncio.run(make())
    return model

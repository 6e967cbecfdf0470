"""What the tests of faults do to a disk, over which graphs, and what each does to a model."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aioblock
from aioblock.base.flags import DATA, REQ_COPY_ON_READ, REQ_FUA
from aioblock.graph.backend import BlockBackend
from tests.kit.model import ModelDisk, pattern
from tests.kit.scripted import Script
from tests.kit.watching import assert_idle, until

__all__ = ["ASKS", "CHANGES", "CLUSTER", "LENGTH", "QCOW2_CHANGES", "chain", "over", "qcow2_image", "quiet", "works"]

LENGTH = 8192
CLUSTER = 2048
BELOW = 5000

Operation = Callable[[BlockBackend], Coroutine[Any, Any, Any]]
Effect = Callable[[ModelDisk], None]


def _nothing(model: ModelDisk) -> None:
    pass


async def _extents(disk: BlockBackend) -> None:
    async for _ in disk.extents():
        pass


#: What is done, and what it does to a model.
CHANGES: dict[str, tuple[Operation, Effect]] = {
    "pwrite": (lambda disk: disk.pwrite(700, pattern(3000, 2)), lambda model: model.write(700, pattern(3000, 2))),
    "pwrite in place": (lambda disk: disk.pwrite(10, b"new"), lambda model: model.write(10, b"new")),
    "pwrite fua": (lambda disk: disk.pwrite(4500, b"new", REQ_FUA), lambda model: model.write(4500, b"new")),
    "pwrite_zeroes": (lambda disk: disk.pwrite_zeroes(700, 5000), lambda model: model.zero(700, 5000)),
    "flush": (lambda disk: disk.flush(), _nothing),
    "grow": (lambda disk: disk.truncate(12_288), lambda model: model.truncate(12_288)),
}

QCOW2_CHANGES = CHANGES | {
    "pdiscard": (lambda disk: disk.pdiscard(CLUSTER * 2, CLUSTER), lambda model: model.zero(CLUSTER * 2, CLUSTER)),
}

ASKS: dict[str, Operation] = {
    "pread": lambda disk: disk.pread(700, 3000),
    "copy on read": lambda disk: disk.pread(700, 3000, REQ_COPY_ON_READ),
    "block_status": lambda disk: disk.block_status(0, LENGTH),
    "block_status_above": lambda disk: disk.block_status_above(None, CLUSTER, LENGTH),
    "is_zero": lambda disk: disk.is_zero(CLUSTER * 3, CLUSTER),
    "extents": _extents,
}


def chain() -> tuple[list[Script], ModelDisk]:
    """A layer in clusters, the first of them written, over an empty one over a shorter one full of data."""
    limits = {"request_alignment": 512}
    top = Script(LENGTH, cluster=CLUSTER, limits=limits, content=pattern(CLUSTER, 1))
    top.clusters[0] = DATA
    mid = Script(LENGTH, cluster=CLUSTER)
    low = Script(BELOW, content=pattern(BELOW, 3))
    model = ModelDisk(LENGTH, pattern(CLUSTER, 1) + pattern(BELOW, 3)[CLUSTER:])
    return [top, mid, low], model


async def quiet(disk: BlockBackend) -> None:
    """Wait for what runs on without its caller, and see that nothing else is left."""
    async with disk.drained():
        pass
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert_idle(disk)


async def works(disk: BlockBackend, model: ModelDisk) -> None:
    """Later requests do what they should."""
    await disk.pwrite(CLUSTER - 5, b"afterwards")
    model.write(CLUSTER - 5, b"afterwards")
    assert await disk.pread(0, disk.length) == model.data
    await disk.flush()
    assert_idle(disk)


async def qcow2_image(path: Path) -> tuple[bytes, ModelDisk]:
    """The bytes of a small image with a few clusters of data, and what is in it."""
    model = ModelDisk(LENGTH)
    await aioblock.create(path, "qcow2", {"cluster_size": CLUSTER}, size=LENGTH)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await disk.pwrite(0, pattern(100, 1))
        await disk.pwrite(CLUSTER * 2, pattern(CLUSTER, 2))
        model.write(0, pattern(100, 1))
        model.write(CLUSTER * 2, pattern(CLUSTER, 2))
    return path.read_bytes(), model


def over(file: Script) -> dict[str, Any]:
    return {"driver": "qcow2", "file": {"driver": "scripted-protocol", "script": file}}

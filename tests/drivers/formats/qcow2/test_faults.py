"""Fail request N to the file, for every N: errors are told, data is old or new, the image stays sound."""

import errno
import os
from typing import Any

import pytest

from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.power_cut import assert_sound
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth

SHAPES: list[dict[str, Any]] = [
    {"cluster_size": 512, "refcount_bits": 64},
    {"cluster_size": 4096},
    {"cluster_size": 16384, "extended_l2": True},
]

Step = tuple[str, int, int, int]


def script(cluster: int) -> list[Step]:
    """Verb, offset, length, byte."""
    return [
        ("write", 100, 3 * cluster, 1),
        ("write", 20 * cluster, 9 * cluster, 2),
        ("flush", 0, 0, 0),
        ("compress", 40 * cluster, 2 * cluster, 3),
        ("write", 41 * cluster + 5, 100, 4),
        ("unmap", 21 * cluster, 2 * cluster, 0),
        ("flush", 0, 0, 0),
        ("write", 60 * cluster, 3 * cluster, 5),
        ("zero", 60 * cluster + 512, cluster, 0),
        ("discard", 20 * cluster, cluster, 0),
        ("write", 22 * cluster - 7, 2 * cluster, 6),
    ]


class Allowed:
    """Which of the bytes 0 to 7 may stand in each place: a mask for each."""

    bits = bytes(1 << byte if byte < 8 else 0 for byte in range(256))

    def __init__(self, size: int) -> None:
        self.masks = bytearray(b"\1" * size)

    def only(self, offset: int, nbytes: int, byte: int) -> None:
        self.masks[offset : offset + nbytes] = bytes([1 << byte]) * nbytes

    def also(self, offset: int, nbytes: int, byte: int) -> None:
        table = bytes(mask | 1 << byte for mask in range(256))
        self.masks[offset : offset + nbytes] = self.masks[offset : offset + nbytes].translate(table)

    def agrees(self, data: bytearray) -> bool:
        found = data.translate(self.bits)
        if found.count(0):
            return False
        return int.from_bytes(found, "big") & ~int.from_bytes(self.masks, "big") == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("verbs", [("write", "zero"), ("flush",), ("read",)], ids=str)
async def test_every_request_fails_once(shape: dict[str, Any], code: int, verbs: tuple[str, ...]) -> None:
    cluster = shape["cluster_size"]
    size = 200 * cluster
    empty = await new_image(size, **shape)
    number, done = 0, False
    while not done:
        number += 1
        assert number < 400
        disk = RecordedDisk(empty)
        image = await open_disk(disk, {"l2-cache-size": 0})
        allowed = Allowed(size)
        disk.before = hook = fail_nth(number, OSError(code, os.strerror(code)), verbs)
        told: list[int | None] = []
        for verb, offset, nbytes, byte in script(cluster):
            try:
                if verb == "flush":
                    await image.flush()
                elif verb == "discard":
                    await image.pdiscard(offset, nbytes)
                elif verb in ("zero", "unmap"):
                    await image.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP if verb == "unmap" else 0)
                else:
                    await image.pwrite(offset, bytes([byte]) * nbytes, REQ_COMPRESSED if verb == "compress" else 0)
            except OSError as error:
                told.append(error.errno)
                allowed.also(offset, nbytes, byte)
            else:
                allowed.only(offset, nbytes, byte)
        state = image.node.driver.image  # type: ignore[attr-defined]
        assert (state.allocating, state.reading) == ({}, {})
        disk.before = None
        data = await image.pread(0, size)
        assert allowed.agrees(data)
        disk.before = hook
        lost = False
        try:
            await image.close()
        except OSError as error:
            told.append(error.errno)
            lost = True
        disk.before = None
        assert set(told) <= {code}
        done = not told
        assert_sound(disk.content())
        async with await open_disk(disk, writable=False) as again:
            data = await again.pread(0, size)
        assert lost or allowed.agrees(data)


async def test_after_a_failed_flush_none_succeeds_and_reads_go_on() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 65536)
    disk.before = fail_nth(1, OSError(errno.EIO, "Input/output error"), ("flush",))
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            await image.flush()
        assert caught.value.errno == errno.EIO
    assert await image.pread(0, 65536) == b"x" * 65536
    await image.pwrite(100, b"y")
    assert await image.pread(99, 3) == b"xyx"
    with pytest.raises(OSError):
        await image.close()
    assert_sound(disk.content())
    async with await open_disk(disk, writable=False) as again:
        assert await again.pread(0, 65536) == bytes(65536)  # no entry was written after the flush had failed


async def test_the_driver_itself_never_flushes_again_after_a_failure() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 65536)
    disk.before = fail_nth(1, OSError(errno.EIO, "Input/output error"), ("write",))
    for _ in range(3):
        with pytest.raises(OSError):
            await image.node.driver.flush()
    with pytest.raises(OSError):
        await image.close()


@pytest.mark.parametrize("flags", [0, REQ_COMPRESSED])
async def test_clusters_of_a_failed_allocation_are_free_again(flags: int) -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    tried: list[int] = []

    async def full(verb: str, offset: int, nbytes: int) -> None:
        tried.append(offset)
        if len(tried) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x")
        disk.before = full
        for _ in range(2):
            with pytest.raises(OSError):
                await image.pwrite(65536, b"x" * 65536, flags)
        await image.pwrite(65536, b"x" * 65536, flags)
        assert tried[0] == tried[1] == tried[2]
        disk.before = None

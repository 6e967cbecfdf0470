"""Rewriting the header: whatever a power cut leaves of it is the old header or the new one."""

import random
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.extensions import Extension, feature_table
from aioblock.drivers.formats.qcow2.header import Header, copy_of, parse_header, serialise
from aioblock.drivers.formats.qcow2.header_update import header_steps
from tests.kit.oracle import assert_clean, qemu_img
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SECTOR = 512


def vital(header: Header) -> Any:
    """What counts in a header."""
    others = sorted(extension for extension in header.extensions if extension.type != ext.FEATURE_NAMES)
    return header.version, header.backing_file, header.incompatible_features, header.refcount_order, others


def torn(before: bytes, offset: int, data: bytes, chance: random.Random) -> list[bytes]:
    """What a write may leave: every set of its sectors, or some of the sets where there are many."""
    cuts = sorted({offset, offset + len(data), *range(-(-offset // SECTOR) * SECTOR, offset + len(data), SECTOR)})
    parts = list(pairwise(cuts))
    if len(parts) <= 6:
        choices = list(product((False, True), repeat=len(parts)))
    else:
        choices = [tuple(chance.random() < 0.5 for _ in parts) for _ in range(40)]
    found = []
    for choice in choices:
        left = bytearray(before)
        for (low, high), there in zip(parts, choice, strict=True):
            if there:
                left[low:high] = data[low - offset : high - offset]
        found.append(bytes(left))
    return found


def random_header(chance: random.Random, cluster_bits: int, longest: int) -> Header:
    version = chance.choice((2, 3, 3))
    header = Header(version, cluster_bits, 0, 0, 0, 1 << cluster_bits, 1)
    extensions = []
    if chance.random() < 0.5:
        header.backing_file = "b" * chance.randrange(1, longest)
        extensions.append(Extension(ext.BACKING_FORMAT, b"qcow2"))
    if chance.random() < 0.4:
        extensions.append(Extension(ext.BITMAPS, bytes(chance.randrange(256) for _ in range(24))))
    if chance.random() < 0.3:
        extensions.append(Extension(0x12345678, b"unknown" * chance.randrange(5)))
    if version == 3 and chance.random() < 0.7 and cluster_bits > 10:
        extensions.insert(chance.randrange(len(extensions) + 1), feature_table())
    header.extensions = extensions
    return header


@pytest.mark.parametrize("cluster_bits", [9, 11, 13, 16])
def test_every_torn_state_is_the_old_or_the_new_header(cluster_bits: int) -> None:
    chance = random.Random(cluster_bits)
    size = 1 << cluster_bits
    longest = {9: 100, 11: 500}.get(cluster_bits, 1023)
    several = 0
    for _ in range(300):
        old, new = (random_header(chance, cluster_bits, longest) for _ in range(2))
        content = serialise(old)
        # Bytes behind the header mean nothing, whatever they are.
        end = old.header_length + len(ext.serialise_extensions(old.extensions))
        if old.backing_file:
            end = max(end, old.backing_file_offset + old.backing_file_size)
        content = content[:end] + chance.randbytes(size - end)
        allowed = [vital(old), vital(new)]
        asked = list(new.extensions)
        steps = header_steps(content, new)
        several += len(steps) > 2
        for offset, data in steps:
            for left in torn(content, offset, data, chance):
                assert vital(parse_header(left, "torn", 1 << 30, True)) in allowed
            content = content[:offset] + data + content[offset + len(data) :]
        found = parse_header(content, "new", 1 << 30, True)
        assert vital(found) == vital(new)
        assert found.extensions in (asked, [kept for kept in asked if kept.type != ext.FEATURE_NAMES])
        assert (found.backing_file_offset, found.extensions) == (new.backing_file_offset, new.extensions)
    assert several or cluster_bits == 9


def test_a_header_that_does_not_fit_is_refused() -> None:
    old = random_header(random.Random(1), 9, 10)
    content = serialise(old)
    new = copy_of(old)
    new.backing_file = "n" * 500
    with pytest.raises(OptionError, match="does not fit"):
        header_steps(content, new)


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
async def test_the_backing_file_is_renamed(cluster_size: int) -> None:
    disk = RecordedDisk(await new_image(1 << 20, cluster_size=cluster_size, backing_file="a", backing_fmt="raw"))
    async with await open_disk(disk) as image:
        for name, form in (("b" * 300, "qcow2"), ("c", None), (None, None), ("d", "raw")):
            await image.change_backing_file(name, form)
            header = header_of(disk.content())
            assert (header.backing_file, header.backing_format) == (name, form)
            inner = image.info().backing
            assert (inner and tuple(inner)) == (name and (name, form))
        with pytest.raises(OptionError):
            await image.change_backing_file("e" * 1024)
        with pytest.raises(OptionError):
            await image.change_backing_file("e", "f" * 16)
    assert header_of(disk.content()).backing_file == "d"


@pytest.mark.oracle
async def test_qemu_reads_what_was_renamed(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for name in ("one", "two"):
        qemu_img("create", "-q", "-f", "raw", tmp_path / name, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "one", "-F", "raw", path)
    qemu_img("bitmap", "--add", path, "bitmap")
    async with await aioblock.open(path, format="qcow2", writable=True, backing=False) as image:
        await image.change_backing_file(str(tmp_path / "two"), "raw")
    shown = qemu_img("info", path).stdout
    assert f"backing file: {tmp_path / 'two'}" in shown
    assert "backing file format: raw" in shown
    assert "name: bitmap" in shown
    assert_clean(path, "qcow2")

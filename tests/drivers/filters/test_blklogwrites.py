"""`blklogwrites`: the log is what QEMU's driver writes, and playing it back gives the disk."""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.drivers.protocols.memory import MemoryDisk
from tests.kit import oracle

SIZE = 1 << 20
FLUSH, DISCARD = 1, 4


class Entry(NamedTuple):
    sector: int
    count: int
    flags: int
    data: bytes


def parse(log: bytes) -> tuple[int, list[Entry]]:
    """The sector size and the entries of a log, as the format's description says."""
    magic, version, entries, size = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (0x6A736677736872, 1)
    at, found = size, []
    for _ in range(entries):
        sector, count, flags, more = struct.unpack_from("<QQQQ", log, at)
        assert more == 0
        at += size
        nbytes = 0 if flags & DISCARD else count * size
        found.append(Entry(sector, count, flags, log[at : at + nbytes].ljust(nbytes, b"\0")))
        at += nbytes
    return size, found


def options(file: MemoryDisk, log: MemoryDisk, **more: Any) -> dict[str, Any]:
    return {
        "driver": "blklogwrites",
        "file": {"driver": "memory", "disk": file},
        "log": {"driver": "memory", "disk": log},
    } | more


async def test_entries_in_the_order_of_their_requests() -> None:
    disk, log = MemoryDisk(SIZE), MemoryDisk()
    async with await aioblock.open(options(disk, log), writable=True) as image:
        await image.pwrite(512, b"a" * 512)
        await image.pwrite(100, b"b" * 10)
        assert log.content()[:512].strip(b"\0") == b""  # the super block comes with a flush
        await image.flush()
        await image.pwrite_zeroes(8192, 4096)
        await image.pdiscard(65536, 65536)
        await image.pdiscard(100, 100)
    size, entries = parse(log.content())
    assert size == 512
    assert entries == [
        (1, 1, 0, b"a" * 512),
        (0, 1, 0, bytes(100) + b"b" * 10 + bytes(402)),
        (0, 0, FLUSH, b""),
        (16, 8, 0, bytes(4096)),
        (128, 128, DISCARD, b""),
        (0, 0, FLUSH, b""),
    ]


@pytest.mark.parametrize("sector", [32, 512, 4096])
async def test_played_back_the_log_gives_the_disk(sector: int) -> None:
    disk, log = MemoryDisk(4 * SIZE), MemoryDisk()
    described = {"driver": "qcow2", "file": options(disk, log, **{"log-sector-size": sector})}
    file = await aioblock.open(options(disk, log), writable=True, format="blklogwrites")
    await file.close()
    log = MemoryDisk()
    described = {"driver": "raw", "file": options(disk, log, **{"log-sector-size": sector})}
    async with await aioblock.open(described, writable=True) as image:
        for number in range(40):
            await image.pwrite(number * 99991 % (3 * SIZE), bytes([number + 1]) * (number * 777 + 1))
        await image.pwrite_zeroes(SIZE, 70000)
    size, entries = parse(log.content())
    assert size == sector
    replayed = bytearray(4 * SIZE)
    for entry in entries:
        if not entry.flags:
            replayed[entry.sector * size : entry.sector * size + len(entry.data)] = entry.data
    assert bytes(replayed) == disk.content()


async def test_the_super_block_comes_every_so_many_entries_too() -> None:
    disk, log = MemoryDisk(SIZE), MemoryDisk()
    image = await aioblock.open(options(disk, log, **{"log-super-update-interval": 3}), writable=True)
    counts = []
    for number in range(7):
        await image.pwrite(512 * number, b"x" * 512)
        counts.append(struct.unpack_from("<Q", log.content(), 16)[0])
    await image.close()
    assert counts == [0, 0, 3, 3, 3, 6, 6]
    assert len(parse(log.content())[1]) == 8


async def test_a_log_is_continued() -> None:
    disk, log = MemoryDisk(SIZE), MemoryDisk()
    async with await aioblock.open(options(disk, log, **{"log-append": True}), writable=True) as image:
        await image.pwrite(0, b"a" * 1024)
        await image.pdiscard(0, 65536)
    async with await aioblock.open(options(disk, log, **{"log-append": True}), writable=True) as image:
        await image.pwrite(512, b"b" * 512)
    _, entries = parse(log.content())
    assert [(entry.sector, entry.count, entry.flags) for entry in entries] == [
        (0, 2, 0),
        (0, 128, DISCARD),
        (0, 0, FLUSH),
        (1, 1, 0),
        (0, 0, FLUSH),
    ]


@pytest.mark.parametrize(
    ("log", "more", "message"),
    [
        (b"", {"log-sector-size": 511}, "Invalid log sector size 511"),
        (b"", {"log-sector-size": 16}, "Invalid log sector size 16"),
        (b"", {"log-sector-size": 16 << 20}, "Invalid log sector size 16777216"),
        (b"", {"log-super-update-interval": 0}, "Invalid log superblock update interval 0"),
        (b"", {"log-append": True, "log-sector-size": 512}, "log-append and log-sector-size are mutually exclusive"),
        (b"", {"log-sector-size": 8 << 20}, "Image size is not a multiple of request alignment"),
        (bytes(512), {"log-append": True}, "Invalid log superblock magic"),
        (struct.pack("<QQQI", 0x6A736677736872, 2, 0, 512), {"log-append": True}, "Unsupported log version 2"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 0, 500), {"log-append": True}, "Invalid log sector size 500"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 9, 512), {"log-append": True}, "The log ends before its entry 0"),
    ],
)
async def test_what_cannot_be(log: bytes, more: dict[str, Any], message: str) -> None:
    store = MemoryDisk(len(log))
    async with await aioblock.open({"driver": "memory", "disk": store}, writable=True) as file:
        await file.pwrite(0, log)
    with pytest.raises(OptionError, match=message):
        await aioblock.open(options(MemoryDisk(SIZE), store, **more), writable=True)


OPERATIONS: list[tuple[str, ...]] = [
    ("pwrite", 0, b"\x01" * 4096),
    ("pwrite", 512, b"\x02" * 512),
    ("flush",),
    ("pwrite_zeroes", 8192, 4096),
    ("pdiscard", 65536, 65536),
    ("pwrite", 1024, b"\x03" * 512, aioblock.REQ_FUA),
    ("pwrite", 100, b"\x05" * 10),
    ("flush",),
    ("pwrite", 1 << 19, b"\x06" * 100_000),
]  # type: ignore[list-item]
COMMANDS = [
    "write -P 1 0 4k",
    "write -P 2 512 512",
    "flush",
    "write -z 8k 4k",
    "discard 64k 64k",
    "write -f -P 3 1k 512",
    "write -P 5 100 10",
    "flush",
    "write -P 6 512k 100000",
]


@pytest.mark.oracle
@pytest.mark.parametrize("sector", [256, 512, 4096])
async def test_byte_for_byte_what_qemu_io_writes(tmp_path: Path, sector: int) -> None:
    for name in ("theirs", "their-log", "ours"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(SIZE if "log" not in name else 0)
    (tmp_path / "our-log").touch()

    def described(disk: str, log: str) -> str:
        return (
            f"driver=blklogwrites,file.driver=file,file.filename={tmp_path / disk},log.driver=file,"
            f"log.filename={tmp_path / log},log-sector-size={sector}"
        )

    arguments = ["-t", "writeback", "--image-opts"]
    for command in COMMANDS:
        arguments += ["-c", command]
    oracle.run("qemu-io", *arguments, described("theirs", "their-log"))
    async with await aioblock.open(aioblock.parse_keyval(described("ours", "our-log")), writable=True) as image:
        for verb, *values in OPERATIONS:
            await getattr(image, verb)(*values)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "our-log").read_bytes() == (tmp_path / "their-log").read_bytes()

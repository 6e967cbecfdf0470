"""The public library as a service uses it: every name there, the common paths whole, on real files."""

import asyncio
import inspect
import subprocess
import sys

import pytest

import aioblock
from tests.kit.model import ModelDisk, pattern
from tests.kit.oracle import assert_clean, assert_same, qemu_map, require

MIB = 1 << 20


def test_all_names_are_there():
    assert len(set(aioblock.__all__)) == len(aioblock.__all__)
    for name in aioblock.__all__:
        assert getattr(aioblock, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in aioblock.__all__
        if inspect.isroutine(getattr(aioblock, name)) or isinstance(getattr(aioblock, name), type)
    ],
)
def test_everything_callable_says_what_it_does(name):
    assert inspect.getdoc(getattr(aioblock, name)), name


@pytest.mark.parametrize("name", [name for name in vars(aioblock.BlockBackend) if not name.startswith("_")])
def test_every_verb_says_what_it_does(name):
    assert inspect.getdoc(inspect.getattr_static(aioblock.BlockBackend, name)), name


@pytest.mark.slow
def test_the_import_is_light():
    """Programs that only look at an image start quickly."""
    heavy = (
        "numpy",
        "zstandard",
        "uvloop",
        "aioblock.jobs",
        "aioblock.api.converting",
        "aioblock.drivers.formats.qcow2",
    )
    code = f"import sys, aioblock; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_that_is_loaded_later_is_a_public_one():
    later = [name for names in aioblock._ELSEWHERE.values() for name in names]
    assert sorted(later) == sorted({*later} & {*aioblock.__all__})
    assert {*aioblock.__all__} <= {*dir(aioblock)}
    with pytest.raises(AttributeError, match="nosuch"):
        aioblock.nosuch  # noqa: B018


def test_drivers():
    assert {"file", "host_device", "memory", "null-co", "raw", "qcow2", "copy-on-read"} <= set(aioblock.driver_names())
    assert aioblock.find_driver("qcow2").supports_backing
    with pytest.raises(aioblock.OptionError, match="Unknown driver 'nosuch'"):
        aioblock.find_driver("nosuch")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_create_write_read_and_ask(tmp_path, fmt):
    path = tmp_path / "x"
    await aioblock.create(path, fmt, size=MIB)
    model = ModelDisk(MIB)
    async with await aioblock.open(path, format=fmt, writable=True) as disk:
        assert (disk.length, disk.writable, disk.name) == (MIB, True, str(path))
        assert await disk.getlength() == MIB
        for offset, nbytes in ((1000, 5000), (65536, 65536), (MIB - 7, 7)):
            model.write(offset, pattern(nbytes, offset))
            await disk.pwrite(offset, pattern(nbytes, offset))
        model.zero(2000, 70000)
        await disk.pwrite_zeroes(2000, 70000)
        await disk.flush()
        assert await disk.pread(0, MIB) == model.data
        buffer = bytearray(3000)
        await disk.readinto(900, buffer)
        assert buffer == model.read(900, 3000)
        assert await disk.is_zero(200_000, 500_000)
        assert not await disk.is_zero(0, MIB)
        extents = [extent async for extent in disk.extents()]
        assert sum(extent.length for extent in extents) == MIB
        for extent in extents:
            if extent.flags & aioblock.ZERO:
                assert not any(model.read(extent.offset, extent.length))
            if extent.flags & aioblock.OFFSET_VALID and extent.flags & aioblock.DATA:
                raw = path.read_bytes()[extent.map : extent.map + extent.length]
                assert raw.ljust(extent.length, b"\0") == model.read(extent.offset, extent.length)
                assert extent.file.filename == str(path)
        assert await disk.allocated_size() > 0
        assert disk.info().cluster_size == (65536 if fmt == "qcow2" else None)
        await disk.truncate(2 * MIB)
        assert disk.length == 2 * MIB
        assert not any(await disk.pread(MIB, MIB))


async def test_a_chain_with_a_short_backing_file(tmp_path):
    await aioblock.create(tmp_path / "base", "raw", size=100_352)
    async with await aioblock.open(tmp_path / "base", format="raw", writable=True) as disk:
        await disk.pwrite(0, b"b" * 100_352)
    await aioblock.create(tmp_path / "top", "qcow2", {"backing_file": "base", "backing_fmt": "raw"}, size=MIB)
    async with await aioblock.open(tmp_path / "top", format="qcow2", writable=True) as disk:
        await disk.pwrite(524288, b"t" * 65536)
        assert await disk.pread(100_000, 1000) == b"b" * 352 + bytes(648)
        found = [(extent.offset, extent.length, extent.depth) async for extent in disk.extents()]
        assert found == [
            (0, 100_352, 2),
            (100_352, 524288 - 100_352, 2),
            (524288, 65536, 1),
            (589824, MIB - 589824, 2),
        ]
        status = await disk.block_status_above(None, 100_352, MIB)
        assert status.flags & aioblock.ZERO and status.depth == 2
        assert (await disk.block_status(0, MIB)).flags & aioblock.ALLOCATED == 0
        assert disk.statistics.probes >= 2


async def test_batches_and_single_extents_agree(tmp_path):
    await aioblock.create(tmp_path / "x", "qcow2", size=16 * MIB)
    async with await aioblock.open(tmp_path / "x", format="qcow2", writable=True) as disk:
        for offset in range(0, 16 * MIB, 3 * 65536):
            await disk.pwrite(offset, b"x" * 512)
        singles = [extent async for extent in disk.extents()]
        at = 0
        async for batch in disk.extent_batches():
            assert batch.offset == at
            assert batch.lengths.dtype == "int64" and batch.flags.dtype == "uint8" and batch.map.dtype == "int64"
            assert len(batch.lengths) == len(batch.flags) == len(batch.map) == len(batch.depth) == len(batch.file_index)
            at += int(batch.lengths.sum())
        assert at == 16 * MIB == sum(extent.length for extent in singles)


@pytest.mark.oracle
@pytest.mark.slow
async def test_concurrent_writers_leave_an_image_that_qemu_finds_clean(tmp_path):
    require("qemu-img")
    path, expected = tmp_path / "x.qcow2", tmp_path / "x.raw"
    await aioblock.create(path, "qcow2", size=4 * MIB)
    model = ModelDisk(4 * MIB)
    async with await aioblock.open(path, format="qcow2", writable=True, max_in_flight=16) as disk:

        async def write(number):
            offset, nbytes = number * 65536 - (number % 3) * 1000 + 2000, 60_000
            model.write(offset, pattern(nbytes, number))
            await disk.pwrite(offset, pattern(nbytes, number))

        await asyncio.gather(*(write(number) for number in range(60)))
    expected.write_bytes(model.data)
    assert_clean(path, "qcow2")
    assert_same(path, expected, ("qcow2", "raw"))
    assert sum(run["length"] for run in qemu_map(path, fmt="qcow2")) == 4 * MIB


async def test_an_open_failure_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        await aioblock.open(tmp_path / "nosuch")
    assert caught.value.filename == str(tmp_path / "nosuch")
    assert aioblock.message_of(caught.value) == f"Could not open '{tmp_path}/nosuch': No such file or directory"


async def test_check(tmp_path):
    await aioblock.create(tmp_path / "x", "qcow2", size=MIB)
    async with await aioblock.open(tmp_path / "x", format="qcow2") as disk:
        result = await disk.check()
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
    async with await aioblock.open({"driver": "memory", "size": 512}) as disk:
        with pytest.raises(aioblock.NotSupported):
            await disk.check()


async def test_copy_on_read(tmp_path):
    await aioblock.create(tmp_path / "base", "qcow2", size=MIB)
    async with await aioblock.open(tmp_path / "base", format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"below" * 1000)
    await aioblock.create(tmp_path / "top", "qcow2", {"backing_file": "base", "backing_fmt": "qcow2"})
    async with await aioblock.open(tmp_path / "top", format="qcow2", writable=True, copy_on_read=True) as disk:
        assert await disk.pread(0, 5) == b"below"
    async with await aioblock.open(tmp_path / "top", format="qcow2", backing=False) as disk:
        assert await disk.pread(0, 5) == b"below"
        assert not any(await disk.pread(65536, 512))


async def test_detect_zeroes(tmp_path):
    await aioblock.create(tmp_path / "x", "qcow2", size=MIB)
    async with await aioblock.open(tmp_path / "x", format="qcow2", writable=True, detect_zeroes="on") as disk:
        await disk.pwrite(0, bytes(65536))
        assert [extent.flags & aioblock.DATA async for extent in disk.extents()] == [0, 0]
    with pytest.raises(aioblock.OptionError):
        await aioblock.open(tmp_path / "x", detect_zeroes="maybe")


async def test_bad_arguments_open_nothing(tmp_path):
    for how in ({"cache": "x"}, {"discard": "x"}, {"format": "nosuch"}):
        with pytest.raises(aioblock.OptionError):
            await aioblock.open(tmp_path / "nosuch", **how)
    with pytest.raises(TypeError):
        await aioblock.open(5)

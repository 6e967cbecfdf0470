"""convert by name: what is made holds what the sources hold, or is not there."""

import asyncio
import errno
import os
import subprocess
import sys

import pytest

import aioblock
from tests.api.conftest import MIB, content, fill
from tests.kit.cancel_points import cancelled_at, open_files, settled
from tests.kit.model import ModelDisk, pattern
from tests.kit.oracle import assert_clean, assert_same, qemu_img, require


def _broken(path, offset):
    """A name for an image whose file cannot be read at an offset of the file."""
    return {
        "driver": "raw",
        "file": {
            "driver": "blkdebug",
            "image.driver": "file",
            "image.filename": str(path),
            "inject-error": [{"event": "none", "iotype": "read", "sector": offset // 512, "errno": errno.EIO}],
        },
    }


@pytest.mark.oracle
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_a_chain_becomes_one_image(chain, fmt):
    require("qemu-img")
    await aioblock.convert("top.qcow2", "copy", format=fmt)
    assert await content("copy", fmt) == chain.data
    assert_same("top.qcow2", "copy", ("qcow2", fmt))
    assert (await aioblock.info("copy")).format == fmt


async def test_options_of_the_target(chain):
    await aioblock.convert(
        "top.qcow2", "copy", format="qcow2", options={"cluster_size": "4k", "lazy_refcounts": True}, compressed=True
    )
    found = await aioblock.info("copy")
    assert found.cluster_size == 4096 and found.specific["lazy-refcounts"] is True
    assert await content("copy") == chain.data
    assert os.path.getsize("copy") < 60_000  # the pattern is easy to compress
    assert_clean("copy", "qcow2")


async def test_several_sources_lie_behind_each_other(tmp_path):
    models = [ModelDisk(length) for length in (100_352, 3000, 65536)]
    for number, model in enumerate(models):
        await fill(tmp_path / str(number), "raw", model, [(0, 1000), (2000, 1000)], number)
    sources = [tmp_path / str(number) for number in range(3)]
    await aioblock.convert(sources, tmp_path / "all", source_format="raw")
    expected = models[0].data + models[1].data.ljust(3072, b"\0") + models[2].data
    assert await content(tmp_path / "all", "raw") == expected


async def test_an_overlay_becomes_an_overlay(chain):
    options = {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    await aioblock.convert("top.qcow2", "copy", format="qcow2", options=options)
    assert await content("copy") == chain.data
    async with await aioblock.open("copy") as disk:
        assert not (await disk.block_status(MIB, MIB)).flags & aioblock.ALLOCATED
        assert (await disk.block_status(3 * MIB, 1000)).flags & aioblock.ALLOCATED
    with pytest.raises(aioblock.OptionError, match="no sense when concatenating"):
        await aioblock.convert(["top.qcow2", "base.qcow2"], "new", format="qcow2", options=options)
    with pytest.raises(aioblock.OptionError, match="explicit backing format"):
        await aioblock.convert("top.qcow2", "new", format="qcow2", options={"backing_file": "base.qcow2"})
    assert not os.path.exists("new")


async def test_layers_above_a_base(chain):
    """Two layers become one, over what lies below them."""
    await aioblock.create("tip.qcow2", "qcow2", {"backing_file": "top.qcow2", "backing_fmt": "qcow2"})
    async with await aioblock.open("tip.qcow2", format="qcow2", writable=True) as disk:
        await disk.pwrite(MIB, b"tip")
        chain.write(MIB, b"tip")
    options = {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    await aioblock.convert("tip.qcow2", "copy", format="qcow2", options=options, base="base.qcow2")
    assert await content("copy") == chain.data
    with pytest.raises(aioblock.JobError, match="Did not find 'nosuch'"):
        await aioblock.convert("tip.qcow2", "new", format="qcow2", options=options, base="nosuch")


async def test_what_a_backing_file_cannot_give(chain):
    options = {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    with pytest.raises(ValueError, match="does not move along"):
        await aioblock.convert("top.qcow2", "new", format="qcow2", options=options, skip=65536)
    with pytest.raises(ValueError, match="leaves the rest"):
        await aioblock.convert("top.qcow2", "new", base="base.qcow2")
    await aioblock.create("copy", "qcow2", options)
    async with await aioblock.open("copy", format="qcow2", writable=True) as disk:
        with pytest.raises(ValueError, match="does not move along"):
            await aioblock.convert("top.qcow2", disk, keep_backing=True, skip=65536)
        with pytest.raises(ValueError, match="leaves the rest"):
            await aioblock.convert("top.qcow2", disk, base="base.qcow2")
        await aioblock.convert("top.qcow2", disk, keep_backing=True, base="base.qcow2", nbytes=MIB)
        assert await disk.pread(0, MIB) == chain.data[:MIB]
    assert not os.path.exists("new")


async def test_the_caller_is_trusted_with_names_elsewhere(chain, tmp_path):
    """A backing file outside the directory of the target was named by the caller, not by an image."""
    (tmp_path / "below").mkdir()
    options = {"backing_file": str(tmp_path / "base.qcow2"), "backing_fmt": "qcow2"}
    await aioblock.convert("top.qcow2", "below/copy", format="qcow2", options=options)
    with pytest.raises(aioblock.UntrustedReference):
        await aioblock.open("below/copy")
    async with await aioblock.open("below/copy", trust=aioblock.TRUST_ALL) as disk:
        assert await disk.pread(0, disk.length) == chain.data


async def test_a_part_only(chain):
    await aioblock.convert("top.qcow2", "part", skip=40_000, nbytes=100_000)
    assert await content("part", "raw") == chain.data[40_000:140_000]
    await aioblock.convert("top.qcow2", "rest", skip=4 * MIB - 100)
    assert await content("rest", "raw") == chain.data[-100:]


async def test_open_images_stay_open(chain):
    await aioblock.create("copy", "raw", size=4 * MIB)
    async with (
        await aioblock.open("top.qcow2") as source,
        await aioblock.open("copy", format="raw", writable=True) as target,
    ):
        await aioblock.convert(source, target)
        assert await target.pread(0, 4 * MIB) == await source.pread(0, 4 * MIB) == chain.data
        await aioblock.convert(source, "other", format="qcow2")
        with pytest.raises(ValueError, match="for a target that is made"):
            await aioblock.convert(source, target, format="raw")
    assert await content("other") == chain.data


@pytest.mark.parametrize("more", [{"keep_backing": True}, {"target_is_zero": True}])
async def test_what_only_an_open_target_can_know(chain, more):
    with pytest.raises(ValueError, match="open target"):
        await aioblock.convert("top.qcow2", "new", **more)


async def test_a_snapshot_is_a_source(chain):
    await aioblock.snapshot_create("top.qcow2", "before", format="qcow2")
    async with await aioblock.open("top.qcow2", format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"afterwards")
    await aioblock.convert("top.qcow2", "copy", snapshot="before")
    assert await content("copy", "raw") == chain.data


async def test_progress_ends_at_the_total(chain):
    told = []
    await aioblock.convert("top.qcow2", "copy", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0 and told == sorted(told)


async def test_bitmaps(chain):
    qemu_img("bitmap", "--add", "top.qcow2", "b")
    qemu_img("bitmap", "--add", "--disable", "-g", "4k", "top.qcow2", "off")
    await aioblock.convert("top.qcow2", "copy", format="qcow2", bitmaps=True)
    assert await aioblock.bitmaps("copy") == await aioblock.bitmaps("top.qcow2")
    with pytest.raises(aioblock.NotSupported, match="does not support bitmaps"):
        await aioblock.convert("top.qcow2", "new", bitmaps=True)
    with pytest.raises(aioblock.NotSupported, match="lacks bitmap support"):
        await aioblock.convert("copy", "new", bitmaps=True, source_format="raw")
    assert not os.path.exists("new")


@pytest.mark.slow
async def test_an_encrypted_target(chain):
    secret = {"s": aioblock.Secret(b"word")}
    options = {"encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 10}
    await aioblock.convert("top.qcow2", "copy", format="qcow2", options=options, objects=secret)
    name = {"driver": "qcow2", "file.filename": "copy", "encrypt.key-secret": "s"}
    assert await aioblock.compare("top.qcow2", name, objects=secret) is None
    with pytest.raises(aioblock.OptionError, match="encryption not supported at the same time"):
        await aioblock.convert("top.qcow2", "x", format="qcow2", options=options, objects=secret, compressed=True)


# what is left where it ends early


@pytest.mark.parametrize("there", [False, True])
async def test_a_source_that_cannot_be_read(tmp_path, there):
    with open(tmp_path / "source", "wb") as file:
        for mib in range(5):
            file.write(pattern(65536, mib) * 16)
    if there:
        (tmp_path / "x").write_bytes(b"was here")
    with pytest.raises(aioblock.PositionedError, match=f"reading at byte {2 * MIB}") as caught:
        await aioblock.convert(_broken(tmp_path / "source", 3 * MIB), tmp_path / "x")
    error = caught.value
    assert error.filename == str(tmp_path / "source") and error.filename in str(error)
    assert (tmp_path / "x").exists() == there
    named = [f"'{tmp_path / 'x'}' was there before, and is incomplete now"] if there else []
    assert getattr(error, "__notes__", []) == named
    assert not open_files(tmp_path)


async def test_which_of_several_sources_it_was(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(pattern(65536, 1))
    names = [tmp_path / "one", _broken(tmp_path / "two", 4096)]
    with pytest.raises(aioblock.PositionedError, match="reading at byte 65536") as caught:
        await aioblock.convert(names, tmp_path / "x", source_format="raw")
    assert (caught.value.source, caught.value.filename) == (1, str(tmp_path / "two"))
    async with await aioblock.open(names[1]) as disk:
        with pytest.raises(aioblock.PositionedError) as caught:
            await aioblock.convert(disk, tmp_path / "x")
    assert caught.value.filename is None and not (tmp_path / "x").exists()


@pytest.mark.slow
async def test_a_target_that_cannot_be_written(tmp_path):
    """Its name is told, and the file that is too large for the limit is gone."""
    (tmp_path / "source").write_bytes(pattern(65536, 1))
    code = (
        "import asyncio, resource, signal, sys, aioblock\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        "    asyncio.run(aioblock.convert(sys.argv[1], sys.argv[2], format='qcow2'))\n"
        "except aioblock.PositionedError as error:\n"
        "    print(error.action, error.filename, error.error.errno)\n"
    )
    argv = [sys.executable, "-c", code, tmp_path / "source", tmp_path / "x"]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"write {tmp_path / 'x'} {errno.EFBIG}\n"
    assert os.listdir(tmp_path) == ["source"]


async def test_what_cannot_be_read_becomes_zeroes_where_that_is_asked_for(tmp_path):
    model = ModelDisk(MIB, pattern(MIB, 1))
    (tmp_path / "source").write_bytes(model.data)
    lost = []
    name = _broken(tmp_path / "source", 65536)
    await aioblock.convert(name, tmp_path / "x", salvage=lambda offset, error: lost.append((offset, error.errno)))
    assert lost == [(65536, errno.EIO)]
    model.zero(65536, 512)
    assert await content(tmp_path / "x", "raw") == model.data


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": "nosuch"}, "Unknown driver 'nosuch'"),
        ({"options": {"nonsense": 1}}, "Invalid parameter 'nonsense'"),
        ({"compressed": True}, "Compression not supported"),
        ({"source_format": "nosuch"}, "Unknown driver 'nosuch'"),
        ({"format": "null-co"}, "does not support image creation"),
    ],
)
async def test_what_is_wrong_from_the_beginning_touches_nothing(chain, more, message):
    with open("old", "wb") as old:
        old.write(b"old")
    for target in ("old", "new"):
        with pytest.raises((OSError, aioblock.BlockError), match=message) as caught:
            await aioblock.convert("top.qcow2", target, **more)
        assert not getattr(caught.value, "__notes__", [])
    with open("old", "rb") as old:
        assert old.read() == b"old"
    assert not os.path.exists("new")


async def test_a_target_that_is_in_use(chain):
    """It belongs to somebody else, and stays as it is."""
    await aioblock.create("used", "qcow2", size=MIB)
    async with await aioblock.open("used", format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"mine")
        with pytest.raises(BlockingIOError, match="used"):
            await aioblock.convert("top.qcow2", "used", format="qcow2")
        assert await disk.pread(0, 4) == b"mine"


@pytest.mark.parametrize("more", [{}, {"force_share": True}])
@pytest.mark.parametrize("name", ["base.raw", "link", "./base.raw", "file:base.raw"])
async def test_a_target_that_is_read_meanwhile(tmp_path, monkeypatch, name, more):
    """Neither a source nor what lies below it, under whatever name, is overwritten."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.raw").write_bytes(b"x" * 65536)
    os.link("base.raw", "link")
    await aioblock.create("top.qcow2", "qcow2", {"backing_file": "base.raw", "backing_fmt": "raw"})
    for source in ("base.raw", "top.qcow2"):
        with pytest.raises(aioblock.OptionError, match="read as"):
            await aioblock.convert(source, name, **more)
        with pytest.raises(aioblock.OptionError, match="read as"):
            await aioblock.convert(source, "new", format="qcow2", options={"data_file": name}, **more)
    assert (tmp_path / "base.raw").read_bytes() == b"x" * 65536
    assert not os.path.exists("new")


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_cancelled_at_every_await(tmp_path, fmt, again):
    """No half-made file, nothing open and nothing running, wherever it is cancelled."""
    model = ModelDisk(3 * 65536)
    await fill(tmp_path / "source", "qcow2", model, [(0, 5000), (100_000, 60_000)], 1)
    target = tmp_path / "x"
    number = 1
    tasks = len(asyncio.all_tasks())
    while True:
        converting = aioblock.convert(tmp_path / "source", target, format=fmt, workers=2)
        run = await cancelled_at(converting, number, again=again)
        assert len(asyncio.all_tasks()) == tasks
        await settled(lambda: not open_files(tmp_path))
        if not run.cancelled:
            break
        assert os.listdir(tmp_path) == ["source"], number
        number += 1
    assert number > 20 and run.error is None
    assert await content(target, fmt) == model.data


@pytest.mark.slow
async def test_cancelled_at_every_await_over_a_file(tmp_path):
    """A file that was there stays; what is known to be untouched is not called incomplete."""
    model = ModelDisk(65536)
    await fill(tmp_path / "source", "raw", model, [(0, 5000)], 1)
    target, said = tmp_path / "x", set()
    number = 1
    while True:
        target.write_bytes(b"was here")
        os.utime(target, (1, 1))
        done: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

        async def convert(done=done):
            try:
                await aioblock.convert(tmp_path / "source", target, source_format="raw")
            except asyncio.CancelledError as error:
                done.set_result(getattr(error, "__notes__", []))
                raise

        run = await cancelled_at(convert(), number)
        if not run.cancelled:
            break
        touched = target.read_bytes() != b"was here"
        notes = await done
        assert notes == ([f"'{target}' was there before, and is incomplete now"] if touched else [])
        said.add(touched)
        number += 1
    assert said == {False, True}
    assert await content(target, "raw") == model.data


async def test_nobody_may_write_meanwhile(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(4096))
    async with await aioblock.open(path, format="raw", share_write=False):
        with pytest.raises(BlockingIOError):
            await aioblock.open(path, format="raw", writable=True)
        async with await aioblock.open(path, format="raw", share_write=False):
            pass
    async with await aioblock.open(path, format="raw", writable=True):
        with pytest.raises(BlockingIOError):
            await aioblock.open(path, format="raw", share_write=False)

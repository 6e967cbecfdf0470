"""Reopen: between read-only and writable and between cache modes, whole or not at all."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.base.flags import PERM_WRITE
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.graph.reopen import cache_mode
from tests.kit.cancel_points import cancelled_at, open_files
from tests.kit.oracle import assert_clean, qemu_io, require
from tests.kit.scripted import Script, layers_of, opened
from tests.kit.watching import assert_idle, until

MIB = 1 << 20
FORMATS = pytest.mark.parametrize("fmt", ["raw", "qcow2"])
MODES = {
    "none": (True, False, True),
    "off": (True, False, True),
    "writeback": (False, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
    "unsafe": (False, True, True),
}


def flags_of(mode):
    return mode.direct, mode.no_flush, mode.writeback


@pytest.fixture
async def image(tmp_path, fmt):
    path = tmp_path / f"x.{fmt}"
    await aioblock.create(path, fmt, size=MIB)
    return path


@pytest.mark.parametrize("name", MODES)
def test_cache_modes(name):
    assert flags_of(cache_mode(name)) == MODES[name]


def test_an_unknown_cache_mode():
    with pytest.raises(OptionError, match="Invalid cache mode 'maybe'"):
        cache_mode("maybe")


@FORMATS
async def test_read_only_to_writable_and_back(image, fmt):
    async with await aioblock.open(image, format=fmt) as disk:
        with pytest.raises(PermissionError):
            await disk.pwrite(0, b"x")
        await disk.reopen(writable=True)
        assert disk.writable and not disk.node.file.node.read_only
        await disk.pwrite(0, b"hello")
        await disk.flush()
        await disk.reopen(writable=False)
        assert not disk.writable and disk.node.file.node.read_only
        with pytest.raises(PermissionError):
            await disk.pwrite(0, b"x")
        assert await disk.pread(0, 5) == b"hello"
        assert open_files(image.parent) == [os.fspath(image)]
        await disk.reopen(writable=True)
        await disk.pwrite(5, b"again")
    async with await aioblock.open(image, format=fmt) as disk:
        assert await disk.pread(0, 10) == b"helloagain"


@FORMATS
async def test_to_read_only_what_was_written_is_in_the_file(image, fmt):
    async with await aioblock.open(image, format=fmt, writable=True) as disk:
        await disk.pwrite(70000, b"hello")
        await disk.reopen(writable=False)
        async with await aioblock.open(image, format=fmt) as other:
            assert await other.pread(70000, 5) == b"hello"


@pytest.mark.oracle
@pytest.mark.parametrize("fmt", ["qcow2"])
async def test_others_see_the_mode_by_the_locks(image, fmt):
    require("qemu-io")
    async with await aioblock.open(image, format=fmt, writable=True) as disk:
        assert qemu_io(image, "length", fmt=fmt, options=["-r"], check=False).returncode != 0
        await disk.reopen(writable=False)
        qemu_io(image, "read 0 512", fmt=fmt, options=["-r"])
        assert qemu_io(image, "length", fmt=fmt, check=False).returncode != 0
        await disk.reopen(writable=True)
        assert qemu_io(image, "length", fmt=fmt, options=["-r"], check=False).returncode != 0
        await disk.pwrite(0, b"x")
    assert_clean(image, fmt)


@FORMATS
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "unsafe"])
async def test_cache_modes_change(image, fmt, cache):
    async with await aioblock.open(image, format=fmt, writable=True) as disk:
        await disk.pwrite(0, b"before")
        await disk.reopen(cache=cache)
        for node in (disk.node, disk.node.file.node):
            assert flags_of(node.cache) == MODES[cache]
        assert disk.writable
        await disk.pwrite(6, b"after")
        assert await disk.pread(0, 11) == b"beforeafter"


async def test_writethrough_flushes_from_then_on():
    script = Script(4096)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        await disk.reopen(cache="writethrough")
        before = len(script.calls("flush"))
        await disk.pwrite(0, b"x")
        assert len(script.calls("flush")) == before + 1
        await disk.reopen(cache="writeback")
        before = len(script.calls("flush"))
        await disk.pwrite(0, b"x")
        assert len(script.calls("flush")) == before


async def test_layers_below_stay_read_only(tmp_path):
    await aioblock.create(tmp_path / "b", "qcow2", size=MIB)
    await aioblock.create(tmp_path / "a", "qcow2", {"backing_file": "b", "backing_fmt": "qcow2"})
    async with await aioblock.open(tmp_path / "a", format="qcow2") as disk:
        await disk.reopen(writable=True)
        top, below = layers_of(disk)
        assert (top.read_only, top.file.node.read_only) == (False, False)
        assert (below.read_only, below.file.node.read_only) == (True, True)
        await disk.pwrite(0, b"x")
        await disk.reopen(writable=False)


async def test_it_drains_and_flushes_first():
    script = Script(4096)
    script.hold("pwritev")
    async with opened(script, writable=True) as disk:
        writing = asyncio.create_task(disk.pwrite(0, b"x"))
        await until(lambda: script.held)
        reopening = asyncio.create_task(disk.reopen(writable=False))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reopening.done() and disk.writable
        late = asyncio.create_task(disk.pwrite(1, b"y"))
        await asyncio.sleep(0)
        script.release()
        await asyncio.gather(writing, reopening)
        assert len(script.calls("flush")) == 1
        with pytest.raises(PermissionError):  # it came after the reopen
            await late
        assert_idle(disk)


@pytest.mark.parametrize("fmt", ["qcow2"])
async def test_a_lock_conflict_keeps_the_old_mode(image, fmt):
    async with await aioblock.open(image, format=fmt) as disk, await aioblock.open(image, format=fmt) as other:
        for _ in range(2):
            with pytest.raises(OSError, match="lock") as caught:
                await disk.reopen(writable=True)
            assert caught.value.errno == errno.EAGAIN
            assert not disk.writable and disk.node.file.node.read_only
            assert not any(edge.perm & PERM_WRITE for edge in disk.node.file.node.parents)
            assert len(await disk.pread(0, 512)) == 512
        assert len(open_files(image.parent)) == 2
        await other.close()
        await disk.reopen(writable=True)
        await disk.pwrite(0, b"x")


@pytest.mark.parametrize("fmt", ["qcow2"])
async def test_a_driver_that_refuses_keeps_the_old_mode_and_the_old_locks(image, fmt, monkeypatch):
    """The storage is writable by then, and its locks are taken: both are given back."""
    really = Qcow2Driver.reopen

    async def refusing(self, *, read_only, direct, no_flush):
        raise OSError(errno.EIO, "Input/output error")

    async with await aioblock.open(image, format=fmt) as disk:
        monkeypatch.setattr(Qcow2Driver, "reopen", refusing)
        with pytest.raises(OSError, match="Input/output error"):
            await disk.reopen(writable=True, cache="unsafe")
        assert not disk.writable and disk.node.file.node.read_only
        assert flags_of(disk.node.cache) == flags_of(disk.node.file.node.cache) == MODES["writeback"]
        async with await aioblock.open(image, format=fmt):  # no lock of a writer is left
            pass
        monkeypatch.setattr(Qcow2Driver, "reopen", really)
        await disk.reopen(writable=True)

    async with await aioblock.open(image, format=fmt, writable=True) as disk:
        monkeypatch.setattr(Qcow2Driver, "reopen", refusing)
        with pytest.raises(OSError, match="Input/output error"):
            await disk.reopen(writable=False)
        assert disk.writable
        monkeypatch.setattr(Qcow2Driver, "reopen", really)
        await disk.pwrite(0, b"still writable")
        with pytest.raises(OSError, match="lock"):
            await aioblock.open(image, format=fmt)


@pytest.mark.slow
@FORMATS
async def test_cancelled_at_every_await_the_mode_is_one_or_the_other(image, fmt):
    async with await aioblock.open(image, format=fmt) as disk:
        for writable in (True, False):
            number = 1
            while True:
                await disk.reopen(writable=not writable)
                run = await cancelled_at(disk.reopen(writable=writable), number)
                await until(lambda: not disk._tasks, turns=100_000)
                assert run.error is None
                assert disk.node.read_only == disk.node.file.node.read_only
                if disk.writable:
                    await disk.pwrite(0, b"x")
                    await disk.flush()
                assert len(open_files(image.parent)) == 1
                assert disk.node.quiesced == 0
                if not run.reached:
                    break
                number += 1
            assert disk.writable is writable


async def test_nothing_asked_nothing_changed():
    script = Script(4096)
    async with opened(script, writable=True) as disk:
        await disk.reopen()
        assert disk.writable and flags_of(disk.node.cache) == MODES["writeback"]
        with pytest.raises(OptionError):
            await disk.reopen(cache="maybe")


async def test_a_flush_that_failed_is_forgotten_by_opening_anew():
    """Only where the image was read-only meanwhile: what was lost is not hidden."""
    script = Script(4096)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.fail("flush", OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError):
            await disk.flush()
        with pytest.raises(OSError):
            await disk.reopen(cache="unsafe")
        with pytest.raises(OSError):
            await disk.reopen(writable=False)
        with pytest.raises(OSError):
            await disk.close()


async def test_runtime_options_are_laid_over_those_of_the_opening(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    await aioblock.create(image, "qcow2", {"cluster_size": 512}, size=1 << 20)
    async with await aioblock.open(image, format="qcow2", writable=True, options={"l2-cache-size": 4096}) as disk:
        state = disk.node.driver.image  # type: ignore[attr-defined]
        assert (state.l2.limit, state.options.lazy_refcounts) == (8, False)
        await disk.reopen(options={"lazy-refcounts": True})
        assert (state.l2.limit, state.options.lazy_refcounts) == (8, True)
        await disk.reopen(options={"l2-cache-size": 8192})
        assert (state.l2.limit, state.options.lazy_refcounts) == (16, False)


async def test_a_bad_option_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    await aioblock.create(image, "qcow2", size=1 << 20)
    async with await aioblock.open(image, format="qcow2", writable=True) as disk:
        state = disk.node.driver.image  # type: ignore[attr-defined]
        for options in ({"lazy-refcounts": 42}, {"lazy-refcounts": True, "overlap-check": "blubb"}, {"size": 5}):
            with pytest.raises(aioblock.OptionError):
                await disk.reopen(writable=False, options=options)
            assert disk.writable
            assert not state.options.lazy_refcounts


async def test_discard_and_detect_zeroes(tmp_path):
    path = tmp_path / "x.qcow2"
    await aioblock.create(path, "qcow2", size=MIB)
    async with await aioblock.open(path, format="qcow2", writable=True, discard="ignore") as disk:
        nodes = [disk.node, disk.node.file.node]
        await disk.reopen(options={"discard": "unmap", "detect-zeroes": "unmap"})
        assert [node.unmap for node in nodes] == [True, True] and disk.node.detect_zeroes == "unmap"
        for options, message in (
            ({"discard": "x"}, "Invalid discard option"),
            ({"detect-zeroes": "x"}, "invalid parameter value: x"),
            ({"discard": "ignore"}, "setting detect-zeroes to unmap is not allowed"),
            ({"detect-zeroes": "off", "foo": "x"}, "Cannot change the option 'foo'"),
        ):
            with pytest.raises(OptionError, match=message):
                await disk.reopen(options=options)
        assert [node.unmap for node in nodes] == [True, True] and disk.node.detect_zeroes == "unmap"
        await disk.pwrite(0, bytes(65536))
        assert (await disk.block_status(0, 65536)).flags & aioblock.ZERO


async def test_what_could_not_be_reopened_discards_as_before(tmp_path, monkeypatch):
    async def refuse(**mode):
        raise OSError(errno.EACCES, "no")

    path = tmp_path / "x.raw"
    path.write_bytes(bytes(4096))
    async with await aioblock.open(path, format="raw", discard="ignore") as disk:
        monkeypatch.setattr(disk.node.driver, "reopen", refuse)
        with pytest.raises(OSError, match="no"):
            await disk.reopen(writable=True, options={"discard": "unmap", "detect-zeroes": "on"})
        assert (disk.node.unmap, disk.node.file.node.unmap, disk.node.detect_zeroes) == (False, False, "off")


async def test_options_of_children_may_only_be_repeated(tmp_path):
    path = tmp_path / "x.qcow2"
    await aioblock.create(tmp_path / "base.qcow2", "qcow2", size=MIB)
    await aioblock.create(path, "qcow2", {"backing_file": "base.qcow2", "backing_fmt": "qcow2"})
    names = {"node-name": "top", "file.node-name": "f", "backing.node-name": "b"}
    async with await aioblock.open(path, format="qcow2", options=names) as disk:
        await disk.reopen(options=names | {"driver": "qcow2", "file.driver": "file", "backing.file.driver": "file"})
        for name in (
            "driver",
            "file.driver",
            "backing.driver",
            "backing.file.driver",
            *names,
            "backing.foo",
            "foo.bar",
        ):
            with pytest.raises(OptionError, match=f"Cannot change the option '.*{name.rpartition('.')[2]}'"):
                await disk.reopen(options={name: "other"})


async def test_another_range_of_a_raw_file(tmp_path):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(1024) + b"a" * 1024 + b"b" * 2048)
    async with await aioblock.open(path, format="raw", options={"offset": 1024}, writable=True) as disk:
        await disk.bitmap_add("dirty", persistent=False)
        await disk.reopen(options={"size": 2048})
        assert disk.length == 2048 and await disk.pread(1020, 8) == b"aaaabbbb"
        for options, message in (
            ({"size": 4096}, "has to be smaller or equal"),
            ({"offset": 5000}, "cannot be greater than size"),
            ({"size": 1000}, "not multiple of 512"),
        ):
            with pytest.raises(OptionError, match=message):
                await disk.reopen(options=options)
            assert disk.length == 2048 and await disk.pread(1020, 8) == b"aaaabbbb"
        await disk.pwrite(0, b"x")
        await disk.reopen(options={"offset": 2048, "size": 512})
        assert disk.length == 512 and await disk.pread(0, 512) == b"b" * 512
    assert path.read_bytes()[1024:1026] == b"xa"

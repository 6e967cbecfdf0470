"""Creating images: options checked before anything is touched, sizes, backing files, and what a failure leaves."""

import os

import pytest

import aioblock
from aioblock.base.errors import NotSupported, OptionError, UntrustedReference, message_of
from aioblock.core.images import CreateOption
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.graph.creating import typed_options
from tests.kit.cancel_points import cancelled_at, open_files, settled
from tests.kit.oracle import assert_clean, qemu_img, require

MIB = 1 << 20
KNOWN = (
    CreateOption("size", "size", "s"),
    CreateOption("count", "int", "c"),
    CreateOption("flag", "bool", "f"),
    CreateOption("text", "str", "t"),
)


def test_options_take_their_kinds():
    values = typed_options(KNOWN, {"size": "64k", "count": "5", "flag": "on", "text": "x"})
    assert values == {"size": 65536, "count": 5, "flag": True, "text": "x"}
    assert typed_options(KNOWN, values) == values
    assert typed_options(KNOWN, {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "abc"}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"size": 1 << 64}, f"Value '{1 << 64}' is out of range for parameter 'size'"),
        ({"size": True}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"size": -1}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"count": "x"}, "Parameter 'count' expects a number"),
        ({"flag": "maybe"}, "Parameter 'flag' expects 'on' or 'off'"),
        ({"text": 5}, "Parameter 'text' expects a string"),
        ({"nosuch": 1}, "Invalid parameter 'nosuch'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError) as caught:
        typed_options(KNOWN, options)
    assert message_of(caught.value).splitlines()[0] == message
    assert caught.value.option == next(iter(options))


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_what_is_made_is_what_qemu_img_makes(tmp_path, fmt):
    require("qemu-img")
    for size in (0, 512, 65536, MIB + 512):
        await aioblock.create(tmp_path / "ours", fmt, size=size)
        qemu_img("create", "-q", "-f", fmt, tmp_path / "theirs", str(size))
        qemu_img("compare", "-s", "-f", fmt, "-F", fmt, tmp_path / "ours", tmp_path / "theirs")
        if fmt == "qcow2":
            assert_clean(tmp_path / "ours", fmt)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("qcow2", "nosuch=1"),
        ("qcow2", "cluster_size=abc"),
        ("qcow2", "cluster_size=16E"),
        ("qcow2", "lazy_refcounts=1,cluster_size=abc"),
        ("qcow2", "lazy_refcounts=maybe"),
        ("qcow2", "refcount_bits=x"),
        ("qcow2", "extent_size_hint=x"),
        ("raw", "nosuch=foo"),
        ("raw", "nocow=maybe"),
        ("raw", "preallocation=foo"),
    ],
)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_messages_are_those_of_qemu_img(tmp_path, fmt, options):
    path = tmp_path / "x"
    said = qemu_img("create", "-f", fmt, "-o", options, path, "1M", check=False)
    expected = said.stderr.rstrip("\n").removeprefix(f"qemu-img: {path}: ")
    path.unlink(missing_ok=True)
    with pytest.raises(OptionError) as caught:
        await aioblock.create(path, fmt, aioblock.parse_keyval(options), size=MIB)
    assert message_of(caught.value) == expected
    if fmt == "qcow2":
        assert not path.exists()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_a_size_that_no_file_can_have(tmp_path, fmt):
    with pytest.raises(OptionError, match="2\\^63 bytes"):
        await aioblock.create(tmp_path / "x", fmt, size=1 << 63)
    assert not (tmp_path / "x").exists()


async def test_nothing_is_touched_by_options_that_make_no_sense(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"precious")
    for fmt, options in (("qcow2", {"nosuch": 1}), ("raw", {"size": "abc"}), ("nosuch", {"size": 1}), ("qcow2", {})):
        with pytest.raises(OptionError):
            await aioblock.create(path, fmt, options)
        assert path.read_bytes() == b"precious"
    with pytest.raises(NotSupported):
        await aioblock.create(path, "copy-on-read", size=5)
    with pytest.raises(OptionError, match="Unknown protocol 'nope'"):
        await aioblock.create("nope:x", "raw", size=5)
    with pytest.raises(NotSupported):
        await aioblock.create("null-co://", "raw", size=5)
    assert path.read_bytes() == b"precious"


async def test_the_size_is_an_option_or_an_argument(tmp_path):
    for how in ({"size": 65536}, {"options": {"size": "64k"}}, {"options": {"size": 1}, "size": 65536}):
        await aioblock.create(tmp_path / "x", "raw", **how)
        assert (tmp_path / "x").stat().st_size == 65536
    with pytest.raises(OptionError, match="Image creation needs a size parameter"):
        await aioblock.create(tmp_path / "x", "raw")


async def test_the_size_of_the_backing_file(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "base.raw").write_bytes(bytes(3 * 65536))
    monkeypatch.chdir(tmp_path)
    for name in ("d/x", os.fspath(tmp_path / "d" / "x"), "file:d/x"):
        await aioblock.create(name, "qcow2", {"backing_file": "base.raw", "backing_fmt": "raw"})
        async with await aioblock.open(name) as disk:
            assert disk.length == 3 * 65536
            assert disk.node.backing_name == ("base.raw", "raw")
    with pytest.raises(FileNotFoundError):
        await aioblock.create("y", "qcow2", {"backing_file": "nosuch", "backing_fmt": "raw"})
    assert not os.path.exists("y")
    with pytest.raises(OptionError, match="Unknown driver"):
        await aioblock.create("y", "qcow2", {"backing_file": "d/base.raw", "backing_fmt": "nosuch"})


async def test_a_file_in_use_is_left_alone(tmp_path):
    path = tmp_path / "x.qcow2"
    await aioblock.create(path, "qcow2", size=MIB)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"precious")
        for fmt in ("qcow2", "raw"):
            with pytest.raises(OSError, match="lock"):
                await aioblock.create(path, fmt, size=MIB)
        assert await disk.pread(0, 8) == b"precious"
    async with await aioblock.open(path) as disk:
        assert await disk.pread(0, 8) == b"precious"


async def test_a_failure_closes_the_file(tmp_path, monkeypatch):
    async def failing(file, options):
        await file.pwrite(0, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Qcow2Driver, "create", failing)
    with pytest.raises(OSError, match="No space left"):
        await aioblock.create(tmp_path / "x", "qcow2", size=MIB)
    assert open_files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_every_await_the_file_is_closed(tmp_path, again):
    number = 1

    def path():
        return tmp_path / str(number)  # a thread that was left alone may still have the one before

    while (run := await cancelled_at(aioblock.create(path(), "qcow2", size=MIB), number, again=again)).reached:
        assert run.error is None
        number += 1
    assert run.error is None
    assert number > 4
    await settled(lambda: not open_files(tmp_path))
    async with await aioblock.open(path(), format="qcow2", writable=True):
        pass


def test_create_options():
    names = [option.name for option in aioblock.create_options("qcow2")]
    assert names[0] == "size" or "size" in names
    assert {"cluster_size", "backing_file", "extent_size_hint"} <= set(names)
    assert len(names) == len(set(names))
    assert [option.name for option in aioblock.create_options("raw", "x")]
    with pytest.raises(OptionError):
        aioblock.create_options("nosuch")
    with pytest.raises(NotSupported):
        aioblock.create_options("copy-on-read")


async def test_names_inside_the_backing_file_are_not_trusted(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "secret").write_bytes(bytes(512))
    await aioblock.create(tmp_path / "d" / "b", "qcow2", {"backing_file": "../secret", "backing_fmt": "raw"}, size=512)
    options = {"backing_file": "b", "backing_fmt": "qcow2"}
    with pytest.raises(UntrustedReference):
        await aioblock.create(tmp_path / "d" / "x", "qcow2", options)
    await aioblock.create(tmp_path / "d" / "x", "qcow2", options, trust=aioblock.TRUST_ALL)
    async with await aioblock.open(tmp_path / "d" / "x", trust=aioblock.TRUST_ALL) as disk:
        assert disk.length == 512


async def test_wrong_options_leave_the_file_that_is_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"precious")
    with pytest.raises(OptionError):
        await aioblock.create(path, "qcow2", {"cluster_size": 100}, size=1 << 20)
    assert path.read_bytes() == b"precious"

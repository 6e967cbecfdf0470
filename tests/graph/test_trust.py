"""The trust policy: what names inside images can reach, with each policy. Nothing else is opened, or even tried."""

import json
import os
import socket

import pytest

import aioblock
from aioblock.base.errors import BlockError, InvalidImage, OptionError, UntrustedReference, message_of
from aioblock.core import registry
from aioblock.core.images import InnerName, Role
from aioblock.graph.trust import TRUST_ALL, TRUST_DIRECTORY, TRUST_NONE, Reference
from tests.kit.cancel_points import open_files
from tests.kit.oracle import qemu_img, require
from tests.kit.scripted import Script, ScriptedDriver, layers_of

MIB = 1 << 20
PLACEHOLDER = "B" * 200


@pytest.fixture
def house(tmp_path):
    """A directory for images, `house/images`, with things in it and around it."""
    images = tmp_path / "house" / "images"
    (images / "below").mkdir(parents=True)
    for path in (
        images / "base.raw",
        images / "below" / "base.raw",
        tmp_path / "house" / "secret",
        tmp_path / "secret",
    ):
        path.write_bytes(b"\1" * 65536)
    (images / "out").symlink_to("../secret")
    (images / "in").symlink_to("below/base.raw")
    (images / "dir-out").symlink_to("..")
    os.mkfifo(images / "fifo")
    (tmp_path / "house" / "images-of-others").mkdir()
    (tmp_path / "house" / "images-of-others" / "x").write_bytes(b"\1" * 65536)
    return images


@pytest.fixture
def touched(monkeypatch):
    """The paths that are opened, and the hosts that are asked for."""
    seen = []
    really = os.open

    def recording(path, *args, **kwargs):
        seen.append(os.path.realpath(path))
        return really(path, *args, **kwargs)

    def no_network(*args, **kwargs):
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(os, "open", recording)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return seen


async def image_naming(path, name, fmt="raw"):
    """An image whose backing file is called that, whatever `create` may think of it."""
    raw_name = os.fsencode(name)
    await aioblock.create(path, "qcow2", {"backing_file": PLACEHOLDER, "backing_fmt": "vvv"}, size=65536)
    content = bytearray(path.read_bytes())
    at = content.index(PLACEHOLDER.encode())
    content[at : at + len(raw_name)] = raw_name
    content[16:20] = len(raw_name).to_bytes(4, "big")  # the length of the name in the header
    if fmt is None:
        content[content.index(bytes.fromhex("e2792aca"))] ^= 0x0F
    else:
        assert len(fmt) <= 8
        where = content.index(b"vvv")
        content[where - 4 : where] = len(fmt).to_bytes(4, "big")
        content[where : where + 8] = fmt.encode().ljust(8, b"\0")
    path.write_bytes(content)
    return path


async def outcome(path, touched, **how):
    """What became of opening: the chain, or the error. All is closed again."""
    touched.clear()
    try:
        async with await aioblock.open(path, format="qcow2", **how) as disk:
            found = [node.filename for node in layers_of(disk)]
            await disk.pread(0, 512)
            return found
    except (OSError, BlockError) as error:
        return error
    finally:
        # A FIFO held open without a partner, a socket, a descriptor duplicated: none of it.
        assert open_files(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(path))))) == []


OUTSIDE = [
    "../secret",
    "below/../../secret",
    "out",
    "dir-out/secret",
    "../images-of-others/x",
    "/dev/null",
    "/dev/zero",
    "/dev/stdin",
    "/etc/passwd",
    "/proc/self/fd/0",
    "/proc/self/mem",
    "file:/etc/passwd",
    "file:../secret",
    "fifo",
    "below",
    ".",
    "",
    "fd:0",
    "nbd:127.0.0.1:10809",
    "nbd://127.0.0.1/x",
    "nbd+unix:///x?socket=/tmp/s",
    "http://127.0.0.1/x",
    "https://127.0.0.1/x",
    "ssh://127.0.0.1/x",
    "null-co://",
    "host_device:/dev/null",
    'json:{"driver":"file","filename":"/etc/passwd"}',
    'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}',
    "json:" + "[" * 180,
    "a:b",
    "base.raw\0",
    "\udcff\udcfe",
    "base.raw\n",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("policy", [TRUST_DIRECTORY, TRUST_NONE])
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_names_that_reach_outside_are_never_opened(house, touched, name, policy, monkeypatch):
    monkeypatch.chdir(house.parent)  # relative to here some would be found
    path = await image_naming(house / "x.qcow2", name)
    for how in ({}, {"writable": True}, {"force_share": True}, {"probe": True}, {"for_check": True}):
        error = await outcome(path, touched, trust=policy, **how)
        assert set(touched) <= {os.fspath(path)}, name
        if name == "" or "\0" in name:  # refused, or as if there were none; by the format
            assert isinstance(error, (list, InvalidImage, OptionError))
        elif name in ("base.raw\n", "\udcff\udcfe") and policy is TRUST_DIRECTORY:
            assert isinstance(error, (FileNotFoundError, InvalidImage))  # the directory's own, had it such a file
        else:
            assert isinstance(error, UntrustedReference) or "\n" in name, (name, error)
            message_of(error).encode(errors="surrogateescape")


async def test_the_image_is_read_nevertheless_without_its_backing_file(house, touched):
    path = await image_naming(house / "x.qcow2", "/etc/passwd")
    assert await outcome(path, touched, backing=False) == [os.fspath(path)]
    assert set(touched) == {os.fspath(path)}


@pytest.mark.parametrize(
    "name", ["base.raw", "./base.raw", "below/base.raw", "in", "below/../base.raw", "dir-out/images/in"]
)
async def test_names_in_or_below_the_directory_are_opened(house, touched, name):
    path = await image_naming(house / "x.qcow2", name)
    assert await outcome(path, touched) == [os.fspath(path), os.path.join(house, name)]
    assert set(touched) == {os.fspath(path), os.path.realpath(house / name)}


async def test_absolute_names_inside_the_directory_are_opened(house, touched):
    for name in (f"{house}/base.raw", f"file:{house}/base.raw"):
        path = await image_naming(house / "x.qcow2", name)
        assert await outcome(path, touched) == [os.fspath(path), f"{house}/base.raw"]


async def test_the_directory_is_that_of_the_image_whichever_way_it_was_named(house, touched, monkeypatch):
    path = await image_naming(house / "x.qcow2", "base.raw")
    outside = await image_naming(house / "y.qcow2", "../secret")
    monkeypatch.chdir(house)
    for directory in ("", "./", "../images/", "dir-out/images/", f"{house}/"):
        assert len(await outcome(directory + path.name, touched)) == 2
        assert isinstance(await outcome(directory + outside.name, touched), UntrustedReference)
    for name in (f"file:{path}", {"driver": "qcow2", "file.filename": os.fspath(path)}):
        async with await aioblock.open(name) as disk:
            assert len(layers_of(disk)) == 2


async def test_each_image_is_asked_about_by_its_own_directory(house, touched):
    """An image below may not name what lies beside the one that names it."""
    await image_naming(house / "below" / "middle.qcow2", "../base.raw")
    path = await image_naming(house / "x.qcow2", "below/middle.qcow2", "qcow2")
    error = await outcome(path, touched)
    assert isinstance(error, UntrustedReference)
    assert error.filename == f"{house}/below/middle.qcow2"
    assert error.reference == "../base.raw"


async def test_the_error_says_what_was_refused(house, touched):
    path = await image_naming(house / "x.qcow2", "../secret")
    error = await outcome(path, touched)
    assert (error.filename, error.reference) == (os.fspath(path), "../secret")
    refused = f"'{path}' names '../secret' as its backing file, and the trust policy forbids that"
    assert message_of(error) == f"Could not open backing file: {refused}"


async def test_a_name_that_is_not_there_is_not_found_rather_than_forbidden(house, touched):
    path = await image_naming(house / "x.qcow2", "later.raw")
    assert isinstance(await outcome(path, touched), FileNotFoundError)


@pytest.mark.parametrize("fmt", ["null-co", "memory", "file"])
async def test_a_protocol_cannot_be_claimed_as_the_format(house, touched, fmt):
    """It would be the protocol's to say what the path means."""
    path = await image_naming(house / "x.qcow2", "base.raw", fmt)
    assert isinstance(await outcome(path, touched), UntrustedReference)


async def test_everything_trusted_follows_names_as_qemu_does(house, touched, tmp_path):
    inner = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": f"{tmp_path}/secret"}})
    for name, file in (
        ("../secret", house.parent / "secret"),
        (f"{tmp_path}/secret", tmp_path / "secret"),
        ("out", house.parent / "secret"),
        (f"json:{inner}", tmp_path / "secret"),
    ):
        path = await image_naming(house / "x.qcow2", name)
        assert len(await outcome(path, touched, trust=TRUST_ALL)) == 2
        assert set(touched) == {os.fspath(path), os.fspath(file)}, name


@pytest.mark.parametrize(
    "name", ["fifo", ".", "nbd:h", "fd:0", "json:{", "json:" + "[" * 190, 'json:{"a": {"\u00b2": 1}}', "a\0b"]
)
async def test_everything_trusted_is_still_a_typed_error(house, touched, name):
    path = await image_naming(house / "x.qcow2", name)
    assert isinstance(await outcome(path, touched, trust=TRUST_ALL), (OSError, BlockError))


async def test_a_fifo_is_not_waited_for(house, touched):
    path = await image_naming(house / "x.qcow2", f"{house}/fifo")
    assert isinstance(await outcome(path, touched, trust=TRUST_ALL), OSError)


async def test_a_callable_decides_and_sees_what_it_needs(house, touched):
    path = await image_naming(house / "x.qcow2", "../secret")
    asked = []

    def policy(reference):
        asked.append(reference)
        return reference.name == "../secret"

    assert len(await outcome(path, touched, trust=policy)) == 2
    assert asked == [Reference(os.fspath(path), Role.BACKING, "../secret", f"{house}/../secret", "raw")]

    path = await image_naming(house / "x.qcow2", "nbd://127.0.0.1/x", None)
    asked.clear()
    assert isinstance(await outcome(path, touched, trust=policy), UntrustedReference)
    assert asked == [Reference(os.fspath(path), Role.BACKING, "nbd://127.0.0.1/x", None, None)]


async def test_a_callable_that_fails(house, touched):
    path = await image_naming(house / "x.qcow2", "base.raw")

    def policy(reference):
        raise LookupError("no such tenant")

    with pytest.raises(LookupError):
        await aioblock.open(path, trust=policy)
    assert open_files(house) == []


async def test_options_of_the_caller_are_not_asked_about(house, touched):
    path = await image_naming(house / "x.qcow2", "nbd://127.0.0.1/x")
    options = {"backing.driver": "raw", "backing.file.filename": os.fspath(house.parent / "secret")}
    assert len(await outcome(path, touched, trust=TRUST_NONE, options=options)) == 2


async def test_create_asks_before_it_looks_at_the_backing_file(house, touched):
    """Without a size the backing file is opened; the name in it is the caller's, names inside that one are not."""
    await image_naming(house / "x.qcow2", "../secret")
    with pytest.raises(UntrustedReference):
        await aioblock.create(house / "y.qcow2", "qcow2", {"backing_file": "x.qcow2", "backing_fmt": "qcow2"})


@pytest.mark.oracle
async def test_images_of_qemu_img(house, touched):
    require("qemu-img")
    for name, trusted in (("base.raw", True), ("../secret", False)):
        qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", house / "q.qcow2")
        found = await outcome(house / "q.qcow2", touched)
        assert isinstance(found, list) is trusted


async def test_an_image_that_lies_nowhere_can_name_nothing(house, touched, monkeypatch):
    """Its content came over some protocol without directories."""
    from aioblock.drivers.protocols.memory import MemoryDisk

    monkeypatch.chdir(house)
    path = await image_naming(house / "x.qcow2", "base.raw")
    disk = MemoryDisk(0, path.read_bytes())
    with pytest.raises(UntrustedReference):
        await aioblock.open({"driver": "qcow2", "file": {"driver": "memory", "disk": disk}})


class NamingDriver(ScriptedDriver):
    """A format whose image names what the script says."""

    name = "scripted-naming"

    @classmethod
    async def open(cls, context):
        return cls(context.options.take("script"), None, await context.open_inner(Role.BACKING, cls.inner))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "dir/\0"])
@pytest.mark.parametrize("policy", [TRUST_ALL, TRUST_DIRECTORY, lambda reference: os.path.exists(reference.path)])
async def test_a_policy_is_never_asked_about_what_cannot_be_a_path(name, policy):
    registry.register(NamingDriver)
    NamingDriver.inner = InnerName(name, "raw")
    try:
        with pytest.raises(OptionError, match="cannot be the name of a file"):
            await aioblock.open({"driver": "scripted-naming", "script": Script(512)}, trust=policy)
    finally:
        del registry._drivers[NamingDriver.name]

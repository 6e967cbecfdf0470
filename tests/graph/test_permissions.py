"""Permissions: who uses a node for what, and keeping one writer from another in this process and in others."""

import errno
import os

import pytest

import aioblock
from aioblock.base.errors import PermissionConflict
from aioblock.base.flags import (
    PERM_ALL,
    PERM_CONSISTENT_READ,
    PERM_RESIZE,
    PERM_WRITE,
    PERM_WRITE_UNCHANGED,
)
from aioblock.blockio.child import Child
from aioblock.core.images import Role
from aioblock.core.registry import find_driver
from aioblock.graph.permissions import attach, child_permissions, detach, root_permissions, update_permissions
from tests.kit.cancel_points import open_files
from tests.kit.oracle import qemu_io, require
from tests.kit.qemu_io_session import holding
from tests.kit.scripted import Script, opened

MIB = 1 << 20
READ, WRITE, UNCHANGED, RESIZE = PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE


# -- the rules -----------------------------------------------------------------------------------------------------


def test_what_a_backend_asks():
    assert root_permissions(writable=False) == (READ, PERM_ALL)
    assert root_permissions(writable=True) == (READ | WRITE, PERM_ALL)
    assert root_permissions(writable=True, resize=True) == (READ | WRITE | RESIZE, PERM_ALL)


@pytest.mark.parametrize(
    ("driver", "role", "perm", "shared", "writable", "asked"),
    [
        ("qcow2", Role.FILE, READ, PERM_ALL, False, (READ, READ | UNCHANGED)),
        ("qcow2", Role.FILE, READ | WRITE, PERM_ALL, True, (READ | WRITE | RESIZE, READ | UNCHANGED)),
        ("qcow2", Role.BACKING, READ | WRITE, PERM_ALL, False, (READ, PERM_ALL)),
        ("qcow2", Role.BACKING, READ, READ, False, (READ, READ | UNCHANGED)),
        ("raw", Role.FILE, READ | WRITE, PERM_ALL, True, (READ | WRITE, PERM_ALL)),
        ("raw", Role.FILE, READ, READ, False, (READ, READ)),
        ("copy-on-read", Role.FILE, READ, PERM_ALL, False, (READ, PERM_ALL)),
    ],
)
def test_what_a_node_asks_of_its_child(driver, role, perm, shared, writable, asked):
    assert child_permissions(find_driver(driver), role, perm, shared, writable=writable) == asked


async def test_edges_that_do_not_agree():
    async with opened(Script(4096)) as disk:
        node = disk.node
        writer = Child(None, None, node, READ | WRITE, READ)
        await attach(writer)
        for perm, shared in ((WRITE, PERM_ALL), (READ, READ)):
            edge = Child(None, None, node, perm, shared)
            with pytest.raises(PermissionConflict, match="does not share 'write'") as caught:
                await attach(edge)
            assert caught.value.node == node.name
            assert edge not in node.parents
        reader = Child(None, None, node, READ, PERM_ALL)
        await attach(reader)
        with pytest.raises(PermissionConflict):
            await update_permissions(reader, READ | WRITE, PERM_ALL)
        assert (reader.perm, reader.shared) == (READ, PERM_ALL)
        await detach(writer)
        await update_permissions(reader, READ | WRITE, READ)
        await detach(reader)
        await detach(reader)  # once is enough
        assert len(node.parents) == 1


async def test_what_the_storage_refuses_is_undone(monkeypatch):
    async with opened(Script(4096)) as disk:
        told = []

        async def refusing(perm, shared):
            told.append((perm, shared))
            if perm & WRITE:
                raise OSError(errno.EAGAIN, "in use")

        monkeypatch.setattr(disk.node.driver, "set_permissions", refusing)
        writer = Child(None, None, disk.node, WRITE, PERM_ALL)
        with pytest.raises(BlockingIOError):
            await attach(writer)
        assert writer not in disk.node.parents
        reader = Child(None, None, disk.node, READ, READ | UNCHANGED)
        await attach(reader)
        assert told[-1] == (READ, READ | UNCHANGED)
        with pytest.raises(BlockingIOError):
            await update_permissions(reader, WRITE, PERM_ALL)
        assert (reader.perm, reader.shared) == (READ, READ | UNCHANGED)
        await detach(reader)
        assert told[-1] == (READ, PERM_ALL)


# -- two opens of one image in this process --------------------------------------------------------------------------


@pytest.fixture
async def image(tmp_path):
    path = tmp_path / "x.qcow2"
    await aioblock.create(path, "qcow2", size=MIB)
    return path


async def refused(path, **how):
    with pytest.raises(OSError) as caught:
        await (await aioblock.open(path, format="qcow2", **how)).close()
    assert caught.value.errno == errno.EAGAIN
    assert "lock" in str(caught.value) and os.fspath(path) in str(caught.value)


async def test_a_second_writer_in_this_process_is_refused(image):
    async with await aioblock.open(image, format="qcow2", writable=True) as disk:
        before = open_files(image.parent)
        await refused(image, writable=True)
        await refused(image)  # what the writer changes, a reader would see half
        assert open_files(image.parent) == before
        async with await aioblock.open(image, format="qcow2", force_share=True):
            pass
        await disk.pwrite(0, b"still mine")
    async with await aioblock.open(image, format="qcow2", writable=True) as disk:
        assert await disk.pread(0, 10) == b"still mine"


async def test_any_number_of_readers_and_no_writer_beside_them(image):
    async with await aioblock.open(image), await aioblock.open(image):
        await refused(image, writable=True)
    async with await aioblock.open(image, format="qcow2", writable=True):
        pass


async def test_a_backing_file_that_is_read_is_not_written(image):
    overlay = image.parent / "o.qcow2"
    await aioblock.create(overlay, "qcow2", {"backing_file": image.name, "backing_fmt": "qcow2"})
    async with await aioblock.open(overlay, format="qcow2", writable=True):
        await refused(image, writable=True)
        async with await aioblock.open(image):
            pass
    async with await aioblock.open(image, format="qcow2", writable=True):
        with pytest.raises(OSError, match="lock") as caught:
            await aioblock.open(overlay, format="qcow2", writable=True)
        assert caught.value.errno == errno.EAGAIN
        assert open_files(image.parent) == [os.fspath(image)]


async def test_raw_images_share_writing(tmp_path):
    """As QEMU's programs do: what reads a raw image can cope with it changing."""
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(4096))
    async with await aioblock.open(path, format="raw", writable=True) as one:
        async with await aioblock.open(path, format="raw", writable=True) as other:
            await one.pwrite(0, b"hello")
            assert await other.pread(0, 5) == b"hello"


async def test_without_locks_nobody_is_kept_away(image):
    how = {"format": "qcow2", "writable": True, "options": {"file.locking": "off"}}
    async with await aioblock.open(image, **how), await aioblock.open(image, options={"file.locking": "off"}):
        pass


# -- another process -------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.slow
async def test_against_qemu_io_in_both_directions(image):
    require("qemu-io")
    modes = {
        "writer": ({"writable": True}, []),
        "reader": ({}, ["-r"]),
        "sharing": ({"force_share": True}, ["-r", "-U"]),
    }
    agree = {("reader", "reader"), ("sharing", "writer"), ("sharing", "reader"), ("sharing", "sharing")}
    agree |= {(second, first) for first, second in agree}
    for theirs, (_, args) in modes.items():
        with holding(image, "-f", "qcow2", *args):
            for ours, (how, _) in modes.items():
                if (ours, theirs) in agree:
                    async with await aioblock.open(image, format="qcow2", **how):
                        pass
                else:
                    await refused(image, **how)
    for ours, (how, _) in modes.items():
        async with await aioblock.open(image, format="qcow2", **how):
            for theirs, (_, args) in modes.items():
                said = qemu_io(image, "length", fmt="qcow2", options=args, check=False)
                assert (said.returncode == 0) is ((ours, theirs) in agree), (ours, theirs, said.stderr)


@pytest.mark.oracle
@pytest.mark.slow
async def test_a_chain_against_qemu_io(image):
    require("qemu-io")
    overlay = image.parent / "o.qcow2"
    await aioblock.create(overlay, "qcow2", {"backing_file": image.name, "backing_fmt": "qcow2"})
    with holding(overlay, "-f", "qcow2"):
        await refused(image, writable=True)
        async with await aioblock.open(image):
            pass
    async with await aioblock.open(overlay, format="qcow2", writable=True):
        said = qemu_io(image, "length", fmt="qcow2", check=False)
        assert said.returncode != 0 and 'Failed to get "write" lock' in said.stderr
        assert qemu_io(image, "length", fmt="qcow2", options=["-r"], check=False).returncode == 0

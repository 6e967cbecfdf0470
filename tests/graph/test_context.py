"""Which driver a node gets, how children are found, and the limits of chains."""

import os

import pytest

import aioblock
from aioblock.base.errors import InvalidImage, OptionError, UntrustedReference, message_of
from aioblock.base.flags import PERM_ALL
from tests.kit.cancel_points import open_files
from tests.kit.oracle import qemu_img, require
from tests.kit.scripted import layers_of

MIB = 1 << 20


async def created(path, size=MIB, *, backing=None, fmt="qcow2", by="aioblock"):
    """A qcow2 image, by one of the two makers."""
    if by == "qemu-img":
        require("qemu-img")
        args = ["-b", backing] if backing else []
        args += ["-F", fmt] if backing and fmt else []
        qemu_img("create", "-q", "-u", "-f", "qcow2", *args, path, str(size))
    else:
        options = {"backing_file": backing} if backing else {}
        options |= {"backing_fmt": fmt} if backing and fmt else {}
        await aioblock.create(path, "qcow2", options, size=size)
    return path


async def on_itself(path, *, by="aioblock"):
    """An image that names itself as its backing file. We refuse to make one, so the name is written afterwards."""
    if by == "qemu-img":
        return await created(path, backing=path.name, by=by)
    await created(path)
    await aioblock.rebase(path, path.name, backing_format="qcow2", unsafe=True, format="qcow2")
    return path


makers = pytest.mark.parametrize("by", ["aioblock", pytest.param("qemu-img", marks=pytest.mark.oracle)])


# -- probing -------------------------------------------------------------------------------------------------------


async def test_the_top_image_of_a_read_only_open_is_probed(tmp_path):
    path = await created(tmp_path / "x.qcow2")
    async with await aioblock.open(path) as disk:
        assert disk.node.driver.name == "qcow2"
    raw = tmp_path / "x.raw"
    raw.write_bytes(bytes(512))
    async with await aioblock.open(raw) as disk:
        assert disk.node.driver.name == "raw"
        assert disk.node.name != disk.node.file.node.name


async def test_the_file_that_was_probed_is_the_one_that_is_used(tmp_path):
    path = await created(tmp_path / "x.qcow2")
    async with await aioblock.open(path) as disk:
        assert open_files(tmp_path) == [os.fspath(path)]
        assert len(disk.node.file.node.parents) == 1


async def test_a_writable_open_without_a_format_is_refused(tmp_path):
    path = await created(tmp_path / "x.qcow2")
    with pytest.raises(OptionError, match="must be given") as caught:
        await aioblock.open(path, writable=True)
    assert caught.value.option == "driver"
    assert open_files(tmp_path) == []
    async with await aioblock.open(path, writable=True, probe=True) as disk:
        assert disk.node.driver.name == "qcow2"


async def test_probing_can_be_forbidden(tmp_path):
    path = await created(tmp_path / "x.qcow2")
    with pytest.raises(OptionError, match="must be given"):
        await aioblock.open(path, probe=False)


@makers
async def test_a_backing_file_without_a_format_is_refused(tmp_path, by):
    base = tmp_path / "base.raw"
    base.write_bytes(b"\1" * MIB)
    if by == "qemu-img":
        path = await created(tmp_path / "x.qcow2", backing="base.raw", by=by)
        require("qemu-img")
        content = bytearray(path.read_bytes())
        at = content.index(bytes.fromhex("e2792aca"))  # the extension that names the format: made one nobody knows
        content[at : at + 4] = b"\x7f\x7f\x7f\x7f"
        path.write_bytes(content)
    else:
        path = await created(tmp_path / "x.qcow2", backing="base.raw", fmt=None)
    with pytest.raises(OptionError, match=r"Could not open backing file: The format of .*base\.raw.* must be given"):
        await aioblock.open(path)
    assert open_files(tmp_path) == []
    async with await aioblock.open(path, probe=True) as disk:
        assert [node.driver.name for node in layers_of(disk)] == ["qcow2", "raw"]
    async with await aioblock.open(path, options={"backing.driver": "raw"}) as disk:
        assert await disk.pread(0, 4) == b"\1" * 4


@makers
async def test_the_format_that_the_image_claims_is_used_without_a_look(tmp_path, by):
    await created(tmp_path / "base.qcow2")
    path = await created(tmp_path / "x.qcow2", backing="base.qcow2", fmt="raw", by=by)
    async with await aioblock.open(path, format="qcow2") as disk:
        assert layers_of(disk)[1].driver.name == "raw"
        assert await disk.pread(0, 4) == b"QFI\xfb"


async def test_an_unknown_backing_format(tmp_path):
    (tmp_path / "base.raw").write_bytes(bytes(512))
    path = await created(tmp_path / "x.qcow2", backing="base.raw", fmt="fmt0")
    with pytest.raises(OptionError, match="Could not open backing file: Unknown driver"):
        await aioblock.open(path, format="qcow2")


async def test_a_probed_raw_image_refuses_to_become_another_format(tmp_path):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(MIB))
    async with await aioblock.open(path, writable=True, probe=True) as disk:
        await disk.pwrite(0, b"harmless")
        with pytest.raises(PermissionError):
            await disk.pwrite(0, b"QFI\xfb\0\0\0\3" + bytes(504))
        await disk.pwrite(4096, b"QFI\xfb")
    assert path.read_bytes()[:8] == b"harmless"
    async with await aioblock.open(path, format="raw", writable=True) as disk:
        await disk.pwrite(0, b"QFI\xfb")


async def test_an_ambiguous_file_is_refused():
    class OtherDriver(aioblock.find_driver("raw")):
        name = "other"

        @classmethod
        def probe(cls, head, filename):
            return 100 if b"OTHER" in head else 0

    from aioblock.core import registry

    registry.register(OtherDriver)
    try:
        disk = MemoryDiskWith(b"QFI\xfb\0\0\0\3OTHER")
        with pytest.raises(InvalidImage, match="ambiguous"):
            await aioblock.open({"file": {"driver": "memory", "disk": disk}})
        async with await aioblock.open({"driver": "raw", "file": {"driver": "memory", "disk": disk}}):
            pass
    finally:
        del registry._drivers["other"]


def MemoryDiskWith(content):  # noqa: N802
    from aioblock.drivers.protocols.memory import MemoryDisk

    return MemoryDisk(4096, content)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 2047, 2048, 2049])
async def test_short_files_are_probed(length):
    disk = MemoryDiskWith(b"")
    disk.resize(length)
    async with await aioblock.open({"file": {"driver": "memory", "disk": disk}}) as opened_disk:
        assert opened_disk.node.driver.name == "raw"


# -- the backing file: as the image says, or as the caller does ------------------------------------------------------


@makers
async def test_the_chain_that_images_name(tmp_path, by):
    await created(tmp_path / "c.qcow2", by=by)
    await created(tmp_path / "b.qcow2", backing="c.qcow2", by=by)
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2", by=by)
    async with await aioblock.open(path) as disk:
        nodes = layers_of(disk)
        assert [os.path.basename(node.filename) for node in nodes] == ["a.qcow2", "b.qcow2", "c.qcow2"]
        assert nodes[0].backing_name == ("b.qcow2", "qcow2")
        assert nodes[2].backing is None and nodes[2].backing_name is None
        assert all(node.read_only for node in nodes)


async def test_only_the_top_is_writable(tmp_path):
    await created(tmp_path / "b.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        assert [node.read_only for node in layers_of(disk)] == [False, True]
        assert layers_of(disk)[1].file.node.read_only


async def test_backing_files_can_be_left_out(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"\1" * MIB)
    path = await created(tmp_path / "x.qcow2", backing="base.raw", fmt="raw")
    for how in ({"backing": False}, {"options": {"backing": None}}, {"options": {"backing": ""}}):
        async with await aioblock.open(path, **how) as disk:
            assert disk.node.backing is None
            assert disk.node.backing_name == ("base.raw", "raw")
            assert not any(await disk.pread(0, 512))


async def test_the_caller_can_say_what_lies_below(tmp_path):
    (tmp_path / "other.raw").write_bytes(b"\2" * MIB)
    path = await created(tmp_path / "x.qcow2", backing="nosuch.raw", fmt="raw")
    other = os.fspath(tmp_path / "other.raw")
    for below in (
        {"backing.file.filename": other},
        {"backing": {"driver": "raw", "file": {"driver": "file", "filename": other}}},
        {"backing.filename": other},
    ):
        async with await aioblock.open(path, options=below, trust=aioblock.TRUST_NONE) as disk:
            assert await disk.pread(0, 2) == b"\2\2"
            assert disk.name.startswith("json:")  # the file name alone would open something else
            name = disk.name
        async with await aioblock.open(name, trust=aioblock.TRUST_NONE) as disk:
            assert await disk.pread(0, 2) == b"\2\2"


async def test_options_for_the_backing_file_that_the_image_names(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"\1" * MIB)
    path = await created(tmp_path / "x.qcow2", backing="base.raw", fmt="raw")
    async with await aioblock.open(path, options={"backing.node-name": "below", "backing.size": 512}) as disk:
        assert disk.node.backing.node.name == "below"
        assert disk.node.backing.node.length == 512
    with pytest.raises(UntrustedReference):
        await aioblock.open(path, options={"backing.size": 512}, trust=aioblock.TRUST_NONE)


async def test_a_relative_name_is_taken_from_the_directory_of_the_image(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "base.raw").write_bytes(b"\1" * MIB)
    await created(tmp_path / "d" / "x.qcow2", backing="base.raw", fmt="raw")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.raw").write_bytes(b"\2" * MIB)
    names = ("d/x.qcow2", "./d/x.qcow2", "file:d/x.qcow2", os.fspath(tmp_path / "d" / "x.qcow2"))
    described = ({"driver": "qcow2", "file": {"driver": "file", "filename": "d/x.qcow2"}},)
    for name in names + described:
        async with await aioblock.open(name) as disk:
            assert await disk.pread(0, 1) == b"\1", name


async def test_the_message_says_which_layer_failed(tmp_path):
    await created(tmp_path / "b.qcow2", backing="nosuch", fmt="raw")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    with pytest.raises(FileNotFoundError) as caught:
        await aioblock.open(path)
    assert message_of(caught.value) == (
        "Could not open backing file: Could not open backing file: "
        f"Could not open '{tmp_path}/nosuch': No such file or directory"
    )


# -- loops and depth -----------------------------------------------------------------------------------------------


@makers
@pytest.mark.parametrize("writable", [False, True])
async def test_an_image_on_top_of_itself(tmp_path, by, writable):
    path = await on_itself(tmp_path / "a.qcow2", by=by)
    with pytest.raises(InvalidImage, match="loop"):
        await aioblock.open(path, format="qcow2", writable=writable)
    assert open_files(tmp_path) == []


@makers
@pytest.mark.parametrize("writable", [False, True])
async def test_two_images_on_top_of_each_other(tmp_path, by, writable):
    await created(tmp_path / "b.qcow2", backing="a.qcow2", by=by)
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2", by=by)
    with pytest.raises(InvalidImage, match="loop"):
        await aioblock.open(path, format="qcow2", writable=writable)
    assert open_files(tmp_path) == []


async def test_a_loop_through_links(tmp_path):
    path = await created(tmp_path / "a.qcow2", backing="link.qcow2")
    os.link(path, tmp_path / "hard.qcow2")
    for target in ("a.qcow2", "hard.qcow2"):
        (tmp_path / "link.qcow2").unlink(missing_ok=True)
        (tmp_path / "link.qcow2").symlink_to(target)
        with pytest.raises(InvalidImage, match="loop"):
            await aioblock.open(path)


async def test_a_loop_whose_layers_are_wrapped(tmp_path):
    """The file of a layer may lie below a raw node of its own."""
    path = await on_itself(tmp_path / "a.qcow2")
    wrapped = {"driver": "qcow2", "file": {"driver": "raw", "file": {"driver": "file", "filename": str(path)}}}
    with pytest.raises(InvalidImage, match="loop"):
        await aioblock.open(wrapped)


async def test_the_same_base_twice_is_no_loop(tmp_path):
    base = await created(tmp_path / "base.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="base.qcow2")
    async with await aioblock.open(path), await aioblock.open(base), await aioblock.open(path):
        pass


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_chains_that_are_too_deep(tmp_path, depth):
    await created(tmp_path / "c.qcow2")
    await created(tmp_path / "b.qcow2", backing="c.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    if depth == 3:
        async with await aioblock.open(path, max_depth=depth):
            return
    with pytest.raises(InvalidImage, match=f"longer than {depth} layers"):
        await aioblock.open(path, max_depth=depth)
    assert open_files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_chain_as_deep_as_the_default_allows(tmp_path):
    """No recursion limit is near, neither for opening nor for reading; and one layer more is refused."""
    await created(tmp_path / "model", size=65536, backing="000")
    model = (tmp_path / "model").read_bytes()
    for number in range(1, 257):
        (tmp_path / f"{number:03}").write_bytes(model.replace(b"000", f"{number - 1:03}".encode()))
    (tmp_path / "000").write_bytes((await created(tmp_path / "base", size=65536)).read_bytes())
    async with await aioblock.open(tmp_path / "000", format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"bottom")
    async with await aioblock.open(tmp_path / "255") as disk:
        assert len(layers_of(disk)) == 256
        assert await disk.pread(0, 6) == b"bottom"
        assert (await disk.block_status_above(None, 0, 65536)).depth == 256
    with pytest.raises(InvalidImage, match="longer than 256 layers"):
        await aioblock.open(tmp_path / "256")
    assert open_files(tmp_path) == []


# -- what a node inherits ------------------------------------------------------------------------------------------


async def test_settings_reach_the_children(tmp_path):
    await created(tmp_path / "b.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    how = {"cache": "unsafe", "detect_zeroes": "unmap", "discard": "unmap", "node_name": "top"}
    async with await aioblock.open(path, format="qcow2", writable=True, **how) as disk:
        top, below = layers_of(disk)
        assert top.name == "top"
        assert top.detect_zeroes == "unmap"
        assert top.file.node.detect_zeroes == below.detect_zeroes == "off"  # zeroes are looked for once
        assert top.file.node.cache.no_flush and below.cache.no_flush


async def test_force_share_lets_everything_be_done_meanwhile(tmp_path):
    await created(tmp_path / "b.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    async with await aioblock.open(path, force_share=True) as disk:
        for node in layers_of(disk):
            assert all(edge.shared == PERM_ALL for edge in node.children.values())
    for how in ({"force_share": True}, {"options": {"force-share": "on"}}):
        with pytest.raises(OptionError, match="force-share=on can only be used with read-only images"):
            await aioblock.open(path, format="qcow2", writable=True, **how)


async def test_node_names_are_unique_in_a_graph(tmp_path):
    await created(tmp_path / "b.qcow2")
    path = await created(tmp_path / "a.qcow2", backing="b.qcow2")
    with pytest.raises(OptionError, match="Duplicate nodes with node-name='n'"):
        await aioblock.open(path, node_name="n", options={"backing.node-name": "n"})
    assert open_files(tmp_path) == []
    async with await aioblock.open(path) as disk:
        names = [node.name for node in layers_of(disk)]
        assert len(set(names)) == 2 and all(name.startswith("#block") for name in names)


@pytest.mark.parametrize("name", ["a b", "1a", "#block1", "-a", "a" * 32, "\u00e9"])
async def test_what_is_no_node_name(name):
    with pytest.raises(OptionError, match="Invalid node-name"):
        await aioblock.open({"driver": "null-co", "node-name": name})

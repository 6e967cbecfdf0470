"""commit and rebase by name, with qemu-img as the witness of what they leave."""

import os

import pytest

import aioblock
from tests.api.conftest import MIB, content, fill
from tests.kit.cancel_points import cancelled_at
from tests.kit.oracle import assert_clean, qemu_img, require


@pytest.mark.oracle
async def test_commit(chain):
    require("qemu-img")
    told = []
    await aioblock.commit("top.qcow2", format="qcow2", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert await content("base.qcow2") == await content("top.qcow2") == chain.data
    async with await aioblock.open("top.qcow2") as disk:
        assert not (await disk.block_status(0, MIB)).flags & aioblock.ALLOCATED
    for name in ("base.qcow2", "top.qcow2"):
        assert_clean(name, "qcow2")


@pytest.mark.parametrize("form", ["base.qcow2", "./base.qcow2", "{folder}/base.qcow2"])
async def test_commit_into_a_layer_further_down(chain, tmp_path, form):
    await aioblock.create("tip.qcow2", "qcow2", {"backing_file": "top.qcow2", "backing_fmt": "qcow2"})
    async with await aioblock.open("tip.qcow2", format="qcow2", writable=True) as disk:
        await disk.pwrite(MIB, b"tip")
        chain.write(MIB, b"tip")
    await aioblock.commit("tip.qcow2", form.format(folder=tmp_path), format="qcow2")
    assert await content("base.qcow2") == chain.data
    assert await content("tip.qcow2") == chain.data


async def test_a_layer_that_is_not_there(chain):
    with pytest.raises(aioblock.JobError, match=r"Did not find 'nosuch' in the backing chain of 'top\.qcow2'"):
        await aioblock.commit("top.qcow2", "nosuch", format="qcow2")
    with pytest.raises(aioblock.JobError, match="does not have a backing file"):
        await aioblock.commit("base.qcow2", format="qcow2")


async def test_the_format_must_be_given(chain):
    with pytest.raises(aioblock.OptionError, match="must be given"):
        await aioblock.commit("top.qcow2")


@pytest.mark.slow
async def test_commit_cancelled_at_every_await(chain):
    """The disk reads as before, whatever the base holds by then."""
    number = 1
    while (await cancelled_at(aioblock.commit("top.qcow2", format="qcow2"), number)).cancelled:
        if number % 5 == 0:
            assert await content("top.qcow2", "qcow2") == chain.data
        number += 1
    assert number > 20
    assert await content("base.qcow2") == chain.data


@pytest.mark.oracle
async def test_rebase(chain):
    require("qemu-img")
    await fill("other.raw", "raw", type(chain)(4 * MIB), [(0, 3000)], 9)
    await aioblock.rebase("top.qcow2", "other.raw", backing_format="raw", format="qcow2")
    assert await content("top.qcow2") == chain.data
    assert '"backing-filename": "other.raw"' in qemu_img("info", "--output=json", "top.qcow2").stdout
    await aioblock.rebase("top.qcow2", None, format="qcow2")
    os.remove("other.raw")
    assert await content("top.qcow2") == chain.data
    assert_clean("top.qcow2", "qcow2")


async def test_rebase_counts_names_from_the_image(chain, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await aioblock.convert(tmp_path / "base.qcow2", tmp_path / "copy.raw")
    await aioblock.rebase(tmp_path / "top.qcow2", "copy.raw", backing_format="raw", format="qcow2")
    assert await content(tmp_path / "top.qcow2") == chain.data


async def test_rebase_that_only_writes_the_name(chain):
    os.rename("base.qcow2", "moved.qcow2")
    with pytest.raises(FileNotFoundError):
        await aioblock.rebase("top.qcow2", "moved.qcow2", backing_format="qcow2", format="qcow2")
    await aioblock.rebase("top.qcow2", "moved.qcow2", backing_format="qcow2", unsafe=True, format="qcow2")
    assert await content("top.qcow2") == chain.data


async def test_rebase_needs_the_format(chain):
    with pytest.raises(aioblock.OptionError, match=r"format of the new backing file 'base\.qcow2' must be given"):
        await aioblock.rebase("top.qcow2", "base.qcow2", format="qcow2")
    with pytest.raises(FileNotFoundError, match="nosuch"):
        await aioblock.rebase("top.qcow2", "nosuch", backing_format="raw", format="qcow2")
    assert (await aioblock.info("top.qcow2")).backing_filename == "base.qcow2"


async def test_rebase_with_a_backing_file_that_is_open(chain):
    """As one is that its name alone does not open: here, a part of a larger file."""
    with open("base.raw", "wb") as file:
        file.write(bytes(65536) + await content("base.qcow2"))
    part = {"driver": "raw", "offset": 65536, "file": {"driver": "file", "filename": "base.raw"}}
    async with await aioblock.open(part) as disk:
        with pytest.raises(ValueError, match="backing_disk"):
            await aioblock.rebase("top.qcow2", None, backing_disk=disk, format="qcow2")
        name = 'json:{"driver": "raw", "offset": 65536, "file": {"driver": "file", "filename": "base.raw"}}'
        await aioblock.rebase("top.qcow2", name, backing_format="raw", backing_disk=disk, format="qcow2")
        assert await disk.pread(0, 1) == chain.data[:1]
    async with await aioblock.open("top.qcow2", trust=aioblock.TRUST_ALL) as disk:
        assert await disk.pread(0, disk.length) == chain.data

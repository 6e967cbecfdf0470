"""info and info_chain: qemu-img says the same, for every kind of image."""

import json
import os

import pytest

import aioblock
from tests.kit.oracle import qemu_img, require


def _theirs(path, *options):
    return json.loads(qemu_img("info", "--output=json", *options, path).stdout)


def _ours(info):
    return json.loads(json.dumps(info.as_dict()))


@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"compat": "0.10"}, {"extended_l2": True}, {"data_file": "d"}])
async def test_as_qemu_says_it(tmp_path, monkeypatch, options):
    require("qemu-img")
    monkeypatch.chdir(tmp_path)
    await aioblock.create("x", "qcow2", options, size=1_000_448)
    found = await aioblock.info("x")
    assert _ours(found) == _theirs("x")
    assert (found.filename, found.format, found.virtual_size, found.dirty) == ("x", "qcow2", 1_000_448, False)
    assert found.actual_size == os.stat("x").st_blocks * 512
    assert "refcount bits: 16" in found.details


@pytest.mark.oracle
async def test_snapshots_and_bitmaps(tmp_path, monkeypatch):
    require("qemu-img")
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "x", "1M")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, "x")
    qemu_img("bitmap", "--add", "-g", "4k", "x", "b0")
    qemu_img("bitmap", "--add", "--disable", "x", "b1")
    found = await aioblock.info("x")
    assert _ours(found) == _theirs("x")
    assert [snapshot.name for snapshot in found.snapshots] == ["one", "two"]
    assert [(it.name, it.granularity, it.enabled, it.inconsistent) for it in found.bitmaps] == [
        ("b0", 4096, True, False),
        ("b1", 65536, False, False),
    ]
    assert await aioblock.snapshots("x") == found.snapshots
    assert await aioblock.bitmaps("x") == found.bitmaps


async def test_the_length_is_exact_and_rounded_only_for_qemu(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 1000)
    found = await aioblock.info(tmp_path / "x")
    assert (found.virtual_size, found.as_dict()["virtual-size"], found.format) == (1000, 1024, "raw")
    assert found.cluster_size is None and found.snapshots == () and found.backing_filename is None


async def test_an_open_image_is_asked_as_it_is(tmp_path):
    await aioblock.create(tmp_path / "x", "qcow2", size=1 << 20)
    async with await aioblock.open(tmp_path / "x", format="qcow2", writable=True) as disk:
        await disk.truncate(2 << 20)
        await disk.bitmap_add("memory", persistent=False)
        found = await aioblock.info(disk)
        assert found.virtual_size == 2 << 20
        assert [(bitmap.name, bitmap.persistent) for bitmap in found.bitmaps] == [("memory", False)]
        assert await disk.pread(0, 1) == b"\0"  # it is still open


async def test_an_open_image_needs_no_words_about_opening(tmp_path):
    await aioblock.create(tmp_path / "x", "qcow2", size=1 << 20)
    async with await aioblock.open(tmp_path / "x") as disk:
        with pytest.raises(ValueError, match="force_share, format"):
            await aioblock.info(disk, format="qcow2", force_share=True)


@pytest.mark.slow
async def test_an_encrypted_image_needs_no_secret(tmp_path):
    secret = {"s": aioblock.Secret(b"word")}
    options = {"encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 10}
    await aioblock.create(tmp_path / "x", "qcow2", options, size=1 << 20, objects=secret)
    found = await aioblock.info(tmp_path / "x")
    assert found.encrypted and found.specific["encrypt"]["format"] == "luks"


@pytest.mark.oracle
async def test_a_chain(chain):
    require("qemu-img")
    found = await aioblock.info_chain("top.qcow2")
    assert [_ours(info) for info in found] == _theirs("top.qcow2", "--backing-chain")
    assert [info.filename for info in found] == ["top.qcow2", "base.qcow2"]
    assert (found[0].backing_filename, found[0].backing_format) == ("base.qcow2", "qcow2")
    async with await aioblock.open("top.qcow2") as disk:
        assert await aioblock.info_chain(disk) == found


async def test_a_chain_is_followed_as_far_as_it_is_trusted(chain, tmp_path):
    (tmp_path / "below").mkdir()
    name = str(tmp_path / "base.qcow2")
    await aioblock.create("below/top", "qcow2", {"backing_file": name, "backing_fmt": "qcow2"}, size=1 << 20)
    assert (await aioblock.info("below/top")).full_backing_filename == name  # to know the name is no danger
    with pytest.raises(aioblock.UntrustedReference):
        await aioblock.info_chain("below/top")
    assert len(await aioblock.info_chain("below/top", trust=aioblock.TRUST_ALL)) == 2
    with pytest.raises(aioblock.InvalidImage, match="longer than 1 layers"):
        await aioblock.info_chain("top.qcow2", max_depth=1)


async def test_the_format_of_a_backing_file_is_not_guessed(chain):
    qemu_img("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    async with await aioblock.open("top.qcow2", format="qcow2", writable=True, backing=False) as disk:
        await disk.change_backing_file("base.qcow2", None)
    with pytest.raises(aioblock.OptionError, match="must be given"):
        await aioblock.info_chain("top.qcow2")
    assert len(await aioblock.info_chain("top.qcow2", probe=True)) == 2


async def test_a_loop_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    await aioblock.create("a", "qcow2", size=1 << 20)
    await aioblock.create("b", "qcow2", {"backing_file": "a", "backing_fmt": "qcow2"})
    await aioblock.rebase("a", "b", backing_format="qcow2", unsafe=True, format="qcow2")
    with pytest.raises(aioblock.InvalidImage, match="Backing file 'a' creates an infinite loop"):
        await aioblock.info_chain("a")


async def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nosuch"):
        await aioblock.info(tmp_path / "nosuch")
    (tmp_path / "x").write_bytes(b"QFI\xfb" + bytes(200))
    with pytest.raises(aioblock.ImageError, match=str(tmp_path / "x")):
        await aioblock.info(tmp_path / "x", format="qcow2")

"""convert: the copy, its format, what is refused, what is left when it fails, and the summary."""

import errno
import os

import pytest

import aioblock
from tests.kit import oracle
from tests.tools.cli.conftest import MiB, content


def files(program):
    return sorted(os.listdir(program.folder))


@pytest.mark.parametrize(("target", "format"), [("a.qcow2", "qcow2"), ("a.raw", "raw"), ("a.IMG", "raw")])
def test_the_suffix_says_the_format_and_so_does_the_program(chain, target, format):
    result = chain.ok("convert", "top.qcow2", target)
    assert f"note: {target}: format {format}, as its suffix says" in result.err
    assert content(target, format) == content("top.qcow2")
    assert f"{target}: {format}, 10 MiB (10485760 bytes)" in result.out


def test_the_summary(chain):
    document = chain.json("convert", "top.qcow2", "a.qcow2")
    assert document["virtual_size"] == 10 * MiB
    # base: the first half MiB, top: 1 MiB, mid: half a MiB is left of its data.
    assert document["bytes_read"] == document["bytes_written"] == 2 * MiB
    assert document["bytes_saved"] == 8 * MiB
    assert document["allocated_size"] == os.stat("a.qcow2").st_blocks * 512
    assert document["format"] == "qcow2" and document["unreadable"] == 0 and document["seconds"] > 0
    text = chain.ok("convert", "top.qcow2", "b.qcow2").out
    assert "saved by zeroes  8 MiB (8388608 bytes), 80 % of the disk" in text


def test_zeroes_that_are_found_are_saved_too(program):
    (program.folder / "a.raw").write_bytes(b"x" * MiB + bytes(3 * MiB))
    document = program.json("convert", "a.raw", "b.qcow2")
    assert (document["bytes_read"], document["bytes_written"], document["bytes_saved"]) == (4 * MiB, MiB, 3 * MiB)


@pytest.mark.parametrize("target", ["a", "a.xyz", "a.vhdx"])
def test_a_format_that_cannot_be_made_or_guessed(chain, target):
    result = chain("convert", "top.qcow2", target)
    assert result.status == 1
    assert "qcow2" in result.err and "hint:" in result.err
    assert target not in files(chain)


def test_the_format_may_be_said(chain):
    result = chain.ok("convert", "top.qcow2", "a", "-O", "qcow2", "-o", "cluster_size=4k", "-o", "lazy_refcounts=on")
    assert "note" not in result.err
    layer = chain.json("info", "a")["layers"][0]
    assert layer["cluster_size"] == 4096 and layer["specific"]["lazy-refcounts"] is True


def test_nothing_is_overwritten_without_force(chain):
    (chain.folder / "a.qcow2").write_bytes(b"precious")
    result = chain("convert", "top.qcow2", "a.qcow2")
    assert result.status == 1 and "--force" in result.err
    assert (chain.folder / "a.qcow2").read_bytes() == b"precious"
    chain.ok("convert", "top.qcow2", "a.qcow2", "--force")
    assert content("a.qcow2") == content("top.qcow2")


def test_force_follows_a_link_and_keeps_the_mode(chain):
    (chain.folder / "real.qcow2").write_bytes(b"old")
    os.chmod("real.qcow2", 0o640)
    os.symlink("real.qcow2", "a.qcow2")
    chain.ok("convert", "top.qcow2", "a.qcow2", "--force")
    assert os.path.islink("a.qcow2") and os.stat("real.qcow2").st_mode & 0o777 == 0o640
    assert content("real.qcow2") == content("top.qcow2")


@pytest.mark.parametrize("target", ["top.qcow2", "mid.qcow2", "./base.qcow2", "link.qcow2"])
def test_what_is_copied_is_not_its_own_target(chain, target):
    os.symlink("mid.qcow2", "link.qcow2")
    before = content("top.qcow2")
    result = chain("convert", "top.qcow2", target, "--force")
    assert result.status == 1 and "belongs to what is copied" in result.err
    assert content("top.qcow2") == before


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_what_was_there_and_nothing_else(chain, force, monkeypatch):
    async def fails(*args, **kwargs):
        raise aioblock.PositionedError("write", 4096, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(aioblock, "convert", fails)
    if force:
        (chain.folder / "a.qcow2").write_bytes(b"precious")
    before = files(chain)
    result = chain("convert", "top.qcow2", "a.qcow2", *["--force"][: int(force)])
    assert result.status == 1
    assert "a.qcow2: error while writing at byte 4096: No space left on device" in result.err
    assert "Make room" in result.err
    assert files(chain) == before
    if force:
        assert (chain.folder / "a.qcow2").read_bytes() == b"precious"


def test_a_wrong_option_is_refused_before_anything_is_made(chain):
    for option, words in (
        ("nosuch=1", "no option 'nosuch'"),
        ("cluster_size", "NAME=VALUE"),
        ("cluster_size=x", "cluster_size"),
        ("lazy_refcounts=maybe", "neither on nor off"),
    ):
        result = chain("convert", "top.qcow2", "a.qcow2", "-o", option)
        assert result.status == 1 and words in result.err
        assert "a.qcow2" not in files(chain)


def test_compressed(chain):
    chain.ok("convert", "top.qcow2", "a.qcow2", "--compress")
    assert content("a.qcow2") == content("top.qcow2")
    layers = chain.json("map", "a.qcow2")["layers"]
    assert layers[0]["totals"]["compressed"] == 2 * MiB and layers[0]["totals"]["data"] == 0


@pytest.mark.slow
def test_a_snapshot(chain):
    chain.ok("snapshot", "create", "top.qcow2", "old")
    before = content("top.qcow2")
    chain.ok("io", "write", "top.qcow2", "0", "64k", "--pattern", "ff")
    chain.ok("convert", "top.qcow2", "a.raw", "--snapshot", "old")
    assert content("a.raw", "raw") == before != content("top.qcow2")


@pytest.mark.slow
def test_a_backing_file_keeps_the_layers_below(chain):
    os.mkdir("sub")
    chain.ok("convert", "top.qcow2", "sub/a.qcow2", "--backing", "mid.qcow2")
    layers = chain.json("info", "sub/a.qcow2", "--trust", "all")["layers"]
    assert layers[0]["backing_filename"] == "../mid.qcow2"
    assert content("sub/a.qcow2") == content("top.qcow2")
    assert chain.json("map", "sub/a.qcow2", "--trust", "all")["layers"][0]["totals"]["data"] == MiB


def test_what_cannot_be_read_becomes_zeroes_with_salvage(program):
    (program.folder / "a.raw").write_bytes(b"x" * MiB)
    faulty = (
        'json:{"driver": "raw", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": "a.raw"}, '
        '"inject-error": '
        '[{"event": "none", "iotype": "read", "sector": 1024, "errno": 5}]}}'
    )
    result = program("convert", faulty, "b.raw")
    assert result.status == 1 and "--salvage" in result.err and "error while reading at byte" in result.err
    assert "b.raw" not in files(program)
    result = program.ok("convert", faulty, "b.raw", "--salvage")
    assert "could not be read" in result.err
    data = content("b.raw", "raw")
    assert data[:512] == b"x" * 512 and data[1024 * 512 : 1025 * 512] == bytes(512)


@pytest.mark.oracle
def test_qemu_reads_the_copy(chain):
    chain.ok("convert", "top.qcow2", "a.qcow2", "--compress")
    oracle.qemu_img("compare", "-f", "qcow2", "-F", "qcow2", "top.qcow2", "a.qcow2")
    oracle.qemu_img("check", "-f", "qcow2", "a.qcow2")

"""create, resize, amend, measure, formats."""

import os

import pytest

import aioblock
from tests.tools.cli.conftest import MiB, content


def test_a_new_image(program):
    result = program.ok("create", "a.qcow2", "10G")
    assert "a.qcow2: qcow2, 10 GiB (10737418240 bytes)" in result.out
    document = program.json("create", "b.img", "1M")
    assert document == {
        "image": "b.img",
        "format": "raw",
        "virtual_size": MiB,
        "allocated_size": os.stat("b.img").st_blocks * 512,
        "backing_file": None,
        "backing_format": None,
    }


@pytest.mark.slow
def test_a_backing_file_is_named_as_it_is_typed_and_stored_as_the_image_sees_it(chain):
    os.mkdir("sub")
    result = chain.ok("create", "sub/a.qcow2", "--backing", "base.qcow2")
    assert "base.qcow2: format qcow2, as its content says" in result.err
    info = chain.json("info", "sub/a.qcow2", "--trust", "all")["layers"][0]
    assert (info["backing_filename"], info["backing_format"]) == ("../base.qcow2", "qcow2")
    assert info["virtual_size"] == 8 * MiB
    assert content("sub/a.qcow2") == content("base.qcow2")
    chain.ok("create", "b.qcow2", "20M", "--backing", str(chain.folder / "base.qcow2"))
    info = chain.json("info", "b.qcow2")["layers"][0]
    assert (info["backing_filename"], info["virtual_size"]) == (str(chain.folder / "base.qcow2"), 20 * MiB)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a.qcow2"], "how large"),
        (["a", "1M"], "suffix"),
        (["a.vmdk", "1M"], "vmdk"),
        (["a.raw", "1M", "--backing", "base.qcow2"], "no backing files"),
        (["a.qcow2", "--backing", "nosuch.qcow2"], "nosuch.qcow2"),
        (["a.qcow2", "1M", "-o", "cluster_size=3"], "power of two"),
        (["base.qcow2", "1M"], "--force"),
    ],
)
def test_what_cannot_be(chain, args, words):
    before = {name: (chain.folder / name).read_bytes() for name in os.listdir()}
    result = chain("create", *args)
    assert result.status in (1, 2) and words in result.err and "hint:" in result.err
    assert {name: (chain.folder / name).read_bytes() for name in os.listdir()} == before


def test_force_replaces(program):
    program.ok("create", "a.qcow2", "1M")
    program.ok("create", "a.qcow2", "2M", "--force")
    assert program.json("info", "a.qcow2")["layers"][0]["virtual_size"] == 2 * MiB


def test_resize(program):
    program.ok("create", "a.qcow2", "10M")
    assert program.json("resize", "a.qcow2", "+2M") == {"image": "a.qcow2", "old_size": 10 * MiB, "new_size": 12 * MiB}
    assert program.json("resize", "a.qcow2", "20M")["new_size"] == 20 * MiB
    result = program("resize", "a.qcow2", "-15M")
    assert result.status == 1 and "15 MiB (15728640 bytes) at its end would be lost" in result.err
    assert "--shrink" in result.err
    assert program.json("resize", "a.qcow2", "-15M", "--shrink")["new_size"] == 5 * MiB
    assert program("resize", "a.qcow2", "-5M", "--shrink").status == 2


def test_raw_is_never_a_guess_to_write_by(program):
    (program.folder / "a.img").write_bytes(bytes(MiB))
    for args in (("resize", "a.img", "+1M"), ("io", "write", "a.img", "0", "1k", "-p", "1")):
        result = program(*args)
        assert result.status == 1 and "--format raw" in result.err
        assert set((program.folder / "a.img").read_bytes()) == {0}
        program.ok(*args, "--format", "raw")
    assert os.path.getsize("a.img") == 2 * MiB and content("a.img", "raw")[:1024] == b"\1" * 1024


def test_amend(program):
    program.ok("create", "a.qcow2", "1M")
    document = program.json("amend", "a.qcow2", "-o", "lazy_refcounts=on", "-o", "compat=1.1")
    assert document["changed"] == {"lazy_refcounts": "on", "compat": "1.1"}
    assert program.json("info", "a.qcow2")["layers"][0]["specific"]["lazy-refcounts"] is True
    result = program("amend", "a.qcow2", "-o", "cluster_size=4k")
    assert result.status == 1 and "formats qcow2" in result.err
    program.ok("create", "a.raw", "1M")
    assert "nothing of format 'raw' can be changed" in program("amend", "a.raw", "-f", "raw", "-o", "size=1").err


def test_measure(chain):
    document = chain.json("measure", "top.qcow2")
    made = chain.json("convert", "top.qcow2", "a.qcow2")
    assert document["required"] == os.path.getsize("a.qcow2")
    assert made["virtual_size"] < document["fully_allocated"]
    assert chain.json("measure", "--size", "1G", "-O", "raw")["required"] == 1 << 30
    assert chain("measure").status == chain("measure", "top.qcow2", "--size", "1G").status == 2


def test_formats(program):
    found = {entry["format"]: entry for entry in program.json("formats")["formats"]}
    assert found["qcow2"] == {"format": "qcow2", "create": True, "backing_file": True, "amend": True}
    options = program.json("formats", "qcow2")
    known = aioblock.find_driver("qcow2")
    assert [option["name"] for option in options["create_options"]] == [option.name for option in known.create_options]
    assert [option["name"] for option in options["amend_options"]] == [option.name for option in known.amend_options]
    text = program.ok("formats", "qcow2").out
    assert "cluster_size" in text and "64 KiB" in text
    assert program("formats", "nosuch").status == 1

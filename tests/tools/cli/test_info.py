"""info: the image, its chain as a tree, snapshots and bitmaps; a broken chain."""

import asyncio
import os

import pytest

import aioblock


def test_the_document_is_what_the_library_says(chain):
    async def said():
        return await aioblock.info_chain("top.qcow2")

    found = asyncio.run(said())
    document = chain.json("info", "top.qcow2")
    assert [layer["filename"] for layer in document["layers"]] == ["top.qcow2", "mid.qcow2", "base.qcow2"]
    for layer, image in zip(document["layers"], found, strict=True):
        for name in ("format", "virtual_size", "actual_size", "cluster_size", "backing_filename", "backing_format"):
            assert layer[name] == getattr(image, name)
        assert layer["specific"] == image.specific
    assert document["error"] is None


def test_people_see_sizes_both_ways_and_the_chain_as_a_tree(chain):
    text = chain.ok("info", "top.qcow2").out
    assert "top.qcow2: qcow2, 10 MiB (10485760 bytes)" in text
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line == "Chain")
    assert lines[at + 1].startswith("top.qcow2  qcow2, 10 MiB")
    assert lines[at + 2].startswith("└── mid.qcow2  qcow2, 6 MiB")
    assert lines[at + 3].startswith("    └── base.qcow2  qcow2, 8 MiB")


def test_snapshots_and_bitmaps(chain):
    chain.ok("snapshot", "create", "top.qcow2", "before upgrade")
    chain.ok("bitmap", "add", "top.qcow2", "backup", "--granularity", "32k", "--disabled")
    text = chain.ok("info", "top.qcow2").out
    assert "before upgrade" in text and "Snapshots" in text
    row = next(line for line in text.splitlines() if line.startswith("backup"))
    assert "32 KiB" in row and "stopped" in row
    layer = chain.json("info", "top.qcow2")["layers"][0]
    assert [snapshot["name"] for snapshot in layer["snapshots"]] == ["before upgrade"]
    assert layer["snapshots"][0]["disk_size"] == 10 << 20
    assert layer["bitmaps"] == [
        {"name": "backup", "granularity": 32768, "enabled": False, "persistent": True, "inconsistent": False}
    ]


def test_no_chain_opens_the_image_alone(chain):
    os.unlink("mid.qcow2")
    result = chain.ok("info", "top.qcow2", "--no-chain")
    assert "mid.qcow2 (qcow2) not looked at" in result.out
    assert len(chain.json("info", "top.qcow2", "--no-chain")["layers"]) == 1


def test_a_broken_chain_shows_what_there_is_and_ends_with_1(chain):
    os.unlink("mid.qcow2")
    result = chain("info", "top.qcow2")
    assert result.status == 1
    assert "10 MiB (10485760 bytes)" in result.out
    assert "mid.qcow2 (qcow2) cannot be opened" in result.out
    assert "No such file" in result.err
    document = chain("info", "top.qcow2", "--json").json
    assert [layer["filename"] for layer in document["layers"]] == ["top.qcow2"]
    assert document["error"]["kind"] == "FileNotFoundError"


@pytest.mark.parametrize(
    ("trust", "status"), [("directory", 1), ("none", 1), ("all", 0)], ids=["directory", "none", "all"]
)
def test_what_an_image_may_open_is_up_to_the_caller(chain, trust, status):
    os.mkdir("sub")
    chain.ok("create", "sub/a.qcow2", "--backing", "base.qcow2")
    result = chain("info", "sub/a.qcow2", "--trust", trust)
    assert result.status == status
    if status:
        assert "trust policy" in result.err and "--trust all" in result.err
    else:
        assert "base.qcow2" in result.out


def test_an_image_that_is_none(program):
    (program.folder / "a.txt").write_bytes(b"hello" * 1000)
    result = program("info", "a.txt", "--format", "qcow2")
    assert result.status == 1
    assert "a.txt" in result.err and "not in qcow2 format" in result.err and "--format raw" in result.err


def test_a_suffix_that_says_something_else_is_warned_of(program):
    (program.folder / "a.qed").write_bytes(bytes(4096))
    assert "read as raw" in program.ok("info", "a.qed").err

"""snapshot, bitmap, commit, rebase."""

import os

import pytest

from tests.tools.cli.conftest import MiB, content

pytestmark = pytest.mark.slow


def test_snapshots(chain):
    before = content("top.qcow2")
    made = chain.json("snapshot", "create", "top.qcow2", "one")["snapshot"]
    assert (made["name"], made["id"], made["disk_size"]) == ("one", "1", 10 * MiB)
    chain.ok("io", "write", "top.qcow2", "0", "1M", "-p", "ee")
    assert content("top.qcow2") != before
    found = chain.json("snapshot", "list", "top.qcow2")["snapshots"]
    assert found == [made]
    assert "one" in chain.ok("snapshot", "list", "top.qcow2").out
    chain.ok("snapshot", "apply", "top.qcow2", "one")
    assert content("top.qcow2") == before
    assert "already" in chain.ok("snapshot", "create", "top.qcow2", "one").err
    document = chain.json("snapshot", "delete", "top.qcow2", "2")
    assert document == {"image": "top.qcow2", "snapshot": "2", "done": "delete"}
    assert len(chain.json("snapshot", "list", "top.qcow2")["snapshots"]) == 1


@pytest.mark.parametrize("verb", ["apply", "delete"])
def test_a_snapshot_that_is_not_there(chain, verb):
    assert "It has none." in chain("snapshot", verb, "top.qcow2", "x").err
    chain.ok("snapshot", "create", "top.qcow2", "one")
    result = chain("snapshot", verb, "top.qcow2", "x")
    assert result.status == 1 and "It has 'one'." in result.err


def test_bitmaps(chain):
    chain.ok("bitmap", "add", "top.qcow2", "a", "--granularity", "64k")
    chain.ok("bitmap", "add", "top.qcow2", "b", "--disabled")
    chain.ok("io", "write", "top.qcow2", "1M", "100k", "-p", "1")
    found = chain.json("bitmap", "list", "top.qcow2")["bitmaps"]
    assert [(bitmap["name"], bitmap["enabled"]) for bitmap in found] == [("a", True), ("b", False)]
    marked = chain.json("bitmap", "show", "top.qcow2", "a")
    assert marked["ranges"] == [{"offset": MiB, "length": 131072}] and marked["dirty_bytes"] == 131072
    assert chain.json("bitmap", "show", "top.qcow2", "b")["ranges"] == []
    chain.ok("bitmap", "merge", "top.qcow2", "b", "a")
    assert chain.json("bitmap", "show", "top.qcow2", "b")["dirty_bytes"] == 131072
    chain.ok("bitmap", "clear", "top.qcow2", "a")
    assert chain.json("bitmap", "show", "top.qcow2", "a")["dirty_bytes"] == 0
    chain.ok("bitmap", "disable", "top.qcow2", "a")
    chain.ok("bitmap", "enable", "top.qcow2", "b")
    chain.ok("bitmap", "remove", "top.qcow2", "a")
    found = chain.json("bitmap", "list", "top.qcow2")["bitmaps"]
    assert [(bitmap["name"], bitmap["enabled"]) for bitmap in found] == [("b", True)]
    assert "It has 'b'." in chain("bitmap", "clear", "top.qcow2", "a").err


def test_a_bitmap_of_another_image(chain):
    chain.ok("convert", "top.qcow2", "copy.qcow2")
    chain.ok("bitmap", "add", "copy.qcow2", "theirs")
    chain.ok("io", "write", "copy.qcow2", "0", "64k", "-p", "1")
    chain.ok("bitmap", "add", "top.qcow2", "mine")
    chain.ok("bitmap", "merge", "top.qcow2", "mine", "theirs", "--from", "copy.qcow2")
    assert chain.json("bitmap", "show", "top.qcow2", "mine")["ranges"] == [{"offset": 0, "length": 65536}]


def test_commit(chain):
    before = content("top.qcow2")
    document = chain.json("commit", "top.qcow2")
    assert document["base"] == "mid.qcow2" and document["emptied"] is True and document["bytes_read"] == MiB
    assert content("top.qcow2") == before
    assert content("mid.qcow2")[: 6 * MiB] == before[: 6 * MiB]
    assert chain.json("map", "top.qcow2")["layers"][0]["totals"]["data"] == 0


def test_commit_further_down_keeps_the_top(chain):
    before = content("top.qcow2")
    document = chain.json("commit", "top.qcow2", "--base", "base.qcow2")
    assert document["emptied"] is False
    assert content("base.qcow2") == content("top.qcow2") == before


def test_commit_into_what_is_not_there(chain):
    result = chain("commit", "base.qcow2")
    assert result.status == 1 and "no backing file" in result.err
    result = chain("commit", "top.qcow2", "--base", "nosuch.qcow2")
    assert result.status == 1 and "mid.qcow2, base.qcow2" in result.err


def test_rebase(chain):
    before = content("top.qcow2")
    chain.ok("rebase", "top.qcow2", "--backing", "base.qcow2")
    assert content("top.qcow2") == before
    assert [layer["filename"] for layer in chain.json("info", "top.qcow2")["layers"]] == ["top.qcow2", "base.qcow2"]
    chain.ok("rebase", "top.qcow2", "--no-backing")
    assert content("top.qcow2") == before
    assert chain.json("info", "top.qcow2")["layers"][0]["backing_filename"] is None


def test_rebase_of_a_file_that_was_moved(chain):
    before = content("top.qcow2")
    os.rename("mid.qcow2", "moved.qcow2")
    result = chain("map", "top.qcow2")
    assert result.status == 1 and "aioblock rebase --unsafe" in result.err
    document = chain.json("rebase", "top.qcow2", "--unsafe", "--backing", "moved.qcow2")
    assert document["backing_file"] == "moved.qcow2" and document["unsafe"] is True
    assert content("top.qcow2") == before


def test_rebase_needs_to_know_what_to(chain):
    assert chain("rebase", "top.qcow2").status == 2
    assert chain("rebase", "top.qcow2", "--backing", "base.qcow2", "--no-backing").status == 2
    assert chain("rebase", "top.qcow2", "--no-backing", "--unsafe").status == 1
    assert chain.json("info", "top.qcow2")["layers"][0]["backing_filename"] == "mid.qcow2"


def test_an_image_that_another_program_writes_to(chain):
    """The lock is told of, and what helps."""
    import asyncio

    import aioblock

    async def hold():
        async with await aioblock.open("top.qcow2", format="qcow2", writable=True):
            return await asyncio.to_thread(chain.process, "info", "top.qcow2"), await asyncio.to_thread(
                chain.process, "snapshot", "create", "top.qcow2", "x"
            )

    looked, changed = asyncio.run(hold())
    for result in (looked, changed):
        assert result.status == 1 and "another process" in result.err
        assert "--force-share" in result.err

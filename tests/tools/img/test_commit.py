"""commit: QEMU's messages, exit codes, and what both sides leave in the images."""

import asyncio
import json

import pytest

import aioblock

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def chain(sides):
    """base (1 MiB, data) <- mid (2 MiB) <- top (3 MiB), and a copy of what top reads as."""
    prepare = sides.prepare
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "mid", "2M")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top", "3M")
    prepare("qemu-io", "-c", "write -P 1 0 1M", "base")
    prepare("qemu-io", "-c", "write -P 2 64k 64k", "-c", "write -z 700k 100k", "mid")
    commands = ["write -P 3 128k 64k", "write -z 256k 128k", "write -P 5 1000k 100k", "write -P 6 2500k 3000"]
    prepare("qemu-io", *(word for command in commands for word in ("-c", command)), "top")
    prepare("qemu-img", "convert", "-O", "raw", "top", "before")
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("top", 0),
        ("-q top", 0),
        ("-d top", 0),
        ("-f qcow2 -t unsafe top", 0),
        ("-r 1G top", 0),
        ("-b mid top", 0),
        ("-b base top", 0),
        ("-b ./base top", 0),
        ("-d -b base mid", 0),
        ("--image-opts driver=qcow2,file.filename=top", 0),
        ("", 1),
        ("top mid", 1),
        ("nosuch", 1),
        ("base", 1),
        ("-b nosuch top", 1),
        ("-b top top", 1),
        ("-t zork top", 1),
        ("-r zork top", 1),
        ("-z top", 1),
        ("-f raw top", 1),
        ("-f qcow2 before", 1),
        ("--image-opts -f qcow2 top", 1),
    ],
)
def test_the_same(chain, line, status):
    assert chain.same("commit", *line.split()).status == status
    for name in ("base", "mid", "top"):
        chain.same_content(name, "qcow2")
        assert chain.facts(name)[0] == chain.facts(name)[1]


@pytest.mark.parametrize("options", [[], ["-d"], ["-b", "mid"], ["-b", "base"]])
def test_the_disk_reads_as_before_and_only_the_direct_backing_file_empties_the_top(chain, options):
    assert chain.run_ours("commit", *options, "top").status == 0
    assert chain.run_ours("compare", "-f", "raw", "-F", "qcow2", "before", "top").status == 0
    kept = json.loads(chain.run_ours("map", "--output=json", "top").out)
    assert any(run["depth"] == 0 and run["present"] for run in kept) == bool(options)
    if not options:
        assert chain.run_theirs("commit", "top").status == 0
        assert (chain.ours / "top").stat().st_size <= (chain.theirs / "top").stat().st_size


def test_a_raw_base_and_old_versions(sides):
    sides.write("raw", bytes(range(256)) * 300)  # no whole number of sectors is left over, and it grows
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "raw", "-F", "raw", "top", "1M")
    sides.prepare("qemu-io", "-c", "write -P 7 50000 100", "-c", "write -P 8 900k 1k", "top")
    sides.same("commit", "-f", "qcow2", "top")
    assert (sides.ours / "raw").read_bytes() == (sides.theirs / "raw").read_bytes()
    sides.same("map", "top")
    sides.same_content("top", "qcow2")


def test_snapshots_of_the_top_stay(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "1M")
    sides.prepare("qemu-io", "-c", "write -P 1 0 200k", "top")
    sides.prepare("qemu-img", "snapshot", "-c", "one", "top")
    sides.prepare("qemu-io", "-c", "write -P 2 100k 200k", "top")
    sides.same("commit", "top")
    for name in ("base", "top"):
        sides.same_content(name, "qcow2")
    runs = json.loads(sides.run_ours("map", "--output=json", "top").out)
    assert all(run["depth"] for run in runs if run["present"])
    sides.same("convert", "-l", "one", "-O", "raw", "top", "out")
    sides.same_content("out", "raw")


def test_a_base_that_is_too_small_for_the_data_fails_and_loses_nothing(chain):
    image = {"driver": "file", "filename": "base"}
    rules = [{"event": "write_aio", "errno": 28, "once": True}]
    file = {"driver": "blkdebug", "inject-error": rules, "image": image}
    name = "json:" + json.dumps({"driver": "qcow2", "file": file})
    chain.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", "bad", "1M")
    chain.prepare("qemu-io", "-c", "write -P 9 0 64k", "bad")
    result = chain.same("commit", "bad")
    assert result == (1, "", "qemu-img: Block job failed: No space left on device\n")
    kept = chain.run_ours("map", "--output=json", "bad")
    assert json.loads(kept.out)[0]["depth"] == 0


def test_progress_goes_from_nothing_to_everything(chain):
    out = chain.run_ours("commit", "-p", "top").out
    assert out.startswith("    (0.00/100%)\r")
    assert out.endswith("    (100.00/100%)\r\nImage committed.\n")
    assert chain.run_ours("commit", "-p", "-q", "mid").out == ""


def test_a_base_that_another_user_holds_is_refused_and_nothing_is_changed(chain):
    before = (chain.ours / "top").read_bytes(), (chain.ours / "mid").read_bytes()

    async def held():
        async with await aioblock.open(chain.ours / "mid", format="qcow2", trust=aioblock.TRUST_ALL):
            return await asyncio.to_thread(chain.run_ours, "commit", "top")

    result = asyncio.run(held())
    message = 'qemu-img: Failed to get "write" lock\nIs another process using the image [mid]?\n'
    assert result == (1, "", message)
    assert ((chain.ours / "top").read_bytes(), (chain.ours / "mid").read_bytes()) == before

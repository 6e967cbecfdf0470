"""map: the runs of every chain as qemu-img shows them."""

import os

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def images(sides):
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    sides.prepare(*create, "base.qcow2", "1M")
    zeroes = ("-c", "write -z 128k 64k", "-c", "write -P 0 512k 64k", "-c", "write -z 960k 64k")
    sides.prepare("qemu-io", "-c", "write 0 64k", *zeroes, "base.qcow2")
    sides.prepare(*create, "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "2M")
    sides.prepare("qemu-io", "-c", "write 64k 64k", "-c", "write -z 512k 64k", "top.qcow2")
    sides.prepare(*create, "-b", "top.qcow2", "-F", "qcow2", "-o", "cluster_size=4k", "longer.qcow2", "3000000")
    sides.prepare("qemu-io", "-c", "write 2500k 9k", "-c", "write 1020k 8k", "longer.qcow2")
    sides.prepare(*create, "packed.qcow2", "1M")
    sides.prepare("qemu-io", "-c", "write -c 256k 64k", "-c", "write 0 64k", "-c", "write 512k 64k", "packed.qcow2")
    sides.prepare(*create, "empty.qcow2", "0")
    sides.prepare(*create, "-o", "preallocation=metadata", "prealloc.qcow2", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "raw", "x.raw", "1M")
    sides.prepare("qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "write 512k 4k", "x.raw")
    sides.write("odd.raw", b"x", 70_000)
    sides.write("gap.raw", b"x", 4096)
    for folder in (sides.ours, sides.theirs):
        os.truncate(folder / "gap.raw", 70_001)
    return sides


RANGES = [
    "",
    "--start-offset=64k",
    "--start-offset=70000 --max-length=100000",
    "--start-offset=70000 --max-length=10000",
    "--max-length=0",
    "--max-length=4M",
    "--start-offset=4M",
    "-s 5 -l 1000000",
]


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize(
    "name",
    [
        "base.qcow2",
        "top.qcow2",
        "longer.qcow2",
        "packed.qcow2",
        "empty.qcow2",
        "prealloc.qcow2",
        "x.raw",
        "odd.raw",
        "gap.raw",
        "-f raw top.qcow2",
        "-U top.qcow2",
        "--image-opts driver=qcow2,file.filename=top.qcow2",
        'json:{"driver":"raw","offset":512,"size":1024,"file":{"driver":"file","filename":"x.raw"}}',
        "null-co://",
        "--image-opts driver=raw,file.driver=file,file.filename=odd.raw,cache.direct=on",
    ],
)
@pytest.mark.slow
def test_map(images, name, output):
    for where in RANGES:
        images.same("map", f"--output={output}", *where.split(), *name.split())


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.slow
def test_many_runs_are_joined_from_batch_to_batch(sides, output):
    """More runs than one batch holds; every other neighbour continues the one before."""
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "x", "8M")
    writes = [word for number in range(0, 6000, 3) for word in ("-c", f"write -q {number * 512} 1024")]
    for first in range(0, len(writes), 1000):
        sides.prepare("qemu-io", *writes[first : first + 1000], "x")
    sides.same("map", f"--output={output}", "x")

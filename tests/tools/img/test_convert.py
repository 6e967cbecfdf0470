"""convert: the same content, the same allocation and the same messages as qemu-img."""

import json
import os
import signal
import subprocess
import sys
import time
from random import Random

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def images(sides):
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    sides.prepare(*create, "base", "8M")
    sides.prepare("qemu-io", "-c", "write -P 1 0 3M", "-c", "write -P 2 5M 64k", "-c", "write -z 6M 1M", "base")
    sides.prepare(*create, "-b", "base", "-F", "qcow2", "-o", "cluster_size=4k", "top", "10M")
    commands = [
        "write -P 3 1M 128k",
        "write -P 0 2M 100k",
        "write -z 2560k 64k",
        "write -P 4 9M 5k",
        "write -z 7936k 512k",
    ]
    sides.prepare("qemu-io", *[word for command in commands for word in ("-c", command)], "top")
    sides.prepare(*create, "small", "1023k")
    sides.prepare("qemu-io", "-c", "write -P 5 1022k 1k", "-c", "write -P 6 16k 16k", "small")
    data = bytearray(2_500_000)
    random = Random(7)
    for _ in range(60):
        at, length = random.randrange(len(data)), random.choice([1, 100, 512, 4096, 5000, 70_000])
        data[at : at + length] = random.randbytes(len(data[at : at + length]))
    sides.write("x.raw", bytes(data))
    return sides


def _allocation(image, folder):
    """The map of an image, without the places in the file."""
    done = subprocess.run(["qemu-img", "map", "--output=json", image], cwd=folder, capture_output=True, check=True)
    runs = [{key: value for key, value in run.items() if key != "offset"} for run in json.loads(done.stdout)]
    joined = []
    for run in runs:
        last = joined[-1] if joined else None
        if last and {**last, "start": 0, "length": 0} == {**run, "start": 0, "length": 0}:
            last["length"] += run["length"]
        else:
            joined.append(run)
    return joined


@pytest.mark.parametrize(
    "line",
    [
        "-O raw top",
        "-O qcow2 top",
        "-O qcow2 -c top",
        "-O qcow2 -c -W -m 4 top",
        "-O qcow2 -W -m 16 top",
        "-m 1 -O qcow2 top",
        "-O qcow2 -S 0 small",
        "-O qcow2 -c -S 0 small",
        "-O raw -S 0 small",
        "-O qcow2 -S 64k top",
        "-O raw -S 512 top",
        "-O qcow2 -B base -F qcow2 top",
        "-O qcow2 -c -B base -F qcow2 top",
        "-O qcow2 -B base -F qcow2 -S 0 top",
        "-O qcow2 -o backing_file=base,backing_fmt=qcow2 top",
        "-O qcow2 -o compat=0.10 top",
        "-O qcow2 -o compat=0.10 -B base -F qcow2 top",
        "-O qcow2 -o cluster_size=2M,refcount_bits=64 top",
        "-O qcow2 -o compression_type=zstd -c top",
        "-O qcow2 -o extended_l2=on top",
        "-O qcow2 -o preallocation=metadata small",
        "-O qcow2 -o preallocation=full small",
        "-O raw -o preallocation=full small",
        "-O qcow2 -o size=1M top",
        "-O qcow2 small small base",
        "-O qcow2 -c small small base",
        "-O raw small top",
        "-O qcow2 -f raw x.raw",
        "-O raw x.raw",
        "-O qcow2 -c x.raw",
        "-O raw -f raw x.raw top",
        "-t none -T none -O qcow2 top",
        "-t writethrough -O raw top",
        "-U -q -O raw top",
        "-C -O raw top",
        "-C -O raw -f raw x.raw",
        "-C -O qcow2 small",
        "--salvage -O raw top",
        "-r 1G -O raw top",
        "--image-opts -O raw driver=qcow2,file.filename=top",
    ],
)
def test_the_same_target(images, line):
    assert images.same("convert", *line.split(), "out").status == 0
    format = "qcow2" if "-O qcow2" in line else "raw"
    theirs, ours = images.facts("out")
    assert ours == theirs
    images.same_content("out", format)
    if format == "qcow2":
        assert _allocation("out", images.ours) == _allocation("out", images.theirs)


@pytest.mark.parametrize(
    "target",
    ["qcow2", "qcow2 -o compat=0.10", "qcow2 -b other -F qcow2", "qcow2 -b other -F qcow2 -o compat=0.10", "raw"],
)
@pytest.mark.parametrize("line", ["", "-c", "-S 0", "-B base"])
def test_into_a_target_that_is_there(images, target, line):
    format, *options = target.split()
    if line == "-c" and format == "raw":
        pytest.skip("there is nothing to compress in a raw image")
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "other", "10M")
    images.prepare("qemu-io", "-c", "write -P 9 0 10M", "other")
    images.prepare("qemu-img", "create", "-q", "-f", format, *options, "out", "10M")
    if line != "-c":  # QEMU compresses into empty clusters only
        images.prepare("qemu-io", "-f", format, "-c", "write -P 8 100k 5M", "out")
    assert images.same("convert", "-n", "-O", format, *line.split(), "top", "out").status == 0
    images.same_content("out", format)


def test_a_target_that_is_known_to_be_zero(images):
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "out", "10M")
    images.same("convert", "-n", "--target-is-zero", "-O", "qcow2", "top", "out")
    images.same_content("out", "qcow2")
    assert _allocation("out", images.ours) == _allocation("out", images.theirs)


def test_a_target_given_by_options(images):
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "out", "10M")
    images.same("convert", "-n", "--target-image-opts", "top", "driver=qcow2,file.filename=out")
    images.same_content("out", "qcow2")


@pytest.mark.parametrize(
    "line",
    [
        "-O zork small out",
        "-O raw small nosuch/out",
        "-O qcow2 small nosuch/out",
        "-O qcow2 small .",
        "-n -O qcow2 small nosuch",
        "-n -O qcow2 top small",
        "-n -O raw top x.raw",
        "-c -O raw small out",
        "-O null-co small out",
        "-f zork small out",
        "-B base -O qcow2 top out",
        "-B base -F qcow2 -O raw top out",
        "-F qcow2 -O qcow2 top out",
        "-B base -F qcow2 -O qcow2 small top out",
        "-B base -O qcow2 small top out",
        "-o cluster_size=3 -O qcow2 small out",
        "-o zork=3 -O qcow2 small out",
        "-o size=x -O qcow2 small out",
        "-o backing_fmt=qcow2 -O qcow2 small out",
        "-o backing_file=base -O qcow2 small out",
        "-c -o preallocation=full -O qcow2 small out",
        "-c -o encryption=on -O qcow2 small out",
        "-t zork small out",
        "-O qcow2 small nosuch out",
        "--target-image-opts -n -O qcow2 small driver=qcow2,file.filename=top",
        "-o help -O qcow2 small out",
        "-o help -O qcow2",
    ],
)
def test_what_it_refuses(images, line):
    images.same("convert", *line.split())
    assert not (images.ours / "out").exists()


@pytest.mark.parametrize(
    "line", ["-O qcow2 top", "-O qcow2 -f raw x.raw", "-O qcow2 -B base -F qcow2 top", "-O raw top"]
)
def test_copied_by_the_storage(images, line):
    """Whole clusters: what is allocated may differ from QEMU's, what is read and the metadata may not."""
    assert images.same("convert", "-C", *line.split(), "out").status == 0
    format = "qcow2" if "-O qcow2" in line else "raw"
    images.same_content("out", format)
    if format == "qcow2":
        assert images.run_ours("check", "out").status == 0


@pytest.mark.parametrize("type", ["zlib", "zstd"])
def test_the_level_of_compression(images, type):
    sizes = []
    for level in ("1", "9"):
        line = f"-c --level {level} -O qcow2 -o compression_type={type} -f raw x.raw out"
        assert images.run_ours("convert", *line.split()).status == 0
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", "x.raw", "out"], cwd=images.ours, check=True)
        sizes.append((images.ours / "out").stat().st_size)
    assert sizes[1] != sizes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--level 1 -O qcow2", "--level requires use of -c flag"),
        ("-c --level x -O qcow2", "Invalid compression level"),
        ("-c --level 10 -O qcow2", "compression-level must be between 1 and 9 for zlib"),
    ],
)
def test_levels_that_it_refuses(images, line, message):
    result = images.run_ours("convert", *line.split(), "small", "out")
    assert result.status == 1
    assert message in result.err
    assert not (images.ours / "out").exists()


def test_progress(images):
    result = images.run_ours("convert", "-p", "-O", "raw", "top", "out")
    shown = [float(text.strip()[1:-6]) for text in result.out.split("\r") if text.strip()]
    assert shown == sorted(shown)
    assert shown[0] == 0
    assert shown[-2:] == [100, 100]
    assert images.run_ours("convert", "-p", "-q", "-O", "raw", "top", "out").out == ""


def test_a_failure_removes_a_new_target_and_leaves_an_old_one(images):
    """A compressed cluster that does not unpack is an error in the middle of the work."""
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "bad", "1M")
    images.prepare("qemu-io", "-c", "write -c -P 7 64k 64k", "bad")
    entry = int.from_bytes((images.ours / "bad").read_bytes()[0x40008:0x40010], "big")
    images.write("bad", b"\xff" * 64, entry & (1 << 54) - 1)
    result = images.run_ours("convert", "-O", "raw", "bad", "out")
    assert result.status == 1
    assert result.err.startswith("qemu-img: error while reading at byte ")
    assert not (images.ours / "out").exists()
    (images.ours / "out").write_bytes(b"old")
    assert images.run_ours("convert", "-O", "raw", "bad", "out").status == 1
    assert (images.ours / "out").exists()
    assert images.run_ours("convert", "--salvage", "-O", "raw", "bad", "out").err.count("warning: error while") > 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_removes_the_target(images, signum):
    code = "import sys; from aioblock.tools.img import main; sys.exit(main())"
    words = ["convert", "-r", "64k", "-m", "1", "-O", "raw", "base", "out"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=images.ours, stderr=subprocess.PIPE, text=True)
    try:
        give_up = time.monotonic() + 20
        while not (images.ours / "out").exists() or not _handles(process.pid, signum):
            assert time.monotonic() < give_up
            os.sched_yield()
        process.send_signal(signum)
        assert process.wait(20) == 128 + signum
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
    assert not (images.ours / "out").exists()


def _handles(pid, signum):
    with open(f"/proc/{pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt:"))
    return int(caught.split()[1], 16) >> (signum - 1) & 1


@pytest.mark.parametrize("line", ["-O raw raw raw", "-n -O raw raw raw", "-O qcow2 top top"])
def test_a_source_is_no_target(sides, line):
    sides.write("raw", bytes(range(256)) * 4096)
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "top", "1M")
    sides.same("convert", "-f", "qcow2" if "top" in line else "raw", *line.split())
    assert (sides.ours / "raw").read_bytes() == bytes(range(256)) * 4096


def test_what_lies_behind_the_source_stays(sides):
    """A target that is there already may be longer."""
    sides.write("short", b"x" * 1000)
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "out", "1M")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "out")
    sides.same("convert", "-n", "-f", "raw", "-O", "qcow2", "short", "out")
    sides.same_content("out", "qcow2")


def test_bitmaps_of_an_image_at_a_snapshot(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "in", "1M")
    sides.prepare("qemu-img", "bitmap", "--add", "in", "map")
    sides.prepare("qemu-img", "snapshot", "-c", "then", "in")
    sides.prepare("qemu-io", "-c", "write -P 7 0 64k", "in")
    sides.same("convert", "--bitmaps", "-l", "then", "-O", "qcow2", "in", "out")
    assert [line for facts in sides.facts("out") for line in facts if "name: map" in line] == [
        "            name: map"
    ] * 2
    sides.same_content("out", "qcow2")


def test_a_snapshot_of_the_first_of_several_sources(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "in", "1M")
    sides.prepare("qemu-img", "snapshot", "-c", "then", "in")
    sides.prepare("qemu-io", "-c", "write -P 7 0 64k", "in")
    sides.same("convert", "-l", "snapshot.name=then", "-O", "raw", "in", "in", "out")
    sides.same_content("out", "raw")

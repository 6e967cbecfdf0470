"""bench: the lines of qemu-img, apart from the time, and the requests that it says it sends."""

import re

import pytest

pytestmark = pytest.mark.oracle


def _without_time(result):
    return result._replace(out=re.sub(r"in \d+\.\d{3} seconds", "in X seconds", result.out))


@pytest.mark.parametrize(
    "line",
    [
        "-c 100 x",
        "-c 100 -d 4 -s 512 -S 1024 -o 4k x",
        "-w -c 100 -d 4 -s 512 -S 1024 -o 4k x",
        "-w --pattern 7 -c 100 x",
        "-w --pattern 0x7 -c 100 x",
        "-w --flush-interval 8 -d 4 -c 100 x",
        "-w --flush-interval 8 -d 4 --no-drain -c 100 x",
        "--no-drain -c 10 x",
        "-q -w -c 10 x",
        "-c 0 x",
        "-S 0 -c 10 x",
        "-o 2M -c 10 x",
        "-o 1M -c 10 x",
        "-o 1020k -s 8k -c 10 x",
        "-s 2M -c 10 x",
        "-i threads -c 10 x",
        "-t none -c 10 x",
        "-t directsync -c 10 x",
        "-U -c 10 x",
        "-U -w -c 10 x",
        "-f raw -c 10 x",
        "-i native x",
        "--image-opts driver=qcow2,file.filename=x -c 10",
        "-c 10 nosuch",
    ],
)
def test_bench(sides, line):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", "1M")
    theirs, ours = sides.run_theirs("bench", *line.split()), sides.run_ours("bench", *line.split())
    assert _without_time(ours) == _without_time(theirs)


@pytest.mark.parametrize("line", ["", "--flush-interval 8", "--flush-interval 8 --no-drain"])
def test_writes_go_where_qemu_writes_them(sides, line):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", "1M")
    words = f"bench -w --pattern 9 -c 50 -d 3 -s 1k -S 30k -o 5k {line} x".split()
    assert sides.run_theirs(*words).status == sides.run_ours(*words).status == 0
    sides.same_content("x", "qcow2")


@pytest.mark.parametrize("line", ["-i io_uring", "-i native -t none", "-n -t directsync"])
def test_how_the_system_is_asked_is_accepted(sides, line):
    sides.write("x", bytes(4096))
    words = f"bench {line} -c 3 -s 512 -f raw x".split()
    assert sides.run_theirs(*words).status == sides.run_ours(*words).status == 0


def test_an_image_that_was_taken_for_raw_is_warned_about(sides):
    sides.write("x", bytes(1 << 20))
    theirs, ours = sides.run_theirs("bench", "-w", "-c", "3", "x"), sides.run_ours("bench", "-w", "-c", "3", "x")
    assert ours.err == theirs.err
    assert "probing guessed raw" in ours.err

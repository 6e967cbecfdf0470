"""bitmap, what info says of bitmaps, and convert --bitmaps: the same as qemu-img."""

import re

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def images(sides):
    """An image with a bitmap that records, and one that does not."""
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", "10M")
    sides.prepare("qemu-img", "bitmap", "--add", "x", "on")
    sides.prepare("qemu-img", "bitmap", "--add", "-g", "4k", "--disable", "x", "off")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write 1M 128k", "x")
    return sides


def unfinished(sides, name="x"):
    """Let the bitmaps be what a program that was killed leaves."""
    for folder in (sides.theirs, sides.ours):
        data = bytearray((folder / name).read_bytes())
        for found in re.finditer(rb"\x01\x10\x00[\x02\x03]\x00\x00\x00\x00o|\x01\x0c\x00\x03\x00\x00\x00\x00o", data):
            data[found.start() - 1] |= 1  # in use
        (folder / name).write_bytes(data)


def facts_are_the_same(sides, name="x"):
    theirs, ours = sides.facts(name)
    assert ours == theirs


@pytest.mark.parametrize(
    "line",
    [
        "--add x new",
        "--add -g 512 x new",
        "--add -g 2G x new",
        "--add -g 0 x new",
        "--add --disable x new",
        "--add --disable --enable x new",
        "--add --merge on x new",
        "--add --merge on --merge off --clear -f qcow2 x new",
        "--remove x on",
        "--remove --add x on",
        "--rem x off",
        "--enable x off",
        "--disable x on",
        "--clear x on",
        "--clear --merge off --enable x on",
        "--add --image-opts driver=qcow2,file.filename=x new",
        "--object secret,id=s,data=x --add x new",
        # refused
        "x on",
        "--add x",
        "--add x a b",
        "--add x on",
        "--add --enable --add x new",
        "--add -g 100 x new",
        "--add -g 1000 x new",
        "--add -g 4G x new",
        "--add -g what x new",
        "--add -g -1 x new",
        "-g 4k --remove x on",
        "--remove x new",
        "--clear x new",
        "--enable x new",
        "--disable x new",
        "--merge new x on",
        "--merge on x new",
        "-F raw --merge on x on",
        "-b x --add x new",
        "--merge on -b nothing x on",
        "--add --image-opts -f qcow2 x new",
        "--add -f qcow2 nothing new",
        "--what x on",
        "--merge",
        "-q --add x new",
    ],
)
def test_actions(images, line):
    images.same("bitmap", *line.split())
    facts_are_the_same(images)
    assert images.run_theirs("check", "x").status == 0
    images.theirs = images.ours
    assert images.run_theirs("check", "x").status == 0


def test_names_that_cannot_be(images):
    assert images.same("bitmap", "--add", "x", "").err
    for name, file in (("n" * 1024, "x"), ("b", "old"), ("b", "raw")):
        images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "1M")
        images.prepare("qemu-img", "create", "-q", "-f", "raw", "raw", "1M")
        arguments = ["bitmap", "--add", *(["-f", "raw"] if file == "raw" else []), file, name]
        theirs, ours = images.run_theirs(*arguments), images.run_ours(*arguments)
        assert ours.status == theirs.status == 1
        assert re.sub(r"#block\d+", "NODE", ours.err) == re.sub(r"#block\d+", "NODE", theirs.err)


def test_merge_from_another_file(images):
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "y", "10M")
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "z", "20M")
    images.same("bitmap", "--add", "--merge", "on", "-b", "x", "-F", "qcow2", "-f", "qcow2", "y", "new")
    images.same("bitmap", "--add", "--merge", "off", "--merge", "on", "-b", "x", "y", "both")
    images.same("bitmap", "--merge", "none", "-b", "x", "-F", "qcow2", "y", "new")
    images.same("bitmap", "--add", "--merge", "on", "-b", "x", "-F", "qcow2", "z", "new")
    facts_are_the_same(images, "y")
    facts_are_the_same(images, "z")


def test_inconsistent_bitmaps(images):
    unfinished(images)
    assert "in-use" in "\n".join(images.facts("x")[0])
    images.same("info", "--output=json", "-f", "qcow2", "nothing")
    for action in ("clear", "enable", "disable", "add"):
        assert images.same("bitmap", f"--{action}", "x", "on").status == 1
    assert images.same("bitmap", "--merge", "off", "x", "on").status == 1
    assert images.same("convert", "-O", "qcow2", "--bitmaps", "x", "y").status == 1
    images.same("convert", "-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", "x", "y")
    facts_are_the_same(images, "y")
    images.same("bitmap", "--remove", "x", "on")
    facts_are_the_same(images)


@pytest.mark.parametrize(
    "line",
    [
        "--bitmaps -O qcow2 x y",
        "--bitmaps -O qcow2 -o cluster_size=4k x y",
        "--bitmaps -c -O qcow2 x y",
        "--bitmaps -n -O qcow2 x empty",
        "-O qcow2 x y",
        "--bitmaps -O qcow2 empty y",
        # refused
        "--bitmaps -O raw x y",
        "--bitmaps -O qcow2 -o compat=0.10 x y",
        "--bitmaps -O qcow2 x x y",
        "--bitmaps -f raw -O qcow2 raw y",
        "--bitmaps -n -O qcow2 x full",
        "--skip-broken-bitmaps -O qcow2 x y",
    ],
)
def test_convert(images, line):
    images.prepare("qemu-img", "create", "-q", "-f", "raw", "raw", "1M")
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "empty", "10M")
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "full", "10M")
    images.prepare("qemu-img", "bitmap", "--add", "full", "on")
    done = images.same("convert", *line.split())
    if done.status == 0:
        facts_are_the_same(images, line.split()[-1])
        assert images.run_theirs("check", "-f", "qcow2", str(images.ours / line.split()[-1])).status == 0


def test_convert_into_a_larger_image(images):
    images.prepare("qemu-img", "bitmap", "--remove", "x", "off")
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "large", "20M")
    assert images.same("convert", "--bitmaps", "-n", "-O", "qcow2", "x", "large").status == 1
    facts_are_the_same(images, "large")


def test_info(images):
    images.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "x", "-F", "qcow2", "top")
    for options in ([], ["--backing-chain"]):
        theirs, ours = images.run_theirs("info", *options, "top"), images.run_ours("info", *options, "top")
        strip = re.compile("disk size: .*")
        assert strip.sub("", ours.out) == strip.sub("", theirs.out)
    theirs, ours = images.run_theirs("info", "--output=json", "x"), images.run_ours("info", "--output=json", "x")
    strip = re.compile('"actual-size": [0-9]+')
    assert strip.sub("", ours.out) == strip.sub("", theirs.out)
    assert '"granularity": 4096' in ours.out

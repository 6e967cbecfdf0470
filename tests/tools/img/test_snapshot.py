"""`snapshot`, the snapshots in `info`, and `convert -l`, next to qemu-img."""

import os
import struct
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def image(sides):
    """x.qcow2 with data, and two snapshots of which one has a VM state, a clock, and no instruction count."""
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x.qcow2", "4M")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 256k", "x.qcow2")
    sides.prepare("qemu-img", "snapshot", "-c", "one", "x.qcow2")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 64k 64k", "x.qcow2")
    sides.prepare("qemu-img", "snapshot", "-c", "1", "x.qcow2")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 64k", "x.qcow2")
    for folder in (sides.theirs, sides.ours):
        data = (folder / "x.qcow2").read_bytes()
        (table,) = struct.unpack_from(">Q", data, 64)
        second = table + 72
    clock = (100 * 3600 + 5 * 60 + 7) * 10**9 + 123_956_789
    sides.write("x.qcow2", struct.pack(">IIQ", 1_234_567_890, 5, clock), table + 16)
    sides.write("x.qcow2", struct.pack(">QQQ", 5 << 30, 4 << 20, (1 << 64) - 1), table + 40)
    sides.write("x.qcow2", struct.pack(">IIQ", 1_234_567_891, 7, 1), second + 16)
    return "x.qcow2"


@pytest.mark.parametrize("format", [[], ["--output=json"]])
def test_the_list(sides, image, format):
    assert sides.same("snapshot", "-l", image).out.count("\n") == 4
    sides.same("snapshot", "-U", "-l", image)
    sides.same("snapshot", "-q", image)
    sides.same("snapshot", "--image-opts", "-l", f"driver=qcow2,file.filename={image}")
    theirs, ours = sides.run_theirs("info", *format, image), sides.run_ours("info", *format, image)
    for unlike in ("disk size", "actual-size"):
        assert [line for line in ours.out.splitlines() if unlike not in line] == [
            line for line in theirs.out.splitlines() if unlike not in line
        ]


def test_names_of_any_length_and_bytes(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x.qcow2", "1M")
    for name in ("", "x" * 255, "n\u20ac"):
        sides.prepare("qemu-img", "snapshot", "-c", name, "x.qcow2")
    for folder in (sides.theirs, sides.ours):
        (table,) = struct.unpack_from(">Q", (folder / "x.qcow2").read_bytes(), 64)
    for entry in (table, table + 72, table + 72 + 320):
        sides.write("x.qcow2", struct.pack(">II", 1_234_567_890, 0), entry + 16)
    sides.same("snapshot", "-l", "x.qcow2")


def test_make_apply_and_delete(sides, image):
    assert sides.same("snapshot", "-a", "1", image) == (0, "", "")  # the id before the name
    assert sides.same("snapshot", "-d", "1", image) == (0, "", "")  # only the name
    sides.same_content(image, "qcow2")
    assert (
        sides.same("snapshot", "-d", "2", image).err == "qemu-img: Could not delete snapshot '2': snapshot not found\n"
    )
    for args in (("-c", "new"), ("-c", "new"), ("-a", "new"), ("-d", "new"), ("-a", "nothing"), ("-d", "nothing")):
        sides.same("snapshot", *args, image)
        sides.same_content(image, "qcow2")
    listed = [side("snapshot", "-l", image).out.splitlines()[2:] for side in (sides.run_theirs, sides.run_ours)]
    assert [[line[:35] for line in lines] for lines in listed] == [
        ["1         one                 5 GiB", "3         new                   0 B"]
    ] * 2
    icounts = [[line[-1] for line in lines] for lines in listed]
    assert icounts[0] == icounts[1] == [" ", "0"]


def test_a_size_that_differs(sides, image):
    sides.prepare("qemu-img", "resize", "-q", image, "8M")
    assert sides.same("snapshot", "-c", "large", image).status == 0
    sides.same("snapshot", "-a", "one", image)
    sides.same_content(image, "qcow2")
    sides.same("snapshot", "-a", "large", image)
    sides.same_content(image, "qcow2")


@pytest.mark.parametrize(
    "args",
    [
        ("-l",),
        ("-l", "x.qcow2", "y"),
        ("-l", "-a", "x", "x.qcow2"),
        ("-c",),
        ("-f", "qcow2", "-l", "x.qcow2"),
        ("-U", "-c", "x", "x.qcow2"),
        ("-l", "nothing.qcow2"),
        ("-c", "x", "nothing.qcow2"),
        ("--image-opts", "-l", "x.qcow2"),
    ],
)
def test_wrong_arguments(sides, args):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x.qcow2", "1M")
    assert sides.same("snapshot", *args).status == 1


def test_images_that_cannot(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", "narrow.qcow2", "1M")
    sides.prepare("qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", "narrow.qcow2")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data", "apart.qcow2", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "raw", "x.raw", "1M")
    assert "-22 (Invalid argument)" in sides.same("snapshot", "-c", "x", "narrow.qcow2").err
    assert "-95 (Operation not supported)" in sides.same("snapshot", "-c", "x", "apart.qcow2").err
    for name in ("apart.qcow2", "x.raw"):
        for action in ("-c", "-d"):
            sides.same("snapshot", action, "x", name)
    assert sides.run_ours("snapshot", "-a", "x", "x.raw").err.endswith("Block driver does not support snapshots\n")
    sides.same("snapshot", "-l", "x.raw")
    sides.same("snapshot", "-a", "x", "apart.qcow2")


def test_bitmaps_forbid_to_go_back(sides, image):
    sides.prepare("qemu-img", "bitmap", "--add", image, "b")
    assert sides.same("snapshot", "-a", "one", image).err.endswith("Device has active dirty bitmaps\n")


@pytest.mark.parametrize(
    "wanted", ["1", "one", "snapshot.id=1", "snapshot.name=1", "snapshot.name=one,snapshot.id=1", "snapshot.id=2"]
)
def test_convert_of_a_snapshot(sides, image, wanted):
    assert sides.same("convert", "-l", wanted, "-O", "raw", image, "out.raw").status == 0
    assert (sides.theirs / "out.raw").read_bytes() == (sides.ours / "out.raw").read_bytes()


@pytest.mark.parametrize(
    "wanted", ["", "nothing", "snapshot.id=one", "snapshot.id=1,snapshot.name=1", "snapshot.foo=1"]
)
def test_convert_of_a_snapshot_that_is_not_there(sides, image, wanted):
    assert sides.same("convert", "-l", wanted, "-O", "raw", image, "out.raw").status == 1
    assert not os.path.exists(sides.ours / "out.raw")


def test_convert_of_what_has_no_snapshots_or_of_several_images(sides, image):
    sides.prepare("qemu-img", "create", "-q", "-f", "raw", "x.raw", "1M")
    sides.same("convert", "-l", "one", "-O", "raw", "x.raw", "out.raw")
    sides.same("convert", "-l", "one", "-O", "raw", image, image, "out.raw")
    sides.same("convert", "-l", "one", "-O", "raw", image, "nothing.qcow2", "out.raw")


def test_a_bad_l1_table(sides, image):
    (table,) = struct.unpack_from(">Q", Path(sides.ours / image).read_bytes(), 64)
    for field in (struct.pack(">QI", 0x400200, 1), struct.pack(">QI", 0x40000, 1 << 28)):
        sides.write(image, field, table)
        assert sides.same("convert", "-l", "one", "-O", "raw", image, "out.raw").status == 1
        for action in ("-a", "-d"):
            assert sides.same("snapshot", action, "one", image).status == 1

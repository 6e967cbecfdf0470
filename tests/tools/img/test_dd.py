"""dd: QEMU's messages, exit codes, sizes and content."""

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def images(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "a", "1M")
    sides.prepare("qemu-io", "-c", "write -P 1 100001 300000", "-c", "write -P 2 900k 1000", "a")
    sides.write("r", bytes(number % 251 for number in range(5001)))
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("if=a of=b", 0),
        ("-f qcow2 -O qcow2 if=a of=b", 0),
        ("if=a of=b bs=1k count=300", 0),
        ("if=a of=b bs=1k skip=99", 0),
        ("if=a of=b bs=1k skip=99 count=200", 0),
        ("if=a of=b bs=1k skip=300 count=200", 0),
        ("if=a of=b bs=300k", 0),
        ("if=a of=b bs=2147483647", 0),
        ("if=a if=r -f raw of=b count=1", 0),
        ("-f raw if=r of=b", 0),
        ("-f raw if=r of=b bs=7 skip=2 count=3", 0),
        ("-f raw if=r of=b bs=600 skip=1", 0),
        ("-f raw if=r of=b bs=1 skip=5001", 0),
        ("-f raw if=r of=b skip=10", 0),
        ("-f raw if=r of=b skip=11", 0),
        ("-f raw if=r of=b count=0", 0),
        ("-U if=a of=b skip=1.5k", 0),
        ("--image-opts if=driver=qcow2,file.filename=a of=b", 0),
        ("if=a of=b skip=9999999", 0),
        ("", 1),
        ("if=a", 1),
        ("of=b", 1),
        ("if=a of=b bs=0", 1),
        ("if=a of=b bs=foo", 1),
        ("if=a of=b bs=3G", 1),
        ("if=a of=b bs=2147483648", 1),
        ("if=a of=b bs=-1", 1),
        ("if=a of=b count=foo", 1),
        ("if=a of=b count=16E", 1),
        ("if=a of=b count=", 1),
        ("if=a of=b skip=foo", 1),
        ("if=a of=b seek=1", 1),
        ("if=a of=b zork", 1),
        ("if=a of=b =3", 1),
        ("-O zork if=a of=b", 1),
        ("-O blkdebug if=a of=b", 1),
        ("-f zork if=a of=b", 1),
        ("if=nosuch of=b", 1),
        ("if=a of=no/such", 1),
        ("-O qcow2 if=a of=no/such", 1),
        ("--image-opts -f raw if=a of=b", 1),
        ("if=a of=a", 1),
        ("-z if=a of=b", 1),
    ],
)
def test_the_same(images, line, status):
    assert images.same("dd", *line.split()).status == status
    assert (images.ours / "b").exists() == (images.theirs / "b").exists()
    if (images.ours / "b").exists():
        format = "qcow2" if "-O qcow2" in line else "raw"
        images.same_content("b", format)
        assert images.facts("b")[0] == images.facts("b")[1]
        if format == "raw":
            assert (images.ours / "b").read_bytes() == (images.theirs / "b").read_bytes()

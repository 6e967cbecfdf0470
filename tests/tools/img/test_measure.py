"""measure: QEMU's figures, messages and exit codes."""

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def images(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "new", "1M")
    sides.prepare("qemu-io", "-c", "write 0 64k", "-c", "write -c 64k 192k", "new")
    sides.prepare("qemu-img", "snapshot", "-c", "one", "new")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "1M")
    sides.write("odd", b"12345")
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("--size 1G", 0),
        ("--size 1000", 0),
        ("-O qcow2 --size 1G", 0),
        ("-O qcow2 --output=json --size 1G", 0),
        ("-O qcow2 --size 0", 0),
        ("-O qcow2 --size 1E", 1),
        ("-O qcow2 --size -1", 1),
        ("-O qcow2 -o preallocation=falloc --size 1G", 0),
        ("-O qcow2 -o preallocation=metadata --size 1G", 0),
        ("-O qcow2 -o preallocation=nonsense --size 1G", 1),
        ("-O qcow2 -o cluster_size=3k --size 1G", 1),
        ("-O qcow2 -o compat=nonsense --size 1G", 1),
        ("-O qcow2 -o compat=0.10,refcount_bits=1 --size 1G", 1),
        ("-O qcow2 -o refcount_bits=3 --size 1G", 1),
        ("-O qcow2 -o extended_l2=on,cluster_size=4k --size 1G", 1),
        ("-O qcow2 -o nonsense=3k --size 1G", 1),
        ("-O raw -o nonsense=3k --size 1G", 1),
        ("-O qcow2 -o size=3G --size 1G", 0),
        ("-O qcow2 -o nocow=on --size 1G", 0),
        ("-O qcow2 -o encrypt.format=luks --size 1G", 1),
        ("-O qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s --size 1G", 0),
        ("-O luks --object secret,id=s,data=x -o key-secret=s --size 1G", 0),
        ("-O nonsense --size 1G", 1),
        ("-O file --size 1G", 1),
        ("-O qcow2 new", 0),
        ("-O qcow2 --output=json new", 0),
        ("-O qcow2 -o compat=0.10 new", 0),
        ("-O qcow2 -o backing_file=nosuch,backing_fmt=raw new", 0),
        ("-O qcow2 -f raw new", 0),
        ("-O qcow2 -l one new", 0),
        ("-O qcow2 -l nosuch new", 1),
        ("-O qcow2 old", 0),
        ("-O qcow2 -f raw odd", 0),
        ("-f raw odd", 0),
        ("-U new", 0),
        ("--image-opts driver=qcow2,file.filename=new", 0),
        ("--image-opts -f qcow2 new", 1),
        ("-f raw --size 1G", 1),
        ("-l one --size 1G", 1),
        ("new old", 1),
        ("--size 1G new", 1),
        ("--output=nonsense new", 1),
        ("nosuch", 1),
        ("", 1),
    ],
)
def test_the_same(images, line, status):
    assert images.same("measure", *line.split()).status == status

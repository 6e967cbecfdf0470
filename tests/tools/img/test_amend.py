"""amend: QEMU's messages, exit codes and help, and headers that say the same."""

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def images(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "new", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=8", "narrow", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "new", "-F", "qcow2", "over", "1M")
    sides.prepare("qemu-img", "create", "-q", "-f", "raw", "raw", "1M")
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("-o compat=0.10 new", 0),
        ("-o compat=v2 new", 0),
        ("-o compat=1.1 old", 0),
        ("-o compat=1.1,refcount_bits=64,lazy_refcounts=on old", 0),
        ("-o compat=0.10 narrow", 1),
        ("-o compat=0.10,refcount_bits=16 narrow", 0),
        ("-o lazy_refcounts=on old", 1),
        ("-o refcount_bits=1 old", 1),
        ("-o refcount_bits=7 new", 1),
        ("-o compat=3 new", 1),
        ("-o size=2M new", 0),
        ("-o size=512k new", 0),
        ("-o size=1000 new", 1),
        ("-o size new", 1),
        ("-o cluster_size=4k new", 1),
        ("-o compression_type=zstd new", 1),
        ("-o preallocation=off new", 1),
        ("-o extended_l2=off new", 1),
        ("-o data_file=x new", 1),
        ("-o data_file_raw=on new", 1),
        ("-o data_file_raw=off new", 0),
        ("-o backing_file=x over", 1),
        ("-o backing_file=new,backing_fmt=qcow2 over", 0),
        ("-o backing_fmt=raw over", 1),
        ("-o encrypt.state=active new", 1),
        ("-o nonsense=1 new", 1),
        ("-o size=1M, new", 1),
        ("new", 1),
        ("-o size=1M", 1),
        ("-o size=1M new old", 1),
        ("-o size=1M nosuch", 1),
        ("-t nonsense -o size=1M new", 1),
        ("--force -q -o compat=1.1 new", 0),
        ("-f raw -o size=1M raw", 1),
        ("-f raw -o help", 1),
        ("-f nonsense -o help", 1),
        ("-f qcow2 -o help", 0),
        ("-o help new", 0),
        ("-o help", 1),
    ],
)
def test_the_same(images, line, status):
    assert images.same("amend", *line.split()).status == status
    for name in ("new", "old", "narrow", "over"):
        theirs, ours = ((folder / name).read_bytes()[:104] for folder in (images.theirs, images.ours))
        # All fields but the offsets and sizes of tables.
        assert [theirs[:8], theirs[16:36], theirs[72:]] == [ours[:8], ours[16:36], ours[72:]]


@pytest.mark.slow
@pytest.mark.parametrize("snapshot", [False, True])
def test_progress(sides, snapshot):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "base", "4G")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "image")
    sides.prepare("qemu-io", "-c", "write -z 0 64k", "-c", "write -z 1G 64k", "-c", "write -z 3G 64k", "image")
    if snapshot:
        sides.prepare("qemu-img", "snapshot", "-c", "one", "image")
    for options in ("lazy_refcounts=on", "compat=0.10,lazy_refcounts=off"):
        theirs, ours = (run("amend", "-p", "-o", options, "image") for run in (sides.run_theirs, sides.run_ours))
        assert ours.out.replace("\r\n", "\n").replace("\r", "\n") == theirs.out

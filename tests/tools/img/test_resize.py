"""resize: QEMU's messages, exit codes and sizes."""

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def images(sides):
    for form in ("qcow2", "raw"):
        sides.prepare("qemu-img", "create", "-q", "-f", form, form, "1M")
        sides.prepare("qemu-io", "-f", form, "-c", "write -P 7 0 1M", form)
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old", "1M")
    sides.prepare("qemu-img", "snapshot", "-c", "one", "old")
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("qcow2 2M", 0),
        ("-q qcow2 +1M", 0),
        ("qcow2 +0", 0),
        ("qcow2 512k", 1),
        ("qcow2 -1k", 1),
        ("qcow2 -- -1k", 1),
        ("--shrink qcow2 -1k", 0),
        ("--shrink qcow2 512k", 0),
        ("--shrink qcow2 -100M", 1),
        ("--shrink qcow2 0", 1),
        ("--shrink qcow2 1000", 1),
        ("qcow2 1x", 1),
        ("qcow2 99E", 1),
        ("qcow2 1E", 1),
        ("--preallocation=metadata qcow2 4M", 0),
        ("--preallocation=nonsense qcow2 4M", 1),
        ("--preallocation=full --shrink qcow2 512", 1),
        ("--image-opts driver=qcow2,file.filename=qcow2 3M", 0),
        ("--image-opts -f qcow2 qcow2 3M", 1),
        ("raw 2M", 0),
        ("-f raw raw 512k", 1),
        ("-f raw --shrink raw 512k", 0),
        ("-f raw raw +1000", 0),
        ("-f raw --preallocation=metadata raw 3M", 1),
        ("-f raw --preallocation=full raw 3M", 0),
        ("old 2M", 1),
        ("nosuch 1M", 1),
        ("qcow2", 1),
        ("qcow2 raw 1M", 1),
        ("-x qcow2 1M", 1),
    ],
)
def test_the_same(images, line, status):
    assert images.same("resize", *line.split()).status == status
    for name in ("qcow2", "raw"):
        images.same("compare", "-f", name, "-F", name, name, f"../theirs/{name}")
        assert _size(images.theirs / name) == _size(images.ours / name)


def _size(path):
    content = path.read_bytes()
    return content[24:32] if content[:3] == b"QFI" else len(content)

"""compare: the same verdict, the same place and the same exit code as qemu-img."""

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def images(sides):
    def make(name, size, *commands):
        sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", name, size)
        words = [word for command in commands for word in ("-c", command)]
        if words:
            sides.prepare("qemu-io", *words, name)

    make("a", "1M", "write 0 64k", "write -z 128k 64k", "write -P 0 512k 64k")
    make("b", "2M", "write 0 64k")
    make("c", "2M", "write 0 64k", "write -P 1 70000 512")
    make("d", "2M", "write 0 64k", "write -P 1 1500k 512")
    make("e", "1M", "write 0 64k", "write -P 1 70000 512")
    make("f", "1M", "write 0 64k", "write -z 128k 64k", "write -P 0 512k 64k", "write -P 1 1000k 512")
    make("long1", "9M", "write -P 1 0 9M")
    make("long2", "9M", "write -P 1 0 9M", "write -P 2 5001k 1k")
    sides.prepare("qemu-img", "convert", "-O", "raw", "a", "a.raw")
    sides.prepare("qemu-img", "convert", "-c", "-O", "qcow2", "a", "a.packed")
    sides.prepare("qemu-img", "create", "-q", "-f", "raw", "big.raw", "2M")
    sides.write("odd.raw", b"", 0)
    sides.write("odd.raw", b"x", 999)
    sides.write("odd2.raw", b"x", 999)
    sides.write("odd2.raw", bytes(24), 1000)
    return sides


@pytest.mark.parametrize("options", ["", "-s", "-q", "-U", "-T none"])
@pytest.mark.parametrize(
    "pair",
    [
        "a a.raw",
        "a.raw a",
        "a b",
        "b a",
        "b b",
        "b c",
        "a d",
        "d a",
        "a e",
        "e a",
        "a a.packed",
        "a big.raw",
        "big.raw a",
        "long1 long2",
        "long2 long1",
        "long1 a",
        "a nosuch",
        "nosuch a",
        "-f raw a a",
        "-F raw a a",
        "-f qcow2 -F raw a a.raw",
        "-F zork a a",
    ],
)
def test_compare(images, pair, options):
    images.same("compare", *options.split(), *pair.split())


@pytest.mark.parametrize("pair", ["odd.raw odd2.raw", "a f"])
def test_strict_goes_by_what_is_allocated_only(images, pair):
    """QEMU also minds whether the first run in which it gets its answer reaches the end of the image."""
    images.same("compare", *pair.split())
    theirs, ours = (run("compare", "-s", *pair.split()) for run in (images.run_theirs, images.run_ours))
    assert ours.status == theirs.status == 1
    assert "block status mismatch" in ours.out


def test_image_opts(images):
    options = ("driver=qcow2,file.filename=a", "driver=raw,file.filename=a.raw")
    assert images.same("compare", "--image-opts", *options).status == 0


def test_progress_ends_at_100_percent(images):
    result = images.run_ours("compare", "-p", "a", "a.raw")
    assert result.status == 0
    assert result.out.startswith("    (0.00/100%)\r")
    assert result.out.endswith("    (100.00/100%)\rImages are identical.\n\n")
    assert images.run_ours("compare", "-p", "-q", "a", "a.raw").out == ""

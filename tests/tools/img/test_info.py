"""info: the same text and the same JSON as qemu-img."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.oracle


@pytest.fixture
def images(sides):
    for folder in (sides.ours, sides.theirs):
        (folder / "sub").mkdir()
    sides.write("base.raw", b"x" * 3_000_000)
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    sides.prepare(*create, "-b", "base.raw", "-F", "raw", "mid.qcow2")
    options = "cluster_size=16k,compression_type=zstd,extended_l2=on,lazy_refcounts=on"
    sides.prepare(*create, "-b", "mid.qcow2", "-F", "qcow2", "-o", options, "top.qcow2")
    sides.prepare(*create, "-o", "compat=0.10", "old.qcow2", "10G")
    sides.prepare(*create, "-u", "-b", "../base.raw", "-F", "raw", "sub/rel.qcow2", "1M")
    sides.prepare(*create, "-u", "-b", "nosuch", "-F", "qcow2", "lost.qcow2", "1M")
    sides.prepare(*create, "-u", "-b", "loop.qcow2", "-F", "qcow2", "loop2.qcow2", "1M")
    sides.prepare(*create, "-u", "-b", "loop2.qcow2", "-F", "qcow2", "loop.qcow2", "1M")
    return sides


@pytest.mark.slow
@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize(
    "line",
    [
        "base.raw",
        "file:base.raw",
        "mid.qcow2",
        "top.qcow2",
        "-f raw top.qcow2",
        "old.qcow2",
        "sub/rel.qcow2",
        "lost.qcow2",
        "loop.qcow2",
        "--backing-chain top.qcow2",
        "--backing-chain sub/rel.qcow2",
        "--backing-chain lost.qcow2",
        "--backing-chain loop.qcow2",
        "--backing-chain base.raw",
        "-U top.qcow2",
        "--image-opts driver=qcow2,file.filename=top.qcow2",
        "--image-opts driver=qcow2,file.driver=file,file.filename=top.qcow2",
        "--image-opts driver=raw,file.filename=top.qcow2",
        "--image-opts driver=zork,file.filename=top.qcow2",
        "--image-opts driver=qcow2,file.filename=nosuch",
        "--image-opts driver=qcow2,file.filename=top.qcow2,zork=3",
        "--image-opts top.qcow2",
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}',
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"sub/rel.qcow2"}}',
        'json:{"driver":"null-co","size":1024}',
        "nosuch",
        ".",
    ],
)
def test_info(images, line, output):
    images.same("info", f"--output={output}", *line.split())


def test_names_that_are_not_ascii(sides):
    for name in ("h\xe9.raw", 'a"b\\c.raw', "\U0001f4be.raw", "tab\there.raw"):
        sides.write(name, b"x")
        sides.same("info", name)
        sides.same("info", "--output=json", name)


def test_the_dirty_bit(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "x", "1M")
    sides.write("x", b"\x01", 79)  # incompatible feature 0: the refcounts need a repair
    sides.same("info", "x")
    sides.same("info", "--output=json", "x")


@pytest.mark.slow
def test_numpy_and_uvloop_are_not_imported(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", "1M")
    heavy = ("numpy", "uvloop", "zstandard", "argparse", "cryptography")
    code = (
        "import sys; from aioblock.tools.img import main; status = main(['info', 'x']); "
        f"print([name for name in {heavy} if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sides.ours, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

"""create: what it prints, what it makes, what it refuses; as qemu-img does."""

import pytest

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    "line",
    [
        "x 1M",
        "x 1000",
        "x 1000b",
        "x 0x1000",
        "x 1.5k",
        "x 0",
        "-f qcow2 x 1M",
        "-f qcow2 x 1000",
        "-f qcow2 x 0",
        "-q -f qcow2 x 1M",
        "-qfqcow2 x 1M",
        "-f qcow2 -f raw x 1M",
        "-f qcow2 -o size=3M x",
        "-f qcow2 -o size=1M,size=2M x",
        "-f qcow2 -o cluster_size=4k,compat=0.10 x 4M",
        "-f qcow2 -o cluster_size=4k -o compat=v3 x 4M",
        "-f qcow2 -o compression_type=zstd x 4M",
        "-f qcow2 -o extended_l2=on x 4M",
        "-f qcow2 -o refcount_bits=1,lazy_refcounts=on,cluster_size=512 x 1M",
        "-f qcow2 -o preallocation=metadata x 4M",
        "-f qcow2 -o preallocation=falloc x 4M",
        "-f qcow2 -o preallocation=full x 4M",
        "-f qcow2 -o nocow=on x 1M",
        "-f raw -o preallocation=falloc x 1M",
        "-f raw -o preallocation=full x 1M",
        "-f raw -o nocow=on x 1M",
        "-f qcow2 file:x 1M",
    ],
)
def test_what_it_makes(sides, line):
    result = sides.same("create", *line.split())
    assert result.status == 0
    qcow2 = "qcow2" in line and "-f raw" not in line
    theirs, ours = sides.facts("x")
    assert ours == theirs
    sides.same_content("x", "qcow2" if qcow2 else "raw")


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "-f zork x 1M",
        "-f qcow2 -o size=3M x 4M",
        "-f qcow2 -o size=3Q x",
        "-f qcow2 -o zork=3 x 4M",
        "-f qcow2 -o zork x 4M",
        "-f qcow2 -o cluster_size=100 x 4M",
        "-f qcow2 -o cluster_size=3k x 4M",
        "-f qcow2 -o cluster_size=4M x 4M",
        "-f qcow2 -o cluster_size=foo x 4M",
        "-f qcow2 -o lazy_refcounts=foo x 4M",
        "-f qcow2 -o lazy_refcounts=on,compat=0.10 x 4M",
        "-f qcow2 -o refcount_bits=7 x 4M",
        "-f qcow2 -o refcount_bits=foo x 4M",
        "-f qcow2 -o compression_type=foo x 4M",
        "-f qcow2 -o preallocation=foo x 4M",
        "-f qcow2 -o data_file_raw=on x 4M",
        "-f raw -o preallocation=foo x 4M",
        "-f raw -o cluster_size=4k x 4M",
        "-f qcow2 nosuch/x 4M",
        "-f raw nosuch/x 4M",
        "-f qcow2 . 4M",
        "-f qcow2 zork:x 4M",
        "-f raw zork:x 4M",
        "-f null-co x 4M",
        "-f qcow2 x 64P",
        "-f qcow2 -F raw x 1M",
        "-f raw -F qcow2 x 1M",
        "-f raw -b y -F qcow2 x",
        "-f qcow2 -b x -F qcow2 x",
        "-f qcow2 -b nosuch -F raw x 1M",
        "-f qcow2 -b nosuch x",
        "-f qcow2 -u -b nosuch -F raw x",
        "-f qcow2 -u -b nosuch x 1M",
        "-f qcow2 -u -b nosuch x",
        "-f qcow2 -o backing_fmt=qcow2 x 1M",
    ],
)
def test_what_it_refuses(sides, line):
    assert sides.same("create", *line.split()).status == 1


def test_an_empty_backing_name(sides):
    assert sides.same("create", "-f", "qcow2", "-b", "", "x", "1M").status == 1


@pytest.mark.parametrize(
    "line",
    [
        "-f qcow2 -b base.qcow2 -F qcow2 x",
        "-f qcow2 -b base.qcow2 -F raw x",
        "-f qcow2 -b base.raw -F raw x",
        "-f qcow2 -b base.raw -F raw x 7M",
        "-f qcow2 -u -b nosuch -F raw x 7M",
        "-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 x",
        "-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 -b base.raw -F raw x",
        "-f qcow2 -b b.qcow2 -F qcow2 sub/x",
        "-f qcow2 -u -b a=b,c -F raw x 1M",
        "-f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=1k,size=1M x",
        "-f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on,cluster_size=16k x",
        "-f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on,preallocation=metadata x",
        "-f qcow2 -b base.qcow2 -F qcow2 -o preallocation=metadata x",
        "-f qcow2 -b base.qcow2 -F zork x",
    ],
)
def test_a_backing_file(sides, line):
    for folder in (sides.ours, sides.theirs):
        (folder / "sub").mkdir()
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "3M")
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "sub/b.qcow2", "5M")
    sides.write("base.raw", b"x" * 3_000_000)
    result = sides.same("create", *line.split())
    if result.status == 0:
        name = line.split()[-1] if line.split()[-1].endswith("x") else line.split()[-2]
        theirs, ours = sides.facts(name)
        assert ours == theirs


@pytest.mark.parametrize(("name", "format"), [("base.qcow2", "qcow2"), ("base.raw", "raw")])
def test_a_backing_file_without_its_format(sides, name, format):
    sides.prepare("qemu-img", "create", "-q", "-f", format, name, "3M")
    ours = sides.same("create", "-f", "qcow2", "-b", name, "x")
    assert ours.err.endswith(f"Detected format of {format}.")  # QEMU's last line has no end


@pytest.mark.parametrize(
    "line",
    [
        "-f qcow2 -o help",
        "-f qcow2 -o help x",
        "-f qcow2 -o ? x",
        "-f qcow2 -o size=1,help x",
        "-f raw -o help x",
        "-f zork -o help",
        "-f null-co -o help",
        "-f qcow2 -o help zork:x",
    ],
)
def test_the_options_are_listed(sides, line):
    sides.same("create", *line.split())
    assert not (sides.ours / "x").exists()


def test_the_options_of_raw(sides):
    """QEMU leaves `preallocation` out here, although its raw format takes it."""
    result = sides.run_ours("create", "-o", "help")
    assert result.status == 0
    assert "  size=<size>            - Virtual disk size\n" in result.out

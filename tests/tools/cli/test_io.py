"""io."""

import pytest

from tests.tools.cli.conftest import MiB, content


def test_write_and_read(program):
    program.ok("create", "a.qcow2", "1M")
    assert program.json("io", "write", "a.qcow2", "4k", "3", "--pattern", "dead") == {
        "image": "a.qcow2",
        "offset": 4096,
        "length": 3,
        "done": "written",
    }
    program.ok("io", "write", "a.qcow2", "0", "--text", "Grüße")
    (program.folder / "in.bin").write_bytes(bytes(range(256)))
    program.ok("io", "write", "a.qcow2", "64k", "--input", "in.bin")
    data = content("a.qcow2")
    assert data[4096:4100] == b"\xde\xad\xde\0" and data[:7] == "Grüße".encode()
    assert data[65536 : 65536 + 256] == bytes(range(256))
    assert bytes.fromhex(program.json("io", "read", "a.qcow2", "4k", "4")["data"]) == b"\xde\xad\xde\0"
    text = program.ok("io", "read", "a.qcow2", "65600", "17").out.splitlines()
    assert text == [
        "000000010040  40 41 42 43 44 45 46 47  48 49 4a 4b 4c 4d 4e 4f  |@ABCDEFGHIJKLMNO|",
        "000000010050  50                                                |P|",
    ]


def test_rows_that_repeat_are_left_out(program):
    program.ok("create", "a.qcow2", "1M")
    lines = program.ok("io", "read", "a.qcow2", "0", "1M").out.splitlines()
    assert [line.split()[0] for line in lines] == ["000000000000", "*", "0000000ffff0"]


def test_read_into_a_file(program):
    program.ok("create", "a.qcow2", "4M")
    program.ok("io", "write", "a.qcow2", "1M", "2M", "-p", "77")
    result = program.ok("io", "read", "a.qcow2", "1M", "2M", "--output", "out.bin")
    assert "out.bin: 2 MiB (2097152 bytes)" in result.out
    assert (program.folder / "out.bin").read_bytes() == b"\x77" * 2 * MiB
    assert "--output" in program("io", "read", "a.qcow2", "0", "2M").err


@pytest.mark.slow
def test_read_onto_stdout(program):
    program.ok("create", "a.qcow2", "1M")
    program.ok("io", "write", "a.qcow2", "0", "--text", "hello")
    assert program.process("io", "read", "a.qcow2", "0", "5", "-o", "-").out == "hello"


def test_zero_discard_and_status(chain):
    chain.ok("io", "zero", "top.qcow2", "512k", "64k")
    runs = chain.json("io", "status", "top.qcow2", "0", "640k")["runs"]
    assert [(run["offset"], run["length"], run["depth"]) for run in runs] == [
        (0, 512 * 1024, 3),
        (512 * 1024, 65536, 1),
        (576 * 1024, 65536, 1),
    ]
    assert "COMPRESSED" in runs[0]["status"] and "ZERO" in runs[1]["status"]
    assert runs[2]["file"] == "top.qcow2" and runs[2]["map"] % 65536 == 0
    text = chain.ok("io", "status", "top.qcow2").out
    assert "compressed data" in text and "3 base.qcow2" in text and "zeroes, never written" in text
    before = chain.json("map", "top.qcow2")["layers"][0]["totals"]["data"]
    chain.ok("io", "discard", "top.qcow2", "1M", "64k")
    assert chain.json("map", "top.qcow2")["layers"][0]["totals"]["data"] == before - 65536


@pytest.mark.parametrize(
    "args", [("read", "a.qcow2", "1M", "1"), ("zero", "a.qcow2", "0", "2M"), ("status", "a.qcow2", "2M")]
)
def test_behind_the_end(program, args):
    program.ok("create", "a.qcow2", "1M")
    result = program("io", *args)
    assert result.status == 1 and "a.qcow2 ends at 1 MiB (1048576 bytes)" in result.err


@pytest.mark.parametrize(
    "args", [("0",), ("0", "10"), ("0", "10", "-p", "xyz"), ("0", "-p", "1"), ("0", "10", "-p", "1", "--text", "x")]
)
def test_a_write_that_is_not_clear(program, args):
    program.ok("create", "a.qcow2", "1M")
    result = program("io", "write", "a.qcow2", *args)
    assert result.status == 2 and "hint:" in result.err
    assert content("a.qcow2") == bytes(MiB)

"""compare: whether, where, and how many."""

import pytest

from tests.tools.cli.conftest import MiB, content


def changed(name, *places):
    data = bytearray(content("top.qcow2"))
    for offset, nbytes in places:
        data[offset : offset + nbytes] = bytes(byte ^ 0xFF for byte in data[offset : offset + nbytes])
    with open(name, "wb") as file:
        file.write(data)


def test_the_same(chain):
    chain.ok("convert", "top.qcow2", "a.raw")
    result = chain.ok("compare", "top.qcow2", "a.raw")
    assert "hold the same" in result.out
    assert chain.json("compare", "top.qcow2", "a.raw") == {
        "first": "top.qcow2",
        "second": "a.raw",
        "lengths": [10 * MiB, 10 * MiB],
        "identical": True,
        "complete": True,
        "differences": [],
    }


def test_where_they_differ(chain):
    changed("a.raw", (1000, 10), (5 * MiB, 1024))
    result = chain("compare", "top.qcow2", "a.raw")
    assert result.status == 1
    assert "2 ranges, 1.5 KiB (1536 bytes) together" in result.out
    # The first bytes of both: 512 is where the block begins, 1000 where they differ.
    assert result.out.count("000000000200  11 11 11 11") == 2
    document = chain("compare", "top.qcow2", "a.raw", "--json").json
    assert document["identical"] is False
    assert document["differences"] == [{"offset": 512, "length": 512}, {"offset": 5 * MiB, "length": 1024}]


@pytest.mark.slow
def test_the_first_ones_or_all(chain):
    places = [(at * 65536, 512) for at in range(25)]
    changed("a.raw", *places)
    document = chain("compare", "top.qcow2", "a.raw", "--json").json
    assert len(document["differences"]) == 10 and document["complete"] is False
    assert "--all finds every one" in chain("compare", "top.qcow2", "a.raw").out
    document = chain("compare", "top.qcow2", "a.raw", "--json", "--all").json
    assert document["differences"] == [{"offset": at, "length": nbytes} for at, nbytes in places]
    assert document["complete"] is True


def test_lengths_count_if_strict(program):
    program.ok("create", "a.raw", "1M")
    program.ok("create", "b.raw", "2M")
    assert program.ok("compare", "a.raw", "b.raw").out.startswith("a.raw is 1 MiB (1048576 bytes) long")
    assert program("compare", "a.raw", "b.raw", "--strict").status == 1


def test_what_cannot_be_compared_ends_with_2(chain):
    for args in (("top.qcow2", "nosuch"), ("top.qcow2",), ("top.qcow2", "mid.qcow2", "-F", "luks")):
        assert chain("compare", *args).status == 2

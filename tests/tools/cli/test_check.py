"""check: what the findings mean, what repairs them, and the exit status."""

import pytest

from tests.kit import oracle
from tests.tools.cli.conftest import content

CLUSTER = 65536


def leaking(program):
    """An image with one cluster that is counted and that nobody uses."""
    program.ok("create", "a.qcow2", "1M")
    with open("a.qcow2", "r+b") as file:
        header = file.read(104)
        table = int.from_bytes(header[48:56], "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * 10)
        file.write(b"\0\1")
        file.truncate(11 * CLUSTER)


def corrupt(program):
    """An image with a cluster that is used and not counted."""
    program.ok("create", "a.qcow2", "1M")
    program.ok("io", "write", "a.qcow2", "0", "64k", "-p", "1")
    used = next(run["map"] for run in program.json("io", "status", "a.qcow2")["runs"] if run["map"] is not None)
    with open("a.qcow2", "r+b") as file:
        header = file.read(104)
        file.seek(int.from_bytes(header[48:56], "big"))
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * (used // CLUSTER))
        file.write(b"\0\0")


def test_nothing_is_wrong(chain):
    result = chain.ok("check", "top.qcow2")
    assert "top.qcow2: nothing is wrong" in result.out
    document = chain.json("check", "top.qcow2")
    assert (document["status"], document["corruptions"], document["leaks"], document["findings"]) == (0, 0, 0, [])
    assert document["allocated_clusters"] == 16


def test_a_leak_says_what_frees_it(program):
    leaking(program)
    result = program("check", "a.qcow2")
    assert result.status == 3
    assert "1 leaked cluster" in result.out and "No data is at risk" in result.out
    assert "aioblock check --repair leaks a.qcow2" in result.out
    document = program("check", "a.qcow2", "--json").json
    assert document["leaks"] == 1 and document["findings"][0]["kind"] == "leak"
    repaired = program.ok("check", "a.qcow2", "--repair", "leaks")
    assert "repaired 1 leaked cluster" in repaired.out and "nothing is wrong" in repaired.out
    program.ok("check", "a.qcow2")


def test_a_corruption_says_what_repairs_it(program):
    corrupt(program)
    result = program("check", "a.qcow2")
    assert result.status == 2
    assert "2 corruptions" in result.out and "aioblock check --repair all a.qcow2" in result.out
    assert program("check", "a.qcow2", "--repair", "leaks").status == 2
    document = program.json("check", "a.qcow2", "--repair", "all")
    assert (document["corruptions"], document["corruptions_fixed"], document["status"]) == (0, 1, 0)
    program.ok("check", "a.qcow2")
    assert content("a.qcow2")[:CLUSTER] == b"\1" * CLUSTER


def test_a_format_that_cannot_be_checked(program):
    program.ok("create", "a.raw", "1M")
    result = program("check", "a.raw")
    assert result.status == 1 and "does not support" in result.err


@pytest.mark.oracle
@pytest.mark.parametrize("broken", [leaking, corrupt])
def test_qemu_agrees(program, broken):
    broken(program)
    found = program("check", "a.qcow2").status
    assert oracle.run("qemu-img", "check", "-f", "qcow2", "a.qcow2", check=False).returncode == found

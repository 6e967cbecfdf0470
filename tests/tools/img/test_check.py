"""check: the same findings, counts and exit codes as qemu-img."""

import json

import pytest

from aioblock import CheckFinding, CheckResult
from aioblock.tools.img.check import _check
from aioblock.tools.img.progress import Progress
from tests.kit.scripted import Script, opened

pytestmark = pytest.mark.oracle

REFCOUNTS = 0x20000
"""Where the first refcount block of a new image with 64 KiB clusters lies."""


@pytest.fixture
def images(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", "1M")
    sides.prepare("qemu-io", "-c", "write 0 64k", "-c", "write 300k 64k", "-c", "write -P 0 512k 64k", "x")
    return sides


def _leak(sides):
    sides.write("x", bytes(64), 11 * 65536 - 64)
    sides.write("x", b"\0\1", REFCOUNTS + 2 * 10)


def _corrupt(sides):
    sides.write("x", b"\0\0", REFCOUNTS + 2 * 5)


@pytest.mark.parametrize("line", ["", "-q", "--output=json", "-U", "-T none", "--output=json -q", "-f qcow2"])
@pytest.mark.parametrize(
    ("damage", "status"), [(lambda sides: None, 0), (_leak, 3), (_corrupt, 2)], ids=["good", "leak", "corrupt"]
)
def test_what_it_finds(images, line, damage, status):
    damage(images)
    assert images.same("check", *line.split(), "x").status == status


@pytest.mark.parametrize("line", ["", "--output=json"])
def test_compressed_and_fragmented_clusters_are_counted(images, line):
    images.prepare("qemu-img", "convert", "-c", "-O", "qcow2", "x", "y")
    images.prepare("qemu-io", "-c", "write 900k 64k", "-c", "write 200k 64k", "-c", "write 128k 64k", "y")
    images.same("check", *line.split(), "y")


def _flags(sides):
    _leak(sides)
    sides.write("x", b"\0", 0x40000)  # the COPIED flag of the first L2 entry


def _dirty(sides):
    _corrupt(sides)
    sides.write("x", b"\1", 79)


@pytest.mark.parametrize("line", ["-r all", "-r all --output=json", "-r all -q", "-r leaks", "-r leaks --output=json"])
@pytest.mark.parametrize("damage", [lambda sides: None, _leak, _flags], ids=["good", "leak", "flags"])
def test_repair(images, line, damage):
    damage(images)
    assert images.same("check", *line.split(), "x").status == 0
    assert images.same("check", "x").status == 0


@pytest.mark.parametrize("damage", [_corrupt, _dirty], ids=["corrupt", "dirty"])
def test_repair_of_refcounts(images, damage):
    damage(images)
    images.same("check", "x")
    assert images.same("check", "-r", "all", "x").status == 0
    images.same("check", "x")
    images.same_content("x", "qcow2")


def test_leaks_alone_cannot_be_repaired_in_a_structure_that_must_be_rebuilt(images):
    _corrupt(images)
    ours = images.same("check", "-r", "leaks", "x")
    assert ours.status == 1
    assert "ERROR need to rebuild refcount structures\n" in ours.err


@pytest.mark.parametrize("command", ["map x", "convert -O raw x y"])
def test_a_corruption_that_is_met_is_told_as_by_qemu(images, command):
    images.write("x", bytes.fromhex("8000000000052a00"), 0x40000)
    told = [side(*command.split()).err for side in (images.run_theirs, images.run_ours)]
    lines = [line for err in told for line in err.splitlines() if line.startswith("qcow2: Image is corrupt")]
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_progress_is_shown(images):
    result = images.run_ours("check", "-p", "x")
    assert result.status == 0
    assert "(100.00/100%)" in result.out
    assert "%" not in images.run_ours("check", "-p", "--output=json", "x").out


async def _checked(results, capsys, *args):
    """What `check` prints and returns for a driver that finds these results, one after the other."""
    asked = []

    async def check(self, *, fix_leaks=False, fix_errors=False, progress=None):
        asked.append((fix_leaks, fix_errors))
        return results[len(asked) - 1]

    async with opened(Script(1 << 20, attributes={"check": check})) as disk:
        status = await _check(disk, "x", *args, Progress(False))
    out, err = capsys.readouterr()
    return status, out, err, asked


async def test_what_was_repaired_is_told_and_checked_again(capsys):
    found = CheckResult(corruptions_fixed=1, leaks_fixed=2, findings=[CheckFinding("leak", "Leaked cluster 10")])
    clean = CheckResult(image_end_offset=65536)
    status, out, err, asked = await _checked([found, clean], capsys, "all", False, False)
    assert status == 0
    assert err == "Leaked cluster 10\n"
    assert out == (
        "The following inconsistencies were found and repaired:\n\n"
        "    2 leaked clusters\n    1 corruptions\n\n"
        "Double checking the fixed image now...\n"
        "No errors were found on the image.\nImage end offset: 65536\n"
    )
    assert asked == [(True, True), (False, False)]


async def test_what_was_repaired_stands_in_the_json(capsys):
    found, clean = CheckResult(corruptions_fixed=1, leaks_fixed=2), CheckResult(leaks=3)
    status, out, _, asked = await _checked([found, clean], capsys, "leaks", True, False)
    assert status == 3
    facts = json.loads(out)
    assert (facts["corruptions-fixed"], facts["leaks-fixed"], facts["leaks"]) == (1, 2, 3)
    assert list(facts) == ["corruptions-fixed", "check-errors", "leaks", "leaks-fixed", "filename", "format"]
    assert asked == [(True, False), (False, False)]


async def test_places_that_could_not_be_checked(capsys):
    result = CheckResult(check_errors=1, corruptions=1)
    status, out, _, _ = await _checked([result], capsys, "", False, False)
    assert status == 1
    assert out.endswith("\n1 internal errors have occurred during the check.\n")


@pytest.mark.parametrize("line", ["", "--output=json"])
def test_a_good_image(images, line):
    assert images.same("check", *line.split(), "x").status == 0


@pytest.mark.parametrize("size", ["0", "1M"])
def test_an_empty_image(sides, size):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x", size)
    sides.same("check", "x")
    sides.same("check", "--output=json", "x")


@pytest.mark.parametrize("line", ["", "--output=json"])
def test_a_format_without_checks(sides, line):
    sides.write("x", b"x" * 1024)
    assert sides.same("check", *line.split(), "x").status == 63


def test_a_backing_file_that_is_missing(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "nosuch", "-F", "raw", "x", "1M")
    assert sides.same("check", "x").status == 1


def test_force_share_and_repair_exclude_each_other(images):
    assert images.same("check", "-U", "-r", "all", "x").status == 1

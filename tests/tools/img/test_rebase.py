"""rebase: QEMU's messages, exit codes, and what both sides leave in the overlay."""

import json

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.fixture
def images(sides):
    """old (1 MiB) <- mid (1.5 MiB) <- top (3 MiB); new (2 MiB) differs from old in parts."""
    prepare = sides.prepare
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "old", "1M")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "new", "2M")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "old", "-F", "qcow2", "mid", "1536k")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "old", "-F", "qcow2", "-o", "compat=0.10", "v2", "3M")
    prepare("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top", "3M")
    prepare("qemu-io", "-c", "write -P 1 0 1M", "old")
    commands = ["write -P 1 0 512k", "write -P 2 700001 300000", "write -P 9 1536k 100"]
    prepare("qemu-io", *(word for command in commands for word in ("-c", command)), "new")
    prepare("qemu-io", "-c", "write -P 4 500k 100k", "-c", "write -z 900k 50k", "mid")
    prepare("qemu-io", "-c", "write -P 3 100k 64k", "-c", "write -z 256k 128k", "-c", "write -P 8 2M 1000", "top")
    prepare("qemu-img", "create", "-q", "-f", "raw", "raw", "777k")
    prepare("qemu-io", "-f", "raw", "-c", "write -P 1 0 300k", "raw")
    for name in ("top", "v2"):
        prepare("qemu-img", "convert", "-O", "raw", name, f"{name}.before")
    return sides


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("-b new -F qcow2 top", 0),
        ("-b old -F qcow2 top", 0),
        ("-b mid -F qcow2 top", 0),
        ("-b raw -F raw top", 0),
        ("-b new -F qcow2 v2", 0),
        ("-b raw -F raw v2", 0),
        ("-b new -F qcow2 -t unsafe -T writethrough -q -U top", 0),
        ("--image-opts -b new -F qcow2 driver=qcow2,file.filename=top", 0),
        ("-u -b nosuch -F raw top", 0),
        ("-u top", 0),
        ("-u -b new -F qcow2 top", 0),
        ("", 1),
        ("top", 1),
        ("-b new", 1),
        ("-b new top mid", 1),
        ("-b new nosuch", 1),
        ("-b nosuch top", 1),
        ("-b nosuch -F qcow2 top", 1),
        ("-b new top", 1),
        ("-u -b new top", 1),
        ("-b new -F zork top", 1),
        ("-u -b new -F zork top", 1),
        ("-b new -F qcow2 -t zork top", 1),
        ("-b new -F qcow2 -T zork top", 1),
        ("-F qcow2 top", 1),
        ("-z top", 1),
        ("-f raw -u -b old -F qcow2 raw", 1),
        ("--image-opts -f qcow2 -b new -F qcow2 top", 1),
    ],
)
def test_the_same(images, line, status):
    assert images.same("rebase", *line.split()).status == status
    for name in ("top", "v2"):
        mine, theirs = images.facts(name)
        assert mine == theirs
        if "nosuch" not in line and line != "-u top" and " -u" not in f" {line}":
            images.same_content(name, "qcow2")
            images.same("compare", "-f", "raw", "-F", "qcow2", f"{name}.before", name)


@pytest.mark.parametrize("words", [["-b", "", "top"], ["-b", "", "-F", "raw", "v2"], ["-u", "-b", "", "top"]])
def test_no_backing_file_any_more(images, words):
    images.same("rebase", *words)
    name = words[-1]
    assert images.facts(name)[0] == images.facts(name)[1]
    images.same_content(name, "qcow2")
    images.same("map", "--output=json", name) if words[0] == "-u" else None
    if words[0] == "-b":
        images.same("compare", "-f", "raw", "-F", "qcow2", f"{name}.before", name)


@pytest.mark.parametrize("new", ["new", "old", "mid"])
def test_the_overlay_takes_what_it_must_and_no_more(images, new):
    """As much as QEMU's takes, sector for sector, wherever that lies in its file: several workers take it.

    The files that both chains have are not compared by either.
    """
    images.same("rebase", "-b", new, "-F", "qcow2", "top")
    found = []
    for folder in (images.theirs, images.ours):
        images._monkeypatch.chdir(folder)
        sectors = []
        for run in json.loads(images.run_theirs("map", "--output=json", str(folder / "top")).out):
            assert run["start"] == len(sectors) * 512
            what = run["depth"], run["present"], run["zero"], run["data"]
            sectors += [what] * (run["length"] // 512)
        found.append(sectors)
    assert len(found[0]) == 6144
    assert found[0] == found[1]


def test_a_name_counts_from_the_directory_of_the_image(images):
    for folder in (images.theirs, images.ours):
        (folder / "sub").mkdir()
        for name in ("old", "new", "mid", "top"):
            (folder / name).rename(folder / "sub" / name)
    images.same("rebase", "-b", "new", "-F", "qcow2", "sub/top")
    images.same("compare", "-f", "raw", "-F", "qcow2", "top.before", "sub/top")
    assert images.facts("sub/top")[0] == images.facts("sub/top")[1]
    images.same("rebase", "-b", "sub/new", "-F", "qcow2", "sub/top")


def test_an_image_cannot_be_its_own_backing_file(images):
    assert images.same("rebase", "-b", "top", "-F", "qcow2", "top").status == 1


def test_progress_goes_from_nothing_to_everything(images):
    out = images.run_ours("rebase", "-p", "-b", "new", "-F", "qcow2", "top").out
    assert out.startswith("    (0.00/100%)\r")
    assert out.endswith("    (100.00/100%)\r\n")

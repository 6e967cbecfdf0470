"""The VM state (-b), next to qemu-io."""

import pytest

from tests.kit.oracle import assert_clean, qemu_img

from .conftest import without_times

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_raw_image_has_none(ours, theirs, home, verb):
    (home / "x.raw").write_bytes(bytes(1 << 20))
    args = ("-f", "raw", "-c", f"{verb} -b 0 512", "x.raw")
    assert ours(*args) == theirs(*args)


@pytest.mark.parametrize("options", [[], ["-o", "cluster_size=512"]])
def test_next_to_qemu_io(ours, theirs, home, options):
    for name in ("ours.qcow2", "theirs.qcow2"):
        qemu_img("create", "-q", "-f", "qcow2", *options, home / name, "4M")
    for command in (
        *("read -b -P 0 0 64k", "write -b -P 7 4k 64k", "read -b -P 7 4k 64k", "read -b -P 0 0 4k"),
        *("read -b -P 0 68k 1M", "write -b -P 8 20M 3k", "read -b -P 8 20M 3k", "length", "write -b 100 512"),
        *("read -b 0 100", "write -b -z 0 512", "read -b 1P 512", "write -q -b -P 9 0 2M", "read -v -b 0 512"),
    ):
        done = [
            run("-f", "qcow2", "-c", command, name) for run, name in ((ours, "ours.qcow2"), (theirs, "theirs.qcow2"))
        ]
        assert done[0].status == done[1].status
        assert without_times(done[0].out) == without_times(done[1].out)
    assert_clean(home / "ours.qcow2", "qcow2")

"""Flags: the values that other programs and file locks know, and their names."""

from aioblock.base import flags
from aioblock.base.flags import status_names


def test_status_names():
    assert status_names(0) == "-"
    assert status_names(flags.DATA | flags.OFFSET_VALID | flags.EOF) == "DATA|OFFSET_VALID|EOF"
    assert status_names(0xFF) == "DATA|ZERO|OFFSET_VALID|RAW|ALLOCATED|EOF|RECURSE|COMPRESSED"


def test_every_status_flag_is_one_bit_with_its_name():
    for name in ("DATA", "ZERO", "OFFSET_VALID", "RAW", "ALLOCATED", "EOF", "RECURSE", "COMPRESSED"):
        value = getattr(flags, name)
        assert type(value) is int  # an IntFlag would be slow
        assert value.bit_count() == 1
        assert status_names(value) == name


def test_request_flags_do_not_overlap():
    values = [getattr(flags, name) for name in dir(flags) if name.startswith("REQ_")]
    assert len(values) == 8
    assert sum(values) == (1 << 8) - 1


def test_permissions_are_numbered_as_the_lock_bytes():
    named = (flags.PERM_CONSISTENT_READ, flags.PERM_WRITE, flags.PERM_WRITE_UNCHANGED, flags.PERM_RESIZE)
    assert named == (1, 2, 4, 8)
    assert sum(named) == flags.PERM_ALL

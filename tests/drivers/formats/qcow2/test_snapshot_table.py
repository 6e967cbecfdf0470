"""The table of snapshots: what is written is what is read, and what nobody knows is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.drivers.formats.qcow2.header import Header
from aioblock.drivers.formats.qcow2.snapshot_table import (
    SnapshotEntry,
    completed,
    extra_data,
    next_id,
    read_snapshot_table,
    snapshot_table_to_bytes,
    table_length,
)
from tests.kit.memory_io import MemoryIO


def entry(number: bytes = b"1", name: bytes = b"one", extra: bytes = b"", state: int = 0) -> SnapshotEntry:
    return SnapshotEntry(65536, 1, 1, 2, 3, state, extra, number, name)


entries = st.builds(
    SnapshotEntry,
    l1_table_offset=st.integers(0, 2**64 - 1),
    l1_size=st.integers(0, 2**32 - 1),
    date_sec=st.integers(0, 2**32 - 1),
    date_nsec=st.integers(0, 2**32 - 1),
    vm_clock_nsec=st.integers(0, 2**64 - 1),
    vm_state_size=st.integers(0, 2**32 - 1),
    extra_data=st.binary(max_size=7),
    id=st.binary(max_size=9),
    name=st.binary(max_size=9),
)


@given(st.lists(entries, max_size=9), st.integers(0, 3))
async def test_round_trip(table: list[SnapshotEntry], cluster: int) -> None:
    data = snapshot_table_to_bytes(table)
    assert len(data) == table_length(table)
    file = MemoryIO(bytes(512 * cluster) + data)
    header = Header(3, 9, 0, 0, 0, 0, 0, nb_snapshots=len(table), snapshots_offset=512 * cluster)
    assert await read_snapshot_table(file, header) == (table, len(data))


async def test_a_large_vm_state_is_in_the_extra_data() -> None:
    large = entry(extra=extra_data(5 << 32, 1 << 20, None), state=5 << 32)
    data = snapshot_table_to_bytes([large])
    assert data[32:36] == bytes(4)
    header = Header(3, 9, 0, 0, 0, 0, 0, nb_snapshots=1)
    assert await read_snapshot_table(MemoryIO(data), header) == ([large], len(data))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", extra_data(7, 4096, None)),
        (bytes(7) + b"\x07", extra_data(7, 4096, None)),
        (extra_data(7, 512, 9), extra_data(7, 512, 9)),
        (extra_data(7, 512, 9) + b"unknown", extra_data(7, 512, 9) + b"unknown"),
    ],
)
def test_extra_data_is_completed_and_what_is_unknown_is_kept(before: bytes, after: bytes) -> None:
    assert completed(entry(extra=before, state=7), 4096).extra_data == after


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([], b"1"),
        ([b"1", b"2"], b"3"),
        ([b"7", b"2"], b"8"),
        ([b"a", b""], b"1"),
        ([b"12abc"], b"13"),
        ([b"007"], b"8"),
        ([b"\xff9"], b"1"),
    ],
)
def test_the_next_id_is_the_next_number(ids: list[bytes], wanted: bytes) -> None:
    assert next_id(entry(number) for number in ids) == wanted


def test_the_count_of_instructions_may_be_unknown() -> None:
    assert entry(extra=extra_data(0, 0, 5)).icount == 5
    assert entry(extra=extra_data(0, 0, None)).icount is None
    assert entry(extra=extra_data(0, 0, 5)[:16]).icount is None

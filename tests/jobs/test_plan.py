"""The plan of a conversion against a model that says of each byte what becomes of it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioblock.base.flags import DATA, ZERO
from aioblock.jobs.plan import CLEAR, COPY, SECTOR, SKIP, Plan
from tests.kit.scripted import Script, opened

RUNS = st.lists(st.tuples(st.sampled_from([DATA, ZERO, 0]), st.integers(1, 9)), min_size=1, max_size=8)


def _fates(runs, *, keep_backing, copy_zeroes):
    zero = COPY if copy_zeroes else CLEAR
    # Without a backing file below, what a layer leaves open reads as zeroes.
    return [
        COPY if flags & DATA else zero if flags & ZERO or not keep_backing else SKIP
        for flags, length in runs
        for _ in range(length)
    ]


async def _pieces(plan):
    found = [piece async for piece in plan.pieces()]
    at = 0
    for piece in found:
        assert piece.offset == at
        assert piece.nbytes > 0
        at += piece.nbytes
    assert at == plan.nbytes
    return found


@pytest.mark.slow
@given(
    runs=RUNS,
    unit=st.sampled_from([1, 2, 4]),
    most=st.sampled_from([0, 3]),
    copy_zeroes=st.booleans(),
    clear_until=st.one_of(st.none(), st.integers(0, 70)),
)
@settings(max_examples=150)
async def test_every_byte_meets_its_fate(runs, unit, most, copy_zeroes, clear_until):
    script = Script(sum(length for _, length in runs), runs=runs)
    script.most = most
    async with opened(script) as disk:
        plan = Plan([disk], longest=8, granularity=unit, copy_zeroes=copy_zeroes, clear_until=clear_until)
        pieces = await _pieces(plan)
    fates = _fates(runs, keep_backing=False, copy_zeroes=copy_zeroes)
    zeroes = _fates(runs, keep_backing=False, copy_zeroes=False)
    if clear_until is not None:
        fates = [SKIP if zeroes[at] == CLEAR and at >= clear_until else fate for at, fate in enumerate(fates)]
    for piece in pieces:
        assert piece.offset % unit == 0
        assert piece.nbytes % unit == 0 or piece.offset + piece.nbytes == plan.nbytes
        assert piece.fate != COPY or piece.nbytes <= 8
        for begin in range(piece.offset, piece.offset + piece.nbytes, unit):
            inside = set(fates[begin : begin + unit])
            assert piece.fate == (inside.pop() if len(inside) == 1 else COPY)
    for first, second in pairwise(pieces):
        assert first.fate != second.fate or first.fate == COPY


async def test_what_the_top_leaves_open_is_skipped_with_a_backing_file():
    top = Script(40, runs=[(0, 10), (DATA, 10), (ZERO, 10), (0, 10)])
    base = Script(40, runs=[(DATA, 40)])
    async with opened(top, base) as disk:
        assert await _pieces(Plan([disk], longest=64, keep_backing=True)) == [
            (0, 10, SKIP),
            (10, 10, COPY),
            (20, 10, CLEAR),
            (30, 10, SKIP),
        ]
        assert not base.calls("block_status")
        assert await _pieces(Plan([disk], longest=64)) == [(0, 20, COPY), (20, 10, CLEAR), (30, 10, COPY)]


async def test_sources_lie_behind_each_other_from_whole_sectors_on():
    async with opened(Script(700, runs=[(DATA, 700)])) as first, opened(Script(600, runs=[(ZERO, 600)])) as second:
        plan = Plan([first, second, first], longest=4096)
        assert plan.begins == [0, 2 * SECTOR, 4 * SECTOR]
        assert await _pieces(plan) == [(0, 700, COPY), (700, 4 * SECTOR - 700, CLEAR), (4 * SECTOR, 700, COPY)]


async def test_the_end_can_lie_behind_the_sources():
    async with opened(Script(100, runs=[(DATA, 100)])) as disk:
        assert await _pieces(Plan([disk], longest=4096, end=256)) == [(0, 100, COPY), (100, 156, CLEAR)]
        assert await _pieces(Plan([disk], longest=4096, end=256, granularity=128)) == [
            (0, 128, COPY),
            (128, 128, CLEAR),
        ]

"""A chain: which layer decides, how far, what an end of file means; and the model that every chain must agree with."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.flags import ALLOCATED, DATA, EOF, OFFSET_VALID, ZERO
from aioblock.graph.backend import BlockBackend
from tests.kit.chains import Fact, chains, fact_of, facts
from tests.kit.scripted import Script, layers_of, opened
from tests.kit.watching import assert_idle

K = 1024


async def ask(*scripts: Script, offset: int = 0, nbytes: int = 64 * K, want_zero: bool = True) -> tuple[int, int, int]:
    """Flags, length and depth of the answer of the whole chain."""
    async with opened(*scripts) as disk:
        answer = await disk.block_status_above(None, offset, nbytes, want_zero=want_zero)
        assert_idle(disk)
        return answer.flags, answer.pnum, answer.depth


def nothing(length: int = 64 * K) -> Script:
    return Script(length, [(0, length)])


# -- who decides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_the_first_layer_that_answers_allocated_ends_it(depth: int) -> None:
    scripts = [nothing() for _ in range(depth - 1)] + [
        Script(64 * K, [(ZERO, 64 * K)]),
        Script(64 * K, [(DATA, 64 * K)]),
    ]
    assert await ask(*scripts) == (ZERO | ALLOCATED | EOF, 64 * K, depth)
    assert not scripts[depth].calls("block_status")


async def test_each_layer_that_does_not_decide_cuts_the_range_for_those_below() -> None:
    top = Script(64 * K, [(0, 40 * K), (DATA, 24 * K)])
    mid = Script(64 * K, [(0, 30 * K), (DATA, 34 * K)])
    low = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(top, mid, low) == (DATA | ALLOCATED, 30 * K, 3)
    assert [script.calls("block_status")[0].where for script in (top, mid, low)] == [
        (0, 64 * K),
        (0, 40 * K),
        (0, 30 * K),
    ]


async def test_a_deciding_layer_may_answer_for_less() -> None:
    assert await ask(nothing(), Script(64 * K, [(DATA, 8 * K), (ZERO, 56 * K)])) == (DATA | ALLOCATED, 8 * K, 2)


async def test_no_layer_decides() -> None:
    assert await ask(nothing(), nothing()) == (ZERO | EOF, 64 * K, 0)
    assert await ask(nothing(), nothing(), want_zero=False) == (ZERO | EOF, 64 * K, 0)


async def test_the_bytes_of_the_deciding_layer_are_named() -> None:
    low = Script(64 * K, [(DATA | OFFSET_VALID, 64 * K, 1 << 20)])
    file = Script(2 << 20, [(DATA, 2 << 20)])
    async with opened(nothing(), low, files={low: file}) as disk:
        answer = await disk.block_status_above(None, 4 * K, 8 * K)
        bottom = layers_of(disk)[1]
        assert bottom.file is not None
        assert answer == (DATA | OFFSET_VALID | ALLOCATED, 8 * K, (1 << 20) + 4 * K, bottom.file.node, 2)


# -- a layer that ends ----------------------------------------------------------------------------------------------


async def test_a_shorter_layer_reads_as_zeroes_behind_its_end_as_if_it_decided_that() -> None:
    low = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(nothing(), nothing(16 * K), low, offset=16 * K) == (ZERO | ALLOCATED | EOF, 48 * K, 2)
    assert not low.calls("block_status")


async def test_that_run_keeps_the_length_known_so_far() -> None:
    top = Script(64 * K, [(0, 40 * K), (DATA, 24 * K)])
    assert await ask(top, nothing(16 * K), offset=16 * K) == (ZERO | ALLOCATED, 24 * K, 2)


async def test_the_eof_of_a_lower_layer_that_decides_is_dropped() -> None:
    assert await ask(nothing(), Script(16 * K, [(DATA, 16 * K)])) == (DATA | ALLOCATED, 16 * K, 2)


async def test_the_eof_of_a_lower_layer_that_does_not_decide_stays_where_the_run_ends_there() -> None:
    low = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(nothing(), nothing(16 * K), low) == (DATA | ALLOCATED | EOF, 16 * K, 3)
    low = Script(64 * K, [(DATA, 8 * K), (ZERO, 56 * K)])
    assert await ask(nothing(), nothing(16 * K), low) == (DATA | ALLOCATED, 8 * K, 3)


async def test_eof_of_the_top() -> None:
    low = Script(80 * K, [(DATA, 80 * K)])
    assert await ask(nothing(), low) == (DATA | ALLOCATED | EOF, 64 * K, 2)
    assert await ask(nothing(), low, nbytes=64 * K - 1) == (DATA | ALLOCATED, 64 * K - 1, 2)
    assert await ask(nothing(), low, offset=64 * K, nbytes=1) == (EOF, 0, 0)
    assert await ask(nothing(), low, offset=80 * K, nbytes=1) == (EOF, 0, 0)


async def test_a_question_about_nothing_asks_no_layer() -> None:
    scripts = nothing(), nothing(16 * K)
    assert await ask(*scripts, offset=20 * K, nbytes=0) == (0, 0, 0)
    assert not scripts[0].calls("block_status") and not scripts[1].calls("block_status")


async def test_zero_without_allocated_behind_a_short_backing_file() -> None:
    """Already the top says that it reads as zeroes; the whole chain adds who decides it."""
    async with opened(nothing(), nothing(16 * K)) as disk:
        assert (await disk.block_status(16 * K, 64 * K))[:2] == (ZERO | EOF, 48 * K)
        chain = await disk.block_status_above(layers_of(disk)[1], 16 * K, 64 * K)
        assert (chain.flags, chain.pnum, chain.depth) == (ZERO | EOF, 48 * K, 0)


# -- a part of the chain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "include", "expected"),
    [
        (0, False, (0, 64 * K, 0)),
        (0, True, (EOF, 64 * K, 0)),
        (1, False, (EOF, 64 * K, 0)),
        (1, True, (EOF, 64 * K, 0)),
        (2, False, (EOF, 64 * K, 0)),
        (2, True, (DATA | ALLOCATED | EOF, 64 * K, 3)),
    ],
)
async def test_down_to_a_base(base: int, include: bool, expected: tuple[int, int, int]) -> None:
    scripts = nothing(), nothing(), Script(64 * K, [(DATA, 64 * K)])
    async with opened(*scripts) as disk:
        answer = await disk.block_status_above(layers_of(disk)[base], 0, 64 * K, include_base=include)
        assert (answer.flags, answer.pnum, answer.depth) == expected
        probed = [bool(script.calls("block_status")) for script in scripts]
        assert probed == [base + include > layer for layer in range(3)]


@pytest.mark.parametrize("through_filter", [True, False])
async def test_a_base_may_be_named_by_its_filter_or_by_what_it_filters(through_filter: bool) -> None:
    bottom = Script(64 * K, [(DATA, 64 * K)])
    filtered = {"driver": "scripted-filter", "script": Script(0), "file": {"driver": "scripted", "script": bottom}}
    async with opened(options={"driver": "scripted", "script": nothing(), "backing": filtered}) as disk:
        filter_node = layers_of(disk)[1]
        assert filter_node.file is not None
        base = filter_node if through_filter else filter_node.file.node
        assert (await disk.block_status_above(base, 0, 64 * K)).depth == 0
        assert (await disk.block_status_above(base, 0, 64 * K, include_base=True)).depth == 2


# -- zeroes through the whole chain ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "nbytes", "expected"),
    [
        (0, 8 * K, False),
        (8 * K, 8 * K, True),
        (8 * K, 56 * K, True),  # also behind the end of the shorter layer
        (20 * K, 4 * K, True),
        (60 * K, 1 << 30, True),  # also behind the end of the top
        (64 * K, 1, True),
        (8 * K - 1, 2, False),
        (0, 0, True),
    ],
)
async def test_is_zero(offset: int, nbytes: int, expected: bool) -> None:
    top = Script(64 * K, [(0, 12 * K), (ZERO, 2 * K), (0, 50 * K)])
    low = Script(16 * K, [(DATA, 8 * K), (ZERO, 8 * K)])
    async with opened(top, low) as disk:
        assert await disk.is_zero(offset, nbytes) is expected


async def test_is_zero_raises_what_a_layer_raises() -> None:
    top = nothing()
    top.fail("block_status", OSError(errno.EIO, "broken"))
    async with opened(top) as disk:
        with pytest.raises(OSError, match="broken"):
            await disk.is_zero(0, 64 * K)
        assert_idle(disk)


# -- against a model ------------------------------------------------------------------------------------------------


async def walked(disk: BlockBackend) -> list[Fact]:
    found: list[Fact] = []
    while len(found) < disk.length:
        answer = await disk.block_status_above(None, len(found), disk.length)
        assert answer.pnum > 0
        assert bool(answer.flags & ALLOCATED) == (answer.depth > 0)
        found += [fact_of(answer.flags, answer.map, answer.depth, skipped) for skipped in range(answer.pnum)]
        if len(found) == disk.length:
            assert answer.flags & EOF
    return found


@pytest.mark.slow
@given(chains())
async def test_every_byte_of_random_chains(scripts: list[Script]) -> None:
    async with opened(*scripts) as disk:
        assert await walked(disk) == facts(scripts)
        assert_idle(disk)


@pytest.mark.slow
@given(chains(), st.data())
async def test_any_question_says_the_same_as_the_walk(scripts: list[Script], data: st.DataObject) -> None:
    expected = facts(scripts)
    offset = data.draw(st.integers(0, scripts[0].length - 1))
    nbytes = data.draw(st.integers(1, scripts[0].length + 20))
    async with opened(*scripts) as disk:
        answer = await disk.block_status_above(None, offset, nbytes)
        told = [fact_of(answer.flags, answer.map, answer.depth, skipped) for skipped in range(answer.pnum)]
        assert told == expected[offset : offset + answer.pnum]
        allocated = await disk.block_status_above(None, offset, nbytes, want_zero=False)
        assert allocated.depth == expected[offset].depth
        zero = [fact.kind & ZERO for fact in expected[offset : offset + nbytes]]
        assert await disk.is_zero(offset, nbytes) == all(zero)

"""Whole ranges of a chain: the same as walking with single questions, at the cost of the sum of the layers' runs."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import NotSupported
from aioblock.base.flags import ALLOCATED, DATA, EOF, OFFSET_VALID, RAW, RECURSE, ZERO
from aioblock.blockio import fold
from aioblock.blockio.extents import layer_extents
from aioblock.core.extents import ExtentBatch
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from tests.kit.chains import Fact, chains, fact_of, facts
from tests.kit.scripted import Answer, Call, Script, layers_of, opened
from tests.kit.watching import assert_idle, counted_tasks, until

K = 1024

Run = tuple[int, int, int, int, int, BlockNode | None]
"""Offset, length, flags without EOF, map, depth, file."""


def merged(runs: list[Run]) -> list[Run]:
    """Neighbours that say the same as one: what a person would call the map of the chain."""
    found: list[Run] = []
    for run in runs:
        if found:
            offset, length, flags, where, depth, file = found[-1]
            goes_on = not flags & OFFSET_VALID or where + length == run[3]
            if (flags, depth, file) == (run[2], run[4], run[5]) and goes_on:
                found[-1] = offset, length + run[1], flags, where, depth, file
                continue
        found.append(run)
    return found


async def walk(disk: BlockBackend, offset: int, end: int, **how: Any) -> tuple[list[Run], int | None]:
    """The map by single questions, and where an error ended it."""
    runs: list[Run] = []
    base = how.pop("base", None)
    while offset < end:
        try:
            flags, pnum, where, file, depth = await disk.block_status_above(base, offset, end - offset, **how)
        except OSError:
            return merged(runs), offset
        assert pnum
        placed = bool(flags & OFFSET_VALID)
        runs.append((offset, pnum, flags & ~EOF, where if placed else 0, depth, file if placed else None))
        offset += pnum
    return merged(runs), None


async def batches(disk: BlockBackend, offset: int, end: int, **how: Any) -> tuple[list[Run], int | None]:
    """The map by batches, and where an error ended it."""
    runs: list[Run] = []
    try:
        async for batch in disk.extent_batches(offset, end - offset, **how):
            assert batch.offset == offset and batch.nbytes > 0
            for length, flags, where, depth, index in zip(
                batch.lengths, batch.flags, batch.map, batch.depth, batch.file_index, strict=True
            ):
                assert length > 0
                file = batch.files[index] if index >= 0 else None
                runs.append((offset, int(length), int(flags) & ~EOF, int(where), int(depth), file))
                offset += int(length)
    except OSError:
        return merged(runs), offset
    assert offset == end
    return merged(runs), None


def slowly(script: Script, turns: int) -> None:
    """Each answer of the layer takes some turns of the loop."""

    async def before(call: Call) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    script.before = before


def breaking(script: Script, broken: set[int]) -> None:
    """Some runs of the script cannot be read."""
    runs = script.runs
    assert isinstance(runs, list)

    def answer(offset: int, nbytes: int, want_zero: bool) -> Answer:
        script.runs = runs
        try:
            at = 0
            for number, run in enumerate(runs):
                if at <= offset < at + run[1] and number in broken:
                    raise OSError(errno.EIO, "broken")
                at += run[1]
            return script.run_at(offset, nbytes, want_zero)
        finally:
            script.runs = answer

    script.runs = answer


# -- against the walk and the model ---------------------------------------------------------------------------------


@contextmanager
def cells_a_run(limit: int) -> Iterator[None]:
    """0: layers are laid over each other run by run; very many: always cell by cell."""
    before = fold.CELLS_A_RUN
    fold.CELLS_A_RUN = limit  # type: ignore[misc]
    try:
        yield
    finally:
        fold.CELLS_A_RUN = before  # type: ignore[misc]


LIMITS = st.sampled_from([0, 4, 1 << 40])


@pytest.mark.slow
@given(st.data())
async def test_random_chains_say_the_same_as_the_walk_and_as_the_model(data: st.DataObject) -> None:
    scripts = data.draw(chains())
    expected = facts(scripts)
    offset = data.draw(st.sampled_from([0, 0, 5, len(expected) // 2]))
    offset = min(offset, len(expected) - 1)
    end = data.draw(st.integers(offset + 1, len(expected)))
    for script in scripts:
        slowly(script, data.draw(st.sampled_from([0, 0, 1, 3])))
    with cells_a_run(data.draw(LIMITS)):
        await check_batches(data, scripts, expected, offset, end)


async def check_batches(
    data: st.DataObject, scripts: list[Script], expected: list[Fact], offset: int, end: int
) -> None:
    async with opened(*scripts, window=data.draw(st.integers(1, 4))) as disk:
        found, broken = await batches(disk, offset, end)
        assert broken is None
        told = [fact_of(flags, where, depth, skipped) for _, n, flags, where, depth, _ in found for skipped in range(n)]
        assert told == expected[offset:end]
        assert found == (await walk(disk, offset, end))[0]
        assert_idle(disk)


@pytest.mark.slow
@given(st.data())
async def test_what_cannot_be_read_matters_exactly_where_the_walk_says_so(data: st.DataObject) -> None:
    scripts = data.draw(chains())
    for script in scripts:
        breaking(script, data.draw(st.sets(st.integers(0, 5), max_size=2)))
        slowly(script, data.draw(st.sampled_from([0, 0, 2])))
    end = scripts[0].length
    with cells_a_run(data.draw(LIMITS)):
        async with opened(*scripts, window=data.draw(st.integers(1, 4))) as disk:
            assert await batches(disk, 0, end) == await walk(disk, 0, end)
            assert_idle(disk)


@pytest.mark.slow
@given(st.data())
async def test_a_part_of_the_chain(data: st.DataObject) -> None:
    """Between a top and a base. What no layer decides may be known to be zero or not, depending on who asked where."""
    scripts = data.draw(chains())
    end = scripts[0].length
    want_zero = data.draw(st.booleans())
    include = data.draw(st.booleans())
    async with opened(*scripts) as disk:
        base = data.draw(st.sampled_from(layers_of(disk)))
        how = {"base": base, "include_base": include, "want_zero": want_zero}

        def decided(runs: list[Run]) -> list[Run]:
            return merged([run if run[4] else (run[0], run[1], 0, 0, 0, None) for run in runs])

        assert decided((await batches(disk, 0, end, **how))[0]) == decided((await walk(disk, 0, end, **how))[0])


async def test_runs_are_merged_across_batches_and_eof_is_set_on_the_last() -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    script.most = 100
    low = Script(64 * K, [(0, 32 * K), (ZERO, 32 * K)])
    async with opened(script) as disk:
        (only,) = [extent async for extent in disk.extents()]
        assert (only.offset, only.length, only.flags, only.depth) == (0, 64 * K, DATA | ALLOCATED | EOF, 1)
        (only,) = [extent async for extent in disk.extents(8 * K, 16 * K)]
        assert (only.offset, only.length, only.flags) == (8 * K, 16 * K, DATA | ALLOCATED)
        (only,) = [extent async for extent in disk.extents(60 * K, 1 << 40)]
        assert (only.offset, only.length, only.flags) == (60 * K, 4 * K, DATA | ALLOCATED | EOF)
    async with opened(low) as disk:
        assert [(extent.offset, extent.flags, extent.depth) async for extent in disk.extents()] == [
            (0, ZERO, 0),
            (32 * K, ZERO | ALLOCATED | EOF, 1),
        ]


@pytest.mark.parametrize(("offset", "nbytes"), [(64 * K, None), (64 * K, 10), (10, 0), (1 << 40, 1)])
async def test_an_empty_range_has_no_extents(offset: int, nbytes: int | None) -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    async with opened(script) as disk:
        assert [extent async for extent in disk.extents(offset, nbytes)] == []
    assert not script.calls("block_status")


async def test_a_negative_offset_is_an_error() -> None:
    async with opened(Script(64 * K, [(DATA, 64 * K)])) as disk:
        with pytest.raises(OSError):
            [extent async for extent in disk.extents(-1)]
        assert_idle(disk)


# -- what it costs --------------------------------------------------------------------------------------------------


def striped(count: int, nbytes: int, flags: tuple[int, ...], lacks: tuple[str, ...] = ("extents",)) -> Script:
    return Script(count * nbytes, [(flags[at % len(flags)], nbytes) for at in range(count)], lacks=lacks)


@pytest.mark.parametrize("lacks", [(), ("extents",)])
@pytest.mark.parametrize("batch", [1, 1000])
async def test_the_number_of_questions_grows_with_the_sum_of_the_runs(lacks: tuple[str, ...], batch: int) -> None:
    """A finely striped top over nine coarse layers: 1 + 9 layers do not make 10 times the questions."""
    top = striped(256, K, (DATA, 0), lacks)
    below = [striped(2, 128 * K, (0,), lacks) for _ in range(8)] + [striped(64, 4 * K, (DATA, ZERO), lacks)]
    scripts = [top, *below]
    for script in scripts:
        script.batch = batch
    async with opened(*scripts) as disk:
        [extent async for extent in disk.extents()]
        verb = "extents" if not lacks else "block_status"
        asked = [len(script.calls(verb)) for script in scripts]
        runs = [256] + [2] * 8 + [64]
        assert all(questions <= 2 * count + 1 for questions, count in zip(asked, runs, strict=True)), asked
        if not lacks and batch > 256:
            assert asked == [1] * 10
        assert disk.statistics.probes <= sum(asked)


async def test_a_layer_is_asked_from_where_it_is_first_needed_to_where_it_is_last() -> None:
    top = Script(64 * K, [(DATA, 16 * K), (0, 8 * K), (DATA, 8 * K), (0, 8 * K), (DATA, 24 * K)], lacks=())
    low = Script(64 * K, [(ZERO, 64 * K)], lacks=())
    async with opened(top, low) as disk:
        assert len([extent async for extent in disk.extents()]) == 5
    assert [call.where for call in low.calls("extents")] == [(16 * K, 24 * K)]


async def test_a_layer_whose_bytes_a_layer_above_decides_everywhere_is_not_asked() -> None:
    low = Script(64 * K, [(ZERO, 64 * K)], lacks=())
    async with opened(striped(64, K, (DATA, ZERO), ()), low) as disk:
        assert len([extent async for extent in disk.extents()]) == 64
    assert not low.calls("extents")


# -- concurrency ----------------------------------------------------------------------------------------------------


def slow(runs: list[Answer], length: int = 64 * K) -> Script:
    script = Script(length, runs, lacks=())
    script.hold("extents")
    return script


def counters(disk: BlockBackend) -> tuple[int, int, int, int]:
    """Probes: issued, immediate, cancelled, short-circuited."""
    stats = disk.statistics
    return stats.probes, stats.probes_immediate, stats.probes_cancelled, stats.probes_short_circuited


async def _all(disk: BlockBackend) -> list[tuple[int, int, int]]:
    return [(extent.length, extent.flags & ~EOF, extent.depth) async for extent in disk.extents()]


async def test_layers_are_asked_together_as_soon_as_one_suspends_up_to_the_window() -> None:
    scripts = [slow([(0, 64 * K)]) for _ in range(6)]
    async with opened(*scripts, window=4) as disk:
        task = asyncio.create_task(_all(disk))
        await until(lambda: scripts[3].held)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [len(script.held) for script in scripts] == [1, 1, 1, 1, 0, 0]
        for script in scripts:
            script.release()
        assert await task == [(64 * K, ZERO, 0)]
        assert counters(disk) == (6, 2, 0, 0)
        assert_idle(disk)


async def test_quick_layers_cost_no_task() -> None:
    scripts = [striped(16, K, (0, DATA), ()), striped(16, K, (ZERO,), ())]
    async with opened(*scripts) as disk:
        with counted_tasks() as made:
            await _all(disk)
        assert made == []
        assert counters(disk) == (2, 2, 0, 0)


async def test_what_decides_all_cancels_the_deeper_questions_and_awaits_them() -> None:
    scripts = [slow([(DATA, 64 * K)]), slow([(DATA, 64 * K)]), slow([(DATA, 64 * K)])]
    async with opened(*scripts) as disk:
        task = asyncio.create_task(_all(disk))
        await until(lambda: scripts[2].held)
        scripts[0].release()
        assert await task == [(64 * K, DATA | ALLOCATED, 1)]
        assert [script.calls("extents")[0].outcome for script in scripts] == ["done", "cancelled", "cancelled"]
        assert counters(disk) == (3, 0, 2, 0)
        assert_idle(disk)


async def test_an_error_of_a_layer_asked_ahead_that_turned_out_not_to_matter_is_dropped() -> None:
    scripts = [slow([(DATA, 32 * K), (0, 32 * K)]), slow([(0, 32 * K), (DATA, 32 * K)])]
    scripts[1].fail("extents", OSError(errno.EIO, "its table for the first half is broken"))
    async with opened(*scripts) as disk:
        task = asyncio.create_task(_all(disk))
        await until(lambda: scripts[1].held)
        for script in scripts:
            script.release()
        assert await task == [(32 * K, DATA | ALLOCATED, 1), (32 * K, DATA | ALLOCATED, 2)]
        assert [call.where for call in scripts[1].calls("extents")] == [(0, 64 * K), (32 * K, 32 * K)]
        assert counters(disk)[2:] == (0, 0)


async def test_what_was_answered_before_is_no_question_and_cannot_be_cancelled() -> None:
    scripts = [slow([(0, 16 * K), (DATA, 48 * K)]), striped(1, 64 * K, (ZERO,), ())]
    scripts[0].batch = 1
    async with opened(*scripts) as disk:
        task = asyncio.create_task(_all(disk))
        for _ in range(2):
            await until(lambda: scripts[0].held)
            scripts[0].release(scripts[0].held[0])
        assert await task == [(16 * K, ZERO | ALLOCATED, 2), (48 * K, DATA | ALLOCATED, 1)]
        assert len(scripts[1].calls("extents")) == 1
        assert counters(disk) == (3, 1, 0, 0)


async def test_what_lies_before_an_error_that_matters_is_answered_still() -> None:
    scripts = [striped(4, 16 * K, (DATA, 0), ()), Script(64 * K, [(ZERO, 64 * K)], lacks=())]
    async with opened(*scripts) as disk:
        for number in (1, 2, 3, 4):
            scripts[1].fail("extents", OSError(errno.EIO, "broken"), number)
        found, broken = await batches(disk, 0, 64 * K)
        assert [run[:2] for run in found] == [(0, 16 * K)] and broken == 16 * K
        assert_idle(disk)


async def test_a_layer_known_to_end_before_is_not_asked_nor_are_those_below_it() -> None:
    scripts = [
        Script(64 * K, [(0, 64 * K)], lacks=()),
        Script(16 * K, [(DATA, 16 * K)], lacks=()),
        slow([(DATA, 64 * K)]),
    ]
    async with opened(*scripts) as disk:
        assert await _all(disk) == [(16 * K, DATA | ALLOCATED, 2), (48 * K, ZERO | ALLOCATED, 2)]
        assert [len(script.calls("extents")) for script in scripts] == [1, 1, 0]
        assert counters(disk) == (2, 2, 0, 2)


@pytest.mark.parametrize("released", [0, 1, 2])
async def test_a_cancelled_caller_leaves_nothing_running(released: int) -> None:
    scripts = [slow([(0, 64 * K)]) for _ in range(3)]
    async with opened(*scripts) as disk:
        task = asyncio.create_task(_all(disk))
        await until(lambda: scripts[2].held)
        for script in scripts[:released]:
            script.release()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_idle(disk)
        for script in scripts:
            script.release()
        assert await _all(disk) == [(64 * K, ZERO, 0)]


async def test_who_stops_listening_leaves_nothing_in_flight() -> None:
    async with opened(striped(16, K, (0, DATA))) as disk:
        async for _ in disk.extents():
            break
        await until(lambda: len(asyncio.all_tasks()) == 1)
        async with disk.drained():
            pass
        assert_idle(disk)


async def test_between_two_batches_the_graph_can_be_drained() -> None:
    script = striped(4, K, (0, DATA), ())
    script.batch = 1
    async with opened(script) as disk:
        seen = 0
        async for batch in disk.extent_batches():
            async with disk.drained():
                seen += batch.nbytes
        assert seen == 4 * K


# -- one layer ------------------------------------------------------------------------------------------------------


def shown(batch: ExtentBatch) -> list[tuple[int, int]]:
    return list(zip(batch.flags.tolist(), batch.lengths.tolist(), strict=True))


async def test_a_layer_that_lies_in_its_child_answers_with_the_childs_batch() -> None:
    top = Script(64 * K, [(RAW | OFFSET_VALID, 64 * K, 4 * K)])
    file = Script(68 * K, [(DATA | OFFSET_VALID, 8 * K, 0), (ZERO, 60 * K)], lacks=())
    async with opened(top, files={top: file}) as disk:
        batch = await layer_extents(disk.node, 0, 64 * K)
        assert shown(batch) == [(DATA | OFFSET_VALID | ALLOCATED, 4 * K), (ZERO | ALLOCATED, 60 * K)]
        assert batch.offset == 0 and batch.map[0] == 4 * K and batch.files[batch.file_index[0]] is disk.node.file
        assert len(top.calls("block_status")) == len(file.calls("extents")) == 1
        extents = [extent async for extent in disk.extents()]
        assert disk.node.file is not None and extents[0].file is disk.node.file.node
        assert (await walk(disk, 0, 64 * K))[0] == (await batches(disk, 0, 64 * K))[0]


async def test_behind_the_end_of_that_child_it_is_zeroes() -> None:
    top = Script(64 * K, [(RAW | OFFSET_VALID, 64 * K, 0)])
    file = Script(16 * K, [(DATA, 16 * K)], lacks=())
    async with opened(top, files={top: file}) as disk:
        assert await _all(disk) == [(16 * K, DATA | ALLOCATED, 1), (48 * K, ZERO | ALLOCATED, 1)]
        assert (await walk(disk, 0, 64 * K))[0] == (await batches(disk, 0, 64 * K))[0]


async def test_a_filter_in_the_chain_is_one_layer_with_what_it_filters() -> None:
    low = Script(64 * K, [(DATA, 64 * K)], lacks=())
    mid = Script(64 * K, [(0, 32 * K), (ZERO, 32 * K)], lacks=())
    options = {"driver": "scripted", "script": mid, "backing": {"driver": "scripted", "script": low}}
    async with opened(options={"driver": "scripted-filter", "script": Script(0, lacks=()), "file": options}) as disk:
        assert await _all(disk) == [(32 * K, DATA | ALLOCATED, 2), (32 * K, ZERO | ALLOCATED, 1)]
        assert (await walk(disk, 0, 64 * K))[0] == (await batches(disk, 0, 64 * K))[0]


@pytest.mark.parametrize("want_zero", [True, False])
async def test_holes_in_the_file_under_a_batch(want_zero: bool) -> None:
    top = Script(64 * K, [(DATA | OFFSET_VALID | RECURSE, 32 * K, 0), (0, 32 * K)], lacks=())
    file = Script(32 * K, [(DATA, 8 * K), (ZERO, 24 * K)], lacks=())
    async with opened(top, files={top: file}) as disk:
        batch = await layer_extents(disk.node, 0, 64 * K, want_zero)
        here = DATA | OFFSET_VALID | ALLOCATED
        if want_zero:
            assert shown(batch) == [(here, 8 * K), (here | ZERO, 24 * K), (ZERO, 32 * K)]
        else:
            assert shown(batch) == [(here, 32 * K), (ZERO, 32 * K)]
            assert not file.calls("extents") and not file.calls("block_status")


async def test_a_driver_that_has_no_batches_of_this_image_is_asked_run_by_run() -> None:
    script = Script(64 * K, [(DATA, 16 * K), (ZERO, 48 * K)], lacks=())
    async with opened(script) as disk:
        script.fail("extents", NotSupported())
        assert shown(await layer_extents(disk.node, 0, 64 * K)) == [
            (DATA | ALLOCATED, 16 * K),
            (ZERO | ALLOCATED, 48 * K),
        ]


async def test_a_batch_that_says_nothing_is_the_drivers_fault() -> None:
    """It must not be taken for the end of the layer."""
    script = Script(64 * K, [(DATA, 64 * K)], lacks=())
    script.batch = 0
    async with opened(script) as disk:
        with pytest.raises(AssertionError, match="scripted"):
            await _all(disk)
        assert_idle(disk)


@pytest.mark.parametrize("alignment", [1, 512, 4096])
async def test_the_question_is_aligned_and_the_batch_cut_back(alignment: int) -> None:
    runs: list[Answer] = [(DATA | OFFSET_VALID, 4 * K, 8 * K), (ZERO, 60 * K)]
    script = Script(64 * K, runs, lacks=(), limits={"request_alignment": alignment})
    file = Script(64 * K)
    async with opened(script, files={script: file}) as disk:
        batch = await layer_extents(disk.node, 1000, 5000)
        expected = [(DATA | OFFSET_VALID | ALLOCATED, 3096), (ZERO | ALLOCATED, 1904)]
        assert (batch.offset, shown(batch), batch.map[0]) == (1000, expected, 8 * K + 1000)
        assert shown(await layer_extents(disk.node, 64 * K - 1, 100)) == [(ZERO | ALLOCATED, 1)]
        assert shown(await layer_extents(disk.node, 64 * K, 100)) == []


async def test_the_batch_of_a_driver_is_not_changed() -> None:
    """A driver may keep the arrays it has answered with."""
    kept: list[ExtentBatch] = []
    script = Script(64 * K, [(0, 64 * K)], lacks=())
    async with opened(script) as disk:
        ask: Callable[..., Any] = disk.node.driver.extents

        async def extents(offset: int, nbytes: int, want_zero: bool) -> ExtentBatch:
            kept.append(await ask(offset, nbytes, want_zero))
            return kept[-1]

        disk.node.driver.extents = extents  # type: ignore[method-assign]
        await layer_extents(disk.node, 0, 64 * K)
        assert np.array_equal(kept[0].flags, [0]) and kept[0].offset == 0


def test_the_model_knows_what_it_says() -> None:
    scripts = [Script(32, [(0, 16), (DATA | OFFSET_VALID, 16, 64)]), Script(8, [(ZERO, 8)])]
    assert facts(scripts) == [Fact(2, ZERO, -1)] * 16 + [Fact(1, DATA, 64 + at) for at in range(16)]

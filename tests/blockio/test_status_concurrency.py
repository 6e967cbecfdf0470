"""A chain is asked concurrently: every sentence of "Concurrency" in docs/block-status.md, shown by gates."""

import asyncio
import errno
import gc

import pytest

from aioblock.base.flags import ALLOCATED, DATA, EOF, ZERO
from aioblock.blockio.status import WINDOW
from aioblock.core.io import ChainStatus
from aioblock.graph.backend import BlockBackend
from tests.kit.scripted import Answer, Script, layers_of, opened
from tests.kit.watching import assert_idle, counted_tasks, until

K = 1024
LENGTH = 64 * K
OPEN: tuple[Answer, ...] = ((0, LENGTH),)
DECIDED: tuple[Answer, ...] = ((DATA, LENGTH),)


def slow(runs: tuple[Answer, ...] = OPEN, length: int = LENGTH) -> Script:
    """A layer whose answers wait at a gate."""
    script = Script(length, runs)
    script.hold("block_status")
    return script


def quick(runs: tuple[Answer, ...] = OPEN, length: int = LENGTH) -> Script:
    return Script(length, runs)


def asking(disk: BlockBackend, offset: int = 0, nbytes: int = LENGTH) -> "asyncio.Task[ChainStatus]":
    return asyncio.create_task(disk.block_status_above(None, offset, nbytes))


def asked(*scripts: Script) -> list[int]:
    """How many questions each layer got."""
    return [len(script.calls("block_status")) for script in scripts]


def outcomes(*scripts: Script) -> list[list[str]]:
    return [[call.outcome for call in script.calls("block_status")] for script in scripts]


def counters(disk: BlockBackend) -> tuple[int, int, int, int]:
    """Probes: issued, immediate, cancelled, short-circuited."""
    stats = disk.statistics
    return stats.probes, stats.probes_immediate, stats.probes_cancelled, stats.probes_short_circuited


async def settled(turns: int = 10) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


# -- answered without suspending ------------------------------------------------------------------------------------


async def test_answers_without_suspending_cost_no_task_and_ask_no_layer_too_many() -> None:
    scripts = [quick(), quick(), quick(DECIDED), quick(DECIDED)]
    async with opened(*scripts) as disk:
        with counted_tasks() as made:
            answer = await disk.block_status_above(None, 0, LENGTH)
        assert made == []
        assert answer.depth == 3
        assert asked(*scripts) == [1, 1, 1, 0]
        assert counters(disk) == (3, 3, 0, 0)


async def test_one_slow_layer_below_quick_ones_costs_one_task() -> None:
    scripts = [quick(), quick(), slow(DECIDED)]
    async with opened(*scripts) as disk:
        with counted_tasks() as made:
            task = asking(disk)
            await until(lambda: scripts[2].held)
            scripts[2].release()
            assert (await task).depth == 3
        assert len(made) == 2  # the test's own, and the layer's
        assert counters(disk) == (3, 2, 0, 0)
        assert_idle(disk)


# -- asked together -------------------------------------------------------------------------------------------------


async def test_layers_are_asked_together_as_soon_as_one_suspends() -> None:
    scripts = [slow() for _ in range(6)]
    async with opened(*scripts) as disk:
        task = asking(disk, 4 * K, 8 * K)
        await until(lambda: all(script.held for script in scripts))
        assert [script.calls("block_status")[0].where for script in scripts] == [(4 * K, 8 * K)] * 6
        assert [node.in_flight for node in layers_of(disk)] == [1] * 6
        for script in scripts:
            script.release()
        assert (await task)[:2] == (ZERO, 8 * K)
        assert asked(*scripts) == [1] * 6
        assert counters(disk) == (6, 0, 0, 0)
        assert_idle(disk)


async def test_n_layers_cost_the_time_of_one() -> None:
    """All gates open at the same moment: the answer is there a few turns of the loop later, and not N times as many."""

    async def turns(count: int) -> int:
        scripts = [slow() for _ in range(count)]
        async with opened(*scripts, window=count) as disk:
            task = asking(disk)
            await until(lambda: all(script.held for script in scripts))
            for script in scripts:
                script.release()
            for number in range(100):
                if task.done():
                    return number
                await asyncio.sleep(0)
        raise AssertionError("no answer")

    assert await turns(16) == await turns(2)


@pytest.mark.parametrize("window", [1, 2, 3, 8])
async def test_up_to_the_window(window: int) -> None:
    scripts = [slow() for _ in range(10)]
    async with opened(*scripts, window=window) as disk:
        task = asking(disk)
        await until(lambda: scripts[window - 1].held)
        await settled()
        assert asked(*scripts) == [1] * window + [0] * (10 - window)
        scripts[0].release()
        await until(lambda: scripts[window].held)  # the window moves down
        await settled()
        assert asked(*scripts) == [1] * (window + 1) + [0] * (9 - window)
        scripts[
            1
        ].release()  # with the answers of the others out of order: nothing moves until the next in turn is there
        await settled()
        assert sum(asked(*scripts)) == window + 2
        for script in scripts:
            script.release()
        await task
        assert asked(*scripts) == [1] * 10
        assert counters(disk) == (10, 9 - window - 1, 0, 0)  # those asked after the gates were opened did not wait
        assert_idle(disk)


async def test_the_default_window() -> None:
    scripts = [slow() for _ in range(WINDOW + 4)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[WINDOW - 1].held)
        await settled()
        assert sum(asked(*scripts)) == WINDOW
        for script in scripts:
            script.release()
        await task


async def test_a_quick_layer_above_cuts_the_question_for_those_asked_after_it() -> None:
    scripts = [quick(((0, 24 * K), (DATA, 40 * K))), slow(), slow()]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[2].held)
        assert [script.calls("block_status")[0].where for script in scripts[1:]] == [(0, 24 * K)] * 2
        for script in scripts:
            script.release()
        assert (await task).pnum == 24 * K


# -- used strictly from the top down --------------------------------------------------------------------------------


async def test_an_answer_from_below_waits_for_those_above() -> None:
    scripts = [slow(), slow(DECIDED), slow(((ZERO, LENGTH),))]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[2].held)
        scripts[2].release()
        await settled()
        assert not task.done()
        scripts[1].release()
        await settled()
        assert not task.done()
        scripts[0].release()
        answer = await task
        assert (answer.flags, answer.depth) == (DATA | ALLOCATED | EOF, 2)
        assert counters(disk) == (3, 0, 1, 0)
        assert_idle(disk)


async def test_no_layer_is_asked_below_one_that_has_decided_already() -> None:
    scripts = [slow(), quick(DECIDED), slow(), slow()]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[1].log[-1].outcome == "done")
        await settled()
        assert asked(*scripts) == [1, 1, 0, 0]
        scripts[0].release()
        assert (await task).depth == 2
        assert counters(disk) == (2, 1, 0, 0)
        assert_idle(disk)


async def test_a_longer_answer_of_a_layer_asked_ahead_is_cut_by_those_above() -> None:
    scripts = [slow(((0, 8 * K), (DATA, 56 * K))), slow(DECIDED)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[1].held)
        for script in scripts:
            script.release()
        answer = await task
        assert (answer.flags, answer.pnum) == (DATA | ALLOCATED, 8 * K)


async def test_the_end_of_a_longer_layer_asked_ahead_is_not_taken_for_the_end_of_the_top() -> None:
    """The top ends at 16 KiB; the second layer, asked for more, decides nothing up to its end at 32 KiB."""
    scripts = [slow(((0, 16 * K),), 16 * K), slow(((0, 32 * K),), 32 * K), slow(DECIDED)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[2].held)
        for script in scripts:
            script.release()
        answer = await task
        assert (answer.flags, answer.pnum, answer.depth) == (DATA | ALLOCATED | EOF, 16 * K, 3)


async def test_the_end_of_a_layer_asked_ahead_counts_only_where_the_run_reaches_it() -> None:
    scripts = [slow(((0, 8 * K), (DATA, 56 * K))), slow(((0, 16 * K),), 16 * K), slow(DECIDED)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[2].held)
        for script in scripts:
            script.release()
        answer = await task
        assert (answer.flags, answer.pnum, answer.depth) == (DATA | ALLOCATED, 8 * K, 3)


# -- the search ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [DATA, ZERO])
async def test_an_allocated_answer_cancels_the_deeper_questions_and_awaits_them(flags: int) -> None:
    scripts = [slow(((flags, LENGTH),)), slow(), slow(DECIDED), slow()]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[3].held)
        scripts[0].release()
        assert (await task).depth == 1
        # At once, without another turn of the loop: they were awaited.
        assert outcomes(*scripts) == [["done"], ["cancelled"], ["cancelled"], ["cancelled"]]
        assert counters(disk) == (4, 0, 3, 0)
        assert_idle(disk)


async def test_deeper_questions_that_take_time_to_end_are_waited_for() -> None:
    scripts = [slow(DECIDED), slow()]
    cleaning_up = asyncio.get_running_loop().create_future()

    async def stubborn(call: object) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await cleaning_up

    async with opened(*scripts) as disk:
        scripts[1].before = stubborn
        task = asking(disk)
        await until(lambda: scripts[1].calls("block_status"))
        scripts[0].release()
        await settled()
        assert not task.done() and layers_of(disk)[1].in_flight == 1
        cleaning_up.set_result(None)
        assert (await task).depth == 1
        assert_idle(disk)
        scripts[1].before = None


async def test_an_eof_cancels_the_deeper_questions() -> None:
    """The second layer's length may change by itself: only its answer tells that it ends before."""
    ending = Script(16 * K, [(0, 16 * K)], attributes={"variable_length": True})
    scripts = [slow(), ending, slow(DECIDED), slow(DECIDED), slow(DECIDED)]
    async with opened(*scripts, window=4) as disk:
        ending.hold("getlength")
        task = asking(disk, 16 * K, 8 * K)
        await until(lambda: scripts[3].held)
        ending.release()
        scripts[0].release()
        answer = await task
        assert (answer.flags, answer.pnum, answer.depth) == (ZERO | ALLOCATED, 8 * K, 2)
        assert outcomes(*scripts) == [["done"], [], ["cancelled"], ["cancelled"], []]
        assert counters(disk) == (4, 0, 2, 1)
        assert_idle(disk)


async def test_a_layer_known_to_end_before_is_not_asked_and_nobody_below_it() -> None:
    scripts = [quick(), quick(OPEN, 64 * K), quick(((0, 16 * K),), 16 * K), quick(DECIDED), quick(DECIDED)]
    async with opened(*scripts) as disk:
        answer = await disk.block_status_above(None, 16 * K, 8 * K)
        assert (answer.flags, answer.pnum, answer.depth) == (ZERO | ALLOCATED, 8 * K, 3)
        assert asked(*scripts) == [1, 1, 0, 0, 0]
        assert counters(disk) == (2, 2, 0, 3)


async def test_a_layer_known_to_end_before_is_not_asked_ahead_either() -> None:
    scripts = [slow(), slow(((0, 16 * K),), 16 * K), slow(DECIDED)]
    async with opened(*scripts) as disk:
        task = asking(disk, 16 * K)
        await until(lambda: scripts[0].held)
        await settled()
        assert asked(*scripts) == [1, 0, 0]
        scripts[0].release()
        assert (await task).depth == 2
        assert counters(disk) == (1, 0, 0, 2)
        assert_idle(disk)


async def test_an_end_below_a_layer_that_decides_short_circuits_nothing() -> None:
    scripts = [slow(DECIDED), slow(((0, 16 * K),), 16 * K), slow()]
    async with opened(*scripts) as disk:
        task = asking(disk, 16 * K)
        await until(lambda: scripts[0].held)
        scripts[0].release()
        assert (await task).depth == 1
        assert counters(disk) == (1, 0, 0, 0)


async def test_past_the_end_of_the_top_one_question_is_enough() -> None:
    scripts = [quick(), quick(DECIDED, 128 * K)]
    async with opened(*scripts) as disk:
        assert (await disk.block_status_above(None, LENGTH, 1))[:2] == (EOF, 0)
        assert counters(disk) == (1, 1, 0, 0)


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspends", [True, False])
@pytest.mark.parametrize("early", [True, False])
async def test_an_error_in_a_layer_that_turned_out_not_to_matter_is_dropped(suspends: bool, early: bool) -> None:
    scripts = [slow(DECIDED), slow() if suspends else quick()]
    scripts[1].fail("block_status", OSError(errno.EIO, "nobody wants to know"))
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: asked(*scripts) == [1, 1])
        if early:
            scripts[1].release()
            await until(lambda: outcomes(scripts[1]) == [["failed"]])
        scripts[0].release()
        assert (await task).depth == 1
        assert counters(disk) == (2, 0 if suspends else 1, 1, 0)
        assert_idle(disk)
        gc.collect()  # an exception that nobody retrieved would be logged now


@pytest.mark.parametrize("suspends", [True, False])
async def test_an_error_in_a_layer_that_matters_is_raised(suspends: bool) -> None:
    scripts = [slow(), slow() if suspends else quick(), slow(DECIDED)]
    scripts[1].fail("block_status", OSError(errno.EIO, "broken"))
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: asked(*scripts[:2]) == [1, 1])
        await settled()
        scripts[1].release()
        await settled()
        assert not task.done()  # nobody knows yet whether it matters
        scripts[0].release()
        with pytest.raises(OSError, match="broken"):
            await task
        assert outcomes(scripts[2]) == ([["cancelled"]] if suspends else [[]])
        assert counters(disk) == ((3, 0, 1, 0) if suspends else (2, 1, 0, 0))
        assert_idle(disk)


async def test_an_error_at_the_top_ends_the_deeper_questions() -> None:
    scripts = [slow(), slow(), slow()]
    scripts[0].fail("block_status", OSError(errno.EIO, "broken"))
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[2].held)
        scripts[0].release()
        with pytest.raises(OSError, match="broken"):
            await task
        assert outcomes(*scripts) == [["failed"], ["cancelled"], ["cancelled"]]
        assert_idle(disk)


async def test_an_error_above_an_end_of_file_matters() -> None:
    scripts = [slow(), slow(((0, 16 * K),), 16 * K)]
    scripts[0].fail("block_status", OSError(errno.EIO, "broken"))
    async with opened(*scripts) as disk:
        task = asking(disk, 16 * K)
        await until(lambda: scripts[0].held)
        scripts[0].release()
        with pytest.raises(OSError, match="broken"):
            await task
        assert counters(disk) == (1, 0, 0, 0)

"""A question over a chain that is cancelled leaves nothing running; and the order of the answers never matters."""

import asyncio
import errno
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.flags import DATA, ZERO
from aioblock.core.io import ChainStatus
from aioblock.graph.backend import BlockBackend
from tests.kit.scripted import Answer, Script, opened
from tests.kit.watching import assert_idle, until

K = 1024
LENGTH = 64 * K
OPEN: tuple[Answer, ...] = ((0, LENGTH),)
DECIDED: tuple[Answer, ...] = ((DATA, LENGTH),)


def slow(runs: tuple[Answer, ...] = OPEN, length: int = LENGTH) -> Script:
    """A layer whose answers wait at a gate."""
    script = Script(length, runs)
    script.hold("block_status")
    return script


def asking(disk: BlockBackend, offset: int = 0, nbytes: int = LENGTH) -> "asyncio.Task[ChainStatus]":
    return asyncio.create_task(disk.block_status_above(None, offset, nbytes))


def asked(*scripts: Script) -> list[int]:
    """How many questions each layer got."""
    return [len(script.calls("block_status")) for script in scripts]


def outcomes(*scripts: Script) -> list[list[str]]:
    return [[call.outcome for call in script.calls("block_status")] for script in scripts]


async def settled(turns: int = 10) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


# -- cancelled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [0, 1, 2])
async def test_a_cancelled_caller_leaves_nothing_running(released: int) -> None:
    scripts = [slow() for _ in range(4)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await until(lambda: scripts[3].held)
        for script in scripts[:released]:
            script.release()
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcomes(*scripts) == [["done"]] * released + [["cancelled"]] * (4 - released)
        assert_idle(disk)
        for script in scripts:
            script.release()
        assert (await disk.block_status_above(None, 0, LENGTH)).pnum == LENGTH


async def test_cancelled_before_the_questions_had_a_turn_of_the_loop() -> None:
    scripts = [slow() for _ in range(4)]
    async with opened(*scripts) as disk:
        task = asking(disk)
        await asyncio.sleep(0)  # the questions are begun, and their tasks have not run yet
        assert asked(*scripts) == [1] * 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcomes(*scripts) == [["cancelled"]] * 4
        assert_idle(disk)


async def test_cancelled_again_and_again_while_it_cleans_up() -> None:
    scripts = [slow() for _ in range(3)]
    cleaning_up = asyncio.get_running_loop().create_future()

    async def stubborn(call: object) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.shield(cleaning_up)

    async with opened(*scripts) as disk:
        scripts[2].before = stubborn
        task = asking(disk)
        await settled()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        cleaning_up.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await task
        scripts[2].before = None
        assert_idle(disk)


async def test_a_timeout_around_it_is_a_timeout() -> None:
    scripts = [slow() for _ in range(3)]
    async with opened(*scripts) as disk:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await disk.block_status_above(None, 0, LENGTH)
        assert_idle(disk)


# -- the same answer in every order ---------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.data())
async def test_the_answer_does_not_depend_on_who_answers_first(data: st.DataObject) -> None:
    """Random layers suspend, and their gates open in random order: always what a chain of quick layers says."""
    draw = data.draw
    count = draw(st.integers(1, 6))
    scripts: list[Script] = []
    for _ in range(count):
        length = draw(st.integers(1, 8)) * 8 * K
        runs: list[Answer] = []
        for at in range(0, length, 8 * K):
            runs.append((draw(st.sampled_from([0, 0, 0, DATA, ZERO])), 8 * K, at))
        scripts.append(Script(length, runs, attributes={"variable_length": draw(st.booleans())}))
    offset = draw(st.integers(0, 7)) * 8 * K
    window = draw(st.integers(1, 4))
    errors = draw(st.sets(st.integers(0, count - 1), max_size=2))

    async def result(disk: BlockBackend, drive: Callable[[], None]) -> object:
        for layer in errors:
            scripts[layer].fail("block_status", OSError(errno.EIO, f"layer {layer}"))
        task = asking(disk, offset)
        while not task.done():
            drive()
            await asyncio.sleep(0)
        for script in scripts:
            script._faults.clear()
        if error := task.exception():
            return str(error)
        answer = task.result()
        return answer.flags, answer.pnum, answer.depth

    async with opened(*scripts) as disk:
        expected = await result(disk, lambda: None)
        for script in scripts:
            script.log.clear()
    async with opened(*scripts, window=window) as disk:
        for layer in draw(st.sets(st.integers(0, count - 1))):
            scripts[layer].hold("block_status", "getlength")
        choices = random.Random(draw(st.integers(0, 1 << 16)))

        def open_one_gate() -> None:
            if held := [(script, call) for script in scripts for call in script.held]:
                script, call = choices.choice(held)
                script.release(call)

        assert await result(disk, open_one_gate) == expected
        assert_idle(disk)

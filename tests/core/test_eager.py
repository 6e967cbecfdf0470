"""Starting coroutines at once, running them to their end, and settling what is not needed any more."""

import asyncio
import gc
from typing import Any

import pytest

from aioblock.core.eager import Finished, run_to_end, settle, start
from tests.kit.watching import counted_tasks, until


class Steps:
    """A coroutine that notes how far it came."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.seen: list[str] = []

    async def run(self) -> str:
        self.seen.append("begun")
        try:
            answer = await self.gate
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            await asyncio.sleep(0)  # cleaning up may wait
            self.seen.append("cleaned up")
            raise
        self.seen.append("done")
        return answer


async def test_what_never_suspends_costs_no_task() -> None:
    async def answer() -> int:
        return 42

    with counted_tasks() as made:
        begun = start(answer())
    assert isinstance(begun, Finished) and begun.result() == 42
    assert made == []


async def test_an_error_before_the_first_suspension_is_raised_by_result() -> None:
    async def fail() -> None:
        raise OSError(5, "no")

    begun = start(fail())
    assert isinstance(begun, Finished)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            begun.result()


async def test_a_cancellation_before_the_first_suspension_is_the_callers() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        start(cancelled())


async def test_what_suspends_becomes_one_task_and_goes_on() -> None:
    steps = Steps()
    with counted_tasks() as made:
        begun = start(steps.run())
    assert steps.seen == ["begun"]
    assert made == [begun]
    steps.gate.set_result("answer")
    assert await asyncio.wait_for(asyncio.ensure_future(_result(begun)), 1) == "answer"
    assert steps.seen == ["begun", "done"]


async def _result(begun: "Finished[Any] | asyncio.Task[Any]") -> Any:
    return begun.result() if isinstance(begun, Finished) else await begun


async def test_what_it_waits_for_may_be_done_before_its_task_runs() -> None:
    steps = Steps()
    begun = start(steps.run())
    steps.gate.set_result("at once")
    assert await _result(begun) == "at once"


async def test_a_bare_yield_suspends_too() -> None:
    async def twice() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return 2

    begun = start(twice())
    assert isinstance(begun, asyncio.Task)
    assert await begun == 2


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_cancelled_task_cleans_up_whether_it_had_its_first_step_or_not(turns: int) -> None:
    steps = Steps()
    begun = start(steps.run())
    assert isinstance(begun, asyncio.Task)
    for _ in range(turns):
        await asyncio.sleep(0)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert steps.seen == ["begun", "cancelled", "cleaned up"]
    assert steps.gate.cancelled()  # as for every task: what it waited for is cancelled with it


async def test_cancelled_at_once_while_it_waits_for_another_task() -> None:
    steps = Steps()
    inner = asyncio.create_task(steps.run())

    async def outer() -> str:
        return await inner

    begun = start(outer())
    assert isinstance(begun, asyncio.Task)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    await until(inner.done)
    assert inner.cancelled()


async def test_cancelled_when_what_it_waited_for_is_done_already() -> None:
    steps = Steps()
    begun = start(steps.run())
    assert isinstance(begun, asyncio.Task)
    steps.gate.set_result("too late")
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert steps.seen == ["begun", "cancelled", "cleaned up"]


async def test_the_repr_of_its_task_names_the_coroutine() -> None:
    steps = Steps()
    begun = start(steps.run())
    assert "Steps.run" in repr(begun)
    steps.gate.set_result("")
    await _result(begun)


# -- run_to_end ----------------------------------------------------------------------------------------------------


async def test_run_to_end_goes_on_without_its_caller() -> None:
    steps = Steps()
    owned: set[asyncio.Task[Any]] = set()
    caller = asyncio.create_task(run_to_end(steps.run(), owned))
    await until(lambda: owned)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps.seen == ["begun"]
    (task,) = owned
    assert not task.done()
    steps.gate.set_result("done alone")
    await until(lambda: not owned)
    assert steps.seen == ["begun", "done"]


async def test_run_to_end_of_what_never_suspends_owns_nothing() -> None:
    async def answer() -> int:
        return 1

    owned: set[asyncio.Task[Any]] = set()
    with counted_tasks() as made:
        assert await run_to_end(answer(), owned) == 1
    assert not owned and not made


async def test_an_error_after_the_caller_has_left_is_not_logged() -> None:
    steps = Steps()
    owned: set[asyncio.Task[Any]] = set()
    caller = asyncio.create_task(run_to_end(steps.run(), owned))
    await until(lambda: owned)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    steps.gate.set_exception(OSError(5, "nobody is there to hear it"))
    await until(lambda: not owned)
    gc.collect()  # tests/conftest.py fails this test where the loop's exception handler was called


async def test_an_error_reaches_a_caller_who_waits() -> None:
    steps = Steps()
    owned: set[asyncio.Task[Any]] = set()
    caller = asyncio.create_task(run_to_end(steps.run(), owned))
    await until(lambda: owned)
    steps.gate.set_exception(OSError(28, "full"))
    with pytest.raises(OSError, match="full"):
        await caller


async def test_a_timeout_around_it_is_a_timeout() -> None:
    steps = Steps()
    owned: set[asyncio.Task[Any]] = set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await run_to_end(steps.run(), owned)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    steps.gate.set_result("")
    await until(lambda: not owned)


# -- settle --------------------------------------------------------------------------------------------------------


async def test_settle_waits_until_each_has_cleaned_up() -> None:
    several = [Steps() for _ in range(3)]
    tasks = [task for steps in several if isinstance(task := start(steps.run()), asyncio.Task)]
    await settle(tasks)
    assert [steps.seen[-1] for steps in several] == ["cleaned up"] * 3
    assert all(task.cancelled() for task in tasks)


async def test_settle_drops_the_errors_of_what_failed_already() -> None:
    steps = Steps()
    task = start(steps.run())
    assert isinstance(task, asyncio.Task)
    steps.gate.set_exception(OSError(5, "not needed"))
    await until(task.done)
    await settle([task])
    del task
    gc.collect()  # tests/conftest.py fails this test where "exception was never retrieved" was logged


async def test_settle_of_a_cancelled_caller_waits_all_the_same_and_then_raises() -> None:
    gates = [asyncio.get_running_loop().create_future() for _ in range(2)]
    ended: list[int] = []

    async def slow_to_clean_up(number: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await gates[number]
            ended.append(number)

    tasks = [task for number in range(2) if isinstance(task := start(slow_to_clean_up(number)), asyncio.Task)]
    caller = asyncio.create_task(settle(tasks))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    for gate in gates:
        gate.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert sorted(ended) == [0, 1]


async def test_a_caller_cancelled_in_the_turn_in_which_it_ends() -> None:
    """It is woken by the end of the task, once, and told of the cancellation then."""

    class Owned(set[asyncio.Task[Any]]):
        def discard(self, task: asyncio.Task[Any]) -> None:
            super().discard(task)
            caller.cancel()  # what wakes the caller is in the loop's queue already

    steps = Steps()
    owned = Owned()
    caller = asyncio.create_task(run_to_end(steps.run(), owned))
    await until(lambda: owned)
    steps.gate.set_result("done")
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not owned and steps.seen == ["begun", "done"]


async def test_a_caller_cancelled_twice() -> None:
    steps = Steps()
    owned: set[asyncio.Task[Any]] = set()
    caller = asyncio.create_task(run_to_end(steps.run(), owned))
    await until(lambda: owned)
    caller.cancel()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    steps.gate.set_result("")
    await until(lambda: not owned)

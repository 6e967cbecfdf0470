"""Watching a loop and a graph: wait until something holds, count the tasks that are made, see that nothing is left."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aioblock.graph.backend import BlockBackend
from aioblock.graph.drain import subtree

__all__ = ["assert_idle", "counted_tasks", "until"]


async def until(condition: Callable[[], Any], turns: int = 200) -> None:
    """Let the loop go on until the condition holds; it fails the test when that takes too many turns."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


@contextmanager
def counted_tasks() -> Iterator[list[asyncio.Task[Any]]]:
    """The tasks that are made inside."""
    loop = asyncio.get_running_loop()
    made: list[asyncio.Task[Any]] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **how)
        made.append(task)
        return task

    old = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        yield made
    finally:
        loop.set_task_factory(old)


def assert_idle(disk: BlockBackend) -> None:
    """Nothing is in flight anywhere in the graph, and nothing holds a range; no task runs but the test's own."""
    assert disk.in_flight == 0
    for node in subtree(disk.node):
        assert node.in_flight == 0, node
        assert not node.requests.serialising, node
        assert all(task.done() for task in node.tasks), node
    assert asyncio.all_tasks() == {asyncio.current_task()}

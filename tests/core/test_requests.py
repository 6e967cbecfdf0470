"""Requests in flight: who waits for whom, in which order, and that nobody is forgotten."""

import asyncio
import random

import pytest

from aioblock.core.requests import PASSED_AT_MOST, RequestQueue
from tests.kit.watching import until


class Client:
    """One request on a queue, as the verbs make it: entered, perhaps waiting, running until told to end."""

    def __init__(self, queue: RequestQueue, offset: int, end: int, *, serialising: bool) -> None:
        self.queue, self.range, self.serialising = queue, (offset, end), serialising
        self.state = "new"
        self.ticket = -1
        self.finish = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    def overlaps(self, other: "Client") -> bool:
        return self.range[0] < other.range[1] and other.range[0] < self.range[1]

    async def _run(self) -> None:
        self.ticket = (self.queue.begin_serialising if self.serialising else self.queue.begin)(*self.range)
        self.state = "waiting"
        try:
            if self.queue.serialising:
                await self.queue.wait(self.ticket)
            self.state = "running"
            await self.finish
        finally:
            self.queue.end(self.ticket)
            self.state = "over"


async def _turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _over(*clients: Client) -> None:
    for client in clients:
        if not client.finish.done():
            client.finish.set_result(None)
    if clients:
        await asyncio.wait([client.task for client in clients])


async def test_requests_that_are_not_serialising_never_wait() -> None:
    queue = RequestQueue()
    clients = [Client(queue, 0, 100, serialising=False) for _ in range(3)]
    await _turns()
    assert [client.state for client in clients] == ["running"] * 3
    assert len(queue) == 3
    await _over(*clients)
    assert len(queue) == 0


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
async def test_an_overlapping_request_waits_where_one_of_the_two_is_serialising(first: bool, second: bool) -> None:
    queue = RequestQueue()
    one = Client(queue, 0, 100, serialising=first)
    await _turns()
    two = Client(queue, 99, 101, serialising=second)
    await _turns()
    assert (one.state, two.state) == ("running", "waiting")
    await _over(one)
    await _turns()
    assert two.state == "running"
    await _over(two)


async def test_a_neighbour_does_not_wait() -> None:
    queue = RequestQueue()
    clients = [Client(queue, at, at + 100, serialising=True) for at in (100, 0, 200)]
    await _turns()
    assert [client.state for client in clients] == ["running"] * 3
    await _over(*clients)


async def test_an_empty_range_overlaps_nothing() -> None:
    queue = RequestQueue()
    one = Client(queue, 0, 100, serialising=True)
    await _turns()
    other = Client(queue, 0, 0, serialising=False)
    await _turns()
    assert other.state == "running"
    await _over(one, other)


async def test_one_that_waits_lets_later_ones_pass() -> None:
    queue = RequestQueue()
    first = Client(queue, 0, 10, serialising=False)
    await _turns()
    second = Client(queue, 0, 20, serialising=True)
    await _turns()
    third = Client(queue, 15, 20, serialising=False)  # overlaps only the one that waits
    await _turns()
    assert [client.state for client in (first, second, third)] == ["running", "waiting", "running"]
    await _over(first)
    await _turns()
    assert second.state == "waiting"
    await _over(third)
    await _turns()
    assert second.state == "running"
    await _over(second)


async def test_one_that_waits_is_passed_only_so_often() -> None:
    queue = RequestQueue()
    first = Client(queue, 0, 10, serialising=True)
    await _turns()
    second = Client(queue, 0, 20, serialising=True)
    await _turns()
    later = [Client(queue, 10, 20, serialising=False) for _ in range(PASSED_AT_MOST + 2)]
    await _turns()
    assert [client.state for client in later] == ["running"] * PASSED_AT_MOST + ["waiting"] * 2
    await _over(first, *later[:PASSED_AT_MOST])
    await _turns()
    assert (second.state, later[-2].state, later[-1].state) == ("running", "waiting", "waiting")
    await _over(second)
    await _turns()
    assert [client.state for client in later[PASSED_AT_MOST:]] == ["running"] * 2
    await _over(*later[PASSED_AT_MOST:])
    assert not queue.serialising and not queue._waiting and not queue._passed


async def test_a_cancelled_waiter_lets_those_behind_it_go_on() -> None:
    queue = RequestQueue()
    first = Client(queue, 0, 10, serialising=False)
    await _turns()
    second = Client(queue, 0, 20, serialising=True)
    await _turns()
    between = [Client(queue, 10, 20, serialising=False) for _ in range(PASSED_AT_MOST)]
    await _turns()
    third = Client(queue, 15, 20, serialising=False)
    await _turns()
    assert third.state == "waiting"
    second.task.cancel()
    await until(lambda: third.state == "running")
    assert first.state == "running"
    await _over(first, third, *between)
    assert not queue.serialising


async def test_the_turn_of_one_that_is_cancelled_as_it_comes_is_handed_on() -> None:
    queue = RequestQueue()
    first = Client(queue, 0, 10, serialising=True)
    await _turns()
    second = Client(queue, 0, 10, serialising=True)
    await _turns()
    third = Client(queue, 0, 10, serialising=True)
    await _turns()
    first.finish.set_result(None)
    await first.task  # the second has been woken, and has not run yet
    second.task.cancel()
    await until(lambda: third.state == "running")
    await _over(third)
    assert len(queue) == 0


async def test_idle_waits_for_all_and_also_for_those_that_came_meanwhile() -> None:
    queue = RequestQueue()
    await queue.idle()
    one = queue.begin(0, 1)
    waiting = [asyncio.create_task(queue.idle()) for _ in range(2)]
    await _turns()
    queue.end(one)
    two = queue.begin(0, 1)
    await _turns()
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    queue.end(two)
    await waiting[1]
    assert waiting[0].cancelled()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
async def test_random_requests_against_a_model(seed: int) -> None:
    """A request waits exactly if it has a reason: see `_must_wait`."""
    choose = random.Random(seed)
    queue = RequestQueue()
    live: list[Client] = []
    for _ in range(5_000):
        step = choose.random() * (1 if len(live) < 10 else 2)
        if step < 0.5 or not live:
            offset = choose.randrange(60)
            end = offset + choose.randrange(1, 12)
            live.append(Client(queue, offset, end, serialising=choose.random() < 0.4))
        elif step < 0.65:
            choose.choice(live).task.cancel()
        else:
            client = choose.choice(live)
            if not client.finish.done():
                client.finish.set_result(None)  # it ends as soon as it runs, perhaps much later
        if choose.random() < 0.5:
            live = await _settled(queue, live)
    await _over(*live)
    assert len(queue) == 0 and not queue.serialising and not queue._waiting and not queue._passed


async def _settled(queue: RequestQueue, live: list[Client]) -> list[Client]:
    """Let all go on that can, and check that it is so: nobody waits without a reason, nobody runs beside a reason."""
    for _ in range(10 + 5 * len(live)):
        await asyncio.sleep(0)
        live = [client for client in live if not client.task.done()]
        for client in live:
            assert client.state != "running" or not _excluded(client, live), "two that exclude each other run"
        if all(
            client.state
            == ("running" if client.state == "running" or not _must_wait(queue, client, live) else "waiting")
            for client in live
        ) and not any(client.state == "running" and client.finish.done() for client in live):
            assert len(queue) == len(live)
            return live
    raise AssertionError(f"somebody was forgotten: {queue}")


def _excludes(client: Client, other: Client) -> bool:
    return other is not client and other.overlaps(client) and (other.serialising or client.serialising)


def _excluded(client: Client, live: list[Client]) -> bool:
    return any(other.state == "running" and _excludes(client, other) for other in live)


def _must_wait(queue: RequestQueue, client: Client, live: list[Client]) -> bool:
    """Another one runs that excludes it, or waits, came before, and has been passed often enough."""
    return _excluded(client, live) or any(
        other.state == "waiting"
        and other.ticket < client.ticket
        and _excludes(client, other)
        and queue._passed[other.ticket] >= PASSED_AT_MOST
        for other in live
    )

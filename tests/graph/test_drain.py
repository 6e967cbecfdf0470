"""Drain: nothing is in flight inside, new requests wait, and everything goes on afterwards, whatever happens."""

import asyncio

import pytest

from aioblock.blockio.child import Child
from aioblock.core.images import Role
from aioblock.graph.backend import BlockBackend
from aioblock.graph.drain import drained, subtree
from aioblock.graph.permissions import attach
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

SIZE = 65536


def started(*coros):
    return [asyncio.create_task(coro) for coro in coros]


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_requests_wait_while_drained_and_go_on_afterwards():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        async with disk.drained():
            assert disk.node.quiesced == 1
            tasks = started(disk.pread(0, 1), disk.pwrite(0, b"x"), disk.block_status(0, 1), disk.flush())
            await turns()
            assert not any(task.done() for task in tasks)
            assert {call.verb for call in script.log} == {"open", "getlength", "drain_begin"}
        await asyncio.gather(*tasks)
        assert disk.node.quiesced == 0
        assert_idle(disk)


async def test_it_waits_for_what_is_in_flight():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script) as disk:
        (reading,) = started(disk.pread(0, 1))
        await until(lambda: script.held)
        entered = asyncio.Event()

        async def drain():
            async with disk.drained():
                assert reading.done()
                assert disk.in_flight == disk.node.in_flight == 0
                entered.set()

        (draining,) = started(drain())
        await turns()
        assert not entered.is_set()
        script.release()
        await draining


async def test_it_waits_for_a_request_that_is_between_two_nodes():
    """One that has its turn, and is in flight on no node just now."""
    async with opened(Script(SIZE)) as disk:
        await disk._enter()
        (draining,) = started(disk.drained().__aenter__())
        await turns(20)
        assert not draining.done()
        disk._leave()
        await draining


async def test_it_nests():
    script = Script(SIZE)
    async with opened(script) as disk:
        async with disk.drained():
            async with disk.drained():
                (reading,) = started(disk.pread(0, 1))
                await turns()
                assert disk.node.quiesced == 2
            await turns()
            assert not reading.done()
            assert disk.node.quiesced == 1
        await reading


async def test_two_at_once_in_any_order():
    script = Script(SIZE)
    async with opened(script) as disk:
        first, second = disk.drained(), disk.drained()
        await first.__aenter__()
        await second.__aenter__()
        (reading,) = started(disk.pread(0, 1))
        await first.__aexit__(None, None, None)
        await turns()
        assert not reading.done()
        await second.__aexit__(None, None, None)
        await reading


async def test_the_whole_subtree_is_quiet():
    top, low = Script(SIZE, runs=[(0, SIZE)]), Script(SIZE)
    files = {top: Script(SIZE), low: Script(SIZE)}
    async with opened(top, low, files=files) as disk:
        nodes = subtree(disk.node)
        assert len(nodes) == 4 and nodes[0] is disk.node
        async with disk.drained():
            assert all(node.quiesced == 1 for node in nodes)
            for script in (top, low, *files.values()):
                assert len(script.calls("drain_begin")) == 1
        assert all(node.quiesced == 0 for node in nodes)


async def test_cancelled_while_it_waits_everything_goes_on():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script) as disk:
        (reading,) = started(disk.pread(0, 1))
        await until(lambda: script.held)
        (draining,) = started(disk.drained().__aenter__())
        await turns()
        (later,) = started(disk.pread(1, 1))
        await turns()
        assert len(script.held) == 1
        draining.cancel()
        await turns()
        assert len(script.held) == 2  # the later one came through
        script.release()
        await asyncio.gather(reading, later)
        assert draining.cancelled()
        assert disk.node.quiesced == 0


async def test_cancelled_while_a_driver_stops_everything_goes_on():
    top, low = Script(SIZE), Script(SIZE)
    async with opened(top, low) as disk:
        low.hold("drain_begin")
        (draining,) = started(disk.drained().__aenter__())
        await until(lambda: low.held)
        draining.cancel()
        await turns()
        assert draining.cancelled()
        assert all(node.quiesced == 0 for node in subtree(disk.node))
        assert len(await disk.pread(0, 1)) == 1


async def test_a_driver_that_cannot_stop():
    script = Script(SIZE)
    script.fail("drain_begin", OSError(5, "Input/output error"))
    async with opened(script) as disk:
        with pytest.raises(OSError, match="Input/output error"):
            async with disk.drained():
                raise AssertionError("not reached")
        assert disk.node.quiesced == 0
        assert len(await disk.pread(0, 1)) == 1


async def test_an_error_inside_lets_everything_go_on():
    async with opened(Script(SIZE)) as disk:
        with pytest.raises(LookupError):
            async with disk.drained():
                raise LookupError
        assert len(await disk.pread(0, 1)) == 1


async def test_requests_that_were_cancelled_while_waiting_are_not_made():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        async with disk.drained():
            (writing,) = started(disk.pwrite(0, b"x"))
            await turns()
            writing.cancel()
        await turns()
        assert writing.cancelled()
        assert not script.calls("pwritev")
        assert_idle(disk)


async def test_a_request_whose_caller_has_left_is_waited_for():
    script = Script(SIZE)
    script.hold("pwritev")
    async with opened(script, writable=True) as disk:
        (writing,) = started(disk.pwrite(0, b"x"))
        await until(lambda: script.held)
        writing.cancel()
        await turns()
        (draining,) = started(disk.drained().__aenter__())
        await turns()
        assert writing.cancelled() and not draining.done()
        script.release()
        await draining
        assert script.calls("pwritev")[0].outcome == "done"


# -- a node that two backends share ----------------------------------------------------------------------------------


async def second_backend(node, **how):
    edge = Child(None, None, node, 1, 15)
    await attach(edge)
    return BlockBackend(edge, **how)


async def test_all_backends_above_a_shared_node_stop():
    """One reads through the chain, one the lower layer directly: whichever is drained, the lower layer is quiet."""
    top, low = Script(SIZE, cluster=4096), Script(SIZE)
    async with opened(top, low) as disk:
        other = await second_backend(disk.node.backing.node)
        for first, second in ((disk, other), (other, disk)):
            low.hold("preadv")
            (reading,) = started(second.pread(0, 1))
            await until(lambda: low.held)
            entered = []

            async def drain(first=first, entered=entered):
                async with first.drained():
                    entered.append(True)
                    waiting = started(disk.pread(0, 1), other.pread(0, 1))
                    await turns()
                    assert not any(task.done() for task in waiting)
                return waiting

            (draining,) = started(drain())
            await turns()
            assert not entered  # the shared node has a request of the other backend in flight
            low.release()
            await reading
            await asyncio.gather(*await draining)
        await other.close()
        assert not disk.node.backing.node.closed  # the chain still uses it
        assert len(await disk.pread(0, 1)) == 1


async def test_a_backend_beside_is_not_stopped():
    top, low = Script(SIZE), Script(SIZE)
    async with opened(top, low) as disk, opened(Script(SIZE)) as beside:
        async with disk.drained():
            assert len(await beside.pread(0, 1)) == 1


async def test_only_what_can_reach_the_drained_node_stops():
    """Draining the lower layer stops the chain above it; the drained subtree ends there."""
    top, low = Script(SIZE, cluster=4096), Script(SIZE)
    async with opened(top, low) as disk:
        backing = disk.node.children[Role.BACKING].node
        async with drained(backing):
            assert disk.node.quiesced == 0 and backing.quiesced == 1
            (reading,) = started(disk.pread(0, 1))
            await turns()
            assert not reading.done()
        await reading


async def test_close_while_others_drain_waits_for_nothing_in_vain():
    top, low = Script(SIZE), Script(SIZE)
    async with opened(top, low) as disk:
        other = await second_backend(disk.node.backing.node)
        async with disk.drained():
            await other.close()
        assert len(await disk.pread(0, 1)) == 1

"""Flush: generations. Concurrent flushes merge, nothing new is free, and what was lost once stays lost."""

import asyncio
import errno

import pytest

from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until


def flushes(script: Script) -> int:
    return len(script.calls("flush"))


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_with_nothing_new_it_is_free() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.flush()
        assert flushes(script) == 0
        await disk.pwrite(0, b"x")
        await disk.flush()
        await disk.flush()
        assert flushes(script) == 1
    assert flushes(script) == 1  # nor was there anything new when it was closed


@pytest.mark.parametrize("verb", ["pwrite", "pwrite_zeroes", "pdiscard", "truncate"])
async def test_each_change_is_something_new(verb: str) -> None:
    script = Script(8192)
    async with opened(script, writable=True, resize=True, discard="unmap") as disk:
        change = {
            "pwrite": lambda: disk.pwrite(0, b"x"),
            "pwrite_zeroes": lambda: disk.pwrite_zeroes(0, 512),
            "pdiscard": lambda: disk.pdiscard(0, 512),
            "truncate": lambda: disk.truncate(4096),
        }[verb]
        await change()
        await disk.flush()
        assert flushes(script) == 1
        script.fail({"pwrite": "pwritev"}.get(verb, verb), OSError(errno.EIO, "half done"))
        with pytest.raises(OSError, match="half done"):
            await change()
        await disk.flush()
        assert flushes(script) == 2


async def test_concurrent_flushes_merge() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.hold("flush")
        tasks = [asyncio.create_task(disk.flush()) for _ in range(5)]
        await until(lambda: script.held)
        await turns()
        assert not any(task.done() for task in tasks)
        script.release()
        await asyncio.gather(*tasks)
        assert flushes(script) == 1
        assert_idle(disk)


async def test_what_is_written_while_one_runs_gets_its_own() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.hold("flush")
        first = asyncio.create_task(disk.flush())
        await until(lambda: script.held)
        await disk.pwrite(1, b"y")  # done after that flush began: it may not be covered
        later = [asyncio.create_task(disk.flush()) for _ in range(3)]
        await turns()
        assert flushes(script) == 1
        script.release(script.held[0])
        await first
        await until(lambda: script.held)
        await turns()
        assert flushes(script) == 2 and not any(task.done() for task in later)
        script.release()
        await asyncio.gather(*later)
        assert flushes(script) == 2
        assert_idle(disk)


async def test_a_write_that_is_not_done_yet_is_not_waited_for() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.hold("pwritev")
        writing = asyncio.create_task(disk.pwrite(1, b"y"))
        await until(lambda: script.held)
        await disk.flush()
        assert not writing.done()
        script.release()
        await writing
        await disk.flush()
        assert flushes(script) == 2


async def test_the_first_failure_is_that_of_all_who_wait_and_of_all_who_come() -> None:
    script = Script(8192)
    script.fail("flush", OSError(errno.EIO, "lost"))
    with pytest.raises(OSError, match="lost"):  # closing says so too
        async with opened(script, writable=True) as disk:
            await disk.pwrite(0, b"x")
            script.hold("flush")
            tasks = [asyncio.create_task(disk.flush()) for _ in range(4)]
            await until(lambda: script.held)
            await turns()
            script.release()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in errors] == [OSError] * 4
            assert {error.errno for error in errors if isinstance(error, OSError)} == {errno.EIO}
            assert_idle(disk)
            await disk.pwrite(0, b"y")
            for _ in range(2):  # the storage works again, and what it lost is lost all the same
                with pytest.raises(OSError, match="lost"):
                    await disk.flush()
            assert flushes(script) == 1
    assert script.calls("close")


async def test_a_cancelled_caller_leaves_it_running_for_those_who_wait() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.hold("flush")
        tasks = [asyncio.create_task(disk.flush()) for _ in range(3)]
        await until(lambda: script.held)
        await turns()
        tasks[0].cancel()
        tasks[1].cancel()
        await turns()
        assert tasks[0].cancelled() and tasks[1].cancelled() and not tasks[2].done()
        script.release()
        await tasks[2]
        assert flushes(script) == 1
        await until(lambda: not disk.in_flight)
        assert_idle(disk)


async def test_first_the_node_and_then_its_writable_children() -> None:
    top, low, file = Script(8192), Script(8192), Script(8192)
    order: list[str] = []
    async with opened(top, low, files={top: file}, writable=True) as disk:
        for name, script in (("top", top), ("file", file), ("low", low)):

            async def note(call: object, name: str = name) -> None:
                order.append(name)

            script.before = note
        assert disk.node.file is not None
        await disk.node.file.pwrite(0, b"metadata")  # as a driver does
        await disk.pwrite(0, b"x")
        order.clear()
        await disk.flush()
        assert order == ["top", "file"]
        order.clear()
        await disk.pwrite(0, b"x")
        order.clear()
        await disk.flush()
        assert order == ["top"]  # nothing new in the file
        for script in (top, low, file):
            script.before = None


async def test_a_failure_of_a_child_is_the_nodes() -> None:
    top, file = Script(8192), Script(8192)
    file.fail("flush", OSError(errno.ENOSPC, "no room for the journal"))
    with pytest.raises(OSError, match="journal"):
        async with opened(top, files={top: file}, writable=True) as disk:
            assert disk.node.file is not None
            await disk.node.file.pwrite(0, b"metadata")
            await disk.pwrite(0, b"x")
            for _ in range(2):
                with pytest.raises(OSError) as caught:
                    await disk.flush()
                assert caught.value.errno == errno.ENOSPC
            assert_idle(disk)
    assert file.calls("close")


async def test_a_read_only_image_has_nothing_to_flush() -> None:
    script = Script(8192)
    async with opened(script) as disk:
        await disk.flush()
    assert flushes(script) == 0


async def test_closing_flushes_what_is_new() -> None:
    script = Script(8192)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
    assert [call.verb for call in script.log[-2:]] == ["flush", "close"]

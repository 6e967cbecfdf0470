"""Cancel each verb at every await: the request is then done, or never begun, and nothing is left behind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.graph.backend import BlockBackend
from tests.kit.model import ModelDisk
from tests.kit.operations import (
    ASKS,
    CHANGES,
    CLUSTER,
    LENGTH,
    QCOW2_CHANGES,
    chain,
    over,
    qcow2_image,
    quiet,
    works,
)
from tests.kit.points import CancelPoint, every_await
from tests.kit.scripted import Script, chain_options, opened, registered
from tests.kit.watching import assert_idle, until

HOW = pytest.mark.parametrize("how", ["driver", "insistent", "caller"])


async def _changed(disk: BlockBackend, point: CancelPoint, name: str, model: ModelDisk) -> None:
    """Cancel a change at the point: it is done, or it never began."""
    operation, effect = CHANGES[name]
    if name == "flush":
        await disk.pwrite(0, model.read(0, 1))
    cancelled = await point.run(operation(disk))
    await quiet(disk)
    done = ModelDisk(model.length, bytes(model.data))
    effect(done)
    content = await disk.pread(0, disk.length)
    assert content == done.data or (cancelled and content == model.data)
    if content == done.data:
        effect(model)


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_done_or_never_began(name: str, how: str) -> None:
    for point in every_await(how):
        scripts, model = chain()
        async with opened(*scripts, writable=True, resize=True) as disk:
            for script in scripts:
                script.before = point.wait
            await _changed(disk, point, name, model)
            await works(disk, model)


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "flush"])
async def test_a_change_that_waits_for_its_turn(name: str, how: str) -> None:
    """Another request holds the only place of the queue for a while."""
    for point in every_await(how):
        scripts, model = chain()
        async with opened(*scripts, writable=True, resize=True, max_in_flight=1) as disk:
            for script in scripts:
                script.before = point.wait
            before = asyncio.create_task(disk.pread(0, 512))
            await asyncio.sleep(0)
            await _changed(disk, point, name, model)
            await before
            await works(disk, model)


async def test_one_that_is_cancelled_just_before_its_turn_comes() -> None:
    """The place is given up in the same turn of the loop: who comes next gets it."""
    script = Script(LENGTH)
    async with opened(script, max_in_flight=1) as disk:
        script.hold("preadv")
        tasks = [asyncio.create_task(disk.pread(at, 1)) for at in range(3)]
        await until(lambda: script.held)
        script.release(script.held[0])  # the first will run in the next turn, and give its place up
        tasks[1].cancel()
        await until(lambda: script.held)
        script.release()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert [call.offset for call in script.calls("preadv")] == [0, 2]
        assert_idle(disk)


async def test_one_that_is_cancelled_just_after_its_turn_has_come() -> None:
    script = Script(LENGTH)
    async with opened(script, max_in_flight=1) as disk:
        script.hold("preadv")
        tasks = [asyncio.create_task(disk.pread(at, 1)) for at in range(3)]
        await until(lambda: script.held)
        tasks[0].add_done_callback(lambda _: tasks[1].cancel())
        script.release(script.held[0])
        await until(lambda: script.held)
        script.release()
        await asyncio.wait(tasks)
        assert not tasks[2].cancelled()
        assert_idle(disk)


async def test_one_that_is_cancelled_as_the_image_is_closed() -> None:
    script = Script(LENGTH)
    async with opened(script, max_in_flight=1) as disk:
        script.hold("preadv")
        tasks = [asyncio.create_task(disk.pread(at, 1)) for at in range(3)]
        await until(lambda: script.held)
        await asyncio.sleep(0)
        closing = asyncio.create_task(disk.close())
        await asyncio.sleep(0)
        tasks[1].cancel()
        script.release()
        await asyncio.wait(tasks)
        await closing
        assert await tasks[0] == b"\0" and tasks[1].cancelled()
        assert isinstance(tasks[2].exception(), OSError)
        assert disk.in_flight == 0


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("name", ASKS)
async def test_a_question_leaves_nothing_behind(name: str, how: str) -> None:
    for point in every_await(how):
        scripts, model = chain()
        async with opened(*scripts, writable=True) as disk:
            for script in scripts:
                script.before = point.wait
            if await point.run(ASKS[name](disk)) and name != "copy on read":
                assert_idle(disk)  # at once
            await quiet(disk)
            await works(disk, model)


@pytest.mark.slow
@HOW
async def test_opening_closes_all_that_it_had_opened(how: str) -> None:
    async def open_and_keep(kept: list[BlockBackend], options: dict[str, Any]) -> None:
        kept.append(await aioblock.open(options, writable=True))

    for point in every_await(how):
        scripts, _ = chain()
        file = Script(LENGTH)
        for script in (*scripts, file):
            script.before = point.wait
        kept: list[BlockBackend] = []
        with registered():
            cancelled = await point.run(open_and_keep(kept, chain_options(*scripts, files={scripts[0]: file})))
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert cancelled != bool(kept)
        for disk in kept:
            await disk.close()
        for script in (*scripts, file):
            begun = [call.outcome for call in script.calls("open")]
            assert script.calls("close") == [] or begun == ["done"]
            assert len(script.calls("close")) == begun.count("done")


# -- qcow2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["driver", "insistent"])
@pytest.mark.parametrize("name", QCOW2_CHANGES)
async def test_a_qcow2_change_is_done_or_never_began_and_the_image_is_clean(
    name: str, how: str, tmp_path: Path
) -> None:
    content, before = await qcow2_image(tmp_path / "image")
    operation, effect = QCOW2_CHANGES[name]
    for point in every_await(how):
        file = Script(len(content), content=content)
        model = ModelDisk(LENGTH, bytes(before.data))
        async with opened(options=over(file), writable=True, resize=True, discard="unmap") as disk:
            if name == "flush":
                await disk.pwrite(CLUSTER * 3, b"x")
                model.write(CLUSTER * 3, b"x")
            file.before = point.wait
            cancelled = await point.run(operation(disk))
            await quiet(disk)
            done = ModelDisk(LENGTH, bytes(model.data))
            effect(done)
            now = await disk.pread(0, disk.length)
            assert now == done.data or (cancelled and now == model.data)
            if now == done.data:
                effect(model)
            await works(disk, model)
        async with opened(options=over(file)) as disk:
            assert await disk.pread(0, disk.length) == model.data
            result = await disk.check()
            assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["driver", "caller"])
async def test_opening_a_qcow2_image_closes_its_file(how: str, tmp_path: Path) -> None:
    content, _ = await qcow2_image(tmp_path / "image")

    async def open_and_keep(kept: list[BlockBackend], options: dict[str, Any]) -> None:
        kept.append(await aioblock.open(options, writable=True))

    for point in every_await(how):
        file = Script(len(content), content=content)
        file.before = point.wait
        kept: list[BlockBackend] = []
        with registered():
            cancelled = await point.run(open_and_keep(kept, over(file)))
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert cancelled != bool(kept)
        for disk in kept:
            await disk.close()
        assert len(file.calls("close")) == [call.outcome for call in file.calls("open")].count("done")
        assert file.content == content

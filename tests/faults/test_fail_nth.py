"""Fail the first request, then the second, and so on until nothing fails: the graph is fit for what follows."""

import asyncio
import errno
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
from tests.kit.points import FailPoint, every_failure
from tests.kit.scripted import Script, chain_options, opened, registered
from tests.kit.watching import assert_idle, until

DATA_VERBS = ("preadv", "pwritev", "pwrite_zeroes", "pdiscard", "truncate", "block_status", "getlength")
"""All but flush: that failure stays, see below."""


def some_of_each(now: bytes, old: ModelDisk, new: ModelDisk) -> None:
    """Each byte is the old or the new one."""
    length = max(old.length, new.length)
    for offset, (byte, before, after) in enumerate(zip(now, old.read(0, length), new.read(0, length), strict=False)):
        assert byte in (before, after), f"neither old nor new at {offset}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "flush"])
async def test_a_change_that_fails_leaves_old_or_new(name: str) -> None:
    operation, effect = CHANGES[name]
    for point in every_failure(DATA_VERBS, errno.EIO):
        scripts, model = chain()
        async with opened(*scripts, writable=True, resize=True) as disk:
            for script in scripts:
                script.before = point.wait
            error = await point.run(operation(disk))
            assert_idle(disk)
            new = ModelDisk(LENGTH, bytes(model.data))
            effect(new)
            now = bytes(await disk.pread(0, disk.length))
            if error is None:
                assert now == new.data
            else:
                assert error.errno == errno.EIO and disk.statistics.failed == 1
                some_of_each(now, model, new)
            await works(disk, ModelDisk(disk.length, now))


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKS)
async def test_a_question_that_fails_raises_it_and_changes_nothing(name: str) -> None:
    for point in every_failure(DATA_VERBS, errno.EIO):
        scripts, model = chain()
        async with opened(*scripts, writable=True) as disk:
            for script in scripts:
                script.before = point.wait
            error = await point.run(ASKS[name](disk))
            assert_idle(disk)
            assert error is None or error.errno == errno.EIO
            await works(disk, model)


@pytest.mark.slow
@pytest.mark.parametrize("verbs", [("open",), ("getlength",)])
async def test_opening_that_fails_closes_all_that_it_had_opened(verbs: tuple[str, ...]) -> None:
    async def open_and_close(options: dict[str, Any]) -> None:
        await (await aioblock.open(options, writable=True)).close()

    for point in every_failure(verbs, errno.ENOMEM):
        scripts, _ = chain()
        file = Script(LENGTH)
        for script in (*scripts, file):
            script.before = point.wait
        with registered():
            error = await point.run(open_and_close(chain_options(*scripts, files={scripts[0]: file})))
        assert (error is not None) == bool(point.verb)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for script in (*scripts, file):
            assert len(script.calls("close")) == [call.outcome for call in script.calls("open")].count("done")


async def test_closing_that_fails_closes_all_the_same_and_raises_the_first_error() -> None:
    for point in every_failure(("close",), errno.EIO):
        scripts, _ = chain()
        with registered():
            disk = await aioblock.open(chain_options(*scripts), writable=True)
        for script in scripts:
            script.before = point.wait
        error = await point.run(disk.close())
        assert (error is not None) == bool(point.verb)
        assert [len(script.calls("close")) for script in scripts] == [1] * len(scripts)
        await disk.close()
        assert [len(script.calls("close")) for script in scripts] == [1] * len(scripts)


# -- qcow2 ----------------------------------------------------------------------------------------------------------


async def _open_again(content: bytes) -> tuple[bytes, aioblock.CheckResult]:
    """What a later process finds in the file."""
    async with opened(options=over(Script(len(content), content=content))) as disk:
        return bytes(await disk.pread(0, disk.length)), await disk.check()


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", QCOW2_CHANGES)
async def test_a_qcow2_change_that_fails_leaves_old_or_new_and_no_corruption(
    name: str, code: int, tmp_path: Path
) -> None:
    content, before = await qcow2_image(tmp_path / "image")
    operation, effect = QCOW2_CHANGES[name]
    for point in every_failure((*DATA_VERBS, "flush"), code):
        file = Script(len(content), content=content)
        model = ModelDisk(LENGTH, bytes(before.data))
        with registered():
            disk = await aioblock.open(over(file), writable=True, resize=True, discard="unmap")
        if name == "flush":
            await disk.pwrite(CLUSTER * 3, b"x")
            model.write(CLUSTER * 3, b"x")
        new = ModelDisk(LENGTH, bytes(model.data))
        effect(new)
        file.before = point.wait
        error = await point.run(_and_flush(disk, operation(disk)))
        assert_idle(disk)
        now = bytes(await disk.pread(0, disk.length))
        if error is None:
            assert now == new.data
        else:
            assert error.errno == code
            some_of_each(now, model, new)
        lost = point.verb == "flush"
        try:
            await works(disk, ModelDisk(disk.length, now))
        except OSError:
            assert lost or disk.node.flush_state.error is not None  # a failed flush stays failed
        await quiet(disk)
        try:
            await disk.close()
        except OSError:
            assert lost or disk.node.flush_state.error is not None
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert len(file.calls("close")) == 1
        found, result = await _open_again(bytes(file.content))
        assert (result.corruptions, result.check_errors) == (0, 0), (point.verb, point.number)
        if not lost and disk.node.flush_state.error is None:
            expected = ModelDisk(len(now), now)
            expected.write(CLUSTER - 5, b"afterwards")
            assert found == expected.data
            assert error is not None or result.leaks == 0


async def _and_flush(disk: BlockBackend, operation: Any) -> None:
    await operation
    await disk.flush()


@pytest.mark.slow
async def test_opening_a_qcow2_image_that_cannot_be_read_closes_its_file(tmp_path: Path) -> None:
    content, _ = await qcow2_image(tmp_path / "image")

    async def open_and_close(point: FailPoint, options: dict[str, Any]) -> None:
        disk = await aioblock.open(options, writable=True)
        point.armed = False
        await disk.close()

    for point in every_failure(("open", "preadv", "getlength"), errno.EIO):
        file = Script(len(content), content=content)
        file.before = point.wait
        with registered():
            error = await point.run(open_and_close(point, over(file)))
        assert (error is not None) == bool(point.verb)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(file.calls("close")) == [call.outcome for call in file.calls("open")].count("done")

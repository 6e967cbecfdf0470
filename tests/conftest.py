"""How every test runs: on both event loops, in asyncio debug mode, and leaving nothing behind.

An async test runs once on asyncio's own loop and once on uvloop. One that makes sense on one of them only says so:

    @pytest.mark.asyncio(loop_factories=["asyncio"])

After each test that passed, its pending tasks, open file descriptors and running threads must be those that were there
before it, and no exception may have reached the event loop unhandled. A test that cannot do so names the reason:

    @pytest.mark.leaks("the thread is stuck in the kernel on purpose")
"""

import asyncio
import faulthandler
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None  # type: ignore[assignment]

pytest.register_assert_rewrite("tests.kit", "tests.contract")

# No deadlines: in debug mode on a loaded machine the times mean nothing.
hypothesis.settings.register_profile("aioblock", deadline=None)
hypothesis.settings.register_profile("aioblock-ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("aioblock-ci" if os.environ.get("CI") else "aioblock")

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if uvloop is not None:
    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop

FD_DIR = next((path for path in ("/proc/self/fd", "/dev/fd") if Path(path).is_dir()), None)

#: Seconds that a thread, which was told to stop, gets to do so.
GRACE = 2.0

#: Seconds for the teardown of a test, after which its process is given up (pytest-xdist starts another one).
TEARDOWN_TIMEOUT = 30.0

_failed = pytest.StashKey[bool]()


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loops that each async test runs on."""
    return LOOP_FACTORIES


def pytest_sessionstart() -> None:
    """Open what a process opens only once (libuv's signal pipe), so that no test is blamed for it."""
    for factory in LOOP_FACTORIES.values():
        factory().close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test did not pass: what it then leaves behind is not the news."""
    report = yield
    if not report.passed:
        item.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """End the process if a teardown hangs: the test's timeout is used up by then, and pytest's own watch called off."""
    faulthandler.dump_traceback_later(TEARDOWN_TIMEOUT, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _may_leak(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("leaks") is not None or request.node.stash.get(_failed, False)


def _open_fds() -> dict[tuple[int, int, int], str]:
    """What is open: (descriptor, device, inode) and a name to show."""
    found = {}
    for entry in os.listdir(FD_DIR) if FD_DIR else ():
        try:
            stat = os.fstat(int(entry))
            name = os.readlink(f"{FD_DIR}/{entry}")
        except OSError:  # the one that listdir itself used
            continue
        found[int(entry), stat.st_dev, stat.st_ino] = f"fd {entry} -> {name}"
    return found


def _new_resources(fds: dict[tuple[int, int, int], str], threads: set[threading.Thread]) -> list[str]:
    left = [name for key, name in _open_fds().items() if key not in fds]
    return left + [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads]


@pytest.fixture(autouse=True)
def _no_leaked_resources(request: pytest.FixtureRequest) -> Iterator[None]:
    """File descriptors and threads are those of before. Set up first and torn down last, around the event loop."""
    if marker := request.node.get_closest_marker("leaks"):
        assert isinstance(next(iter(marker.args), None), str), 'say why: @pytest.mark.leaks("reason")'
    fds, threads = _open_fds(), set(threading.enumerate())
    yield
    if not _new_resources(fds, threads) or _may_leak(request):
        return
    gc.collect()
    give_up = time.monotonic() + GRACE
    while left := _new_resources(fds, threads):
        if time.monotonic() > give_up:
            pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_leaked_tasks(_no_leaked_resources: None, request: pytest.FixtureRequest) -> None:
    """For an async test, hold the loop so that its tasks are looked at before it is closed."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_watched_loop")


@pytest_asyncio.fixture
async def _watched_loop(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    unhandled: list[str] = []

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")
        loop.default_exception_handler(context)
        if isinstance(context.get("exception"), pytest.fail.Exception):
            # The timeout of the test, raised in a callback of the loop (uvloop's, always): the loop would go on.
            for task in asyncio.all_tasks(loop):
                task.cancel("the test's time is over")
            loop.call_later(GRACE, loop.stop)

    loop.set_exception_handler(handler)
    yield
    if _may_leak(request):
        return
    for _ in range(5):  # a cancelled task needs a turn or two to end
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0)
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    left = [f"pending {task!r}" for task in pending] + [f"unhandled: {text}" for text in unhandled]
    if left:
        pytest.fail("left in the event loop by this test:\n  " + "\n  ".join(left), pytrace=False)

"""New files: those that are being filled, and that nobody shall find half full."""

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from aioblock.base.errors import OptionError
from aioblock.core.eager import to_end
from aioblock.core.node import BlockNode
from aioblock.graph.drain import subtree
from aioblock.graph.names import has_protocol, strip_protocol

__all__ = ["check_apart", "check_not_read", "removed_on_failure"]

T = TypeVar("T")

_unfinished: set[tuple[int, int]] = set()
"""Device and inode of the files that this process is making: who makes a part of one did not find it there before."""


class _Place(NamedTuple):
    """What is known of a path."""

    name: str
    path: str
    made: tuple[int, int] | None
    """Device and inode of the empty file that was made there; None: there was something already, or nothing can be."""
    before: tuple[int, ...] | None
    """What tells whether a file that was there has been touched; None: there was none."""


@asynccontextmanager
async def removed_on_failure(*names: str | os.PathLike[str]) -> AsyncIterator[None]:
    """`async with removed_on_failure("copy.qcow2"):` what is made there is there whole afterwards, or not at all.

    Each name that is free is taken by an empty file at once, so that this can never remove the file of somebody else.
    Left by an error, or cancelled: such files are removed again. A file that was there before stays; where it has been
    touched, the error has a note (`__notes__`) that names it as incomplete. Names of other protocols are left alone.
    """
    places: list[_Place] = []
    try:
        await to_end(_in_thread(lambda: places.extend(_take(os.fspath(name)) for name in names)))
        yield
    except BaseException as error:
        for name in await to_end(_in_thread(lambda: _give_back(places))):
            error.add_note(f"'{name}' was there before, and is incomplete now")
        raise
    finally:
        _unfinished.difference_update(place.made for place in places if place.made is not None)


async def check_apart(made: Sequence[str], kept: Sequence[str]) -> None:
    """That files which will be made are none of those that stay, and each another one. Raises: OptionError."""

    def look() -> None:
        for number, name in enumerate(made):
            for other in (*made[:number], *kept):
                if _is_same(strip_protocol(name), strip_protocol(other)):
                    raise OptionError(f"'{name}' and '{other}' are the same file, and must be two")

    await _in_thread(look)


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        return os.path.abspath(one) == os.path.abspath(other)


async def check_not_read(names: Iterable[str], nodes: Iterable[BlockNode]) -> None:
    """That the files which will be made are none of those that are read meanwhile. Raises: OptionError."""
    from aioblock.drivers.protocols.posix.opening import identity_of

    read = {below.driver.identity: below.filename for node in nodes for below in subtree(node)}

    def look() -> None:
        for name in names:
            try:
                found = identity_of(os.stat(strip_protocol(name)))
            except (OSError, ValueError):
                continue
            if found in read:
                raise OptionError(f"'{name}' cannot be made from what it holds itself: it is read as '{read[found]}'")

    await _in_thread(look)


async def _in_thread(function: Callable[[], T]) -> T:
    from asyncio import wrap_future

    from aioblock.drivers.protocols.posix.threads import OPENING, DevicePools

    pools = DevicePools.acquire(OPENING)
    try:
        return await wrap_future(pools.io.submit(function))
    finally:
        pools.release()


def _take(name: str) -> _Place:
    if has_protocol(name) and not name.startswith("file:"):
        return _Place(name, "", None, None)
    path = strip_protocol(name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError):  # who makes the image says what is wrong
        return _Place(name, path, None, _state(path))
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    _unfinished.add((status.st_dev, status.st_ino))
    return _Place(name, path, (status.st_dev, status.st_ino), None)


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if (status.st_dev, status.st_ino) in _unfinished:
        return None
    # The times of a device say nothing: it counts as touched.
    touched = 0 if stat.S_ISREG(status.st_mode) else id(status)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, touched


def _give_back(places: list[_Place]) -> list[str]:
    """Remove what was made; the names of the files that were there before and have been touched."""
    touched = []
    for place in places:
        if place.made is not None:
            try:
                status = os.lstat(place.path)
                if (status.st_dev, status.st_ino) == place.made:
                    os.unlink(place.path)
            except OSError:
                pass  # the error that ends the work is the one to tell
        elif place.before is not None and _state(place.path) != place.before:
            touched.append(place.name)
    return touched

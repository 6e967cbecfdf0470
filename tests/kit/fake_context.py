"""Opening one driver without a graph: a fake OpenContext, whose children are what the test made them (`MemoryIO`)."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aioblock.base.errors import OptionError
from aioblock.base.options import Options
from aioblock.core.context import CacheMode, OpenContext
from aioblock.core.driver import BlockDriver
from aioblock.core.images import InnerName, Role
from aioblock.core.io import BlockIO
from aioblock.core.objects import NamedObject
from tests.kit.memory_io import MemoryIO

__all__ = ["FakeContext", "open_driver", "read_from", "refuse"]

D = TypeVar("D", bound=BlockDriver)


class _Alone(MemoryIO):
    """The node itself, of a driver without a graph: nothing is known about its chain."""

    async def is_zero(self, offset: int, nbytes: int) -> bool:
        return False


class FakeContext(OpenContext):
    """What a driver is given, made by hand. `children`: what its children are, by role."""

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        children: Mapping[str, BlockIO] | None = None,
        filename: str = "",
        read_only: bool = False,
        direct: bool = False,
        no_flush: bool = False,
        probed: bool = False,
        metadata_only: bool = False,
        aio: str | None = None,
        objects: Mapping[str, NamedObject] | None = None,
    ) -> None:
        self.options = Options(options or {})
        self.children = dict(children or {})
        self.filename = filename
        self.node_name = "#fake"
        self.read_only = read_only
        self.cache = CacheMode(direct=direct, no_flush=no_flush)
        self.force_share = False
        self.for_check = False
        self.metadata_only = metadata_only
        self.objects = objects or {}
        self.unmap = True
        self.aio = aio
        self.probed = probed

        self.this = _Alone()

    async def open_child(
        self, role: Role, filename: str | None = None, *, number: int | None = None, perm: int = 0, unshared: int = 0
    ) -> BlockIO:
        try:
            if number is None:
                return self.children[role]
            self.options.take(f"{role}.{number}")
            return self.children[f"{role}.{number}"]
        except KeyError:
            raise OptionError(f"no child '{role}'", option=str(role)) from None

    async def open_inner(self, role: Role, name: InnerName | None) -> BlockIO | None:
        return self.children.get(role)


async def open_driver(driver: type[D], options: Mapping[str, Any] | None = None, **context: Any) -> D:
    """Open a driver in a fake context; an option that it does not take fails the test."""
    made = FakeContext(options, **context)
    opened = await driver.open(made)
    if left := made.options.leftover():
        await opened.close()
        raise AssertionError(f"{driver.name} did not take {left}")
    return opened


async def read_from(driver: BlockDriver, offset: int, nbytes: int) -> bytes:
    """What the driver reads there, into memory that was not zero before."""
    buffer = bytearray(b"\xa5" * nbytes)
    await driver.preadv(offset, memoryview(buffer), 0)
    return bytes(buffer)


def refuse(code: int) -> Callable[..., Any]:
    """A function that fails with that errno, to stand in for a system call."""

    def call(*args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call

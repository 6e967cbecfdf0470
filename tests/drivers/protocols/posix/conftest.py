"""A file full of noise, and the `file` driver over it; with O_DIRECT over a fake of the kernel's asynchronous I/O."""

import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aioblock.drivers.protocols.posix import native, transfer
from aioblock.drivers.protocols.posix.file import FileDriver
from tests.kit.fake_context import open_driver
from tests.kit.fake_kernel_aio import FakeKernelAio

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 1 MiB."""
    found = tmp_path / "disk"
    found.write_bytes(random.Random(5).randbytes(SIZE))
    return found


@pytest_asyncio.fixture
async def driver(path: Path) -> AsyncIterator[FileDriver]:
    """The driver, writable, over the file."""
    opened = await open_driver(FileDriver, {"filename": str(path)})
    yield opened
    await opened.close()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[FakeKernelAio]:
    """The fakes that were made instead of contexts of the kernel."""
    made: list[FakeKernelAio] = []

    def make(depth: int, notify: int) -> FakeKernelAio:
        made.append(FakeKernelAio(depth, notify))
        return made[-1]

    monkeypatch.setattr(native, "_kernel_aio", make)
    return made


@pytest_asyncio.fixture
async def direct(kernels: list[FakeKernelAio], path: Path) -> AsyncIterator[FileDriver]:
    """The driver with O_DIRECT over the file, and the fake."""
    opened = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
    yield opened
    await opened.close()


@pytest.fixture
def kernel(direct: FileDriver, kernels: list[FakeKernelAio]) -> FakeKernelAio:
    (only,) = kernels
    return only


@pytest.fixture
def threads_used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets that threads read from or write to."""
    offsets: list[int] = []

    def noted(call: Callable[..., int]) -> Callable[..., int]:
        def note(fd: int, buffers: Any, offset: int) -> int:
            offsets.append(offset)
            return call(fd, buffers, offset)

        return note

    monkeypatch.setattr(transfer, "_preadv", noted(os.preadv))
    monkeypatch.setattr(transfer, "_pwritev", noted(os.pwritev))
    return offsets

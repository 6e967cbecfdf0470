"""A file full of noise, and the `file` driver over it."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aioblock.drivers.protocols.posix.file import FileDriver
from tests.kit.fake_context import open_driver

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

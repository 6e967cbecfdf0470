"""A short path for sockets: pytest's own may be longer than a socket's may be."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def path() -> Iterator[str]:
    """Where the server listens."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        yield str(Path(folder) / "socket")

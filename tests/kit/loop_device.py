"""Block devices for tests: a file behind a loop device, where this user may make one."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["loop_device"]


@contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    """The path of a block device whose content is the file's. Skips the test where none can be had."""
    losetup = shutil.which("losetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if losetup is None:
        pytest.skip("losetup is not installed")
    done = subprocess.run([losetup, "-f", "--show", str(backing)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop device: {done.stderr.strip() or done.returncode}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run([losetup, "-d", device], check=True)

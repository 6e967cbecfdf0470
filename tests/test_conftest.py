"""The net under all tests holds: a test that leaves something behind is reported, one that says why is not."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

CLEAN = """
import asyncio

async def test_it():
    assert asyncio.get_running_loop().get_debug()
    await asyncio.sleep(0)
"""

LEAKS = {
    "a file descriptor": """
import os
kept = []
def test_it():
    kept.append(os.open("/dev/null", os.O_RDONLY))
""",
    "a task": """
import asyncio
kept = []
async def test_it():
    kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
    await asyncio.sleep(0)
""",
    "an exception that nobody saw": """
import asyncio
def fail():
    raise ValueError("nobody sees this")
async def test_it():
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
""",
}

EXCUSED = """
import os
import pytest
kept = []
@pytest.mark.leaks("to show that a reason counts")
def test_it():
    kept.append(os.open("/dev/null", os.O_RDONLY))
"""


def outcome(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run one test file under the project's conftest and settings."""
    (folder / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (folder / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    config = HERE.parent / "pyproject.toml"
    return subprocess.run(
        [*command, "-c", config, "--rootdir", folder, folder / "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_clean_test_passes_on_both_loops_in_debug_mode(tmp_path: Path) -> None:
    found = outcome(tmp_path, CLEAN)
    assert found.returncode == 0, found.stdout
    assert "2 passed" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("what", LEAKS)
def test_what_is_left_behind_is_reported(tmp_path: Path, what: str) -> None:
    found = outcome(tmp_path, LEAKS[what])
    assert found.returncode == 1, found.stdout + found.stderr
    assert "left behind by this test" in found.stdout or "left in the event loop by this test" in found.stdout


@pytest.mark.slow
def test_a_reason_excuses(tmp_path: Path) -> None:
    found = outcome(tmp_path, EXCUSED)
    assert found.returncode == 0, found.stdout

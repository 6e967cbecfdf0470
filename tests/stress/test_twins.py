"""A few hundred sequences in every test run; `make stress` goes on from there."""

import asyncio
from pathlib import Path

import pytest

from tests.kit.oracle import require
from tests.stress.twins import run_seed

SEEDS = 200
PART = 10


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_twins_stay_alike(tmp_path: Path, first: int) -> None:
    require("qemu-img", "qemu-io")
    for seed in range(first, first + PART):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert asyncio.run(run_seed(seed, folder)).steps

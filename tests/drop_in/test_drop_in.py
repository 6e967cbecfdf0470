"""A handful of seeds in every test run; `python -m tests.drop_in --seeds 1000` goes on from there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drop_in.cases import Differs, run_seed
from tests.drop_in.commands import NAMES
from tests.drop_in.programs import Ours
from tests.kit.oracle import require

SEEDS = 2


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    with Ours() as found:
        yield found


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("wrong", [False, True], ids=["valid", "wrong"])
@pytest.mark.parametrize("subcommand", NAMES)
def test_both_programs_do_the_same(tmp_path: Path, ours: Ours, subcommand: str, wrong: bool) -> None:
    require("qemu-img", "qemu-io")
    outcomes = [
        outcome
        for seed in range(SEEDS)
        for outcome in run_seed(ours, subcommand, seed, tmp_path / str(seed), wrong=wrong)
    ]
    assert len(outcomes) > SEEDS
    assert not [str(outcome) for outcome in outcomes if isinstance(outcome, Differs)]


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """What is compared is compared indeed."""
    from tests.drop_in.comparison import differences
    from tests.drop_in.programs import Result

    folders = tmp_path / "ours", tmp_path / "theirs"
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "x.raw").write_bytes(bytes([number]) * 512)
        (folder / f"only{number}").touch()
    results = Result(0, "a", "Run completed in 1.234 seconds."), Result(1, "b", "Run completed in 5.678 seconds.")
    found = differences(["bench", "x.raw"], *folders, results)
    assert [line.partition(":")[0] for line in found] == ["status", "stdout", "files", "x.raw"]

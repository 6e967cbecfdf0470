"""The simulator has teeth: with any one rule of the order left out, it finds a state that must not be.

Where a mutant is new, or changed its name, because the driver was changed: `make powercut ARGS=--hunt` finds the
workload that shows it, and writes the table in docs/qcow2.md.
"""

import json

import pytest

from tests.faults.powercut.explore import explore, start_of
from tests.faults.powercut.hunt import DOCS, EQUIVALENT, KILLS, plan_of, table
from tests.faults.powercut.mutants import Mutant, applied, mutants

MUTANTS: dict[str, Mutant] = mutants()
SEEDS: dict[str, str] = json.loads(KILLS.read_text())


def test_every_mutant_is_in_the_table() -> None:
    unknown = MUTANTS.keys() - SEEDS.keys() - EQUIVALENT.keys()
    assert not unknown, f"run `make powercut ARGS=--hunt`: {sorted(unknown)}"
    gone = (SEEDS.keys() | EQUIVALENT.keys()) - MUTANTS.keys()
    assert not gone, f"not in the driver any more: {sorted(gone)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, seed in SEEDS.items() if seed))
def test_a_mutant_is_killed(name: str) -> None:
    if name not in MUTANTS:
        pytest.fail("there is no such mutant any more: run `make powercut ARGS=--hunt`")
    start_of(SEEDS[name].partition("/")[0])  # made without the mutant
    before = MUTANTS[name].function.__code__
    with applied(MUTANTS[name]):
        tally = explore(SEEDS[name], plan_of(name), stop=1)
    assert tally.failures
    assert MUTANTS[name].function.__code__ is before


def test_the_table_in_the_documentation_is_this_one() -> None:
    assert table(SEEDS) in DOCS.read_text(), "run `make powercut ARGS=--hunt`"

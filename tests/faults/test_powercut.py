"""No power cut corrupts an image, or loses what was flushed. More of the same: `make powercut`."""

import random
from pathlib import Path

import pytest

from tests.faults.powercut.campaign import seeds
from tests.faults.powercut.explore import Plan, Tally, explore, play
from tests.faults.powercut.layouts import LAYOUTS
from tests.faults.powercut.states import Effort, states
from tests.faults.powercut.workloads import TWELVE, sequences
from tests.kit.oracle import qemu_img, require

QUICK = Plan(Effort(full=6, choices=16, torn=2, garbage=1), go_on=0.015, deeper=2)

STATES = {name: 30 if layout.rare else 800 for name, layout in LAYOUTS.items()}
"""How many states of each layout are looked at, at least; those of the largest image take longer."""


def assert_none_failed(tally: Tally) -> None:
    assert not tally.failures, "\n".join(
        f"{each.text}\n    make powercut SEED={each.seed}" for each in tally.failures[:5]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_state_is_sound_and_holds_what_was_flushed(name: str) -> None:
    tally = Tally()
    few = [f"{name}/{workload}" for workload in ("W", "WW", "wf", "Wd", "ww")]
    for seed in few if LAYOUTS[name].rare else seeds([name]):
        tally.add(explore(seed, QUICK))
        if tally.states >= STATES[name]:
            break
    assert_none_failed(tally)
    assert tally.states >= STATES[name]


def test_twenty_thousand_states_are_looked_at() -> None:
    assert sum(STATES.values()) >= 20_000


@pytest.mark.slow
@pytest.mark.parametrize("first", TWELVE)
def test_all_pairs_of_operations(first: str) -> None:
    tally = Tally()
    for sequence in sequences(TWELVE, 2):
        if sequence[0] == first:
            tally.add(explore(f"c4k/{sequence}", QUICK))
    assert_none_failed(tally)
    assert tally.workloads == 1 + len(TWELVE)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("seed", ["c4k/WdzfWc", "c512/WdfWrz", "ext/WzfdoW", "packed/cWfdcc", "v2/WdfoW", "edge/WfWdW"])
def test_qemu_finds_leaks_at_most(seed: str, tmp_path: Path) -> None:
    require("qemu-img")
    timeline, _ = play(seed)
    found = list(states(timeline, seed, QUICK.effort))
    for state in random.Random(seed).sample(found, 8):
        path = tmp_path / "image.qcow2"
        path.write_bytes(state.contents[0])
        done = qemu_img("check", "-f", "qcow2", path, check=False)
        assert done.returncode in (0, 3), f"{seed}/{state.point}/{state.choice}: {done.stdout}{done.stderr}"


def test_a_seed_names_the_same_states_again() -> None:
    whole = explore("c4k/WdfW", Plan(go_on=0))
    again = explore("c4k/WdfW", Plan(go_on=0))
    one = explore("c4k/WdfW/-1/m0", Plan(go_on=0))
    assert whole.states == again.states > 20
    assert one.states == 1

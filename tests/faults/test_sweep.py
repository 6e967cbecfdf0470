"""Each request to the files fails once, or from then on: it is told, the image is sound, and what follows works."""

import pytest

from tests.faults.powercut.sweep import FAULTS, sites

STEP = 6
"""Of most layouts each so-many-th request; `make powercut ARGS=--sweep` takes every one of all of them."""

RUNS = [("c4k", first) for first in range(1, STEP + 1)]
RUNS += [(name, 1) for name in ("c512", "back4k", "lazy4k", "databack", "ext", "v2")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize(("name", "first"), RUNS)
def test_every_request_fails(name: str, first: int, kind: str) -> None:
    outcomes = [outcome for _, outcome in sites(name, kind, STEP, first)]
    print(f"{name}, {kind}: {len(outcomes)} requests failed, one in each run")
    assert len(outcomes) >= 10
    assert "write" in {outcome.verb for outcome in outcomes}

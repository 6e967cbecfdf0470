"""Random chains of scripted layers, and what each byte of them must be: for tests against a model."""

from typing import NamedTuple

from hypothesis import strategies as st

from aioblock.base.flags import DATA, OFFSET_VALID, ZERO
from tests.kit.scripted import Answer, Script

__all__ = ["Fact", "chains", "fact_of", "facts"]

UNIT = 16


class Fact(NamedTuple):
    """What the model says of one byte: the layer that decides (0: none), DATA or ZERO, where it lies (-1: nowhere)."""

    depth: int
    kind: int
    map: int


@st.composite
def chains(draw: st.DrawFn) -> list[Script]:
    """1 to 6 layers of different lengths, each with random runs."""
    scripts = []
    for _ in range(draw(st.integers(1, 6))):
        length = UNIT * draw(st.integers(1, 12)) - draw(st.sampled_from([0, 0, 5]))
        runs: list[Answer] = []
        at = 0
        while at < length:
            nbytes = min(UNIT * draw(st.integers(1, 4)), length - at)
            flags = draw(st.sampled_from([0, 0, DATA, ZERO, DATA | OFFSET_VALID, ZERO | OFFSET_VALID]))
            runs.append((flags, nbytes, UNIT * draw(st.integers(0, 100))))
            at += nbytes
        script = Script(length, runs, lacks=draw(st.sampled_from([(), ("extents",)])))
        script.most = draw(st.sampled_from([0, 0, 7]))
        script.batch = draw(st.sampled_from([1, 3, 100]))
        scripts.append(script)
    return scripts


def facts(scripts: list[Script]) -> list[Fact]:
    """The model: each byte of the top by itself, from the top down."""
    found = []
    for offset in range(scripts[0].length):
        fact = Fact(0, ZERO, -1)
        for depth, script in enumerate(scripts, 1):
            if offset >= script.length:
                fact = Fact(depth, ZERO, -1)
                break
            flags, _, *where = script.run_at(offset, 1, True)
            if flags & (DATA | ZERO):
                fact = Fact(depth, flags & (DATA | ZERO), where[0] if flags & OFFSET_VALID else -1)
                break
        found.append(fact)
    return found


def fact_of(flags: int, where: int, depth: int, skipped: int) -> Fact:
    """The fact about the byte that lies `skipped` bytes inside a run."""
    return Fact(depth, flags & (DATA | ZERO), where + skipped if flags & OFFSET_VALID else -1)

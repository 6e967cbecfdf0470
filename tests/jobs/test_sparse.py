"""Which parts of a buffer are zeroes, against a model that looks at every byte."""

from itertools import groupby

from hypothesis import example, given
from hypothesis import strategies as st

from aioblock.jobs.sparse import parts


def model(offset, data, grain, sparse):
    """The units that the buffer holds, one by one; then what is alike together, and short zeroes with the rest."""
    units, at = [], 0
    while at < len(data):
        end = min((offset + at) // grain * grain + grain - offset, len(data))
        units.append((at, end, any(data[at:end])))
        at = end
    runs = [list(group) for _, group in groupby(units, lambda unit: unit[2])]
    if len(runs) == 1:
        return [(0, len(data), runs[0][0][2])]
    found = [(run[0][0], run[-1][1], run[0][2] or run[-1][1] - run[0][0] < sparse) for run in runs]
    joined = [list(group) for _, group in groupby(found, lambda run: run[2])]
    return [(run[0][0], run[-1][1], run[0][2]) for run in joined]


@given(
    offset=st.integers(0, 40),
    length=st.integers(1, 200),
    ones=st.lists(st.integers(0, 199), max_size=6),
    grain=st.sampled_from([8, 16, 64]),
    sparse=st.integers(1, 80),
)
@example(offset=3, length=100, ones=[], grain=16, sparse=80)
@example(offset=0, length=64, ones=[15], grain=16, sparse=1)  # the first word of that unit is zero, the unit is not
@example(offset=0, length=64, ones=list(range(0, 64, 8)), grain=16, sparse=1)
def test_parts(offset, length, ones, grain, sparse):
    data = bytearray(length)
    for at in ones:
        if at < length:
            data[at] = 1
    assert parts(offset, memoryview(data), grain, sparse) == model(offset, data, grain, sparse)

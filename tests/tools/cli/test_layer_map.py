"""What a column of the picture shows: shares of runs, against a count byte by byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.tools.cli.layer_map import KINDS, LayerMap, shares, totals
from aioblock.tools.cli.map_picture import row


def layer_of(kinds, length=None):
    """A layer with a kind for each byte."""
    changes = [0, *(at for at in range(1, len(kinds)) if kinds[at] != kinds[at - 1]), len(kinds)]
    runs = np.array([kinds[at] for at in changes[:-1]], np.uint8)
    return LayerMap(1, "x", "raw", length or len(kinds), 0, np.array(changes, np.int64), runs)


@pytest.mark.slow
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 20))
def test_shares_count_every_byte_once(kinds, columns):
    layer = layer_of(kinds)
    edges = np.linspace(0, len(kinds), columns + 1)
    found = shares(layer, edges)
    assert found.shape == (len(KINDS), columns)
    assert np.allclose(found.sum(axis=0), np.diff(edges))
    for kind, name in enumerate(KINDS):
        assert np.isclose(found[kind].sum(), kinds.count(kind))
        assert totals(layer)[name] == kinds.count(kind)


@pytest.mark.slow
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_a_cell_a_byte_shows_each_byte(kinds):
    text = row(layer_of(kinds), 0, len(kinds), len(kinds), drawn=False).plain
    assert text == "".join(".0%#"[kind] for kind in kinds) + "|"


def test_a_layer_that_is_shorter_ends_with_its_mark():
    assert row(layer_of([3] * 5), 0, 10, 10, drawn=False).plain == "#####|"
    assert row(layer_of([3] * 5, length=9), 0, 5, 5, drawn=False).plain == "#####"
    assert row(layer_of([0]), 0, 10, 10, drawn=False).plain == ".|"


def test_how_full_a_block_is_says_how_much_is_decided():
    quarter = row(layer_of([3, 0, 0, 0, 3, 3, 3, 3]), 0, 8, 2, drawn=True).plain
    assert quarter == "▒█▏"

"""Buffers: views without copies, and zeroes found wherever the first other byte lies."""

import array
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.buffers import as_view, is_zero

EDGE = 1 << 16  # how much is compared at a time


@pytest.mark.parametrize(
    "length", [0, 1, 2, 511, 4096, EDGE - 1, EDGE, EDGE + 1, 2 * EDGE - 1, 2 * EDGE, 2 * EDGE + 1, 5 * EDGE + 3]
)
def test_is_zero(length):
    data = bytearray(length)
    assert is_zero(memoryview(data))
    for at in {0, 1, length // 2, EDGE - 1, EDGE, EDGE + 1, length - 2, length - 1}:
        if 0 <= at < length:
            data[at] = 1
            assert not is_zero(memoryview(data)), at
            data[at] = 0


@pytest.mark.slow
@given(st.integers(1, 4 * EDGE), st.data())
def test_one_byte_is_always_found(length, data):
    at = data.draw(st.integers(0, length - 1))
    content = bytearray(length)
    content[at] = data.draw(st.integers(1, 255))
    assert not is_zero(memoryview(content))
    assert is_zero(memoryview(content)[:at])
    assert is_zero(memoryview(content)[at + 1 :])


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"\1\0\2\0",
        lambda: bytearray(b"\1\0\2\0"),
        lambda: memoryview(b"\1\0\2\0"),
        lambda: memoryview(b"\1\0\2\0").cast("H"),
        lambda: memoryview(b"\1\0\2\0").cast("B", (2, 2)),
        lambda: memoryview(b"\1\0\2\0").cast("b"),
        lambda: array.array("B", [1, 0, 2, 0]),
        lambda: np.array([1, 2], "<u2"),
        lambda: np.array([[1, 0], [2, 0]], np.uint8),
    ],
)
def test_as_view_is_flat_bytes(make):
    view = as_view(make())
    assert (view.format, view.ndim, len(view)) == ("B", 1, 4)
    assert bytes(view) == b"\1\0\2\0"


def test_as_view_does_not_copy():
    data = bytearray(8)
    as_view(memoryview(data).cast("Q"))[3] = 7
    assert data[3] == 7
    with mmap.mmap(-1, 4096) as mapped:
        as_view(mapped)[5] = 9
        assert mapped[5] == 9


@pytest.mark.parametrize(
    "make", [lambda: memoryview(bytes(8))[::2], lambda: np.zeros((4, 4), np.uint8)[:, :2], lambda: np.arange(8)[::2]]
)
def test_scattered_memory_is_refused(make):
    with pytest.raises(TypeError):
        as_view(make())

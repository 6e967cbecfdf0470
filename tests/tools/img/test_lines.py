"""Lines out of columns of numbers: what Python's own formatting makes of them."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from aioblock.tools.img import lines
from aioblock.tools.img.lines import Numbers, decimal, format_lines, padded_hex

VALUES = sorted({base**power + step for base in (2, 10) for power in range(63) for step in (-1, 0, 1)} - {1 << 63})
VALUES = [value for value in VALUES if 0 <= value < 1 << 63]


def hexadecimal(value: int) -> str:
    return f"{hex(value) if value else '0':<16}"


@pytest.mark.parametrize(("numbers", "text"), [(decimal, str), (padded_hex, hexadecimal)], ids=["decimal", "hex"])
def test_every_width_of_numbers(numbers: Callable[[], Numbers], text: Callable[[int], str]) -> None:
    """Also each as the largest of its table, which says how much room there is."""
    for count in range(1, len(VALUES) + 1):
        column = np.array(VALUES[:count])
        made = b"".join(format_lines(numbers(), [(b"<", b">")], np.zeros(count, np.intp), (column,)))
        assert made.decode() == "".join(f"<{text(value)}>" for value in VALUES[:count])


@pytest.mark.parametrize("at_once", [1, 7, 8192])
def test_lines_of_several_kinds_in_the_order_of_the_table(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "AT_ONCE", at_once)
    chance = random.Random(3)
    texts = [("", " and ", ";\n"), ("a longer beginning ", "-", ""), ("é ", ", then ", "!\n")]
    which = [chance.randrange(3) for _ in range(50)]
    columns = [[chance.choice([-1, 0, chance.randrange(10), chance.randrange(1 << 62)]) for _ in which] for _ in "ab"]
    made = b"".join(
        format_lines(
            decimal(),
            [[part.encode() for part in parts] for parts in texts],
            np.array(which),
            [np.array(column) for column in columns],
        )
    )
    expected = ""
    for kind, *numbers in zip(which, *columns, strict=True):
        shown = [str(number) if number >= 0 else "" for number in numbers]
        expected += texts[kind][0] + shown[0] + texts[kind][1] + shown[1] + texts[kind][2]
    assert made.decode() == expected


def test_no_lines() -> None:
    empty = np.zeros(0, np.int64)
    assert list(format_lines(decimal(), [(b"a", b"b")], empty, (empty,))) == []
    assert list(format_lines(padded_hex(), [], empty, ())) == []

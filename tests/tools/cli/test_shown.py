"""What is printed of names that are no text, or that would make the terminal do something."""

import pytest
from rich.text import Text

from aioblock.tools.cli.quantities import duration, exact, offset_text, percent, plural
from aioblock.tools.cli.terminal import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ä 漢", "plain ä 漢"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\tc\x7f\x9b", "a\\x0ab\\x09c\\x7f\\x9b"),
        ("a\udcffb", "a\\xffb"),
        ("a\ud800b", "a\\ud800b"),
    ],
)
def test_what_is_no_text_is_escaped(text, expected):
    assert shown(text).plain == expected


def test_in_text_with_a_style_too():
    text = Text.assemble(("red\x1b!", "red"), "\n", ("blue", "blue"))
    found = shown(text)
    assert found.plain == "red\\x1b!\nblue"
    assert next((found.plain[span.start : span.end], span.style) for span in found.spans) == ("red", "red")
    assert ("blue", "blue") in [(found.plain[span.start : span.end], span.style) for span in found.spans]


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1024, "1 KiB (1024 bytes)"),
        (10 << 30, "10 GiB (10737418240 bytes)"),
        ((10 << 30) + 1, "10 GiB (10737418241 bytes)"),
    ],
)
def test_sizes_are_exact(nbytes, expected):
    assert exact(nbytes) == expected


def test_marks_that_lie_close_together_can_be_told_apart():
    marks = [(1 << 40) + number * 4096 for number in range(4)]
    texts = [offset_text(mark, 4096) for mark in marks]
    assert len(set(texts)) == 4 and texts[0] == "1073741824 KiB"
    assert offset_text(512 << 20, 128 << 20) == "512 MiB"


def test_the_rest():
    assert (percent(0, 10), percent(1, 10**6), percent(1, 3), percent(3, 1), percent(1, 0)) == (
        "0 %",
        "< 0.1 %",
        "33.3 %",
        "300 %",
        "-",
    )
    assert (duration(0.1234), duration(185), duration(7800)) == ("0.123 s", "3 min 5 s", "2 h 10 min")
    assert (plural(1, "cluster"), plural(2, "cluster"), plural(0, "query", "queries")) == (
        "1 cluster",
        "2 clusters",
        "0 queries",
    )

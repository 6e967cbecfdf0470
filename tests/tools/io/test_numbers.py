"""Numbers: what is taken for one, what it means, and what is said of the rest."""

import pytest

from aioblock.tools.io.failures import CommandFailed
from aioblock.tools.io.numbers import parse_bytes, parse_integer, parse_pattern, show_bytes

NUMBERS = {
    "0": 0,
    "512": 512,
    "+5": 5,
    "010": 10,
    "\t8k": 8192,
    "1b": 1,
    "1B": 1,
    "1k": 1 << 10,
    "1K": 1 << 10,
    "2m": 2 << 20,
    "3g": 3 << 30,
    "1.7T": int(1.7 * (1 << 40)),
    "1p": 1 << 50,
    "7e": 7 << 60,
    "0.5k": 512,
    "1.": 1,
    "1.0": 1,
    "1.k": 1 << 10,
    "0.1k": 102,
    "1.0000001k": 1 << 10,
    "0x1b": 0x1B,
    "0XfF": 255,
    "0x7fffffffffffffff": (1 << 63) - 1,
    "9223372036854775807": (1 << 63) - 1,
}
NO_NUMBERS = ["", "x", "-1", "1.5", "1.5b", ".5k", "0x", "0x1.8k", "5x", "1s", "1kk", "1k1", "1e3", "1,5", "nan", "inf"]
TOO_LARGE = ["8e", "16e", "9223372036854775808", "18446744073709551616", "0x8000000000000000", "0x" + "f" * 18]


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_a_number_of_bytes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text):
    with pytest.raises(CommandFailed) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"


@pytest.mark.parametrize("text", TOO_LARGE)
def test_a_number_too_large(text):
    with pytest.raises(CommandFailed) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"Parsing error: argument too large -- {text}"


def test_a_hexadecimal_number_with_a_suffix_is_taken_with_a_warning(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["qemu-io"])
    assert parse_bytes("0x10M") == 16 << 20
    assert capsys.readouterr().err == (
        "qemu-io: warning: Using a multiplier suffix on hex numbers is deprecated: 0x10M\n"
    )


@pytest.mark.oracle
def test_qemu_io_takes_the_same_numbers(ours, theirs):
    with open("x.raw", "wb") as image:
        image.truncate(1 << 20)
    words = [text for text in [*NUMBERS, *NO_NUMBERS, *TOO_LARGE, "0x1k", "0x2g"] if text]
    commands = [part for text in words for part in ("-c", f"alloc {text}")]
    assert ours("-f", "raw", *commands, "x.raw") == theirs("-f", "raw", *commands, "x.raw")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("010", 8), ("0x10", 16), ("-0", 0), ("+1", 1), ("-7", -7), ("\t9", 9)]
)
def test_an_integer(text, value):
    assert parse_integer(text) == value


@pytest.mark.parametrize("text", ["", "08", "1x", "1.5", "x", "0x", "1 ", "--1"])
def test_no_integer(text):
    assert parse_integer(text) is None


@pytest.mark.parametrize("text", ["256", "-1", "x", "0x100", "08"])
def test_no_pattern(text):
    with pytest.raises(CommandFailed, match=f"^{text} is not a valid pattern byte$"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (852.981041, "852.981041 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        ((1 << 20) - 1, "1023.999 KiB"),
        ((1 << 30) - 1, "1024 MiB"),
        (10 << 20, "10 MiB"),
        (0x9E0000, "9.875 MiB"),
        ((1 << 63) - 1, "8 EiB"),
        (5 << 64, "80 EiB"),
    ],
)
def test_how_sizes_are_shown(nbytes, text):
    assert show_bytes(nbytes) == text

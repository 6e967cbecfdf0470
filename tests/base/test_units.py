"""Sizes are read and printed as QEMU's programs do, to the byte and to the digit."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioblock.base.errors import OptionError
from aioblock.base.units import human_size, parse_size
from tests.kit.oracle import qemu_img, require


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5G", 3 << 29),
        ("5.k", 5120),
        ("1.0", 1),
        ("1e", 1 << 60),
        ("0x10", 16),
        ("0X1F", 31),
        ("0x1e", 30),
        ("0x1b", 27),
        ("0x10k", 16384),
        ("010", 10),
        ("+5", 5),
        (" 5", 5),
        ("6.3M", 6606029),
        ("7E", 7 << 60),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_parse_size(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        *("-1", "-0", "+-5", ".5k", ".k", "k", ".", "1.5", "0.5b", "1e3", "1e3k", "0x", "0x1.8", "5kB", "5K1", "1_0"),
        *("1..5k", "1.5.5k", "inf", "nan", "5,5k", "\u0665", "5\u00b2", "", " ", "5 ", "5 k", "+ 5"),
        *("8E", "9223372036854775808", "0xffffffffffffffff", "1" * 5000, "0x" + "f" * 5000),
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(OptionError):
        parse_size(text)


def test_default_suffix():
    assert parse_size("2", default_suffix="m") == 2 << 20
    assert parse_size("2k", default_suffix="m") == 2048
    assert parse_size("0.5", default_suffix="k") == 512


def test_limit():
    assert parse_size("99", limit=100) == 99
    with pytest.raises(OptionError):
        parse_size("100", limit=100)


@pytest.mark.oracle
@pytest.mark.slow
def test_sizes_are_those_that_qemu_img_reads(tmp_path):
    """Rounding included. One option string per size; `measure` prints what it understood."""
    require("qemu-img")
    chance = random.Random(7)
    texts = ["1.0000000001G", "0.1k", "0.3e", "0.50048828125k", "3.14159265358979323846E", "8191.9P", "0x7fffffff"]
    texts += [f"{chance.randrange(7)}.{chance.randrange(10**16)}{chance.choice('kMGTPE')}" for _ in range(20)]
    for text in texts:
        # The line that says what is made stands there although the file is not made.
        printed = qemu_img("create", "-f", "raw", tmp_path / "none" / "x", text, check=False).stdout
        assert parse_size(text) == int(printed.rpartition("size=")[2]), text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (1047552, "0.999 MiB"),
        (1048051712, "1e+03 MiB"),
        (3 << 29, "1.5 GiB"),
        (13260711936, "12.4 GiB"),
        (1 << 62, "4 EiB"),
    ],
)
def test_human_size(nbytes, text):
    assert human_size(nbytes) == text


@pytest.mark.oracle
@pytest.mark.slow
def test_sizes_are_printed_as_qemu_img_prints_them():
    require("qemu-img")
    chance = random.Random(3)
    sizes = [1000 << 10, 1023 << 10, 1000 << 50, 1023 << 50, (1 << 30) - 512]
    sizes += [chance.randrange(1 << chance.randrange(12, 63)) & ~511 for _ in range(25)]
    for nbytes in sizes:
        printed = qemu_img("info", "--image-opts", f"driver=null-co,size={nbytes}").stdout
        assert f"virtual size: {human_size(nbytes)} ({nbytes} bytes)" in printed


@settings(max_examples=50)
@given(st.integers(0, (1 << 63) - 1))
def test_what_is_printed_can_be_read_again_and_is_near(nbytes):
    number, unit = human_size(nbytes).split()
    again = parse_size(f"{float(number):f}{unit[0]}", limit=1 << 64)
    assert abs(again - nbytes) <= nbytes // 199  # three digits


@pytest.mark.slow
@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_option_error(text):
    try:
        assert 0 <= parse_size(text) < 1 << 63
    except OptionError:
        pass


def test_json_numbers_come_through():
    assert parse_size(str(json.loads("1048576"))) == 1 << 20

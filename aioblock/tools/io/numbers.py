"""Numbers as the commands take them, and sizes as they print them."""

import re

from ..program import print_error
from .failures import CommandFailed

__all__ = ["MAX_REQUEST", "parse_bytes", "parse_integer", "parse_pattern", "show_bytes"]

MAX_REQUEST = (1 << 31) - 512
"""The longest request in bytes: below 2 GiB, and a whole number of sectors."""

_MAX_BYTES = (1 << 63) - 1
_SHIFTS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_HEX = re.compile(r"\s*\+?0x([0-9a-f]+)([kmgtp]?)", re.IGNORECASE)  # b and e are digits there
_DECIMAL = re.compile(r"\s*\+?(\d+)(\.\d*)?([bkmgtpe]?)", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"\s*([+-]?)(?:0x([0-9a-f]+)|(0[0-7]*)|([1-9]\d*))", re.IGNORECASE | re.ASCII)
_UNITS = ("EiB", "PiB", "TiB", "GiB", "MiB", "KiB")


def parse_bytes(text: str) -> int:
    """Bytes meant by "512", "64k", "1.5G", "0x1000". Raises: CommandFailed."""
    if found := _HEX.fullmatch(text):
        digits, suffix = found.groups()
        if suffix:
            print_error(f"warning: Using a multiplier suffix on hex numbers is deprecated: {text}")
        value = int(digits, 16) << _SHIFTS[suffix.lower()]
    elif found := _DECIMAL.fullmatch(text):
        digits, fraction, suffix = found.groups()
        shift = _SHIFTS[suffix.lower()]
        part = float("0" + fraction + "0") if fraction else 0.0
        if part and not shift:
            raise _not_numeric(text)
        value = (int(digits) << shift) + int(part * (1 << shift))
    else:
        raise _not_numeric(text)
    if value > _MAX_BYTES:
        raise CommandFailed(f"Parsing error: argument too large -- {text}")
    return value


def _not_numeric(text: str) -> CommandFailed:
    return CommandFailed(f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")


def parse_integer(text: str) -> int | None:
    """A whole number in C's notation: 10, 0x10, 010 (octal); None if it is none."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    sign, hexadecimal, octal, decimal = found.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -value if sign == "-" else value


def parse_pattern(text: str) -> int:
    """A byte, 0 to 255. Raises: CommandFailed."""
    value = parse_integer(text)
    if value is None or not 0 <= value <= 255:
        raise CommandFailed(f"{text} is not a valid pattern byte")
    return value


def show_bytes(nbytes: float) -> str:
    """A size in the largest unit that it reaches: "512 bytes", "64 KiB", "1.500 MiB"."""
    for number, unit in enumerate(_UNITS):
        size = 1 << 10 * (len(_UNITS) - number)
        if nbytes >= size:
            return f"{nbytes / size:.3f}".removesuffix(".000") + f" {unit}"
    return f"{nbytes:.6f}".removesuffix(".000000") + " bytes"

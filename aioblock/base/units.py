"""Sizes as people write and read them; the rules are those of QEMU's programs."""

import re

from aioblock.base.errors import OptionError

__all__ = ["human_size", "parse_size"]

_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_SIZE = re.compile(r"\s*\+?(?:0[xX]([0-9a-fA-F]+)|([0-9]+)(\.[0-9]*)?)([bkmgtpeBKMGTPE])?", re.ASCII)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def parse_size(text: str, *, default_suffix: str = "b", limit: int = 1 << 63) -> int:
    """Bytes meant by "512", "64k", "1.5G" or "0x1000"; a suffix is a power of 1024, in either case.

    A fraction needs a suffix, and is rounded to a whole byte. "0x1e" is thirty: letters belong to the number first.
    Raises: OptionError where it is no size, negative, or `limit` or more.
    """
    if not (match := _SIZE.fullmatch(text)):
        raise OptionError(f"Invalid size '{text}'")
    hexadecimal, whole, fraction, suffix = match.groups()
    unit = 1 << _SHIFTS[(suffix or default_suffix).lower()]
    try:
        size = (int(hexadecimal, 16) if hexadecimal else int(whole)) * unit
    except ValueError:  # more digits than Python converts
        raise OptionError(f"Size '{text}' is out of range") from None
    if fraction:
        part = float("0" + fraction) % 1.0
        if part and unit == 1:
            raise OptionError(f"Invalid size '{text}'")
        size += int(part * unit + 0.5)
    if size >= limit:
        raise OptionError(f"Size '{text}' is out of range")
    return size


def human_size(nbytes: float) -> str:
    """`nbytes` with a binary unit and at most three digits that count: "64 MiB", "1.5 GiB"; as QEMU prints them."""
    unit = 0
    value = float(nbytes)
    while value >= 1000 and unit < len(_UNITS) - 1:  # 1000 B is already 0.977 KiB: three digits before the point
        value /= 1024
        unit += 1
    return f"{value:.3g} {_UNITS[unit]}"

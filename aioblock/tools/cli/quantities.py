"""Sizes, rates and times: as they are typed, and as they are shown."""

from typing import Any

import click

__all__ = ["SIZE", "Size", "duration", "exact", "human", "offset_text", "percent", "plural", "rate"]


class Size(click.ParamType[int]):
    """A number of bytes with an optional suffix."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes. A usage error where it is no size."""
        if isinstance(value, int):
            return value
        import aioblock

        try:
            return aioblock.parse_size(value)
        except aioblock.OptionError as error:
            self.fail(f"{error} (a number of bytes, or one with k, M, G, T, P or E behind it)", param, ctx)


SIZE = Size()

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human(nbytes: float) -> str:
    """With a unit: "1.5 GiB"."""
    import aioblock

    return aioblock.human_size(nbytes)


def exact(nbytes: int) -> str:
    """With a unit, and to the byte: "10 GiB (10737418240 bytes)"."""
    return plural(nbytes, "byte") if nbytes < 1000 else f"{human(nbytes)} ({nbytes} bytes)"


def offset_text(offset: int, step: int) -> str:
    """An offset beside others that are `step` apart, a power of two: with as many digits as that takes."""
    if step * 200 >= offset:
        return human(offset)
    power = min((step.bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{offset / 1024**power:.15g} {_UNITS[power]}"


def rate(nbytes: float, seconds: float) -> str:
    """Bytes a second; "-" where no time has passed."""
    return f"{human(nbytes / seconds)}/s" if seconds > 0 else "-"


def duration(seconds: float) -> str:
    """A time that was taken: "0.12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(part: float, whole: float) -> str:
    """How much `part` is of `whole`; what is not nothing is not shown as 0 %."""
    if not whole:
        return "-"
    share = part * 100 / whole
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.0f} %" if share >= 100 else f"{share:.3g} %"


def plural(number: int, noun: str, many: str = "") -> str:
    """A number with its noun: "1 cluster", "2 clusters"."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"

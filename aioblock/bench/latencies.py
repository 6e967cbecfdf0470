"""Latencies: many times, taken in fast, and read as an HDR histogram.

A time costs the caller one `append` to an array. Now and then the array is counted into the buckets of an HDR histogram
by NumPy (some 0.03 us a value), where HdrHistogram's own `record_value` in Python takes 0.7 us. What is asked of the
histogram and how it is written down is the library's: any program that knows HdrHistogram's V2 encoding reads it.
"""

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from aioblock import NotSupported

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["PERCENTILES", "Latencies", "need_histograms"]

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)

HIGHEST = 3_600_000_000_000
"""An hour, in nanoseconds: what takes longer counts as that."""

_DIGITS = 3
_BITS = 11
"""Values below 2 ** 11 are exact, above that the first 11 bits count: that is what three digits take."""
_HALF = 1 << (_BITS - 1)
_LONGEST_TEXT = 1 << 20
"""Every bucket with a count of its own takes less; what is deflated could be a thousand times as long."""
_BUCKETS = (HIGHEST.bit_length() - _BITS + 2) * _HALF


def need_histograms() -> None:
    """Raises: NotSupported where the package `hdrhistogram` is missing."""
    try:
        import hdrh.histogram  # noqa: F401
    except ImportError:
        raise NotSupported(
            "Measuring needs the package 'hdrhistogram', which is not installed: pip install aioblock[bench]"
        ) from None


class Latencies:
    """Times in nanoseconds: how many, their sum, the shortest and the longest exactly; the others to 0.1 %."""

    __slots__ = ("_counts", "count", "longest", "shortest", "total")

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self.count = 0
        self.total = 0
        self.shortest = 0
        self.longest = 0

    def __repr__(self) -> str:
        return f"<Latencies {self.count}, {self.shortest} to {self.longest} ns>"

    def take(self, column: "array[int]") -> int:
        """Count what is in an array of type q, and empty it; returns how many there were."""
        taken = len(column)
        if taken:
            self._record(np.frombuffer(column, np.int64))
            del column[:]
        return taken

    def _record(self, values: "npt.NDArray[np.int64]") -> None:
        values = np.maximum(values, 0)
        shortest = int(values.min())
        self.shortest = min(self.shortest, shortest) if self.count else shortest
        self.longest = max(self.longest, int(values.max()))
        self.count += len(values)
        self.total += int(values.sum())
        values = np.minimum(values, HIGHEST)
        # A float has the exponent before the mantissa, whose first bit is not written: with 10 bits more that is what
        # numbers the buckets. Exact, for the values are below 2 ** 53.
        floats = values.astype(np.float64).view(np.int64) >> (53 - _BITS)
        buckets = np.where(values < _HALF, values, floats - ((1023 + _BITS - 2) << (_BITS - 1)))
        self._counts += np.bincount(buckets, minlength=_BUCKETS)

    def add(self, other: "Latencies") -> None:
        """Take in what another one has counted."""
        if other.count:
            self.shortest = min(self.shortest, other.shortest) if self.count else other.shortest
            self.longest = max(self.longest, other.longest)
            self.count += other.count
            self.total += other.total
            self._counts += other._counts

    @property
    def mean(self) -> float:
        """Nanoseconds; 0 where there is none."""
        return self.total / self.count if self.count else 0.0

    def histogram(self) -> Any:
        """As an `hdrh.histogram.HdrHistogram`."""
        from hdrh.histogram import HdrHistogram

        made = HdrHistogram(1, HIGHEST, _DIGITS)
        for index in np.flatnonzero(self._counts).tolist():
            made.record_value(_value(index), int(self._counts[index]))
        return made

    def percentiles(self) -> dict[str, int]:
        """Nanoseconds by "p50" ... "p99.99"; none where nothing was counted."""
        if not self.count:
            return {}
        found = self.histogram().get_percentile_to_value_dict(list(PERCENTILES))
        return {f"p{percent:g}": max(min(found[percent], self.longest), self.shortest) for percent in PERCENTILES}

    def distribution(self) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """The values that occurred, to 0.1 %, ascending, and how often."""
        used = np.flatnonzero(self._counts)
        return np.array([_value(index) for index in used.tolist()], np.int64), self._counts[used]

    def as_dict(self) -> dict[str, Any]:
        """For a document: all times in nanoseconds, and the histogram in HdrHistogram's V2 encoding."""
        return {
            "min": self.shortest,
            "mean": round(self.mean, 1),
            **self.percentiles(),
            "max": self.longest,
            "total": self.total,
            "count": self.count,
            "hdr": self.histogram().encode().decode(),
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Latencies":
        """What `as_dict` made. Raises: KeyError, ValueError, TypeError."""
        from hdrh.histogram import HdrHistogram

        made = cls()
        made.count, made.total = int(document["count"]), int(document["total"])
        made.shortest, made.longest = int(document["min"]), int(document["max"])
        text = document["hdr"]
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
            raise ValueError("hdr: is not the text of a histogram")
        try:
            read = HdrHistogram.decode(text)
        except Exception as error:  # the library's own kinds have nothing in common
            raise ValueError(f"hdr: {type(error).__name__}: {error}") from None
        for item in read.get_recorded_iterator():
            made._counts[_index(item.value_iterated_to)] += item.count_at_value_iterated_to
        return made


def _index(value: int) -> int:
    shift = max(value.bit_length() - _BITS, 0)
    return (shift << (_BITS - 1)) + (value >> shift)


def _value(index: int) -> int:
    """The least value of a bucket."""
    if index < 2 * _HALF:
        return index
    shift = index // _HALF - 1
    return (index % _HALF + _HALF) << shift

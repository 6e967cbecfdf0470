"""Which requests are sent: kinds, sizes and places, reproducible from a seed, made in batches."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aioblock import OptionError

from .job import Job

__all__ = ["Slot", "arrivals", "requests", "slots", "zipf_ranks"]

_BATCH = 2048
"""So many are made at once: some 0.1 ms, between requests, so it is in no request's time."""

_Ints = npt.NDArray[np.int64]


class Slot(NamedTuple):
    """Requests of one kind and size: what is counted together."""

    kind: str
    nbytes: int
    weight: float


def slots(job: Job) -> list[Slot]:
    """The kinds and sizes of a job that come at all; a flush has no size."""
    found = []
    for kind, often in job.mix.items():
        for size, share in job.sizes.items() if kind != "flush" else [(0, sum(job.sizes.values()))]:
            if often * share > 0:
                found.append(Slot(kind, size, often * share))
    return found


def requests(job: Job, begin: int, end: int, *, client: int, process: int = 0) -> Iterator[tuple[int, int]]:
    """Numbers of slots, and offsets between `begin` and `end`, without end. Raises: OptionError where none fits."""
    kinds = slots(job)
    largest = max(slot.nbytes for slot in kinds)
    if end - begin < max(largest, 1):
        raise OptionError(
            f"sizes: no request of {largest} bytes fits into the {max(end - begin, 0)} bytes of '{job.name}' "
            f"from offset {begin} on",
            option="sizes",
        )
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(process, client)))
    return chain.from_iterable(_batches(job, kinds, begin, end, rng, client))


def _batches(
    job: Job, kinds: list[Slot], begin: int, end: int, rng: np.random.Generator, client: int
) -> Iterator[Iterator[tuple[int, int]]]:
    weights = np.array([slot.weight for slot in kinds])
    upto = np.cumsum(weights / weights.sum())
    upto[-1] = 1.0
    nbytes = np.array([slot.nbytes for slot in kinds], np.int64)
    length = end - begin
    place = _Sequential(length, client * length // job.clients, set(nbytes.tolist()))
    while True:
        chosen = np.searchsorted(upto, rng.random(_BATCH), "right") if len(kinds) > 1 else np.zeros(_BATCH, np.int64)
        sizes = nbytes[chosen]
        if job.pattern == "sequential":
            offsets = place.next(sizes)
        else:
            places = length // np.maximum(sizes, 1)
            if job.pattern == "random":
                numbers = rng.integers(0, places)
            else:
                numbers = scattered(zipf_ranks(rng, places.min(), job.theta, _BATCH), job.seed) % places
            offsets = np.where(sizes > 0, numbers * sizes, 0)
        yield zip(chosen.tolist(), (offsets + begin).tolist(), strict=True)


class _Sequential:
    """One place after the other, from `start` on, and round; a request that does not fit begins again at 0."""

    def __init__(self, length: int, start: int, known: set[int]) -> None:
        """`known`: the sizes that come."""
        self._length = length
        widest = max(*known, 1)
        self._at = start // widest * widest
        self._places = length // widest if known == {widest} else 0

    def next(self, sizes: _Ints) -> _Ints:
        """Where requests of these sizes go."""
        if self._places:
            size = int(sizes[0])
            numbers = (self._at // size + np.arange(len(sizes) + 1)) % self._places
            self._at = int(numbers[-1]) * size
            return numbers[:-1] * size
        offsets = []
        at = self._at
        for size in sizes.tolist():
            if at + size > self._length:
                at = 0
            offsets.append(at)
            at += size
        self._at = at
        return np.array(offsets, np.int64)


def zipf_ranks(rng: np.random.Generator, n: int, theta: float, count: int) -> _Ints:
    """Whole numbers from 0 to n - 1, of which k comes in proportion to 1 / (k + 1) ** theta.

    By rejection and inversion: Hörmann, Derflinger: Rejection-inversion to generate variates from monotone discrete
    distributions (1996). Constant time for any n and theta; most are accepted at once.
    """

    def area(x: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        """The integral of x ** -theta."""
        x = np.asarray(x, np.float64)
        return np.log(x) if theta == 1 else (x ** (1 - theta) - 1) / (1 - theta)

    def inverse(y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.exp(y) if theta == 1 else np.maximum(1 + y * (1 - theta), 0) ** (1 / (1 - theta))

    low, high = area(1.5) - 1, area(n + 0.5)
    sure = 2 - inverse(area(2.5) - 2.0**-theta)
    found = np.empty(0, np.int64)
    while len(found) < count:
        drawn = high + rng.random(count) * (low - high)
        real = inverse(drawn)
        rank = np.clip(np.floor(real + 0.5), 1, n)
        accepted = (rank - real <= sure) | (drawn >= area(rank + 0.5) - rank**-theta)
        found = np.concatenate([found, rank[accepted].astype(np.int64) - 1])
    return found[:count]


def scattered(ranks: _Ints, seed: int) -> _Ints:
    """Numbers below 2 ** 62 in place of ranks, the same for the same: the popular places do not lie together.

    SplitMix64's finaliser. As any hash, it lets some ranks share a place when it is taken modulo their number.
    """
    with np.errstate(over="ignore"):
        mixed = (ranks.astype(np.uint64) + np.uint64(seed & (1 << 64) - 1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)


def arrivals(job: Job, *, process: int = 0) -> Iterator[int]:
    """When the requests of an open loop begin, in nanoseconds from its start on, without end."""
    assert job.rate is not None
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(process, job.clients, 1)))
    return chain.from_iterable(_arrival_batches(job.rate, job.arrivals, rng))


def _arrival_batches(rate: float, how: str, rng: np.random.Generator) -> Iterator[list[int]]:
    period = 1e9 / rate
    if how == "uniform":
        first = 0
        while True:
            yield np.rint((first + np.arange(_BATCH)) * period).astype(np.int64).tolist()
            first += _BATCH
    at = 0.0
    while True:
        times = at + np.cumsum(rng.exponential(period, _BATCH))
        at = float(times[-1])
        yield times.astype(np.int64).tolist()

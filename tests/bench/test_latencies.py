"""Latencies: against the library's own counting, and against exact percentiles."""

from array import array

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from aioblock.bench import Latencies
from aioblock.bench.latencies import HIGHEST, PERCENTILES


def taken(values):
    made = Latencies()
    column = array("q", [int(value) for value in values])
    assert made.take(column) == len(values) and not column
    return made


EDGES = [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 10**6, (1 << 41) - 1, 1 << 41, HIGHEST - 1, HIGHEST]


def test_every_value_is_in_the_bucket_that_the_library_puts_it_in():
    rng = np.random.default_rng(5)
    values = [*EDGES, *(10 ** rng.uniform(0, 12.5, 3000)).astype(np.int64).tolist()]
    theirs = HdrHistogram(1, HIGHEST, 3)
    for value in values:
        assert theirs.record_value(value)
    ours = taken(values).histogram()
    assert ours.get_total_count() == theirs.get_total_count() == len(values)
    assert [ours.get_count_at_index(index) for index in range(ours.counts_len)] == [
        theirs.get_count_at_index(index) for index in range(theirs.counts_len)
    ]


def test_percentiles_are_exact_to_a_thousandth():
    values = np.sort((np.random.default_rng(6).lognormal(12, 1.5, 200_000)).astype(np.int64))
    made = taken(values)
    for percent, found in zip(PERCENTILES, made.percentiles().values(), strict=True):
        exact = values[int(np.ceil(len(values) * percent / 100)) - 1]
        assert exact * 0.999 <= found <= exact * 1.001 + 1, percent
    assert (made.shortest, made.longest) == (values[0], values[-1])
    assert made.total == values.sum() and made.mean == pytest.approx(values.mean())


def test_more_than_an_hour_counts_as_one_but_the_longest_is_exact():
    made = taken([5, HIGHEST * 3, -2])
    assert (made.shortest, made.longest, made.count) == (0, HIGHEST * 3, 3)
    assert made.percentiles()["p99.99"] == pytest.approx(HIGHEST, rel=0.001)


def test_a_percentile_is_never_outside_of_what_there_was():
    assert set(taken([123_457]).percentiles().values()) == {123_457}


def test_nothing():
    made = taken([])
    assert (made.count, made.mean, made.percentiles()) == (0, 0.0, {})
    again = Latencies.from_dict(made.as_dict())
    assert (again.count, again.percentiles()) == (0, {})


def test_parts_make_the_whole():
    values = np.random.default_rng(7).integers(0, 10**9, 5000).tolist()
    whole, parts = taken(values), Latencies()
    for start in range(0, 5000, 1000):
        parts.add(taken(values[start : start + 1000]))
    parts.add(Latencies())
    assert parts.as_dict() == whole.as_dict()


def test_a_document_says_it_all_and_other_programs_can_read_it():
    values = np.random.default_rng(8).integers(0, 10**9, 5000).tolist()
    made = taken([*EDGES, *values])
    document = made.as_dict()
    again = Latencies.from_dict(document)
    assert again.as_dict() == document
    assert [column.tolist() for column in again.distribution()] == [column.tolist() for column in made.distribution()]
    theirs = HdrHistogram.decode(document["hdr"])
    assert theirs.get_total_count() == made.count
    assert theirs.get_value_at_percentile(99) == document["p99"]

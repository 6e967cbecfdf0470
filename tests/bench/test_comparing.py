"""Comparing: a real difference is found, chance is not taken for one."""

import pytest

from aioblock import OptionError
from aioblock.bench import compare
from tests.bench.samples import a_result


def test_a_difference_is_found_with_its_interval():
    [found] = compare(a_result(rate=1000), a_result(rate=1200, seed=1))
    rate = found.throughput
    assert rate.ratio == pytest.approx(1.2, rel=0.02)
    assert rate.low is not None and rate.high is not None
    assert 1.15 < rate.low < rate.ratio < rate.high < 1.25
    assert rate.verdict == "more" and rate.significant
    [back] = compare(a_result(rate=1200, seed=1), a_result(rate=1000))
    assert back.throughput.verdict == "less"
    assert set(found.latencies) == {"p50", "p99", "p99.9"}


def test_chance_is_significant_as_rarely_as_the_interval_says():
    """Of 200 pairs without a difference some 5 % are outside of an interval of 95 %."""
    outside = sum(
        bool(
            compare(a_result(spread=0.3, seed=2 * pair), a_result(spread=0.3, seed=2 * pair + 1), seed=pair)[
                0
            ].throughput.significant
        )
        for pair in range(200)
    )
    assert 2 <= outside <= 24


def test_the_same_is_no_difference():
    result = a_result(spread=0.3)
    [found] = compare(result, result)
    assert found.throughput.ratio == 1 and found.throughput.verdict == "no significant difference"


def test_too_few_samples():
    [found] = compare(a_result(intervals=7), a_result(rate=2000, intervals=60))
    assert found.throughput.significant is None
    assert found.throughput.verdict == "too few samples to say"
    assert found.as_dict()["operations_per_second"]["low"] is None


def test_nothing_before():
    one, other = a_result(rate=0), a_result()
    [found] = compare(one, other)
    assert found.throughput.ratio == float("inf") and found.as_dict()["operations_per_second"]["ratio"] is None
    assert found.latencies == {}


def test_jobs_are_matched_by_name_unless_each_has_one():
    one, other = a_result("a"), a_result("b")
    assert compare(one, other)[0].job == "a / b"
    other.jobs.append(a_result("a", rate=500).jobs[0])
    [found] = compare(one, other)
    assert found.job == "a" and found.throughput.ratio == pytest.approx(0.5, rel=0.05)
    del other.jobs[1]
    other.jobs.append(a_result("c").jobs[0])
    with pytest.raises(OptionError, match="'a' and 'b', 'c'"):
        compare(one, other)

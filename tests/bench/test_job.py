"""Job: what is checked, what is written down, and how it is divided."""

import json
from pathlib import Path

import pytest

from aioblock import OptionError, Secret
from aioblock.bench import Job
from aioblock.bench.job import check_together


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("clients", {"clients": 0}),
        ("depth", {"depth": 1.5}),
        ("depth", {"depth": True}),
        ("offset", {"offset": -1}),
        ("length", {"length": 0}),
        ("count", {"count": 0}),
        ("seed", {"seed": -1}),
        ("rate", {"rate": 0}),
        ("rate", {"rate": float("inf")}),
        ("rate", {"rate": 1e-4}),
        ("theta", {"theta": 11}),
        ("seconds", {"seconds": 0}),
        ("warmup", {"warmup": -1}),
        ("theta", {"theta": float("nan")}),
        ("pattern", {"pattern": "zigzag"}),
        ("arrivals", {"arrivals": "bus"}),
        ("trust", {"trust": "me"}),
        ("mix", {"mix": {"erase": 1}}),
        ("mix", {"mix": {}}),
        ("mix", {"mix": {"read": 0}}),
        ("mix.read", {"mix": {"read": -1}}),
        ("sizes", {"sizes": {0: 1}}),
        ("sizes", {"sizes": {"4k": 1}}),
        ("sizes.4096", {"sizes": {4096: "x"}}),
        ("verify", {"verify": True, "sizes": {1000: 1}}),
        ("verify", {"verify": True, "offset": 1}),
    ],
)
def test_what_makes_no_sense_is_named(option, wrong):
    with pytest.raises(OptionError) as caught:
        Job(image="a", **wrong)
    assert caught.value.option == option
    assert str(caught.value).startswith(option)


def test_without_an_end_it_ends_after_five_seconds():
    assert Job(image="a").seconds == 5
    assert Job(image="a", count=3).seconds is None


def test_only_who_writes_opens_for_writing_and_shares():
    assert not Job(image="a", mix={"read": 1, "status": 1, "write": 0}).writable
    flushes = Job(image="a", mix={"flush": 1})
    assert flushes.writable and flushes.sharing and not flushes.changes
    assert Job(image="a", mix={"discard": 1}).changes
    assert not Job(image="a").sharing and Job(image="a", shared=True).sharing


def test_how_it_is_opened():
    job = Job(image="a", format="raw", aio="native", options={"size": 512}, trust="none")
    opening = job.opening()
    assert opening["options"] == {"size": 512, "file.aio": "native"}
    assert opening["format"] == "raw" and not opening["writable"]
    assert opening["trust"] is not Job(image="a").opening()["trust"]


def test_it_is_written_down_without_secrets():
    job = Job(image={"driver": "null-co", "size": 512}, name="n", objects={"key": Secret(b"sesame")})
    text = json.dumps(job.as_dict())
    assert "sesame" not in text and "objects" not in text and '"sizes": {"4096": 1.0}' in text


def test_rate_and_count_are_divided():
    parts = Job(image="a", rate=100, count=11).shares(3)
    assert [part.count for part in parts] == [4, 4, 3]
    assert [part.rate for part in parts] == [pytest.approx(100 / 3)] * 3
    with pytest.raises(OptionError):
        Job(image="a", count=2).shares(3)
    assert len(Job(image=Path("a")).shares(2)) == 2


def test_no_job_changes_what_another_verifies():
    verifying = Job(image="a", name="v", verify=True, mix={"write": 1, "read": 1}, length=4096)
    check_together([verifying, Job(image="a", name="r")])
    check_together([verifying, Job(image="b", name="w", mix={"write": 1})])
    check_together([verifying, Job(image="a", name="w", mix={"write": 1}, offset=4096)])
    with pytest.raises(OptionError, match="'w' changes what job 'v' verifies"):
        check_together([verifying, Job(image="a", name="w", mix={"discard": 1}, offset=4095)])
    with pytest.raises(OptionError, match="two jobs are called 'v'"):
        check_together([verifying, Job(image="b", name="v")])

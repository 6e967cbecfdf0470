"""Results: as documents, merged, and as a report."""

import copy
import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from aioblock import NotSupported, OptionError
from aioblock.bench import Bench, Job, Result, html_report, merged, short_time
from aioblock.bench.svg import Axis, Line, plot
from tests.bench.samples import a_result


def test_a_document_says_it_all():
    result = a_result()
    document = json.loads(json.dumps(result.as_dict()))
    assert document["schema"] == "aioblock.bench/1"
    read = document["jobs"][0]["kinds"]["read"]
    assert read["operations_per_second"] == pytest.approx(1000, rel=0.05)
    assert read["bytes_per_second"] == pytest.approx(read["operations_per_second"] * 4096, rel=1e-4)
    latency = read["latency_ns"]
    times = [latency[name] for name in ("min", "p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "max")]
    assert times == sorted(times)
    assert Result.from_dict(document).as_dict() == document


def damaged(change):
    document = a_result().as_dict()
    change(document)
    return document


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"schema": "aioblock.bench/2"},
        damaged(lambda it: it.pop("jobs")),
        damaged(lambda it: it["jobs"][0].pop("seconds")),
        damaged(lambda it: it["jobs"][0].update(kinds=[])),
        damaged(lambda it: it["jobs"][0]["kinds"]["read"]["latency_ns"].update(hdr="HISTnonsense")),
        damaged(lambda it: it["jobs"][0]["kinds"]["read"]["latency_ns"].update(hdr=3)),
        damaged(lambda it: it["usage"]["loop_lag"].update(counts={"999": 1})),
        damaged(lambda it: it["jobs"][0]["intervals"]["operations"].update(read=[1])),
    ],
)
def test_what_is_no_result_is_refused(document):
    with pytest.raises(OptionError, match="result: "):
        Result.from_dict(document)


def test_without_the_package_of_the_histograms(monkeypatch):
    document = a_result().as_dict()
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    for needs in (lambda: Bench([Job(image="a")]), lambda: Result.from_dict(document)):
        with pytest.raises(NotSupported, match=r"pip install aioblock\[bench\]"):
            needs()


def test_a_file_that_is_no_result(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(OptionError, match="is not JSON"):
        Result.load(str(path))


def test_parts_are_merged():
    one, other = a_result(rate=1000, seed=1), a_result(rate=500, seed=2, intervals=50)
    counts = [result.jobs[0].operations for result in (one, other)]
    whole = merged([one, other])
    [job] = whole.jobs
    assert job.operations == sum(counts)
    assert job.kinds["read"].latencies.count == sum(counts) and job.bytes == sum(counts) * 4096
    assert job.seconds == 6.0 and job.statistics["reads"] == sum(counts)
    assert len(job.intervals) == 50
    assert job.intervals[3].operations["read"] == sum(it.jobs[0].intervals[3].operations["read"] for it in (one, other))
    assert (whole.processes, whole.usage.user, whole.usage.peak_memory) == (2, 3.0, 100 << 20)
    assert len(whole.usage.lags) == 2
    assert [it.jobs[0].operations for it in (one, other)] == counts  # they are what they were
    other.complete = False
    assert not merged([one, other]).complete


def drawings(text):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_a_report_is_one_file_with_drawings():
    result = a_result("<b>&job")
    result.complete = False
    result.jobs[0].unsent = 1234
    text = html_report(result, "a <title>")
    assert "<b>" not in text and "&lt;b&gt;&amp;job" in text and "a &lt;title&gt;" in text
    assert "ended early" in text and "1,234 requests were due" in text and "99.9 %" in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert len(drawings(text)) == 4
    for drawing in drawings(text):
        assert len(drawing.findall(".//{*}path")) == 1


def test_a_few_that_did_not_begin_before_the_end_are_no_overload():
    [job] = a_result().jobs
    job.unsent = 3
    assert not job.overloaded
    job.unsent = job.operations // 50
    assert job.overloaded


def test_a_report_of_nothing():
    result = a_result(rate=0)
    for kind in copy.copy(result.jobs[0].kinds):
        assert kind == "read"
    result.jobs[0].intervals.clear()
    assert "nothing to show" in html_report(result)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.0], [5.0], [1.0, 1e9], [3.0, 3.0], [1e-9, 2e-9], [-1.0, float("inf"), 2.0]])
def test_every_point_is_inside_of_the_frame(log, values):
    points = [(float(number), value) for number, value in enumerate(values, 1)]
    [drawing] = drawings(plot([Line("a", points), Line("b", points, True)], Axis("x"), Axis("y", log=log)))
    for path in drawing.findall(".//{*}path"):
        for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d", "")):
            assert 74 <= float(x) <= 732 and 14 <= float(y) <= 256


def test_a_long_line_is_thinned():
    points = [(float(number), 1.0) for number in range(100_000)]
    assert len(plot([Line("a", points)], Axis("x"), Axis("y"))) < 50_000


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0 ns"), (999, "999 ns"), (999.6, "1 us"), (12_340, "12.3 us"), (4.56e6, "4.56 ms"), (1.2e9, "1.2 s")],
)
def test_short_times(nanoseconds, text):
    assert short_time(nanoseconds) == text

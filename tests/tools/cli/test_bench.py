"""bench: what it measures, what it refuses, and what it shows."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.tools.cli.conftest import MiB, content


def test_reads(chain):
    document = chain.json("bench", "top.qcow2", "--count", "200", "--depth", "4", "--size", "8k")
    [job] = document["jobs"]
    assert (job["operations"], job["job"]["sizes"], job["job"]["depth"]) == (200, {"8192": 1.0}, 4)
    assert job["bytes_per_second"] == pytest.approx(job["operations_per_second"] * 8192, rel=0.01)
    text = chain.ok("bench", "top.qcow2", "--count", "50", "--pattern", "sequential").out
    assert "top.qcow2: read of 4 KiB, sequential, 16 at a time" in text
    assert "p99.99" in text and "%" in text and "loop lag" in text


def test_several_images_at_the_same_time(chain):
    document = chain.json("bench", "top.qcow2", "mid.qcow2", "top.qcow2", "--count", "20")
    assert [job["job"]["name"] for job in document["jobs"]] == ["top.qcow2 (1)", "mid.qcow2", "top.qcow2 (3)"]


def test_it_takes_the_time_that_it_is_given(chain):
    [job] = chain.json("bench", "top.qcow2", "--seconds", "0.05")["jobs"]
    assert 0.05 <= job["seconds"] < 5


def test_an_open_loop(chain):
    [job] = chain.json("bench", "top.qcow2", "--rate", "100000", "--count", "50", "--loop", "asyncio")["jobs"]
    assert job["operations"] == 50 and job["job"]["rate"] == 100000


@pytest.mark.parametrize("kind", ["write", "zeroes", "discard"])
def test_it_writes_only_if_that_is_meant(chain, kind):
    before = content("top.qcow2")
    result = chain("bench", "top.qcow2", "--mix", f"read,{kind}", "--count", "10", "--offset", "1M", "--length", "64k")
    assert result.status == 2
    assert f"would destroy 64 KiB from offset 1048576 on in top.qcow2 ({kind})" in result.err
    assert "--overwrite" in result.err
    assert content("top.qcow2") == before


def test_told_to_it_writes_and_verifies(chain):
    before = content("top.qcow2")
    words = ("top.qcow2", "--mix", "read,write", "--count", "100", "--verify", "--overwrite", "--length", "2M")
    [job] = chain.json("bench", *words)["jobs"]
    assert job["verified_bytes"] > 0 and job["kinds"]["write"]["operations"] > 0
    after = content("top.qcow2")
    assert after != before and after[2 * MiB :] == before[2 * MiB :]
    assert "verified" in chain.ok("bench", *words).out


def test_an_open_question_of_format_is_not_guessed_for_writing(program):
    program.ok("create", "a.raw", "1M")
    result = program("bench", "a.raw", "--mix", "write", "--overwrite", "--count", "1")
    assert result.status == 1 and "--format raw" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Nothing to measure"),
        (("top.qcow2", "--overwrite"), "nothing is written"),
        (("top.qcow2", "--processes", "0"), "at least one"),
        (("top.qcow2", "--compare", "top.qcow2", "top.qcow2"), "goes with no IMAGE"),
        (("--job", "jobs.toml", "--depth", "3"), "--depth: with --job this is said in jobs.toml"),
        (("--job", "jobs.toml", "a", "b"), "takes one IMAGE"),
    ],
)
def test_what_does_not_go_together(chain, words, said):
    (chain.folder / "jobs.toml").write_text("[[job]]\n")
    result = chain("bench", *words)
    assert result.status == 2 and said in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("top.qcow2", "--depth", "0"), "depth: 0 is not"),
        (("top.qcow2", "--mix", "erase"), "mix: 'erase' is none of"),
        (("top.qcow2", "--size", "big"), "size"),
        (("top.qcow2", "--size", "1G"), "no request of 1073741824 bytes fits"),
        (("--job", "jobs.toml"), "jobs.toml: job 1: image: is missing"),
        (("--compare", "jobs.toml", "jobs.toml"), "is not JSON"),
    ],
)
def test_what_is_wrong_is_named(chain, words, said):
    (chain.folder / "jobs.toml").write_text("[[job]]\n")
    result = chain("bench", *words)
    assert result.status == 1 and said in result.err


def test_jobs_from_a_file(chain):
    (chain.folder / "jobs.toml").write_text(
        '[defaults]\ncount = 30\n[[job]]\nname = "a"\n[[job]]\nname = "b"\nimage = "mid.qcow2"\nmix = { status = 1 }\n'
    )
    document = chain.json("bench", "--job", "jobs.toml", "top.qcow2")
    assert [(job["job"]["image"], list(job["kinds"])) for job in document["jobs"]] == [
        ("top.qcow2", ["read"]),
        ("mid.qcow2", ["status"]),
    ]


def test_results_are_saved_reported_and_compared(chain):
    for name in ("before", "after"):
        chain.ok("bench", "top.qcow2", "--seconds", "0.1", "--save", f"{name}.json", "--html", f"{name}.html")
    assert json.loads((chain.folder / "before.json").read_text())["complete"]
    assert "<svg" in (chain.folder / "before.html").read_text()
    text = chain.ok("bench", "--compare", "before.json", "after.json").out
    assert "read, requests a second" in text and "too few samples to say" in text
    [found] = chain.json("bench", "--compare", "before.json", "after.json")["comparison"]
    assert (found["kind"], found["operations_per_second"]["significant"]) == ("read", None)


def test_an_image_that_is_too_small(program):
    program.ok("create", "a.raw", "1k")
    assert "fits" in program("bench", "a.raw").err


def test_which_request_failed(program):
    (program.folder / "a.raw").write_bytes(bytes(MiB))
    faulty = (
        'json:{"driver": "raw", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": "a.raw"}, '
        '"inject-error": '
        '[{"event": "none", "iotype": "read", "errno": 5}]}}'
    )
    result = program("bench", faulty, "--count", "10")
    assert result.status == 1 and "Input/output error" in result.err and "read of 4096 bytes at offset" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_interrupted_it_shows_what_there_is(chain, processes):
    """Ctrl-C goes to the whole group of processes, as a terminal sends it."""
    words = ("bench", "top.qcow2", "--seconds", "40", "--processes", processes, "--progress", "json")
    running = subprocess.Popen(
        [sys.executable, "-m", "aioblock", *words, "--save", "result.json"],
        cwd=chain.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None
    while not json.loads(running.stderr.readline())["done"]:
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=45)
    assert running.returncode == 128 + signal.SIGINT
    assert "top.qcow2: read of 4 KiB" in out
    assert "ended early" in err and "interrupted" in err and "Traceback" not in err
    saved = json.loads((chain.folder / "result.json").read_text())
    assert not saved["complete"] and saved["jobs"][0]["operations"] > 0


@pytest.mark.slow
def test_two_processes(chain):
    document = json.loads(chain.process("bench", "top.qcow2", "--count", "50", "--processes", "2", "--json").out)
    assert document["processes"] == 2 and document["jobs"][0]["operations"] == 50

"""The runner: its lists, its verdicts, where it gets the suite, and what it says at the end; with a suite made up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conformance.listed import FOLDER, ListError, parse, passing
from tests.conformance.programs import MissingProgram, environment, make_programs
from tests.conformance.suite import FORMATS, SuiteError, names_in, source_entries
from tests.conformance.verdicts import Verdict, verdict_of

ROOT = Path(__file__).resolve().parents[2]

SAID = "QEMU -- x\n\n{test}   ...        [10:00:00]       ...         \n{test}   {state}       [10:00:00]\n"


def test_a_list() -> None:
    assert parse("001\n\n  002   # slow: 20 s\n# nothing\ntests/foo\n", "raw.txt") == ["001", "002", "tests/foo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("001 002\n", "raw.txt:1: one test a line"), ("001\n#\n001\n", "raw.txt:3: 001 is listed twice")],
)
def test_a_wrong_list(text: str, message: str) -> None:
    with pytest.raises(ListError, match=message):
        parse(text, "raw.txt")


def test_the_lists_of_the_project() -> None:
    assert sorted(file.name for file in FOLDER.iterdir()) == sorted(f"{fmt}.txt" for fmt in FORMATS)
    for fmt in FORMATS:
        assert passing(fmt) == sorted(passing(fmt)) and passing(fmt)
    assert passing("vmdk-of-nobody") == []


@pytest.mark.parametrize("state", ["pass", "fail", "not run"])
def test_the_verdict_is_what_the_suite_says(state: str) -> None:
    output = SAID.format(test="101", state=state)
    assert verdict_of("101", int(state == "fail"), output) == state


def test_what_the_suite_does_not_say_is_a_failure() -> None:
    passed = SAID.format(test="101", state="pass")
    assert verdict_of("101", 0, "Traceback ...\n") is Verdict.FAIL
    assert verdict_of("101", 1, passed) is Verdict.FAIL
    assert verdict_of("102", 0, passed) is Verdict.FAIL
    assert verdict_of("10", 0, passed) is Verdict.FAIL
    assert verdict_of("101", 0, passed + "101   fail\n") is Verdict.FAIL
    assert verdict_of("101", 0, "the guest said: not run\n" + passed) is Verdict.PASS


def test_programs_are_links_named_as_the_suite_expects(tmp_path: Path) -> None:
    ours, folder = tmp_path / "bin", tmp_path / "links"
    ours.mkdir()
    folder.mkdir()
    with pytest.raises(MissingProgram, match="aioblock-img is not there"):
        make_programs(folder, ours)
    for name in ("aioblock-img", "aioblock-io", "aioblock-nbd"):
        (ours / name).touch()
    make_programs(folder, ours)
    assert (folder / "qemu-io").resolve() == ours / "aioblock-io"
    named = environment(folder, tmp_path)
    for variable in ("QEMU_PROG", "QEMU_IMG_PROG", "QEMU_IO_PROG", "QEMU_NBD_PROG", "QSD_PROG"):
        assert Path(named[variable]).exists()
    asked = subprocess.run([named["QEMU_PROG"], "-machine", "help"], capture_output=True, text=True, check=True)
    assert "(default)" in asked.stdout
    assert subprocess.run([named["QSD_PROG"]], capture_output=True, check=False).returncode == 1


DEB822 = """\
# the mirror
Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Signed-By: /k

Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/k.gpg
"""
ENTRY = "Types: deb-src\nURIs: http://mirror.example/debian{}\nSuites: bookworm\nComponents: main\n{}"


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        (DEB822, ENTRY.format("/", "Signed-By: /usr/share/keyrings/k.gpg\n")),
        ("deb http://other.example/x y z\ndeb http://mirror.example/debian sid main\n", ENTRY.format("", "")),
        ("deb [ arch=amd64 signed-by=/k ] http://mirror.example/debian sid main", ENTRY.format("", "Signed-By: /k\n")),
        ("deb [signed-by=/k] http://mirror.example/debian sid main", ENTRY.format("", "Signed-By: /k\n")),
    ],
)
def test_the_mirror_is_the_one_of_the_machine(text: str, entry: str) -> None:
    assert source_entries(["# nothing\n", text]) == entry


def test_without_a_mirror_it_says_so() -> None:
    with pytest.raises(SuiteError, match="no Debian mirror"):
        source_entries(
            ["deb http://other.example/ubuntu noble main\n", "# deb http://mirror.example/debian sid main\n"]
        )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A cache with a suite of the same shape, whose tests say at once what becomes of them."""
    folder = tmp_path / "qemu-iotests-7.2" / "tests" / "qemu-iotests"
    (folder / "tests").mkdir(parents=True)
    (folder / "check").write_text(
        "import sys, time\n"
        "test = sys.argv[2].rpartition('/')[2]\n"
        "states = {'001': 'pass', '002': 'fail', '003': 'not run', 'named': 'pass'}\n"
        "time.sleep(60) if test == '004' else None\n"
        "print(f'{test}   ...  \\r{test}   {states[test]}  [10:00:00]  {sys.argv[1]}')\n"
        "sys.exit(states[test] == 'fail')\n"
    )
    for name in ("001", "002", "003", "004", "tests/named", "004.out", "common.rc", "tests/x.out"):
        (folder / name).touch(mode=0o755)
    (folder / "005").touch(mode=0o644)
    return folder


def test_which_files_are_tests(suite: Path) -> None:
    assert names_in(suite) == ["001", "002", "003", "004", "tests/named"]


def start(suite: Path, *args: str) -> "subprocess.Popen[str]":
    """The command with the made-up suite."""
    bin_folder = suite / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name in ("aioblock-img", "aioblock-io", "aioblock-nbd"):
        (bin_folder / name).touch()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.conformance", "--bin", str(bin_folder), "--format", "raw", *args],
        cwd=ROOT,
        env=os.environ | {"AIOBLOCK_CONFORMANCE_CACHE": str(suite.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def conformance(suite: Path, *args: str) -> tuple[int, list[str]]:
    """Run it to its end; its exit status and lines."""
    process = start(suite, *args)
    out, _ = process.communicate(timeout=50)
    return process.returncode, out.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "status", "last"),
    [
        (["001", "tests/named"], 0, "2 passed, 0 failed"),
        (["001", "002"], 1, "1 passed, 1 failed"),
        (["001", "003"], 1, "1 passed, 1 failed"),
        (["001", "004", "--limit", "0.5"], 1, "1 passed, 1 failed"),
        (["006"], 1, "0 passed, 1 failed"),
    ],
)
def test_what_the_command_says_at_the_end(suite: Path, tests: list[str], status: int, last: str) -> None:
    found = conformance(suite, *tests)
    assert (found[0], found[1][-1]) == (status, last)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_runs(suite: Path, tmp_path: Path, number: int) -> None:
    (suite / "check").write_text(
        f"import os, time\nopen({str(tmp_path / 'begun')!r}, 'w').write(str(os.getpid()))\ntime.sleep(50)\n"
    )
    process = start(suite, "001", "002", "--jobs", "1")
    begun = tmp_path / "begun"
    while not (begun.exists() and begun.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


@pytest.mark.slow
def test_show_prints_what_a_test_printed(suite: Path) -> None:
    _, lines = conformance(suite, "--show", "001", "002")
    assert [line for line in lines if "-raw" in line] == ["002   fail  [10:00:00]  -raw"]


@pytest.mark.slow
def test_discover_names_what_could_be_listed(suite: Path) -> None:
    status, lines = conformance(suite, "--discover", "--limit", "0.5")
    assert status == 0
    assert lines[-2] == "could be listed: raw tests/named"  # 001 is listed already

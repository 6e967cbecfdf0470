"""The command line: unknown commands, wrong options, operands; as qemu-img has it."""

import subprocess
import sys

import pytest

import aioblock

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    "line",
    [
        "",
        "zork",
        "--zork",
        "-T",
        "--trace",
        "-T foo info nosuch",
        "-Tfoo --trace bar --tr=baz* info nosuch",
        "--trace foo=bar info nosuch",
        "--trace events=nosuch info nosuch",
        "-T foo,help info nosuch",
        "info -T foo nosuch",
        "-z",
        "create",
        "create -z",
        "create --zork x",
        "create -f",
        "create --object",
        "create --object foo=1 x 1M",
        "create -f raw",
        "create x 1M 2M",
        "create x -- -1",
        "create x 1Q",
        "create x 9E",
        "create -o , x 1M",
        "create -o size=1M, x",
        "create -o ,size=1M x",
        "info",
        "info a b",
        "info --output=zork x",
        "info --outputt json x",
        "info -Uz x",
        "info -f zork nosuch",
        "info -f",
        "info --image-opts -f raw driver=raw,file.filename=x",
        "info --image-opts=3 x",
        "info --o=json x",
        "info -- -U",
        "info -U nosuch",
        "info --back nosuch",
        "info zork:x",
        "map",
        "map a b",
        "map --output=foo x",
        "map --start-offset=-1 x",
        "map --start-offset=foo x",
        "map --max-length=foo x",
        "map --max-length=8E x",
        "map --start-offset=8E x",
        "map nosuch",
        "check",
        "check a b",
        "check nosuch",
        "check -r foo x",
        "check -T zork x",
        "check --output=zork x",
        "compare",
        "compare a",
        "compare a b c",
        "compare -x",
        "compare -T zork a b",
        "compare nosuch nosuch",
        "compare -f zork a b",
        "compare --image-opts -f raw a b",
        "bench",
        "bench a b",
        "bench nosuch",
        "bench -c foo x",
        "bench -c -1 x",
        "bench -c 1k x",
        "bench -c 4294967296 x",
        "bench -d foo x",
        "bench -s foo x",
        "bench -s 3G x",
        "bench -S foo x",
        "bench -o foo x",
        "bench -i foo x",
        "bench -t zork x",
        "bench -w --flush-interval foo x",
        "bench --flush-interval 2 x",
        "bench -w --flush-interval 2 x",
        "bench -w --pattern 256 x",
        "bench -w --pattern foo x",
        "bench -i native x",
        "convert",
        "convert a",
        "convert -S 3 a b",
        "convert -S foo a b",
        "convert -S 64M a b",
        "convert -m 0 a b",
        "convert -m 17 a b",
        "convert -m foo a b",
        "convert -r foo a b",
        "convert -C -c a b",
        "convert -C -S 4k a b",
        "convert -C --salvage a b",
        "convert --target-is-zero a b",
        "convert --target-image-opts a b",
        "convert --skip-broken-bitmaps a b",
        "convert -n -o cluster_size=1k a b",
        "convert -t zork a b",
        "convert -T zork a b",
        "convert --image-opts -f raw a b",
        "convert -O raw nosuch b",
        "convert -s foo a b",
    ],
)
def test_a_wrong_command_line(sides, line):
    result = sides.same(*line.split())
    assert result.status != 0


def test_options_may_follow_operands_and_stand_together(sides):
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "x.qcow2", "1M")
    sides.same("info", "x.qcow2", "-Ufqcow2", "--output", "json")
    sides.same("map", "x.qcow2", "--out=json", "-s", "512k", "-l4k")


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["--ver"], ["-V", "zork"]])
def test_version_begins_with_the_name_the_program_was_called_by(sides, words):
    assert sides.run_ours(*words) == (0, f"qemu-img version {aioblock.__version__} (aioblock)\n", "")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["create", "--help"], ["compare", "-h"]])
def test_help_names_every_command(sides, words):
    result = sides.run_ours(*words)
    assert result.status == 0
    assert result.err == ""
    for command in ("bench", "check", "commit", "compare", "convert", "create", "dd", "info", "map", "rebase"):
        assert f" {command}" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("program", ["aioblock.tools.img", "aioblock.tools.nbd"])
def test_the_program_ends_with_the_status_of_its_main(program):
    code = f"import sys; from {program} import main; sys.argv[0] = 'x/prog'; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "zork"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("prog: ")


def test_object_is_refused_by_name(sides):
    result = sides.run_ours("info", "--object", "iothread,id=s", "x")
    assert result == (1, "", "qemu-img: Parameter 'qom-type' does not accept value 'iothread'\n")
    assert sides.run_ours("compare", "--object", "secret,id=s", "x", "y").status == 2


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path):
    image = tmp_path / "x"
    with image.open("w+b") as file:
        for number in range(4096):  # with holes between, so that there are many lines
            file.seek(number * 8192)
            file.write(b"x" * 4096)
    code = "import sys; from aioblock.tools.img import main; sys.exit(main(['map', '-f', 'raw', sys.argv[1]]))"
    line = f"'{sys.executable}' -c \"$CODE\" '{image}' | head -1"
    done = subprocess.run(["sh", "-c", line], env={"CODE": code}, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Offset")
    assert done.stderr == ""

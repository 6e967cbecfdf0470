"""Jobs in TOML: what they mean, and errors that name the file, the job and the key."""

import pytest

from aioblock import OptionError
from aioblock.bench import Job, load_jobs, parse_jobs, parse_mix, parse_sizes

WHOLE = """
[defaults]
image = "disk.qcow2"
seconds = 10
size = "64k"

[[job]]
name = "readers"
depth = 4
rate = 1000
pattern = "zipf"
offset = "1M"
length = 4096

[[job]]
name = "writers"
image = { driver = "raw", file = { driver = "file", filename = "a" } }
mix = { write = 70, flush = 1 }
sizes = { 4k = 3, 64k = 1 }
size = "4k"
seconds = 1.5
verify = true
options = { "file.aio" = "threads" }
"""


def test_a_whole_one():
    readers, writers = parse_jobs(WHOLE.replace('size = "4k"\n', "").replace('size = "64k"', ""))
    assert readers == Job(
        image="disk.qcow2",
        name="readers",
        seconds=10,
        depth=4,
        rate=1000,
        pattern="zipf",
        offset=1 << 20,
        length=4096,
    )
    assert writers.sizes == {4096: 3, 65536: 1} and writers.mix == {"write": 70, "flush": 1}
    assert writers.seconds == 1.5 and writers.verify and writers.options == {"file.aio": "threads"}


def test_from_a_file_with_an_image_for_those_that_have_none(tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text("[[job]]\nname = 'a'\n[[job]]\nname = 'b'\nimage = 'own'\n")
    assert [job.image for job in load_jobs(path, image="given")] == ["given", "own"]
    path.write_bytes(b"\xff")
    with pytest.raises(OptionError, match=str(path)):
        load_jobs(path)


@pytest.mark.parametrize(
    ("text", "option", "words"),
    [
        ("[[job]", None, "jobs: "),
        ("", "job", "[[job]]"),
        ("[job]\nimage = 'a'", "job", "two brackets"),
        ("defaults = 3\n[[job]]\nimage = 'a'", "defaults", "[defaults]"),
        ("[[jobs]]\nimage = 'a'", "jobs", "there are only"),
        ("[[job]]", "image", "job 1: image: is missing"),
        ("[[job]]\nimage = 'a'\n[[job]]\nimage = 'b'\nname = 'n'\ndeep = 1", "deep", "job 2 ('n'): deep: is not known"),
        ("[[job]]\nimage = 'a'\nobjects = {}", "objects", "objects: is not known"),
        ("[[job]]\nimage = 'a'\ndepth = 'x'", "depth", "depth: 'x' is not a whole number"),
        ("[[job]]\nimage = 'a'\ndepth = true", "depth", "depth: True is not a whole number"),
        ("[[job]]\nimage = 'a'\nverify = 1", "verify", "verify: 1 is not true or false"),
        ("[[job]]\nimage = 'a'\nrate = '1'", "rate", "is not a whole number or a number"),
        ("[[job]]\nimage = 3", "image", "image: 3 is not text or a table"),
        ("[[job]]\nimage = 'a'\nsize = 'big'", "size", "size: Invalid size 'big'"),
        ("[[job]]\nimage = 'a'\nsize = 1.5", "size", "size: 1.5 is not a size"),
        ("[[job]]\nimage = 'a'\nsizes = [1]", "sizes", "sizes: has to be a table"),
        ("[[job]]\nimage = 'a'\nsizes = { x = 1 }", "sizes.x", "sizes.x: Invalid size"),
        ("[[job]]\nimage = 'a'\nsizes = { 4k = 'x' }", "sizes.4096", "sizes.4096: 'x'"),
        ("[[job]]\nimage = 'a'\nmix = { erase = 1 }", "mix", "mix: 'erase' is none of read"),
        ("[[job]]\nimage = 'a'\ndepth = 0", "depth", "job 1: depth: 0 is not"),
        (WHOLE, "size", "job 2 ('writers'): size: there is 'sizes' too"),
    ],
)
def test_errors_name_the_key(text, option, words):
    with pytest.raises(OptionError) as caught:
        parse_jobs(text)
    assert caught.value.option == option
    assert str(caught.value).startswith("jobs: ") and words in str(caught.value)


def test_lists_on_a_command_line():
    assert parse_sizes("4k=3,64k") == {4096: 3.0, 65536: 1.0}
    assert parse_mix("read=70,flush") == {"read": 70.0, "flush": 1.0}
    for parse, wrong in ((parse_sizes, "4k=x"), (parse_sizes, "x"), (parse_mix, "read=x")):
        with pytest.raises(OptionError):
            parse(wrong)

"""Names of files: with a protocol, with options in JSON, relative to an image, and what cannot be one."""

import json

import pytest

import aioblock
from aioblock.base.errors import OptionError, message_of
from aioblock.graph.names import (
    beside,
    check_path,
    file_protocol,
    has_protocol,
    json_name,
    protocol_of,
    strip_protocol,
    to_options,
)
from tests.kit.oracle import qemu_img, require


@pytest.mark.parametrize("name", ["file:x", "nbd://h/x", "json:{}", "a:b", ":x", "fd:0", "null-co://"])
def test_names_with_a_protocol(name):
    assert has_protocol(name)


@pytest.mark.parametrize("name", ["x", "", "./a:b", "/a:b", "dir/a:b", "../x:y", "/"])
def test_names_without(name):
    assert not has_protocol(name)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("x", "x"),
        ("file:x", "x"),
        ("file:/x/y", "/x/y"),
        ("file:a:b", "./a:b"),
        ("file:file:x", "./file:x"),
        ("./file:x", "./file:x"),
        ("file:dir/a:b", "dir/a:b"),
        ("nbd:x", "nbd:x"),
    ],
)
def test_strip_protocol(name, path):
    assert strip_protocol(name) == path


@pytest.mark.parametrize(
    ("image", "name", "path"),
    [
        ("/d/a.qcow2", "b", "/d/b"),
        ("/d/a.qcow2", "/e/b", "/e/b"),
        ("/d/a.qcow2", "../b", "/d/../b"),
        ("a.qcow2", "b", "b"),
        ("d/a.qcow2", "s/b", "d/s/b"),
        ("file:d/a.qcow2", "b", "d/b"),
        ("/d/a.qcow2", "nbd:x", "nbd:x"),
        ("/d/a.qcow2", "./n:x", "/d/./n:x"),
        ("", "b", "b"),
    ],
)
def test_beside(image, name, path):
    assert beside(image, name) == path


def test_protocol_of(tmp_path):
    assert protocol_of("anything").name == "file"
    assert protocol_of("file:anything").name == "file"
    assert protocol_of("./a:b").name == "file"
    assert protocol_of("/dev/null").name == "host_device"
    assert protocol_of("file:/dev/null").name == "host_device"
    assert protocol_of("null-co://").name == "null-co"
    assert file_protocol("null-co://").name == "file"  # a path, whatever it looks like
    assert file_protocol("a\0b").name == "file"  # which is refused by who opens it


@pytest.mark.parametrize("name", ["nope:x", "fd:0", ":x", "raw:x", "qcow2:x", "copy-on-read:x"])
def test_unknown_protocols(name):
    with pytest.raises(OptionError, match="Unknown protocol"):
        protocol_of(name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_cannot_be_a_path(name):
    with pytest.raises(OptionError) as caught:
        check_path(name)
    message_of(caught.value).encode()  # it can be printed


def test_bytes_that_are_no_utf8_can_be_a_path():
    check_path("a\udcffb")


def test_to_options():
    assert to_options("x") == {"filename": "x"}
    assert to_options("./json:{}") == {"filename": "./json:{}"}
    assert to_options('json:{"driver": "raw", "file.filename": "x"}') == {"driver": "raw", "file": {"filename": "x"}}


def test_json_name_opens_the_same():
    options = {"driver": "raw", "size": 512, "file": {"driver": "file", "filename": 'a"b\u00e9'}}
    name = json_name(options)
    assert name == 'json:{"driver": "raw", "size": 512, "file": {"driver": "file", "filename": "a\\"b\u00e9"}}'
    assert to_options(name) == options


# -- the names of open nodes ---------------------------------------------------------------------------------------


SHOWN = [
    "driver=raw,file.filename={x}",
    "driver=raw,file.driver=file,file.filename={x}",
    "file.filename={x}",
    "driver=raw,file.driver=raw,file.file.filename={x}",
    "driver=raw,file.driver=file,file.filename={x},file.locking=off",
    "driver=raw,file.filename={x},read-only=on",
    "driver=raw,file.filename={x},node-name=n,discard=unmap,cache.direct=off,detect-zeroes=on",
    "driver=raw,size=512,file.filename={x}",
    "driver=raw,file.driver=null-co,file.size=1M",
]


@pytest.mark.oracle
@pytest.mark.parametrize("options", SHOWN)
async def test_names_are_shown_as_qemu_img_shows_them(tmp_path, options):
    require("qemu-img")
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(4096))
    text = options.format(x=path)
    shown = json.loads(qemu_img("info", "--output=json", "--image-opts", text).stdout)["filename"]
    described = aioblock.nest(aioblock.parse_keyval(text))
    async with await aioblock.open(described) as disk:
        assert disk.name == shown


async def test_a_name_that_is_shown_opens_the_same(tmp_path):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(1024) + b"\1" * 1024)
    described = {"driver": "raw", "offset": 1024, "size": 512, "file": {"driver": "file", "filename": str(path)}}
    async with await aioblock.open(described) as disk:
        name = disk.name
        assert name.startswith("json:")
        assert disk.node.exact_filename == ""
    async with await aioblock.open(name) as disk:
        assert await disk.pread(0, disk.length) == b"\1" * 512
        assert disk.name == name

"""Opening: the forms of options, the messages of failures, and what is closed again whatever happens."""

import asyncio
import gc
import os

import pytest

import aioblock
from aioblock.base.errors import OptionError, message_of
from aioblock.base.options import nest, parse_keyval
from aioblock.core import registry
from aioblock.core.driver import BlockDriver
from aioblock.graph.drain import subtree
from tests.kit.cancel_points import cancelled_at, open_files, settled
from tests.kit.oracle import qemu_img, qemu_io, require
from tests.kit.scripted import Script, ScriptedProtocol, chain_options, opened, registered
from tests.kit.watching import until

MIB = 1 << 20


def write_raw(path, nbytes=MIB):
    path.write_bytes(b"\1" * 512 + bytes(nbytes - 512))
    return path


async def make_chain(directory, layers=3):
    """Names of qcow2 layers, each backed by the next one; the last one is the base."""
    names = [directory / f"{number}.qcow2" for number in range(layers)]
    await aioblock.create(names[-1], "qcow2", size=MIB)
    for name, below in zip(reversed(names[:-1]), reversed(names), strict=False):
        await aioblock.create(name, "qcow2", {"backing_file": below.name, "backing_fmt": "qcow2"})
    return names


# -- the forms -------------------------------------------------------------------------------------------------------


async def test_every_form_opens_the_same(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    name = os.fspath(path)
    keyval = nest(parse_keyval(f"driver=raw,file.driver=file,file.filename={name}"))
    json = f'json:{{"driver": "raw", "file": {{"driver": "file", "filename": "{name}"}}}}'
    dotted = f'json:{{"driver": "raw", "file.driver": "file", "file.filename": "{name}"}}'
    forms = [
        ((path,), {"format": "raw"}),
        ((name,), {"format": "raw"}),
        ((f"file:{name}",), {"format": "raw"}),
        ((name,), {"options": {"driver": "raw"}}),
        ((name,), {}),
        (({"driver": "raw", "file": {"driver": "file", "filename": name}},), {}),
        (({"driver": "raw", "file": {"filename": name}},), {}),
        (({"driver": "raw", "file.filename": name},), {}),
        (({"file": {"filename": name}},), {"format": "raw"}),
        (({"filename": name},), {"format": "raw"}),
        ((keyval,), {}),
        ((json,), {}),
        ((dotted,), {}),
    ]
    for args, kwargs in forms:
        async with await aioblock.open(*args, **kwargs) as disk:
            assert (disk.name, disk.length, disk.node.driver.name) == (name, MIB, "raw"), (args, kwargs)
            assert disk.node.file.node.driver.name == "file"
            assert await disk.pread(0, 512) == b"\1" * 512


async def test_options_are_laid_over_the_name(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    json = f'json:{{"driver": "raw", "file.filename": "{path}"}}'
    for name in (path, json, {"driver": "raw", "file": {"filename": str(path)}}):
        async with await aioblock.open(name, options={"file.locking": "off", "size": "512"}, format="raw") as disk:
            assert disk.length == 512
    with pytest.raises(OptionError, match="Cannot specify both 'driver' and 'format'"):
        await aioblock.open(json, format="qcow2")


async def test_a_name_with_json_inside_options_is_just_a_name(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    inner = f'json:{{"driver":"file","filename":"{path}"}}'
    for options in ({"driver": "raw", "file.filename": inner}, {"driver": "file", "filename": inner}):
        with pytest.raises(OSError, match="json:"):
            await aioblock.open(options)


async def test_a_protocol_before_a_file_name_inside_options_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "x.raw")
    for name in ("file:x.raw", "nope:x.raw"):
        with pytest.raises(FileNotFoundError):
            await aioblock.open({"driver": "raw", "file.filename": name})
    async with await aioblock.open("file:x.raw", format="raw") as disk:
        assert disk.name == "x.raw"


async def test_values_of_options_may_be_strings_or_their_own_type(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    for size, direct in (("4k", "off"), (4096, False), ("4096", "no")):
        options = {"size": size, "cache.direct": direct, "read-only": True, "node-name": "here"}
        async with await aioblock.open(path, format="raw", options=options, writable=True) as disk:
            assert disk.length == 4096
            assert not disk.writable
            assert disk.node.name == "here"


async def test_cache_and_discard_are_inherited_and_can_be_overridden(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    options = {"file.cache.no-flush": "off"}
    async with await aioblock.open(path, format="raw", cache="unsafe", options=options) as disk:
        assert disk.node.cache.no_flush
        assert not disk.node.file.node.cache.no_flush
    with pytest.raises(OptionError, match="Invalid cache mode 'maybe'"):
        await aioblock.open(path, format="raw", cache="maybe")
    with pytest.raises(OptionError, match="Invalid discard mode 'maybe'"):
        await aioblock.open(path, format="raw", discard="maybe")


# -- messages ------------------------------------------------------------------------------------------------------

MESSAGES = [
    "driver=qcow2,file.filename=nosuch",
    "driver=nosuch,file.filename=r.raw",
    "driver=qcow2,file.driver=nosuch,file.filename=r.raw",
    "driver=qcow2,file.driver=file",
    "driver=qcow2,file.driver=file,file.filename=",
    "driver=qcow2",
    "driver=raw",
    "driver=file",
    "size=5",
    "driver=raw,file=r.raw",
    "driver=qcow2,file.filename=r.raw",
    "driver=qcow2,file.driver=null-co",
    "driver=qcow2,file.filename=q.qcow2,foo=bar",
    "driver=qcow2,file.filename=q.qcow2,file.foo=bar",
    "driver=qcow2,file.filename=q.qcow2,foo.bar=baz",
    "driver=raw,file.filename=r.raw,x.0=1,x.2=1",
    "driver=raw,file.filename=r.raw,offset=abc",
    "driver=raw,file.filename=r.raw,offset=-1",
    "driver=raw,file.filename=r.raw,offset=2M",
    "driver=raw,file.filename=r.raw,size=2M",
    "driver=raw,file.filename=r.raw,size=1000",
    "driver=raw,file.filename=r.raw,offset=512k,size=1M",
    "driver=raw,file.filename=r.raw,read-only=maybe",
    "driver=raw,file.filename=r.raw,read-only=",
    "driver=raw,file.filename=r.raw,auto-read-only=maybe",
    "driver=raw,file.filename=r.raw,discard=maybe",
    "driver=raw,file.filename=r.raw,detect-zeroes=maybe",
    "driver=raw,file.filename=r.raw,cache.direct=maybe",
    "driver=raw,file.filename=r.raw,cache.foo=on",
    "driver=raw,file.filename=r.raw,node-name=a b",
    "driver=raw,file.filename=r.raw,node-name=foo,file.node-name=foo",
    "driver=raw,file.filename=r.raw,file.locking=maybe",
    "driver=raw,file.filename=nosuch",
    "driver=file,filename=nosuch",
    "driver=file,filename=.",
    "driver=raw,file.filename=r.raw/x",
    "driver=file,filename=/dev/null",
    "driver=raw,file.filename=file:r.raw",
    "driver=raw,file.filename=a,,b",
    "driver=null-co,foo=1",
    "driver=null-co,latency-ns=-1",
    "driver=copy-on-read",
    "driver=qcow2,file.filename=o.qcow2,backing=nope",
    "driver=qcow2,file.filename=o.qcow2,backing.driver=raw,backing.file.filename=nosuch",
    "driver=qcow2,file.filename=o.qcow2,backing.file.filename=r.raw",
    "driver=qcow2,file.filename=o.qcow2,backing.foo=bar",
    "driver=qcow2,file.filename=o.qcow2,backing.driver=nosuch",
    "driver=qcow2,file.filename=q.qcow2,backing.node-name=x",
    "driver=qcow2,file.filename=broken.qcow2",
]
NAMES = [
    *("nosuch", "file:nosuch", "nope:x", "./nope:x", "file:file:nosuch", "fd:0", ".", "r.raw/", "dangling", ""),
    *("json:{}", "json:[]", 'json:{"driver":"raw"}', 'json:{"driver":"raw","file":null}', "broken.qcow2"),
]


@pytest.fixture(scope="module")
def some_images(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    require("qemu-img", "qemu-io")
    write_raw(directory / "r.raw")
    qemu_img("create", "-q", "-f", "qcow2", directory / "q.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", directory / "o.qcow2")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "nosuch", "-F", "qcow2", directory / "broken.qcow2", "1M")
    (directory / "dangling").symlink_to("nowhere")
    return directory


async def failure(name, **how):
    """The message that opening fails with."""
    with pytest.raises((OSError, aioblock.BlockError)) as caught:
        await (await aioblock.open(name, trust=aioblock.TRUST_ALL, **how)).close()
    return message_of(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("text", MESSAGES)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_messages_are_those_of_qemu_for_options(some_images, monkeypatch, text):
    monkeypatch.chdir(some_images)
    said = qemu_io(text, "length", options=["-r", "--image-opts"], check=False)
    expected = said.stderr.splitlines()[0].removeprefix("qemu-io: can't open: ")
    assert await failure(nest(parse_keyval(text))) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_messages_are_those_of_qemu_for_names(some_images, monkeypatch, name):
    monkeypatch.chdir(some_images)
    said = qemu_io(name, "length", options=["-r"], check=False)
    expected = said.stderr.splitlines()[0].removeprefix(f"qemu-io: can't open device {name}: ")
    assert await failure(name) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"driver": 5},
        {"driver": "raw", "file": 5},
        {"driver": "raw", "file": ["x"]},
        {"driver": "raw", "file": {"driver": "file", "filename": 5}},
        {"filename": "x", "file": "y"},
        {"filename": "a\0b"},
        {"filename": "\ud800"},
        {"driver": "file", "filename": "a\0b"},
        {"driver": "file", "filename": "\ud800"},
        {"driver": "raw", "file": {"driver": "file", "filename": "a\0b"}},
        {"driver": "null-co", "cache": "none"},
        {"driver": "null-co", "size": 1 << 70},
        {"driver": "null-co", "node-name": 5},
        {"driver": "null-co", "force-share": 5},
        {"driver": "qcow2", "file": {"driver": "null-co"}, "backing": 5},
        {"": ""},
        {},
    ],
)
async def test_nonsense_is_a_typed_error(options):
    assert await failure(options)


async def test_json_of_any_shape_is_a_typed_error():
    for text in ('{"driver": "raw", "x": {"\u00b2": 1}}', '{"x.00": 1}', '{"a": ' * 900 + "1" + "}" * 900, '{".": 1}'):
        assert await failure("json:" + text)


# -- what is closed again ------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_failure_at_any_layer_closes_what_is_above_it(tmp_path):
    names = await make_chain(tmp_path)
    for victim in names:
        content = victim.read_bytes()
        for damage in (b"", b"nope" + content[4:], content[:60]):
            victim.write_bytes(damage)
            for writable in (False, True):
                with pytest.raises((OSError, aioblock.BlockError)):
                    await aioblock.open(names[0], format="qcow2", writable=writable)
                assert open_files(tmp_path) == []
        victim.unlink()
        with pytest.raises(FileNotFoundError):
            await aioblock.open(names[0], format="qcow2")
        assert open_files(tmp_path) == []
        victim.write_bytes(content)
    async with await aioblock.open(names[0], format="qcow2", writable=True):
        assert len(open_files(tmp_path)) == 3
    assert open_files(tmp_path) == []


async def test_an_unknown_option_closes_the_driver_that_does_not_take_it(tmp_path):
    path = write_raw(tmp_path / "x.raw")
    for options in ({"nope": 1}, {"file.nope": 1}):
        with pytest.raises(OptionError, match="support the option 'nope'"):
            await aioblock.open(path, format="raw", options=options)
        assert open_files(tmp_path) == []


async def test_a_driver_whose_length_cannot_be_told_is_closed():
    script = Script(4096)
    script.fail("getlength", OSError(5, "Input/output error"))
    with registered():
        with pytest.raises(OSError, match="Input/output error"):
            await aioblock.open(chain_options(script))
    assert [call.verb for call in script.log] == ["open", "getlength", "close"]


async def test_layers_are_closed_from_the_top_each_once():
    scripts = [Script(4096), Script(4096), Script(4096)]
    files = {script: Script(4096) for script in scripts}
    async with opened(*scripts, files=files) as disk:
        nodes = subtree(disk.node)
        assert len(nodes) == 6
    for script in (*scripts, *files.values()):
        assert len(script.calls("close")) == 1
    assert all(node.closed and not node.children and not node.parents for node in nodes)


async def test_all_is_closed_although_closing_fails():
    scripts = [Script(4096), Script(4096)]
    files = {script: Script(4096) for script in scripts}
    scripts[0].fail("close", OSError(5, "first"))
    scripts[1].fail("close", OSError(5, "second"))
    with registered():
        disk = await aioblock.open(chain_options(*scripts, files=files))
    with pytest.raises(OSError, match="first"):
        await disk.close()
    for script in (*scripts, *files.values()):
        assert len(script.calls("close")) == 1
    await disk.close()


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "again-and-again"])
@pytest.mark.parametrize("writable", [False, True])
async def test_cancelled_at_every_await_everything_is_closed(tmp_path, writable, again):
    names = await make_chain(tmp_path)
    before = {name: name.read_bytes() for name in names}
    number = reached = 0
    while number == reached:
        number += 1
        run = await cancelled_at(aioblock.open(names[0], format="qcow2", writable=writable), number, again=again)
        reached += run.reached
        if run.result is not None:
            await run.result.close()
        assert run.error is None
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await settled(lambda: not open_files(tmp_path))  # the thread of a cancelled open(2) closes by itself
        async with await aioblock.open(names[0], format="qcow2", writable=True):  # no lock is left
            pass
    assert reached >= 2 * len(names)  # open(2) and the locks, each in a thread
    if not writable:
        assert {name: name.read_bytes() for name in names} == before


async def test_an_open_that_is_done_when_the_cancellation_comes_is_closed(tmp_path):
    script = Script(4096)
    script.hold("getlength")
    with registered():
        opening = asyncio.create_task(aioblock.open(chain_options(script)))
        await until(lambda: script.held)
        script.release()
        closed = []
        while not opening.done():  # cancelled again in each turn, also when nothing is left to be opened
            opening.cancel()
            closed.append(len(script.calls("close")))
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert len(script.calls("close")) == 1
    gc.collect()


async def test_the_last_turn_of_an_open_can_be_cancelled(tmp_path):
    """The layer is open, its opener has not heard of it yet, and is cancelled."""
    script = Script(4096)
    script.hold("open")
    with registered():
        for turns in range(12):
            script.hold("open")
            opening = asyncio.create_task(aioblock.open(chain_options(script)))
            await until(lambda: script.held)
            script.release()
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                await (await opening).close()
            except asyncio.CancelledError:
                pass
            opens = [call for call in script.calls("open") if call.outcome == "done"]
            assert len(script.calls("close")) == len(opens), turns


async def test_closing_after_a_failure_is_not_cut_short(tmp_path):
    """The second cancellation comes while the first one's cleaning up waits."""
    top, low = Script(4096), Script(4096)
    files = {top: Script(4096), low: Script(4096)}
    low.hold("open")
    files[top].hold("close")
    with registered():
        opening = asyncio.create_task(aioblock.open(chain_options(top, low, files=files)))
        await until(lambda: low.held)
        opening.cancel()
        await until(lambda: files[top].held)
        for _ in range(3):
            opening.cancel()
            await asyncio.sleep(0)
            assert not opening.done()
        files[top].release()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert [call.outcome for call in files[top].calls("close")] == ["done"]
    assert low.calls("close") == []  # it never was open


async def test_a_timeout_round_open_is_a_timeout():
    script = Script(4096)
    script.hold("open")
    with registered():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await aioblock.open(chain_options(script))
    assert asyncio.current_task().cancelling() == 0


class ReadOnlyDriver(ScriptedProtocol):
    """A protocol that cannot write."""

    name = "scripted-read-only"
    pwritev = BlockDriver.pwritev


async def test_a_driver_that_cannot_write_is_opened_read_only():
    registry.register(ReadOnlyDriver)
    try:
        options = {"driver": "scripted-read-only", "script": Script(4096)}
        with pytest.raises(OptionError, match="Driver 'scripted-read-only' can only be used read-only"):
            await aioblock.open(options, writable=True)
        async with await aioblock.open(options) as disk:
            assert not disk.writable
    finally:
        del registry._drivers[ReadOnlyDriver.name]

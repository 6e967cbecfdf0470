"""New files: what was made is removed again, what was there is not, and what was touched is named."""

import asyncio
import os

import pytest

import aioblock
from tests.kit.cancel_points import cancelled_at, open_files, settled


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


async def test_what_is_made_stays_where_all_goes_well(tmp_path):
    async with aioblock.removed_on_failure(tmp_path / "x"):
        (tmp_path / "x").write_bytes(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


@pytest.mark.parametrize("form", ["{}", "file:{}"])
async def test_what_is_made_is_removed_where_it_fails(tmp_path, form):
    path = tmp_path / "x"
    with pytest.raises(KeyError) as caught:
        async with aioblock.removed_on_failure(form.format(path)):
            path.write_bytes(b"half")
            raise KeyError
    assert not path.exists() and not _notes(caught.value)


async def test_what_was_there_stays_and_is_named_if_it_was_touched(tmp_path):
    touched, untouched = tmp_path / "touched", tmp_path / "untouched"
    for path in (touched, untouched):
        path.write_bytes(b"before")
    with pytest.raises(KeyError) as caught:
        async with aioblock.removed_on_failure(touched, untouched):
            touched.write_bytes(b"now")
            raise KeyError
    assert (touched.read_bytes(), untouched.read_bytes()) == (b"now", b"before")
    assert _notes(caught.value) == [f"'{touched}' was there before, and is incomplete now"]


async def test_the_file_of_somebody_else_is_not_removed(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(KeyError):
        async with aioblock.removed_on_failure(path):
            (tmp_path / "theirs").write_bytes(b"theirs")
            (tmp_path / "theirs").rename(path)
            raise KeyError
    assert path.read_bytes() == b"theirs"


async def test_one_of_two_that_make_the_same_file_removes_nothing(tmp_path):
    """The second one came later: it has not made the file, whatever becomes of it."""
    path, inside = tmp_path / "x", asyncio.Event()

    async def first():
        async with aioblock.removed_on_failure(path):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(first())
    await inside.wait()
    with pytest.raises(KeyError):
        async with aioblock.removed_on_failure(path):
            raise KeyError
    assert path.exists()
    task.cancel()
    await asyncio.wait([task])
    assert not path.exists()


async def test_one_inside_another(tmp_path):
    """The inner one did not find the file there: nothing is left, and nothing is called incomplete."""
    elsewhere = {"data_file": "no/such/folder"}
    with pytest.raises(FileNotFoundError) as caught:
        async with aioblock.removed_on_failure(tmp_path / "x"):
            await aioblock.create(tmp_path / "x", "qcow2", elsewhere, size=1 << 20)
    assert os.listdir(tmp_path) == [] and not _notes(caught.value)
    async with aioblock.removed_on_failure(tmp_path / "x"):
        await aioblock.create(tmp_path / "x", "qcow2", size=1 << 20)
    with pytest.raises(FileNotFoundError) as caught:
        await aioblock.create(tmp_path / "x", "qcow2", elsewhere, size=1 << 20)
    assert _notes(caught.value)


@pytest.mark.parametrize("name", ["memory:x", "nosuch/x", "with\0nul", "null-co://"])
async def test_names_that_no_file_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError):
        async with aioblock.removed_on_failure(name):
            raise KeyError
    assert os.listdir(tmp_path) == []


async def test_cancelled_at_every_await(tmp_path):
    async def make():
        async with aioblock.removed_on_failure(tmp_path / "x", tmp_path / "y"):
            (tmp_path / "x").write_bytes(b"half")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise KeyError

    number = 1
    while (run := await cancelled_at(make(), number, again=True)).reached:
        assert run.cancelled and os.listdir(tmp_path) == [], number
        number += 1
    assert number > 4 and isinstance(run.error, KeyError)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["raw", "qcow2", "luks"])
async def test_creating_cancelled_at_every_await(tmp_path, fmt):
    """A cancelled creation leaves no file behind, not even later, when its thread has ended."""
    objects = {"s": aioblock.Secret(b"word")}
    options = {"luks": {"key-secret": "s", "iter-time": 10}, "qcow2": {"data_file": "data"}, "raw": {}}[fmt]
    number = 1
    while (run := await cancelled_at(_create(tmp_path / "x", fmt, options, objects), number)).reached:
        assert run.cancelled, run
        assert os.listdir(tmp_path) == [], number
        await settled(lambda: not open_files(tmp_path))
        assert os.listdir(tmp_path) == [], number
        number += 1
    assert number > 2 and run.error is None and (tmp_path / "x").exists()


def _create(path, fmt, options, objects):
    return aioblock.create(path, fmt, options, size=1 << 20, objects=objects)


async def test_a_failed_creation_leaves_nothing(tmp_path):
    with pytest.raises(aioblock.OptionError, match="Cluster size"):
        await aioblock.create(tmp_path / "x", "qcow2", {"cluster_size": 3, "data_file": "data"}, size=1 << 20)
    assert os.listdir(tmp_path) == []


async def test_a_failed_creation_over_a_file_says_so(tmp_path):
    (tmp_path / "x").write_bytes(b"was here")
    with pytest.raises(FileNotFoundError) as caught:
        await aioblock.create(tmp_path / "x", "qcow2", {"data_file": "no/such/folder"}, size=1 << 20)
    assert _notes(caught.value) == [f"'{tmp_path / 'x'}' was there before, and is incomplete now"]
    (tmp_path / "x").write_bytes(b"was here")
    for wrong in ({"nonsense": 3}, {"cluster_size": 3}):
        with pytest.raises(aioblock.OptionError) as caught:
            await aioblock.create(tmp_path / "x", "qcow2", wrong, size=1 << 20)
        assert (tmp_path / "x").read_bytes() == b"was here" and not _notes(caught.value)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("option", ["backing_file", "data_file"])
async def test_an_image_is_not_made_over_what_it_needs(tmp_path, monkeypatch, option, there):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "x").write_bytes(b"precious")
    options = {option: "./x", "backing_fmt": "raw"} if option == "backing_file" else {option: "./x"}
    with pytest.raises(aioblock.OptionError, match="the same file"):
        await aioblock.create(tmp_path / "x", "qcow2", options, size=1 << 20)
    assert os.listdir(tmp_path) == (["x"] if there else [])
    assert not there or (tmp_path / "x").read_bytes() == b"precious"

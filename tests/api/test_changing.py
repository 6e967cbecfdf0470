"""check, resize, amend and compare by name."""

import pytest

import aioblock
from tests.api.conftest import MIB, content
from tests.kit.cancel_points import cancelled_at, open_files, settled
from tests.kit.oracle import assert_clean, qemu_img, require


def _leak(path):
    """A cluster behind the end that is counted, and that nobody uses."""
    with open(path, "r+b") as file:
        file.seek(0, 2)
        end = file.tell()
        file.write(bytes(-end % 65536 or 65536))
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * (-(-end // 65536)))
        file.write((1).to_bytes(2, "big"))


@pytest.mark.slow
@pytest.mark.oracle
async def test_check_and_repair(chain):
    require("qemu-img")
    assert (await aioblock.check("top.qcow2")).leaks == 0
    _leak("top.qcow2")
    assert qemu_img("check", "top.qcow2", check=False).returncode == 3
    assert (await aioblock.check("top.qcow2")).leaks == 1
    with pytest.raises(aioblock.OptionError, match="must be given"):
        await aioblock.check("top.qcow2", fix_leaks=True)
    told = []
    found = await aioblock.check("top.qcow2", format="qcow2", fix_leaks=True, progress=lambda *how: told.append(how))
    assert found.leaks_fixed == 1 and told
    assert (await aioblock.check("top.qcow2")).leaks == 0
    assert_clean("top.qcow2", "qcow2")
    assert await content("top.qcow2") == chain.data


@pytest.mark.slow
async def test_a_repair_that_is_cancelled_has_ended_when_the_call_has(chain, tmp_path):
    number = 1
    while True:
        _leak("top.qcow2")
        run = await cancelled_at(aioblock.check("top.qcow2", format="qcow2", fix_leaks=True), number)
        await settled(lambda: not open_files(tmp_path))
        assert_clean("base.qcow2", "qcow2")
        assert (await aioblock.check("top.qcow2")).corruptions == 0
        await aioblock.check("top.qcow2", format="qcow2", fix_leaks=True)
        if not run.cancelled:
            break
        number += 6
    assert number > 6


async def test_check_of_what_has_nothing_to_check(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 512)
    with pytest.raises(aioblock.NotSupported):
        await aioblock.check(tmp_path / "x")


@pytest.mark.oracle
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
async def test_resize(tmp_path, fmt):
    require("qemu-img")
    path = tmp_path / "x"
    await aioblock.create(path, fmt, size=MIB)
    async with await aioblock.open(path, format=fmt, writable=True) as disk:
        await disk.pwrite(0, b"x" * MIB)
    await aioblock.resize(path, 2 * MIB, format=fmt)
    assert await content(path, fmt) == b"x" * MIB + bytes(MIB)
    await aioblock.resize(path, 4 * MIB, prealloc="falloc", format=fmt)
    with pytest.raises(aioblock.OptionError, match=r"behind byte 1000, .* `shrink`") as caught:
        await aioblock.resize(path, 1000, format=fmt)
    assert caught.value.option == "shrink"
    assert (await aioblock.info(path, format=fmt)).virtual_size == 4 * MIB
    await aioblock.resize(path, 65536, shrink=True, format=fmt)
    assert await content(path, fmt) == b"x" * 65536
    assert f'"virtual-size": {65536},' in qemu_img("info", "-f", fmt, "--output=json", path).stdout


@pytest.mark.parametrize(
    ("size", "more", "option"),
    [
        (0, {}, "size"),
        (-1, {"shrink": True}, "size"),
        (MIB, {"prealloc": "full"}, "prealloc"),
        (MIB, {"prealloc": "x"}, "prealloc"),
    ],
)
async def test_resize_that_makes_no_sense(tmp_path, size, more, option):
    await aioblock.create(tmp_path / "x", "qcow2", size=MIB)
    with pytest.raises(aioblock.OptionError) as caught:
        await aioblock.resize(tmp_path / "x", size, format="qcow2", **more)
    assert caught.value.option == option
    assert (await aioblock.info(tmp_path / "x")).virtual_size == MIB


async def test_amend(chain):
    await aioblock.amend("top.qcow2", {"lazy_refcounts": "on", "refcount_bits": 32}, format="qcow2")
    specific = (await aioblock.info("top.qcow2")).specific
    assert specific["lazy-refcounts"] is True and specific["refcount-bits"] == 32
    assert await content("top.qcow2") == chain.data
    with pytest.raises(aioblock.OptionError, match="cluster_size"):
        await aioblock.amend("top.qcow2", {"cluster_size": 4096}, format="qcow2")


async def test_compare(chain):
    await aioblock.convert("top.qcow2", "copy")
    assert await aioblock.compare("top.qcow2", "copy", second_format="raw") is None
    assert (await aioblock.compare("top.qcow2", "base.qcow2")).offset == 50_000 // 512 * 512
    assert (await aioblock.compare("top.qcow2", "copy", second_format="raw", strict=True)).kind == "status"
    async with await aioblock.open("top.qcow2") as disk:
        assert await aioblock.compare(disk, "copy", second_format="raw", force_share=True) is None
        assert await aioblock.compare("copy", disk, format="raw") is None
        assert await aioblock.compare(disk, disk) is None
        with pytest.raises(ValueError, match="force_share"):
            await aioblock.compare(disk, disk, force_share=True)


async def test_measure_of_a_name(chain):
    expected = qemu_img("measure", "-O", "qcow2", "top.qcow2").stdout
    found = await aioblock.measure("qcow2", source="top.qcow2")
    assert expected.startswith(f"required size: {found.required}\nfully allocated size: {found.fully_allocated}\n")
    async with await aioblock.open("top.qcow2") as disk:
        assert await aioblock.measure("qcow2", source=disk) == found

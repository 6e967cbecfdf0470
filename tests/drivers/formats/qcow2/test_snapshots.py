"""Internal snapshots: made, applied and deleted, next to a model and to QEMU."""

import errno
import random
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import REQ_COMPRESSED, BlockBackend, NotSupported, OptionError
from aioblock.base.errors import message_of
from tests.kit.oracle import assert_clean, qemu_img, qemu_io
from tests.kit.qcow2_images import header_of, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk, fail_nth

KIB = 1024
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"cluster_size": 512, "refcount_bits": 64},
    "narrow": {"cluster_size": 2 * KIB, "refcount_bits": 2},
    "extended": {"cluster_size": 16 * KIB, "extended_l2": True},
    "v2": {"compat": "0.10", "cluster_size": 4 * KIB},
    "lazy": {"cluster_size": 4 * KIB, "lazy_refcounts": True},
}
SIZE = 1024 * KIB


def names(disk: BlockBackend) -> list[tuple[str, str]]:
    return [(snapshot.id, snapshot.name) for snapshot in disk.snapshots()]


async def content(disk: BlockBackend) -> bytes:
    return bytes(await disk.pread(0, disk.length))


class Player:
    """Random operations on an image, and what must be in it afterwards."""

    def __init__(self, disk: BlockBackend, seed: int, backing: bytes = b"") -> None:
        self.disk = disk
        self.chance = random.Random(seed)
        self.model = bytearray(backing.ljust(disk.length, b"\0"))
        self.saved: dict[str, bytes] = {}
        self.cluster = disk.node.driver.cluster_size or 0

    async def step(self) -> None:
        chance, disk = self.chance, self.disk
        kind = chance.choice(("write", "write", "write", "zero", "compress", "create", "create", "apply", "delete"))
        low = chance.randrange(len(self.model))
        high = min(low + chance.randrange(1, 100_000), len(self.model))
        if kind == "write":
            data = chance.randbytes(high - low)
            await disk.pwrite(low, data)
            self.model[low:high] = data
        elif kind == "zero":
            await disk.pwrite_zeroes(low, high - low)
            self.model[low:high] = bytes(high - low)
        elif kind == "compress":
            low = low // self.cluster * self.cluster
            high = min(low + self.cluster, len(self.model))
            data = (chance.randbytes(99) * (high - low))[: high - low]
            await disk.pwrite(low, data, REQ_COMPRESSED)
            self.model[low:high] = data
        elif kind == "create":
            await self.create()
        elif self.saved:
            number = chance.choice(list(self.saved))
            if kind == "apply":
                await self.apply(number)
            else:
                await disk.snapshot_delete(number)
                del self.saved[number]

    async def create(self) -> None:
        before = self.disk.snapshots()
        if await self.fits(self.disk.snapshot_create("a name")):
            made = self.disk.snapshots()[-1]
            self.saved[made.id] = bytes(self.model)
        else:
            assert self.disk.snapshots() == before

    async def apply(self, number: str) -> None:
        if await self.fits(self.disk.snapshot_apply(number)):
            self.model[:] = self.saved[number]

    async def fits(self, verb: Awaitable[Any]) -> bool:
        """Whether the refcounts are wide enough for what a verb does; every other error is raised."""
        try:
            await verb
        except OSError as error:
            if error.errno != errno.EINVAL or "refcount_bits" not in message_of(error):
                raise
            return False
        return True


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
async def test_random_operations(shape: str, seed: int, tmp_path: Path) -> None:
    below = bytes(place * 7 % 253 for place in range(SIZE // 2)) if seed else b""
    backing = RecordedDisk(below) if seed else None
    disk = RecordedDisk(await new_image(SIZE, **SHAPES[shape]))
    image = await open_disk(disk, backing=backing)
    player = Player(image, seed, below)
    for _ in range(30):
        await player.step()
        assert await content(image) == player.model
        result = await image.check()
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), result.findings
    await image.close()
    path, wanted = tmp_path / "image.qcow2", tmp_path / "wanted"
    path.write_bytes(disk.content())
    assert_clean(path, "qcow2")
    listed = qemu_img("snapshot", "-l", path).stdout
    assert [line.split()[0] for line in listed.splitlines()[2:]] == list(player.saved)
    for number, saved in player.saved.items():
        then = await open_disk(disk, {"snapshot": number}, backing=backing, writable=False)
        assert await content(then) == saved
        await then.close()
        if backing is None:
            wanted.write_bytes(saved)
            qemu_img("convert", "-l", f"snapshot.id={number}", "-O", "raw", path, tmp_path / "found")
            assert (tmp_path / "found").read_bytes() == saved


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(2))
async def test_twins(seed: int, tmp_path: Path) -> None:
    """The same operations on two images: by QEMU's programs, and by us, and then by each on the other's."""
    chance = random.Random(seed)
    options = chance.choice((["-o", "cluster_size=4k"], ["-o", "compat=0.10"], ["-o", "extended_l2=on"]))
    theirs = qemu_image(tmp_path / "theirs", SIZE, *options)
    ours = qemu_image(tmp_path / "ours", SIZE, *options)
    made: list[str] = []
    for turn in range(24):
        kind = chance.choice(("write", "write", "create", "create", "apply", "delete"))
        if kind == "write":
            low, nbytes = chance.randrange(SIZE // 512) * 512, 512 * chance.randrange(1, 200)
            nbytes = min(nbytes, SIZE - low)
            qemu_io(theirs, f"write -P {turn + 1} {low} {nbytes}", fmt="qcow2")
            await _on(ours, "pwrite", low, bytes([turn + 1]) * nbytes)
        elif kind == "create":
            made.append(f"s{turn}")
            qemu_img("snapshot", "-c", made[-1], theirs)
            await _on(ours, "snapshot_create", made[-1])
        elif made:
            name = chance.choice(made)
            qemu_img("snapshot", "-a" if kind == "apply" else "-d", name, theirs)
            await _on(ours, f"snapshot_{kind}", name)
            made = [other for other in made if kind == "apply" or other != name]
        if turn == 12:
            theirs, ours = ours, theirs
        assert_clean(theirs, "qcow2")
        assert_clean(ours, "qcow2")
    qemu_img("compare", theirs, ours)
    found = []
    for path in (theirs, ours):
        async with await aioblock.open(path) as disk:
            found.append(names(disk))
        for name in made:
            qemu_img("convert", "-l", name, "-O", "raw", path, tmp_path / f"{path.name}.{name}")
    assert found[0] == found[1] and [name for _, name in found[0]] == made
    for name in made:
        assert (tmp_path / f"theirs.{name}").read_bytes() == (tmp_path / f"ours.{name}").read_bytes()


async def _on(path: Path, verb: str, *args: Any) -> None:
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await getattr(disk, verb)(*args)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
async def test_what_a_snapshot_says(version: str) -> None:
    disk = RecordedDisk(await new_image(SIZE, compat=version))
    image = await open_disk(disk)
    made = await image.snapshot_create("n\udcff\u20ac", vm_state_size=5 << 32, vm_clock_nsec=12, icount=34)
    assert (made.id, made.name, made.vm_state_size, made.vm_clock_nsec) == ("1", "n\udcff\u20ac", 5 << 32, 12)
    assert (made.icount, made.disk_size) == (34, SIZE)
    assert (await image.snapshot_create("")).icount is None
    await image.close()
    image = await open_disk(disk, writable=False)
    assert names(image) == [("1", "n\udcff\u20ac"), ("2", "")]
    assert image.snapshots()[0] == made
    assert image.info().snapshots == 2
    await image.close()


async def test_an_id_comes_before_a_name_and_a_name_may_be_there_twice() -> None:
    image = await open_disk(RecordedDisk(await new_image(SIZE)))
    for number, name in enumerate(("same", "1", "same"), 1):
        await image.pwrite(0, bytes([number]))
        await image.snapshot_create(name)
    await image.snapshot_apply("1")
    assert await image.pread(0, 1) == b"\1"
    await image.snapshot_delete("same")
    assert names(image) == [("2", "1"), ("3", "same")]
    await image.snapshot_apply("1")
    assert await image.pread(0, 1) == b"\2"
    assert (await image.snapshot_create("x")).id == "4"
    for verb in (image.snapshot_apply, image.snapshot_delete):
        with pytest.raises(OSError, match="Can't find snapshot") as caught:
            await verb("nothing")
        assert caught.value.errno == errno.ENOENT
    await image.close()


async def test_the_size_of_the_disk_comes_back_too() -> None:
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512))
    image = await open_disk(disk)
    await image.pwrite(SIZE - 512, b"a" * 512)
    await image.snapshot_create("small")
    await image.truncate(4 * SIZE)
    await image.pwrite(3 * SIZE, b"b" * 512)
    await image.snapshot_create("large")
    await image.snapshot_apply("small")
    assert image.length == SIZE == header_of(disk.content()).size
    assert await image.pread(SIZE - 512, 512) == b"a" * 512
    await image.snapshot_apply("large")
    assert image.length == 4 * SIZE
    assert await image.pread(3 * SIZE, 512) == b"b" * 512
    await image.snapshot_apply("small")
    await image.truncate(4 * SIZE)
    assert await image.pread(3 * SIZE, 512) == bytes(512)
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.close()
    image = await open_disk(disk, {"snapshot": "small"}, writable=False)
    assert image.length == SIZE
    await image.close()


async def test_version_2_keeps_its_size() -> None:
    content = bytearray(await new_image(SIZE, compat="0.10"))
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    await image.snapshot_create("one")
    with pytest.raises(NotSupported, match="v2 image which has snapshots"):
        await image.truncate(2 * SIZE)
    await image.close()
    content = bytearray(disk.content())
    content[24:32] = (2 * SIZE).to_bytes(8, "big")
    image = await open_disk(RecordedDisk(bytes(content)))
    with pytest.raises(NotSupported, match="v2 image"):
        await image.snapshot_apply("one")
    await image.close()


async def test_refcounts_that_are_too_narrow_change_nothing() -> None:
    disk = RecordedDisk(await new_image(SIZE, refcount_bits=1))
    image = await open_disk(disk)
    await image.snapshot_create("an empty disk shares nothing")
    await image.snapshot_delete("1")
    await image.pwrite(0, b"x" * 100_000)
    await image.flush()
    before = disk.content()
    with pytest.raises(OSError, match="refcount_bits=1") as caught:
        await image.snapshot_create("no")
    assert caught.value.errno == errno.EINVAL
    assert not image.snapshots()
    await image.pwrite(0, b"y" * 100_000)
    await image.flush()
    assert header_of(disk.content()) == header_of(before)
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.close()


async def test_a_snapshot_is_opened_read_only_and_nothing_else() -> None:
    disk = RecordedDisk(await new_image(SIZE))
    image = await open_disk(disk)
    await image.pwrite(0, b"then")
    await image.snapshot_create("then")
    await image.pwrite(0, b"now!")
    await image.close()
    for asked in ("1", "then", {"id": "1"}, {"name": "then"}, {"id": "1", "name": "then"}):
        image = await open_disk(disk, {"snapshot": asked}, writable=False)
        assert await image.pread(0, 4) == b"then"
        with pytest.raises(OSError, match="A snapshot can only be read"):
            await image.reopen(writable=True)
        assert (await image.check()).corruptions == 0
        await image.close()
    for wrong in ("2", "", {"id": "then"}, {"name": "1"}, {"id": "1", "name": "x"}):
        with pytest.raises(OptionError, match="Can't find snapshot"):
            await open_disk(disk, {"snapshot": wrong}, writable=False)
    with pytest.raises(OptionError, match=r"Invalid parameter 'snapshot\.x'"):
        await open_disk(disk, {"snapshot": {"x": "1"}}, writable=False)
    with pytest.raises(OptionError, match="read-only"):
        await open_disk(disk, {"snapshot": "1"})


async def test_the_name_of_an_open_snapshot_opens_it_again(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    await aioblock.create(path, "qcow2", size=SIZE)
    await _on(path, "pwrite", 0, b"then")
    await _on(path, "snapshot_create", "one")
    await _on(path, "pwrite", 0, b"now!")
    async with await aioblock.open(path, snapshot="one") as disk:
        name = disk.name
        assert await disk.pread(0, 4) == b"then"
    assert name.startswith("json:")
    async with await aioblock.open(name) as disk:
        assert await disk.pread(0, 4) == b"then"


async def test_a_read_only_image_is_not_changed() -> None:
    disk = RecordedDisk(await new_image(SIZE))
    image = await open_disk(disk)
    await image.snapshot_create("one")
    await image.close()
    image = await open_disk(disk, writable=False)
    for verb in (image.snapshot_create, image.snapshot_apply, image.snapshot_delete):
        with pytest.raises(OSError) as caught:
            await verb("one")
        assert caught.value.errno == errno.EACCES
    await image.close()


async def test_a_driver_without_snapshots_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(512))
    async with await aioblock.open(path, format="raw", writable=True) as disk:
        assert disk.snapshots() == ()
        for verb in (disk.snapshot_create, disk.snapshot_apply, disk.snapshot_delete):
            with pytest.raises(NotSupported, match="does not support internal snapshots"):
                await verb("x")
    with pytest.raises(OptionError, match="does not support the option 'snapshot'"):
        await aioblock.open(path, format="raw", snapshot="x")


async def test_bitmaps_forbid_to_go_back(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "image.qcow2", SIZE)
    qemu_img("bitmap", "--add", path, "b")
    await _on(path, "snapshot_create", "one")
    with pytest.raises(NotSupported, match="Device has active dirty bitmaps"):
        await _on(path, "snapshot_apply", "one")


async def test_a_large_image_is_counted_quickly() -> None:
    """100,000 clusters, all in use: the work is done on whole tables, and the loop goes on meanwhile."""
    disk = RecordedDisk(await new_image(100_000 * 512, cluster_size=512))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 512 * 4096)
    await image.snapshot_create("one")
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.snapshot_delete("one")
    await image.close()


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("verb", ["snapshot_create", "snapshot_apply", "snapshot_delete"])
async def test_an_error_at_any_request_leaves_a_sound_image(verb: str) -> None:
    start = RecordedDisk(await new_image(SIZE, cluster_size=4 * KIB))
    image = await open_disk(start)
    await image.pwrite(0, b"then" * 5000)
    await image.snapshot_create("one")
    await image.pwrite(0, b"now!" * 2000)
    now = await content(image)
    await image.close()
    then = b"then" * 5000 + now[20_000:]
    number = 0
    while True:
        number += 1
        disk = RecordedDisk(start.content())
        image = await open_disk(disk)
        disk.before = fail_nth(number, OSError(errno.EIO, "no"), ("read", "write", "zero", "flush"))
        failed = False
        try:
            await getattr(image, verb)("one")
        except OSError:
            failed = True
        disk.before = None
        try:
            await image.close()
        except OSError:
            assert failed
        image = await open_disk(disk)
        found = await content(image)
        assert found == then if verb == "snapshot_apply" and not failed else found in (now, then)
        result = await image.check()
        assert result.check_errors == 0
        assert not [each for each in result.findings if each.kind == "corruption" and "COPIED" not in each.message]
        for snapshot in image.snapshots():
            old = await open_disk(disk, {"snapshot": snapshot.id}, writable=False)
            assert await content(old) == (then if snapshot.id == "1" else now)
            await old.close()
        await image.close()
        if not failed:
            break
    assert number > 8

"""Volumes: passphrases open them, slots come and go, and at no moment a crash locks somebody out."""

import asyncio
import errno
import random

import pytest

from aioblock.base.errors import InvalidImage, OptionError
from aioblock.luks import kdf
from aioblock.luks import volume as volume_module
from aioblock.luks.unlocking import Unlocking
from aioblock.luks.volume import Volume
from tests.kit.encrypted import PASSPHRASE, luks_image
from tests.kit.memory_io import Call, MemoryIO, fail_nth
from tests.kit.thread_gate import ThreadGate

OTHER = b"another one"
UNLOCKING = Unlocking(PASSPHRASE)


async def small_image() -> bytes:
    """With the shortest key: half of the time goes into its stripes."""
    return await luks_image(cipher_alg="aes-128", cipher_mode="cbc")


async def opened(data: bytes | bytearray, passphrase: bytes | None = PASSPHRASE) -> Volume:
    file = MemoryIO(data)
    volume = await Volume.read(file, 0, file.length)
    if passphrase is not None:
        await volume.unlock(Unlocking(passphrase))
    file.log.clear()
    return volume


async def key_of(data: bytes | bytearray, passphrase: bytes) -> bytes | None:
    """The volume key, as somebody finds it who opens the file anew; None where the passphrase opens nothing."""
    volume = await opened(data, None)
    try:
        await volume.unlock(Unlocking(passphrase))
    except OptionError:
        return None
    return volume.key


async def test_the_passphrase_opens_it_and_no_other() -> None:
    data = await small_image()
    volume = await opened(data)
    assert volume.key is not None and len(volume.key) == 16
    assert await key_of(data, PASSPHRASE) == volume.key
    for wrong in (b"", PASSPHRASE + b" ", PASSPHRASE[:-1], PASSPHRASE.upper()):
        with pytest.raises(OptionError, match="Invalid password, cannot unlock any keyslot"):
            await opened(data, wrong)


@pytest.mark.slow
async def test_slots_are_filled_and_erased() -> None:
    volume = await opened(await small_image())
    file = volume.file
    assert isinstance(file, MemoryIO)
    assert volume.active() == [0]
    for number in (3, 7, 6):
        await volume.fill(number, OTHER + bytes([number]), 0.001)
        assert await key_of(file.data, OTHER + bytes([number])) == volume.key
    assert volume.active() == [0, 3, 6, 7]
    material = volume.header.slots[3].offset
    before = bytes(file.data[material : material + volume.header.material_bytes])
    await volume.erase(3)
    after = bytes(file.data[material : material + volume.header.material_bytes])
    assert sum(a == b for a, b in zip(before, after, strict=True)) < len(before) // 100
    assert await key_of(file.data, OTHER + b"\x03") is None
    assert await key_of(file.data, OTHER + b"\x06") == volume.key
    assert (await opened(bytes(file.data))).active() == [0, 6, 7]


async def test_the_same_passphrase_in_many_slots() -> None:
    volume = await opened(await small_image())
    await volume.fill(4, OTHER, 0.001)
    await volume.fill(2, OTHER, 0.001)
    assert await volume.matching(OTHER) == [2, 4]
    assert await volume.matching(PASSPHRASE) == [0]
    assert await volume.matching(b"none") == []


# -- the order of writes ---------------------------------------------------------------------------------------------


def states(before: bytes, log: list[tuple[Call, bytes]], rng: random.Random) -> list[bytes]:
    """What the file may hold after a crash: up to each flush all that was written before, after it any part."""
    found: list[bytes] = []
    stable = bytearray(before)
    pending: list[tuple[int, bytes]] = []

    def some(chosen: list[tuple[int, bytes]]) -> None:
        data = bytearray(stable)
        for offset, sector in chosen:
            data[offset : offset + len(sector)] = sector
        found.append(bytes(data))

    for call, data in [*log, (Call("flush", 0, 0), b"")]:
        if call.verb == "pwrite":
            at = call.offset
            while at < call.offset + len(data):  # a sector is written whole, or not at all
                end = min((at // 512 + 1) * 512, call.offset + len(data))
                pending.append((at, data[at - call.offset : end - call.offset]))
                at = end
        elif call.verb == "flush":
            some([])
            some(pending)
            for _ in range(2):
                some([part for part in pending if rng.random() < 0.5])
            for part in pending[:1] + pending[-2:]:
                some([part])
            for offset, sector in pending:
                stable[offset : offset + len(sector)] = sector
            pending = []
    return found


class Recording(MemoryIO):
    """Keeps the data of each write."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.written: list[tuple[Call, bytes]] = []

    async def pwrite(self, offset: int, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        self.written.append((Call("pwrite", offset, len(data)), bytes(data)))
        await super().pwrite(offset, data, flags)

    async def flush(self) -> None:
        self.written.append((Call("flush", 0, 0), b""))
        await super().flush()


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 6])  # the fields of slot 6 lie in two sectors
async def test_no_crash_locks_anybody_out_or_leaves_an_active_slot_with_nonsense(number: int) -> None:
    first = await opened(await small_image())
    file = Recording(bytes(first.file.data))  # type: ignore[attr-defined]
    volume = Volume(file, 0, first.header, first.key)
    await volume.fill(number, OTHER, 0.001)
    filled, file.written = file.written, []
    between = bytes(file.data)
    await volume.erase(number)
    rng = random.Random(number)
    start = bytes(first.file.data)  # type: ignore[attr-defined]
    seen = set()
    for before, log in ((start, filled), (between, file.written)):
        for data in states(before, log, rng):
            after = await opened(data)
            assert after.key == first.key
            active = number in after.active()
            seen.add(active)
            if active:
                await after.unlock(Unlocking(OTHER))
    assert seen == {True, False}
    assert await key_of(between, OTHER) == first.key


@pytest.mark.slow
async def test_a_failed_write_leaves_the_slot_inactive() -> None:
    data = await small_image()
    for step in range(1, 6):
        volume = await opened(data)
        file = volume.file
        assert isinstance(file, MemoryIO)

        count = 0

        async def before(call: Call, step: int = step) -> None:
            nonlocal count
            if call.verb in ("pwrite", "flush"):
                count += 1
                if count == step:
                    raise OSError(errno.EIO, "Input/output error")

        file.before = before
        with pytest.raises(OSError) as caught:
            await volume.fill(2, OTHER, 0.001)
        assert caught.value.errno == errno.EIO
        file.before = None
        assert volume.active() == [0]
        assert await key_of(file.data, PASSPHRASE) == volume.key
        await volume.fill(2, OTHER, 0.001)
        assert await key_of(file.data, OTHER) == volume.key


async def test_a_failed_read_is_told() -> None:
    volume = await opened(await small_image(), None)
    assert isinstance(volume.file, MemoryIO)
    volume.file.before = fail_nth(1, OSError(errno.EIO, "Input/output error"), "pread")
    with pytest.raises(OSError) as caught:
        await volume.unlock(UNLOCKING)
    assert caught.value.errno == errno.EIO


# -- what it costs ---------------------------------------------------------------------------------------------------


async def test_iterations_have_a_cap() -> None:
    volume = await opened(await small_image(), None)
    volume.header.slots[0].iterations = (1 << 32) - 1
    with pytest.raises(InvalidImage, match=r"Keyslot 0 asks for .* iterations .* more than max-iterations allows"):
        await volume.unlock(UNLOCKING)
    volume.header.slots[0].iterations = 2000
    volume.header.digest_iterations = (1 << 32) - 1
    with pytest.raises(InvalidImage, match="more than max-iterations allows"):
        await volume.unlock(UNLOCKING)


async def test_the_cap_is_for_all_slots_together() -> None:
    volume = await opened(await small_image())
    for number in (1, 2):
        await volume.fill(number, OTHER, 0.001)
    slots, digest = volume.header.slots, volume.header.digest_iterations
    enough = slots[0].iterations + slots[1].iterations + 2 * digest
    await volume.unlock(Unlocking(OTHER, enough))
    with pytest.raises(InvalidImage, match="Keyslot 1"):
        await volume.unlock(Unlocking(OTHER, enough - 1))
    await volume.unlock(Unlocking(PASSPHRASE, enough - 1))


async def test_who_does_not_want_to_wait_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await opened(await small_image(), None)
    gate = ThreadGate(kdf.pbkdf2)
    monkeypatch.setattr(volume_module, "pbkdf2", gate)
    task = asyncio.create_task(volume.unlock(UNLOCKING))
    await gate.arrival()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert volume.key is None
    gate.open()

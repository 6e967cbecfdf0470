"""The `luks` driver: what it writes QEMU reads, and the other way round; and nothing in the file is in the clear."""

import asyncio
import errno
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import ImageError, InvalidImage, NotSupported, OptionError
from aioblock.core.images import Prealloc, Role
from aioblock.core.secrets import Secret
from aioblock.drivers.formats.luks import LuksDriver
from aioblock.drivers.protocols.null import NullDriver
from aioblock.luks import kdf
from aioblock.luks.sectors import CHUNK_BYTES, INLINE_BYTES
from tests.kit import oracle
from tests.kit.encrypted import OBJECTS, PASSPHRASE, luks_image, qemu_create, secret_option
from tests.kit.fake_context import open_driver, read_from
from tests.kit.memory_io import MemoryIO, fail_nth
from tests.kit.thread_gate import ThreadGate

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "_MEASURED_SECONDS", 0.0)


async def opened(file: MemoryIO, options: dict[str, Any] | None = None, **context: Any) -> LuksDriver:
    given = {"key-secret": "sec0"} if options is None else options
    return await open_driver(LuksDriver, given, children={Role.FILE: file}, objects=OBJECTS, **context)


def image_opts(path: Path) -> str:
    return f"driver=luks,key-secret=sec0,file.filename={path}"


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [512, INLINE_BYTES, INLINE_BYTES + 512, CHUNK_BYTES + 512])
async def test_round_trip(nbytes: int) -> None:
    file = MemoryIO(await luks_image(4 << 20))
    driver = await opened(file)
    data = random.Random(nbytes).randbytes(nbytes)
    for offset in (0, 512, 3 << 19):
        await driver.pwritev(offset, memoryview(data), 0)
        assert await read_from(driver, offset, nbytes) == data
    assert data[:512] not in file.data
    await driver.close()
    again = await opened(file)
    assert await read_from(again, 3 << 19, nbytes) == data
    await again.close()


async def test_the_same_data_elsewhere_is_other_data_in_the_file() -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    await driver.pwritev(0, memoryview(bytes(SIZE)), 0)
    sectors = {bytes(file.data[at : at + 16]) for at in range(len(file.data) - SIZE, len(file.data), 16)}
    assert len(sectors) == SIZE // 16
    await driver.close()


async def test_what_is_in_memory_is_read_at_once() -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    buffer = bytearray(512)
    assert not driver.preadv_now(0, memoryview(buffer))  # this file never can
    await driver.close()


async def test_a_cancelled_read_leaves_the_buffer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = await opened(MemoryIO(await luks_image()))
    cipher = driver._open_sectors().cipher
    gate = ThreadGate(cipher.decrypt_in_place)
    monkeypatch.setattr(cipher, "decrypt_in_place", gate)
    buffer = bytearray(b"\xa5" * (512 << 10))
    task = asyncio.ensure_future(driver.preadv(0, memoryview(buffer), 0))
    await gate.arrival()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gate.open()
    await asyncio.to_thread(lambda: None)
    assert buffer == b"\xa5" * len(buffer)
    buffer.extend(b"nobody holds it")
    await driver.close()


async def test_errors_of_the_file_are_told() -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    for verb, request in (
        ("pread", lambda: driver.preadv(0, memoryview(bytearray(512)), 0)),
        ("pwrite", lambda: driver.pwritev(0, memoryview(bytes(512)), 0)),
    ):
        file.before = fail_nth(1, OSError(errno.EIO, "Input/output error"), verb)
        with pytest.raises(OSError) as caught:
            await request()
        assert caught.value.errno == errno.EIO
    await driver.close()


async def test_truncate() -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    await driver.pwritev(0, memoryview(b"x" * 1024), 0)
    await driver.truncate(2 * SIZE, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert await driver.getlength() == 2 * SIZE
    await driver.truncate(512, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert await driver.getlength() == 512
    assert await read_from(driver, 0, 512) == b"x" * 512
    with pytest.raises(OSError) as caught:
        await driver.truncate((1 << 63) - 512, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert caught.value.errno == errno.EFBIG
    await driver.close()


async def test_through_the_graph_any_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.luks"
    path.write_bytes(await luks_image())
    model = bytearray(SIZE)
    rng = random.Random(3)
    options = {"key-secret": "sec0"}
    async with await aioblock.open(path, format="luks", options=options, objects=OBJECTS, writable=True) as disk:
        await disk.pwrite(0, model)
        for _ in range(30):
            offset, nbytes = rng.randrange(SIZE), rng.randrange(1, 3000)
            data = rng.randbytes(min(nbytes, SIZE - offset))
            await disk.pwrite(offset, data)
            model[offset : offset + len(data)] = data
        await disk.pwrite_zeroes(5000, 70_001)
        model[5000:75_001] = bytes(70_001)
        assert await disk.pread(0, SIZE) == model
    oracle.qemu_img("convert", *secret_option(), "--image-opts", image_opts(path), "-O", "raw", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == model


# -- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Parameter 'key-secret' is required for cipher"),
        ({"key-secret": "nobody"}, "No secret with id 'nobody'"),
        ({"key-secret": "other"}, "Invalid password, cannot unlock any keyslot"),
    ],
)
async def test_without_the_right_secret_it_does_not_open(options: dict[str, str], message: str) -> None:
    file = MemoryIO(await luks_image())
    with pytest.raises(OptionError) as caught:
        await opened(file, options)
    assert str(caught.value) == message


async def test_the_cap_can_be_set() -> None:
    file = MemoryIO(await luks_image())
    with pytest.raises(InvalidImage, match="more than max-iterations allows"):
        await opened(file, {"key-secret": "sec0", "max-iterations": "1999"})
    driver = await opened(file, {"key-secret": "sec0", "max-iterations": 10_000_000})
    await driver.close()


async def test_information_needs_no_secret() -> None:
    file = MemoryIO(await luks_image())
    file.node.driver = NullDriver(1 << 20)
    driver = await opened(file, {}, metadata_only=True, read_only=True)
    info = driver.info()
    assert info.encrypted
    assert info.specific is not None
    assert info.specific["cipher-alg"] == "aes-256"
    assert info.specific["slots"][0]["active"] is True
    assert "    [0]:" in info.lines
    for request in (driver.preadv(0, memoryview(bytearray(512)), 0), driver.pwritev(0, memoryview(bytes(512)), 0)):
        with pytest.raises(OSError) as caught:
            await request
        assert caught.value.errno == errno.EPERM
    with pytest.raises(NotSupported, match="without its key"):
        await driver.amend({"state": "inactive", "keyslot": 0})
    await driver.close()


async def test_what_is_no_volume_does_not_open() -> None:
    for data in (b"", bytes(4096), (await luks_image())[:300], (await luks_image())[: 1 << 20]):
        with pytest.raises(ImageError):
            await opened(MemoryIO(data))


async def test_probe() -> None:
    assert LuksDriver.probe((await luks_image())[:2048], "x") == 100
    assert LuksDriver.probe(b"LUKS\xba\xbe\x00\x02" + bytes(2040), "x") == 0
    assert LuksDriver.probe(b"", "x") == 0


# -- creating --------------------------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc"},
    {"cipher-alg": "aes-192"},
    {"cipher-alg": "aes-256", "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha256"},
    {"cipher-mode": "ctr", "hash-alg": "sha1"},
    {"cipher-mode": "ecb", "hash-alg": "sha512", "ivgen-alg": "plain"},
    {"ivgen-alg": "essiv", "hash-alg": "sha384"},
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()) or "default")
async def test_qemu_opens_what_we_make(variant: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ours.luks"
    path.write_bytes(await luks_image(**variant))
    commands = ["-c", "write -P 5 0 64k", "-c", "write -P 6 1023k 1k"]
    done = oracle.run("qemu-io", *secret_option(), "--image-opts", image_opts(path), *commands)
    assert done.stdout.count("wrote") == 2
    driver = await opened(MemoryIO(path.read_bytes()))
    assert await read_from(driver, 0, 64 << 10) == b"\x05" * (64 << 10)
    assert await read_from(driver, 1023 << 10, 1024) == b"\x06" * 1024
    await driver.close()


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()) or "default")
async def test_we_open_what_qemu_makes(variant: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "theirs.luks"
    options = ",".join(f"{name}={value}" for name, value in {"iter-time": "10", **variant}.items())
    qemu_create(path, "luks", f"key-secret=sec0,{options}", "1M")
    file = MemoryIO(path.read_bytes())
    driver = await opened(file)
    data = random.Random(1).randbytes(300_032)
    await driver.pwritev(1536, memoryview(data), 0)
    assert driver.volume.header.serialise() == file.data[:592]
    await driver.close()
    path.write_bytes(file.data)
    oracle.qemu_img("convert", *secret_option(), "--image-opts", image_opts(path), "-O", "raw", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes()[1536 : 1536 + len(data)] == data


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key-secret": None}, OptionError, "Parameter 'key-secret' is required for cipher"),
        ({"cipher-alg": "rot13"}, OptionError, "Parameter 'cipher-alg' does not accept value 'rot13'"),
        ({"cipher-alg": "serpent-256"}, NotSupported, "Algorithm 'serpent-256' not supported"),
        ({"cipher-alg": "twofish-128"}, NotSupported, "Algorithm 'twofish-128' not supported"),
        ({"cipher-mode": "foo"}, OptionError, "Parameter 'cipher-mode' does not accept value 'foo'"),
        ({"ivgen-alg": "foo"}, OptionError, "Parameter 'ivgen-alg' does not accept value 'foo'"),
        ({"ivgen-hash-alg": "foo"}, OptionError, "Parameter 'ivgen-hash-alg' does not accept value 'foo'"),
        ({"hash-alg": "foo"}, OptionError, "Parameter 'hash-alg' does not accept value 'foo'"),
        ({"ivgen-alg": "essiv", "ivgen-hash-alg": "sha1"}, NotSupported, "No AES cipher with key size 20 available"),
        ({"iter-time": 0}, OptionError, "Parameter 'iter-time' expects a number of milliseconds above 0"),
        ({"preallocation": "some"}, OptionError, "Parameter 'preallocation' does not accept value 'some'"),
        ({"key-secret": Secret(b"\xff")}, OptionError, "is not valid UTF-8"),
    ],
)
async def test_options_that_make_no_sense_touch_nothing(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = MemoryIO(b"something")
    given = {"size": SIZE, "key-secret": OBJECTS["sec0"], "iter-time": 1} | options
    with pytest.raises(error, match=message):
        await LuksDriver.create(file, {name: value for name, value in given.items() if value is not None})
    assert file.data == b"something"
    assert not file.log


async def test_the_header_comes_last() -> None:
    old = await luks_image()
    options = {"size": SIZE, "key-secret": OBJECTS["other"], "iter-time": 1}
    seen: list[str] = []
    for step in range(1, 100):
        file = MemoryIO(old)
        file.before = fail_nth(step, OSError(errno.EIO, "Input/output error"))
        failed = True
        try:
            await LuksDriver.create(file, options)
            failed = False
        except OSError:
            pass
        file.before = None
        if file.stable[:6] == b"LUKS\xba\xbe":  # the old one untouched, or the new one as a whole
            secret = "other" if seen and seen[-1] != "sec0" else "sec0"
            driver = await opened(MemoryIO(file.stable), {"key-secret": secret})
            await driver.close()
            seen.append(secret)
        else:
            seen.append("")
        if not failed:
            break
    assert list(dict.fromkeys(seen)) == ["sec0", "", "other"]


async def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    image = await luks_image()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(NotSupported, match=r"pip install aioblock\[crypto\]"):
        await opened(MemoryIO(image))
    with pytest.raises(NotSupported, match=r"pip install aioblock\[crypto\]"):
        await LuksDriver.create(MemoryIO(), {"size": SIZE, "key-secret": OBJECTS["sec0"]})
    driver = await opened(MemoryIO(image), {}, metadata_only=True)
    await driver.close()


# -- amending --------------------------------------------------------------------------------------------------------


async def test_amend() -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    data = random.Random(1).randbytes(4096)
    await driver.pwritev(0, memoryview(data), 0)
    await driver.amend({"state": "active", "new-secret": "other", "iter-time": 1})
    await driver.amend({"state": "active", "new-secret": "third", "iter-time": 1, "keyslot": 5})
    assert driver.volume.active() == [0, 1, 5]
    await driver.amend({"state": "inactive", "old-secret": "sec0"})
    await driver.amend({"state": "inactive", "keyslot": 1})
    await driver.close()
    for secret in ("sec0", "other"):
        with pytest.raises(OptionError, match="Invalid password"):
            await opened(file, {"key-secret": secret})
    again = await opened(file, {"key-secret": "third"})
    assert await read_from(again, 0, 4096) == data
    await again.amend({"state": "inactive", "keyslot": 5}, force=True)
    await again.close()
    with pytest.raises(OptionError, match="Invalid password"):
        await opened(file, {"key-secret": "third"})


REFUSED = [
    ({}, "Parameter 'state' is missing"),
    ({"state": "foo"}, "Parameter 'state' does not accept value 'foo'"),
    ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
    ({"state": "active", "new-secret": "nope"}, "No secret with id 'nope'"),
    ({"state": "active", "new-secret": "other", "keyslot": 9}, "Invalid keyslot 9 specified, must be between 0 and 7"),
    (
        {"state": "active", "new-secret": "other", "keyslot": 0},
        "Refusing to overwrite active keyslot 0 - please erase it first",
    ),
    (
        {"state": "active", "new-secret": "other", "old-secret": "sec0"},
        "'old-secret' must not be given when activating keyslots",
    ),
    (
        {"state": "inactive"},
        "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
    ),
    ({"state": "inactive", "keyslot": 5}, "Given keyslot 5 is already erased (inactive) "),
    ({"state": "inactive", "keyslot": -1}, "Invalid keyslot -1 specified, must be between 0 and 7"),
    ({"state": "inactive", "old-secret": "third"}, "No keyslots match given (old) password for erase operation"),
    (
        {"state": "inactive", "old-secret": "other", "keyslot": 0},
        "Given keyslot 0 doesn't contain the given old password for erase operation",
    ),
    (
        {"state": "inactive", "old-secret": "sec0", "iter-time": 5},
        "'iter-time' must not be given when erasing keyslots",
    ),
    (
        {"state": "inactive", "old-secret": "sec0", "new-secret": "other"},
        "'new-secret' must not be given when erasing keyslots",
    ),
    (
        {"state": "inactive", "old-secret": "sec0"},
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data in "
        "the image irreversibly - refusing operation",
    ),
    (
        {"state": "inactive", "keyslot": 0},
        "Attempt to erase the only active keyslot 0 which will erase all the data in the image irreversibly - refusing "
        "operation",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
async def test_amend_refuses(options: dict[str, Any], message: str) -> None:
    file = MemoryIO(await luks_image())
    driver = await opened(file)
    before = bytes(file.data)
    with pytest.raises(OptionError) as caught:
        await driver.amend(options)
    assert str(caught.value) == message
    assert file.data == before
    await driver.close()


@pytest.mark.oracle
@pytest.mark.parametrize(("options", "message"), REFUSED)
async def test_amend_refuses_in_qemus_words(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.luks"
    path.write_bytes(await luks_image())
    secrets = [*secret_option(), *secret_option("other"), *secret_option("third")]
    text = ",".join(f"{name}={value}" for name, value in (options or {"iter-time": 10}).items())
    done = oracle.qemu_img("amend", *secrets, "--image-opts", image_opts(path), "-o", text, check=False)
    assert (done.returncode, done.stderr) == (1, f"qemu-img: {message}\n")


async def test_all_slots_in_use() -> None:
    driver = await opened(MemoryIO(await luks_image(cipher_alg="aes-128", cipher_mode="cbc")))
    for number in range(1, 8):
        await driver.amend({"state": "active", "new-secret": OBJECTS["other"], "iter-time": 1})
        assert driver.volume.active() == list(range(number + 1))
    with pytest.raises(OptionError, match="Can't add a keyslot - all keyslots are in use"):
        await driver.amend({"state": "active", "new-secret": "other", "iter-time": 1})
    await driver.amend({"state": "active", "new-secret": "third", "iter-time": 1, "keyslot": 3}, force=True)
    await driver.amend({"state": "inactive", "old-secret": "other"})
    assert driver.volume.active() == [0, 3]
    await driver.close()
    assert PASSPHRASE not in repr(driver).encode()


# -- another program -------------------------------------------------------------------------------------------------


def cryptsetup(*args: str | Path, passphrase: bytes = PASSPHRASE) -> "subprocess.CompletedProcess[bytes]":
    oracle.require("cryptsetup")
    return subprocess.run(
        [oracle.find("cryptsetup") or "cryptsetup", *args],
        input=passphrase,
        capture_output=True,
        timeout=45,
        check=False,
    )


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [  # what the kernel's ciphers can do
        {},
        {"cipher-alg": "aes-128", "cipher-mode": "cbc"},
        {"cipher-alg": "aes-192", "cipher-mode": "cbc", "hash-alg": "sha512"},  # QEMU cannot make this one
        {"cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha1"},
        {"cipher-alg": "aes-128", "ivgen-alg": "plain"},
    ],
    ids=lambda variant: "-".join(variant.values()) or "default",
)
async def test_cryptsetup_opens_what_we_make(variant: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ours.luks"
    file = MemoryIO(await luks_image(**variant))
    driver = await opened(file)
    await driver.amend({"state": "active", "new-secret": "other", "iter-time": 1, "keyslot": 6})
    await driver.close()
    path.write_bytes(file.data)
    assert b"Version:" in cryptsetup("luksDump", path).stdout
    opening = ("luksOpen", "--test-passphrase", "--key-file", "-", path)
    assert cryptsetup(*opening).returncode == 0
    assert cryptsetup(*opening, passphrase=OBJECTS["other"].data).returncode == 0
    assert cryptsetup(*opening, passphrase=b"wrong").returncode != 0


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(
    ("cipher", "bits", "hash_name"),
    [("aes-xts-plain64", 512, "sha256"), ("aes-cbc-essiv:sha256", 192, "sha1"), ("aes-cbc-plain", 256, "sha512")],
)
async def test_we_open_what_cryptsetup_makes(cipher: str, bits: int, hash_name: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.luks"
    path.write_bytes(bytes(4 << 20))
    made = cryptsetup(
        "luksFormat", "--type", "luks1", "--batch-mode", "--pbkdf-force-iterations", "1000", "--cipher", cipher,
        "--key-size", str(bits), "--hash", hash_name, "--key-file", "-", path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    driver = await opened(MemoryIO(path.read_bytes()))
    assert driver.volume.active() == [0]
    await driver.close()

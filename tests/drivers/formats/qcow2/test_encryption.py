"""Encrypted qcow2 images, with LUKS and with the AES of old: against QEMU, and nothing of the guest in the clear."""

import errno
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import CorruptImage, ImageError, InvalidImage, NotSupported, OptionError, UnsupportedFeature
from aioblock.base.flags import OFFSET_VALID, REQ_MAY_UNMAP
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.drivers.formats.qcow2.encryption import amend_encryption
from aioblock.drivers.formats.qcow2.header import parse_header
from aioblock.graph.backend import BlockBackend
from aioblock.luks import kdf
from tests.kit import oracle
from tests.kit.encrypted import OBJECTS, qcow2_image, qemu_create, secret_option
from tests.kit.memory_io import MemoryIO
from tests.kit.recorded_disk import RecordedDisk

SIZE = 4 << 20
FORMS = pytest.mark.parametrize("form", ["luks", "aes"])


@pytest.fixture(autouse=True)
def _no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "_MEASURED_SECONDS", 0.0)


async def opened(where: Any, secret: str = "sec0", **how: Any) -> BlockBackend:
    if isinstance(where, RecordedDisk):
        where = {"file": where.options()}
    options = {"encrypt": {"key-secret": secret}} if secret else {}
    return await aioblock.open(where, format="qcow2", options=options, objects=OBJECTS, **how)


def image_opts(path: Path) -> str:
    return f"driver=qcow2,encrypt.key-secret=sec0,file.filename={path}"


def assert_qemu_reads(path: Path, model: bytes | bytearray) -> None:
    oracle.qemu_img("check", *secret_option(), "--image-opts", image_opts(path))
    raw = path.with_suffix(".raw")
    oracle.qemu_img("convert", *secret_option(), "--image-opts", image_opts(path), "-O", "raw", raw)
    assert raw.read_bytes() == model


# -- data ------------------------------------------------------------------------------------------------------------

LAYOUTS = [
    pytest.param("luks", {}, id="luks"),
    pytest.param("aes", {}, id="aes"),
    pytest.param("luks", {"cluster_size": 512}, id="luks, 512 B"),
    pytest.param("aes", {"cluster_size": 4096, "compat": "0.10"}, id="aes, version 2"),
    pytest.param("luks", {"cluster_size": 16384, "extended_l2": True}, id="luks, subclusters"),
    pytest.param("luks", {"cluster_size": 2 << 20}, id="luks, 2 MiB"),
    pytest.param("luks", {"encrypt_cipher_mode": "cbc", "encrypt_ivgen_alg": "essiv"}, id="luks, cbc-essiv"),
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(("form", "options"), LAYOUTS)
async def test_random_operations_read_as_the_model_and_as_qemu_reads(
    form: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(await qcow2_image(SIZE, form, **options))
    model = bytearray(SIZE)
    rng = random.Random(form + str(options))
    for _ in range(2):
        async with await opened(path, writable=True) as disk:
            for _ in range(25):
                offset = rng.randrange(SIZE)
                nbytes = min(rng.choice((1, 512, 5000, 70_000, 300_000)), SIZE - offset)
                if rng.random() < 0.25:
                    await disk.pwrite_zeroes(offset, nbytes, rng.choice((0, REQ_MAY_UNMAP)))
                    data = bytes(nbytes)
                else:
                    data = rng.randbytes(nbytes)
                    await disk.pwrite(offset, data)
                model[offset : offset + nbytes] = data
                at = rng.randrange(SIZE)
                assert await disk.pread(at, min(50_000, SIZE - at)) == model[at : at + 50_000]
            assert await disk.pread(0, SIZE) == model
        assert_qemu_reads(path, model)


@pytest.mark.oracle
@FORMS
async def test_we_read_what_qemu_writes(form: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.qcow2"
    extra = ",encrypt.iter-time=10" if form == "luks" else ""
    create = f"encrypt.format={form},encrypt.key-secret=sec0{extra}"
    qemu_create(path, "qcow2", create, "4M")
    commands = ["write -P 1 0 64k", "write -P 2 100k 3k", "write -P 3 3000k 1000k", "write -z 3100k 200k"]
    argv = [word for command in commands for word in ("-c", command)]
    done = oracle.run("qemu-io", *secret_option(), "--image-opts", image_opts(path), *argv)
    assert done.stdout.count("wrote") == 4
    async with await opened(path, writable=True) as disk:
        assert await disk.pread(0, 64 << 10) == b"\x01" * (64 << 10)
        assert await disk.pread(100 << 10, 4096) == b"\x02" * 3072 + bytes(1024)
        assert await disk.pread(3000 << 10, 150 << 10) == b"\x03" * (100 << 10) + bytes(50 << 10)
        await disk.pwrite(50_000, b"ours")
    model = bytearray(b"\x01" * (64 << 10)).ljust(SIZE, b"\0")
    model[50_000:50_004] = b"ours"
    model[100 << 10 : 103 << 10] = b"\x02" * 3072
    model[3000 << 10 : 4000 << 10] = b"\x03" * (1000 << 10)
    model[3100 << 10 : 3300 << 10] = bytes(200 << 10)
    assert_qemu_reads(path, model)


@FORMS
async def test_nothing_of_the_guest_is_in_the_clear(form: str) -> None:
    disk = RecordedDisk(await qcow2_image(SIZE, form))
    marks = [f"<guest data {number:06}>".encode().ljust(32, b".") for number in range(300)]
    async with await opened(disk, writable=True) as image:
        for number, mark in enumerate(marks):  # allocating, in place, over a boundary, a part of a sector
            await image.pwrite(number * 13_000 % SIZE, mark * (number % 40 + 1))
        await image.pwrite_zeroes(70_000, 1000)
        await image.flush()
    content = bytes(disk.content())
    assert b"<guest data" not in content
    assert not any(b"<guest data" in record.data for record in disk.records)


async def test_luks_counts_sectors_in_the_file_and_aes_on_the_disk() -> None:
    for form, by_host in (("luks", True), ("aes", False)):
        disk = RecordedDisk(await qcow2_image(SIZE, form))
        async with await opened(disk, writable=True) as image:
            await image.pwrite(1 << 20, b"x" * 512)
            await image.pwrite(2 << 20, b"x" * 512)
            data = image.node.driver.image.data  # type: ignore[attr-defined]
            content = disk.content()
            writes = [record for record in disk.changes() if record.verb == "write" and len(record.data) == 65536]
            assert len(writes) == 2
            for record, guest in zip(writes, (1 << 20, 2 << 20), strict=True):
                sector = (record.offset if by_host else guest) // 512
                expected = data._sectors.cipher.encrypt(sector, b"x" * 512)
                assert content[record.offset : record.offset + 512] == expected


@FORMS
async def test_copy_on_write_of_a_backing_file_encrypts_what_it_copies(form: str, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"<backing>" * 120_000)
    path = tmp_path / "top.qcow2"
    path.write_bytes(await qcow2_image(SIZE, form, backing_file=str(base), backing_fmt="raw"))
    model = bytearray(base.read_bytes().ljust(SIZE, b"\0"))
    async with await opened(path, writable=True) as disk:
        for offset in (70_000, 1 << 20, 1_060_000, 2_000_000):
            await disk.pwrite(offset, b"new")
            model[offset : offset + 3] = b"new"
        assert await disk.pread(0, SIZE) == model
    assert b"<backing>" not in path.read_bytes()[4096:]
    async with await opened(path) as disk:
        assert await disk.pread(0, SIZE) == model


async def test_an_encrypted_backing_file_has_a_secret_of_its_own(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    base.write_bytes(await qcow2_image(SIZE, "luks"))
    async with await opened(base, writable=True) as disk:
        await disk.pwrite(1000, b"from below")
    await aioblock.create(
        top,
        "qcow2",
        {"backing_file": str(base), "backing_fmt": "qcow2", "encrypt.format": "aes", "encrypt.key-secret": "other"},
        objects=OBJECTS,
    )
    options = {"encrypt.key-secret": "other", "backing.encrypt.key-secret": "sec0"}
    async with await aioblock.open(top, format="qcow2", options=options, objects=OBJECTS, writable=True) as disk:
        assert disk.length == SIZE
        assert await disk.pread(1000, 10) == b"from below"
        await disk.pwrite(1005, b"above")
        assert await disk.pread(1000, 10) == b"from above"
    with pytest.raises(OptionError, match=r"Could not open backing file: .*key-secret' is required for cipher"):
        await aioblock.open(top, format="qcow2", options={"encrypt.key-secret": "other"}, objects=OBJECTS)


@FORMS
async def test_no_offsets_are_told(form: str) -> None:
    disk = RecordedDisk(await qcow2_image(SIZE, form))
    async with await opened(disk, writable=True) as image:
        await image.pwrite(1 << 20, b"x" * 300_000)
        status = await image.block_status(1 << 20, 65536)
        assert not status.flags & OFFSET_VALID
        assert all(not extent.flags & OFFSET_VALID for extent in [extent async for extent in image.extents()])


async def test_compressed_data_is_refused() -> None:
    async with await opened(RecordedDisk(await qcow2_image(SIZE)), writable=True) as disk:
        with pytest.raises(NotSupported, match="Compression and encryption not supported at the same time"):
            await disk.node.driver.pwritev_compressed(0, memoryview(bytes(65536)))


@pytest.mark.oracle
@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
async def test_preallocated(preallocation: str, tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(await qcow2_image(SIZE, preallocation=preallocation))
    async with await opened(path, writable=True) as disk:
        assert not disk.node.driver.has_zero_init()
        await disk.pwrite(0, b"x" * SIZE)
    assert_qemu_reads(path, b"x" * SIZE)


@FORMS
async def test_vm_state_is_encrypted_too(form: str) -> None:
    disk = RecordedDisk(await qcow2_image(SIZE, form))
    async with await opened(disk, writable=True) as image:
        await image.vm_state_write(0, b"<vm state>" * 1000)
        await image.vm_state_write(700, b"changed")
        expected = bytearray(b"<vm state>" * 1000)
        expected[700:707] = b"changed"
        assert await image.vm_state_read(0, 10_000) == expected
        assert await image.vm_state_read(699, 100) == expected[699:799]
        assert await image.vm_state_read(9_990, 1000) == expected[9_990:] + bytes(990)
    assert b"vm state" not in disk.content()


# -- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("luks", {}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ("aes", {}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ("luks", {"key-secret": "nobody"}, "No secret with id 'nobody'"),
        ("luks", {"key-secret": "other"}, "Invalid password, cannot unlock any keyslot"),
        (
            "luks",
            {"key-secret": "sec0", "format": "aes"},
            "Header reported 'luks' encryption format but options specify 'aes'",
        ),
        (
            "aes",
            {"key-secret": "sec0", "format": "luks"},
            "Header reported 'aes' encryption format but options specify 'luks'",
        ),
        ("luks", {"key-secret": "sec0", "foo": 1}, "Parameter 'encrypt.foo' is unexpected"),
        ("luks", "sec0", "Parameter 'encrypt' expects encrypt.format and encrypt.key-secret"),
    ],
)
async def test_without_the_right_secret_it_does_not_open(form: str, options: Any, message: str) -> None:
    disk = RecordedDisk(await qcow2_image(SIZE, form))
    with pytest.raises(OptionError) as caught:
        await aioblock.open(
            {"file": disk.options()}, format="qcow2", options={"encrypt": options} if options else {}, objects=OBJECTS
        )
    assert str(caught.value) == message
    assert not disk.changes()


async def test_an_image_that_is_not_encrypted_takes_no_format() -> None:
    file = MemoryIO()
    await Qcow2Driver.create(file, {"size": SIZE})
    disk = RecordedDisk(bytes(file.data))
    async with await opened(disk, "nobody"):
        pass
    with pytest.raises(OptionError, match="No encryption in image header, but options specified format 'luks'"):
        await aioblock.open({"file": disk.options()}, format="qcow2", options={"encrypt.format": "luks"})


@FORMS
async def test_information_and_check_need_no_secret(form: str) -> None:
    disk = RecordedDisk(await qcow2_image(SIZE, form))
    async with await opened(disk, "", metadata_only=True) as image:
        specific = image.info().specific
        assert image.info().encrypted
        assert specific is not None
        assert specific["encrypt"]["format"] == form
        assert ("slots" in specific["encrypt"]) == (form == "luks")
        with pytest.raises(OSError) as caught:
            await image.node.driver.image.data.readinto(0, 0, memoryview(bytearray(512)))  # type: ignore[attr-defined]
        assert caught.value.errno == errno.EIO
    async with await opened(disk, "", for_check=True) as image:
        result = await image.check()
        assert (result.corruptions, result.leaks) == (0, 0)


def with_extension(data: bytes, payload: bytes | None) -> bytearray:
    """The image with another content of its first extension, or without it."""
    changed = bytearray(data)
    header = parse_header(data[:65536], "", len(data))
    assert struct.unpack_from(">I", changed, header.header_length) == (0x0537BE77,)
    if payload is None:
        struct.pack_into(">I", changed, header.header_length, 0x12345678)
    else:
        struct.pack_into(">I", changed, header.header_length + 4, len(payload))
        changed[header.header_length + 8 : header.header_length + 8 + len(payload)] = payload
    return changed


@pytest.mark.parametrize(
    ("extension", "error", "message"),
    [
        pytest.param(None, CorruptImage, "CRYPTO header extension is missing", id="missing"),
        pytest.param(struct.pack(">QQ", 0x40200, 2068480), InvalidImage, "not a multiple of cluster size", id="offset"),
        pytest.param(struct.pack(">QQ", 0, 2068480), InvalidImage, "outside of the image", id="offset 0"),
        pytest.param(struct.pack(">QQ", 0x40000, 1 << 63), InvalidImage, "outside of the image", id="length 2^63"),
        pytest.param(struct.pack(">QQ", 0x40000, 0), InvalidImage, "outside of the image", id="length 0"),
        pytest.param(struct.pack(">QQ", 1 << 40, 2068480), InvalidImage, "not in LUKS format", id="past the end"),
        pytest.param(struct.pack(">QQ", 0x40000, 100), InvalidImage, "not in LUKS format", id="length 100"),
        pytest.param(struct.pack(">QQ", 0x40000, 65536), InvalidImage, "LUKS payload lies behind", id="length short"),
        pytest.param(struct.pack(">QQ", 0x30000, 2068480), InvalidImage, "not in LUKS format", id="no header there"),
    ],
)
async def test_hostile_extensions(extension: bytes | None, error: type[ImageError], message: str) -> None:
    disk = RecordedDisk(bytes(with_extension(await qcow2_image(SIZE), extension)))
    with pytest.raises(error, match=message):
        await opened(disk, writable=True)
    assert not disk.changes()


async def test_an_unknown_method() -> None:
    data = bytearray(await qcow2_image(SIZE))
    struct.pack_into(">I", data, 32, 3)
    with pytest.raises(UnsupportedFeature, match="Unsupported encryption method 3"):
        await opened(RecordedDisk(bytes(data)))


async def test_iterations_have_a_cap() -> None:
    data = bytearray(await qcow2_image(SIZE))
    header = parse_header(data[:65536], "", len(data))
    assert header.encryption_header is not None
    struct.pack_into(">I", data, header.encryption_header[0] + 208 + 4, 0xFFFFFFFF)
    with pytest.raises(InvalidImage, match="more than max-iterations allows"):
        await opened(RecordedDisk(bytes(data)))


async def test_the_luks_header_is_metadata() -> None:
    data = bytearray(await qcow2_image(SIZE))
    header = parse_header(data[:65536], "", len(data))
    assert header.encryption_header is not None
    disk = RecordedDisk(bytes(data))
    async with await opened(disk, writable=True) as image:
        await image.pwrite(0, bytes(65536))
        await image.flush()
    content = bytearray(disk.content())
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    l2 = l1 & 0x00FF_FFFF_FFFF_FE00
    struct.pack_into(">Q", content, l2, 1 << 63 | header.encryption_header[0])
    evil = RecordedDisk(bytes(content))
    async with await opened(evil, writable=True) as image:
        with pytest.raises(OSError, match="overlaps with encryption header"):
            await image.pwrite(0, bytes(65536))
    async with await opened(evil):
        pass


# -- creating --------------------------------------------------------------------------------------------------------

WRONG = [
    ("encrypt.format=foo", "Parameter 'format' does not accept value 'foo'"),
    ("encrypt.format=luks", "Parameter 'encrypt.key-secret' is required for cipher"),
    ("encrypt.format=aes", "Parameter 'encrypt.key-secret' is required for cipher"),
    ("encrypt.key-secret=sec0", "Parameter 'encrypt.format' is missing"),
    ("encryption=on", "Parameter 'encrypt.key-secret' is required for cipher"),
    (
        "encryption=on,encrypt.format=luks,encrypt.key-secret=sec0",
        "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    ),
    ("encryption=off,encrypt.key-secret=sec0", "Parameter 'encrypt.format' is missing"),
    (
        "encrypt.format=aes,encrypt.key-secret=sec0,encrypt.cipher-alg=aes-256",
        "Parameter 'encrypt.cipher-alg' is unexpected",
    ),
    (
        "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.hash-alg=foo",
        "Parameter 'hash-alg' does not accept value 'foo'",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
async def test_options_that_make_no_sense(options: str, message: str, tmp_path: Path) -> None:
    values = dict(pair.split("=") for pair in options.split(","))
    with pytest.raises(OptionError) as caught:
        await aioblock.create(tmp_path / "a", "qcow2", values, size=SIZE, objects=OBJECTS)
    assert str(caught.value) == message


@pytest.mark.oracle
@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_make_no_sense_as_qemu_calls_them(options: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    done = oracle.qemu_img("create", "-f", "qcow2", *secret_option(), "-o", options, path, "1M", check=False)
    assert (done.returncode, done.stderr) == (1, f"qemu-img: {path}: {message}\n")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", ",cluster_size=512", ",compat=0.10", ",preallocation=metadata"])
async def test_the_header_is_like_qemus(options: str, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    text = f"encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10{options}"
    qemu_create(theirs, "qcow2", text, "1M")
    values = dict(pair.split("=") for pair in text.split(","))
    await aioblock.create(ours, "qcow2", values, size=1 << 20, objects=OBJECTS)
    assert ours.read_bytes()[:512] == theirs.read_bytes()[:512]
    assert ours.stat().st_size <= theirs.stat().st_size


async def test_the_old_option() -> None:
    file = MemoryIO()
    await Qcow2Driver.create(file, {"size": SIZE, "encryption": True, "encrypt.key-secret": OBJECTS["sec0"]})
    assert parse_header(file.data[:65536], "", len(file.data)).crypt_method == 1


# -- amending --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
async def test_key_slots_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(await qcow2_image(SIZE))
    async with await opened(path, writable=True) as disk:
        await disk.pwrite(0, b"x" * 1000)
        image = disk.node.driver.image  # type: ignore[attr-defined]
        await amend_encryption(image, {"lazy_refcounts": True})
        await amend_encryption(
            image, {"encrypt.state": "active", "encrypt.new-secret": "other", "encrypt.iter-time": 1}
        )
        with pytest.raises(OptionError, match="Refusing to overwrite active keyslot 1"):
            await amend_encryption(
                image, {"encrypt.state": "active", "encrypt.new-secret": "other", "encrypt.keyslot": 1}
            )
        await amend_encryption(image, {"encrypt.state": "inactive", "encrypt.old-secret": "sec0"})
        with pytest.raises(OptionError, match="only active keyslot 1"):
            await amend_encryption(image, {"encrypt.state": "inactive", "encrypt.keyslot": 1})
    with pytest.raises(OptionError, match="Invalid password"):
        await opened(path)
    async with await opened(path, "other") as disk:
        assert await disk.pread(0, 1000) == b"x" * 1000
    oracle.qemu_img("check", *secret_option("other"), "--image-opts", image_opts(path).replace("=sec0", "=other"))


async def test_only_key_slots_of_luks_are_changed() -> None:
    options = {"encrypt.state": "inactive", "encrypt.keyslot": 0}
    async with await opened(RecordedDisk(await qcow2_image(SIZE, "aes")), writable=True) as disk:
        with pytest.raises(NotSupported, match="Only LUKS encryption options can be amended"):
            await amend_encryption(disk.node.driver.image, options)  # type: ignore[attr-defined]
    file = MemoryIO()
    await Qcow2Driver.create(file, {"size": SIZE})
    async with await opened(RecordedDisk(bytes(file.data)), "", writable=True) as disk:
        with pytest.raises(NotSupported, match="encryption not present"):
            await amend_encryption(disk.node.driver.image, options)  # type: ignore[attr-defined]

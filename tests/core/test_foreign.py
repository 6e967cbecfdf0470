"""Images of formats without a driver are refused by the name of their format, instead of being read as raw."""

import pytest

import aioblock
from aioblock.core.foreign import foreign_format
from tests.kit.oracle import qemu_img

FORMATS = ["vmdk", "vdi", "vpc", "vhdx", "qed", "parallels", "qcow"]


@pytest.mark.parametrize(
    "head", [b"", b"KDM", b"QED1", b"QFI\xfb\0\0\0\2", b"\0KDMV", bytes(63) + b"\x7f\x10\xda\xbe", b"conect"]
)
def test_what_is_no_sign_of_any(head: bytes) -> None:
    assert foreign_format(head) is None


@pytest.mark.oracle
@pytest.mark.parametrize("format", FORMATS)
async def test_what_qemu_makes_is_refused_by_name(tmp_path, format):
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", format, path, "8M")
    with pytest.raises(aioblock.UnsupportedFeature, match=f"'{format}', which is not supported yet") as caught:
        await aioblock.open(path)
    assert caught.value.features == (format,)
    async with await aioblock.open(path, format="raw") as disk:
        assert await disk.pread(0, 512) == path.read_bytes()[:512].ljust(512, b"\0")


@pytest.mark.oracle
async def test_a_vmdk_of_several_files_is_refused_too(tmp_path):
    path = tmp_path / "disk.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "8M")
    with pytest.raises(aioblock.UnsupportedFeature, match="'vmdk'"):
        await aioblock.open(path)


async def test_no_guessed_raw_image_becomes_one(tmp_path):
    """What a guest writes must not make the next one who opens the image take it for something else."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    async with await aioblock.open(path, writable=True, probe=True) as disk:
        for head in (b"KDMV", b"conectix", b"vhdxfile"):
            with pytest.raises(PermissionError):
                await disk.pwrite(0, head)
        await disk.pwrite(4096, b"KDMV")

"""Formats that there is no driver for, by how their files begin: none of them is to be taken for a raw image.

format      at    bytes
vmdk        0     "KDMV" (sparse), "COWD" (ESX sparse), "# Disk DescriptorFile" (descriptor)
vdi         64    0xbeda107f, little-endian
vpc         0     "conectix", the copy of the footer that dynamic and differencing VHDs begin with
vhdx        0     "vhdxfile"
qed         0     "QED" and a zero
parallels   0     "WithoutFreeSpace", "WithouFreSpacExt"
qcow        0     "QFI" 0xfb, version 1
bochs       0     "Bochs Virtual HD Image"
"""

from typing import Final

__all__ = ["foreign_format"]

_SIGNATURES: Final = (
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 64, 0xBEDA107F.to_bytes(4, "little")),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("qcow", 0, b"QFI\xfb\0\0\0\1"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
)


def foreign_format(head: bytes) -> str | None:
    """The format, as QEMU spells it, that the first bytes of a file are a sign of; None: of none of these."""
    for name, offset, signature in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    return None

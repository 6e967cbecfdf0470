"""The header of a LUKS1 volume, and what must hold in it before anybody uses a number out of it.

    byte   0 -   5   magic, "LUKS\\xba\\xbe"             112 - 131   digest of the volume key
           6 -   7   version, 1                        132 - 163   salt of that digest
           8 -  39   name of the cipher                164 - 167   iterations of that digest
          40 -  71   its mode, "xts-plain64"           168 - 207   UUID
          72 - 103   hash of PBKDF2 and the digest     208 - 591   eight key slots of 48 bytes
         104 - 107   payload, in sectors of 512
         108 - 111   bytes of the volume key

    slot   0 -   3   0x00ac71f3 active, 0x0000dead not   40 - 43   key material, in sectors
           4 -   7   iterations                          44 - 47   stripes of the anti-forensic split
           8 -  39   salt

Big-endian; names end with a NUL. Offsets are kept in bytes here, and are those from the header on.

Headers are hostile: sizes and counts decide how much memory and time a passphrase takes.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from aioblock.base.errors import InvalidImage, UnsupportedFeature
from aioblock.luks.ciphers import CIPHERS, IV_GENERATORS, MODES, SECTOR, key_bytes
from aioblock.luks.kdf import HASH_NAMES

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "SLOTS",
    "STRIPES",
    "Header",
    "KeySlot",
    "active_field",
    "material_bytes",
    "parse_header",
    "slot_field",
]

MAGIC: Final = b"LUKS\xba\xbe"
HEADER_BYTES: Final = 592
SLOTS: Final = 8
STRIPES: Final = 4000
"""The only number of stripes that anybody ever wrote."""
SALT_BYTES: Final = 32
DIGEST_BYTES: Final = 20

_HEAD: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_ACTIVE: Final = 0x00AC71F3
_INACTIVE: Final = 0x0000DEAD
_NAME_BYTES: Final = 32


@dataclass(slots=True)
class KeySlot:
    """One key slot. `offset` of the key material, in bytes from the header on."""

    active: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int = STRIPES


@dataclass(slots=True)
class Header:
    """The header of a volume. `payload_offset` in bytes; `cipher` is "aes-256", with the bits of the key."""

    cipher: str
    mode: str
    iv_generator: str
    iv_hash: str | None
    hash: str
    payload_offset: int
    key_bytes: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: list[KeySlot] = field(default_factory=list)

    @property
    def material_bytes(self) -> int:
        """Bytes of the key material of a slot."""
        return material_bytes(self.key_bytes)

    @property
    def mode_text(self) -> str:
        """As it stands in the header: "cbc-essiv:sha256"."""
        return f"{self.mode}-{self.iv_generator}" + (f":{self.iv_hash}" if self.iv_hash else "")

    def serialise(self) -> bytes:
        """The 592 bytes."""
        head = _HEAD.pack(
            MAGIC,
            1,
            self.cipher.partition("-")[0].encode(),
            self.mode_text.encode(),
            self.hash.encode(),
            self.payload_offset // SECTOR,
            self.key_bytes,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            self.uuid.encode(),
        )
        return head + b"".join(slot_field(number, slot)[1] for number, slot in enumerate(self.slots))


# Each gives the offset and the bytes of one write. The second lies in one sector always, slot 6 as a whole does not.


def slot_field(number: int, slot: KeySlot) -> tuple[int, bytes]:
    """All of a slot."""
    state = _ACTIVE if slot.active else _INACTIVE
    packed = _SLOT.pack(state, slot.iterations, slot.salt, slot.offset // SECTOR, slot.stripes)
    return _HEAD.size + number * _SLOT.size, packed


def active_field(number: int, slot: KeySlot) -> tuple[int, bytes]:
    """Whether a slot is active."""
    offset, packed = slot_field(number, slot)
    return offset, packed[:4]


def material_bytes(key: int) -> int:
    """Bytes of the key material of a slot, for a key of so many bytes: whole sectors, as they are encrypted."""
    return -(-key * STRIPES // SECTOR) * SECTOR


def parse_header(data: bytes | bytearray, room: int) -> Header:
    """The header in `data`. `room`: bytes from the header to the end of what may belong to it.

    Raises: InvalidImage, UnsupportedFeature.
    """
    if len(data) < HEADER_BYTES or data[:6] != MAGIC:
        raise InvalidImage("Volume is not in LUKS format", offset=0)
    (
        _,
        version,
        cipher,
        mode,
        hash_name,
        payload,
        nbytes,
        digest,
        salt,
        iterations,
        uuid,
    ) = _HEAD.unpack_from(data)
    if version != 1:
        raise UnsupportedFeature(f"LUKS version {version} is not supported", features=(f"LUKS version {version}",))
    texts = [
        _text(field, name)
        for field, name in ((cipher, "Cipher name"), (mode, "Cipher mode"), (hash_name, "Hash spec"), (uuid, "UUID"))
    ]
    names = _names(texts[0], texts[1], texts[2], nbytes)
    slots = [_slot(data, number) for number in range(SLOTS)]
    header = Header(*names, payload * SECTOR, nbytes, digest, salt, iterations, texts[3], slots)
    _check(header, room)
    return header


def _text(data: bytes, what: str) -> str:
    text, end, _ = data.partition(b"\0")
    if not end:
        raise InvalidImage(f"LUKS header {what.lower()} is not NUL terminated")
    return text.decode("ascii", "backslashreplace")


def _names(cipher: str, mode: str, hash_name: str, nbytes: int) -> tuple[str, str, str, str | None, str]:
    """Cipher with its bits, mode, generator of IVs, its hash, hash: as the header is checked for. Raises as it."""
    kind, dash, generator = mode.partition("-")
    if not dash:
        raise InvalidImage(f"Unexpected cipher mode string format '{mode}'", offset=40)
    generator, _, iv_hash = generator.partition(":")
    if hash_name not in HASH_NAMES:
        raise UnsupportedFeature(f"Hash '{hash_name}' is not supported", features=(f"hash {hash_name}",))
    if generator == "essiv" and not iv_hash:
        raise InvalidImage("Missing IV generator hash specification", offset=40)
    if iv_hash and iv_hash not in HASH_NAMES:
        raise UnsupportedFeature(f"Hash '{iv_hash}' is not supported", features=(f"hash {iv_hash}",))
    if kind not in MODES:
        raise UnsupportedFeature(f"Cipher mode '{kind}' is not supported", features=(f"cipher mode {kind}",))
    if generator not in IV_GENERATORS:
        raise UnsupportedFeature(f"IV generator '{generator}' is not supported", features=(f"IV {generator}",))
    for name in CIPHERS:
        if name.partition("-")[0] == cipher and key_bytes(name, kind) == nbytes:
            return name, kind, generator, iv_hash or None, hash_name
    if any(name.partition("-")[0] == cipher for name in CIPHERS):
        raise InvalidImage(f"Algorithm '{cipher}' with key size {nbytes} bytes not supported", offset=108)
    raise UnsupportedFeature(f"Algorithm '{cipher}' not supported", features=(f"cipher {cipher}",))


def _slot(data: bytes | bytearray, number: int) -> KeySlot:
    active, iterations, salt, sector, stripes = _SLOT.unpack_from(data, _HEAD.size + number * _SLOT.size)
    if active not in (_ACTIVE, _INACTIVE):
        raise InvalidImage(f"Keyslot {number} state (active/disable) is corrupted")
    return KeySlot(active == _ACTIVE, iterations, salt, sector * SECTOR, stripes)


def _check(header: Header, room: int) -> None:
    """The numbers against each other. Raises: InvalidImage."""
    if header.digest_iterations == 0:
        raise InvalidImage("Number of iterations of the volume key's digest is zero", offset=164)
    if header.payload_offset < SECTOR * -(-HEADER_BYTES // SECTOR):
        raise InvalidImage("LUKS payload is overlapping with the header", offset=104)
    if header.payload_offset > room:
        raise InvalidImage("LUKS payload lies behind the end of the image", offset=104)
    nbytes = header.material_bytes
    for number, slot in enumerate(header.slots):
        if slot.stripes != STRIPES:
            raise InvalidImage(f"Keyslot {number} is corrupted (stripes {slot.stripes} != {STRIPES})")
        if slot.active and slot.iterations == 0:
            raise InvalidImage(f"Keyslot {number} iteration count is zero")
        if slot.offset < SECTOR * -(-HEADER_BYTES // SECTOR):
            raise InvalidImage(f"Keyslot {number} is overlapping with the LUKS header")
        if slot.offset + nbytes > header.payload_offset:
            raise InvalidImage(f"Keyslot {number} is overlapping with the encrypted payload")
        for other, earlier in enumerate(header.slots[:number]):
            if slot.offset < earlier.offset + nbytes and earlier.offset < slot.offset + nbytes:
                raise InvalidImage(f"Keyslots {other} and {number} are overlapping in the header")

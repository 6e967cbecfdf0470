"""Volume: a LUKS1 header in a file, its key slots, and the key that they keep.

Where the header lies, and where the encrypted sectors are, is the business of whoever uses it: a `luks` image has one
before its payload, a qcow2 image in clusters of its own.

A slot is filled while it is inactive, and made active by a write of its own, of 4 bytes in one sector: only after the
key material is on stable storage. It is made inactive, on stable storage, before its key material is overwritten.
"""

import asyncio
import hmac
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import InvalidImage, OptionError
from aioblock.luks.antiforensic import merge, split
from aioblock.luks.ciphers import SectorCipher
from aioblock.luks.header import HEADER_BYTES, SLOTS, Header, KeySlot, active_field, parse_header, slot_field
from aioblock.luks.kdf import calibrated, check_hash, pbkdf2
from aioblock.luks.unlocking import MAX_ITERATIONS, Unlocking

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["Volume", "seal"]

_WIPES: Final = 1
"""How often key material is overwritten. Once does where sectors stay in place; nothing helps where they do not."""


@dataclass(slots=True)
class Volume:
    """A header at `offset` of `file`; `key`, the volume key, once a passphrase has opened it."""

    file: "BlockIO"
    offset: int
    header: Header
    key: bytes | None = None
    max_iterations: int = MAX_ITERATIONS

    def __repr__(self) -> str:
        header = self.header
        active = [number for number, slot in enumerate(header.slots) if slot.active]
        return f"<luks Volume {header.cipher}-{header.mode_text} active={active} open={self.key is not None}>"

    @classmethod
    async def read(cls, file: "BlockIO", offset: int, room: int) -> "Volume":
        """Read the header, which with its key material has `room` bytes. Raises: ImageError, OSError."""
        head = await file.pread(offset, min(HEADER_BYTES, max(room, 0)))
        return cls(file, offset, parse_header(head, room))

    # -- passphrases -------------------------------------------------------------------------------------------------

    async def unlock(self, unlocking: Unlocking) -> None:
        """Find the slot that the passphrase opens, and take the key out of it.

        Cancelled: a thread may go on computing for a while, for nobody. Raises: OptionError where no slot opens;
        InvalidImage where trying would take more than `max_iterations`; NotSupported; OSError.
        """
        self.max_iterations = unlocking.max_iterations
        async with aclosing(self._opened_by(unlocking.passphrase)) as found:
            async for _, key in found:
                self.key = key
                return
        raise OptionError("Invalid password, cannot unlock any keyslot")

    async def matching(self, passphrase: bytes) -> list[int]:
        """The slots that a passphrase opens. Raises: as `unlock`, and nothing where none opens."""
        return [number async for number, _ in self._opened_by(passphrase)]

    async def _opened_by(self, passphrase: bytes) -> AsyncGenerator[tuple[int, bytes], None]:
        budget = self.max_iterations
        for number, slot in enumerate(self.header.slots):
            if not slot.active:
                continue
            cost = slot.iterations + self.header.digest_iterations
            budget -= cost
            if budget < 0:
                raise InvalidImage(
                    f"Keyslot {number} asks for {cost} iterations of PBKDF2, more than max-iterations allows"
                )
            key = await self._try(slot, passphrase)
            if key is not None:
                yield number, key

    async def _try(self, slot: KeySlot, passphrase: bytes) -> bytes | None:
        """The volume key, if the passphrase opens the slot."""
        material = await self.file.pread(self.offset + slot.offset, self.header.material_bytes)
        return await asyncio.to_thread(_open_slot, self.header, slot, passphrase, material)

    def cipher(self) -> SectorCipher:
        """The cipher of the payload; the volume is open. Raises: NotSupported."""
        assert self.key is not None
        return _cipher(self.header, self.key)

    # -- slots -------------------------------------------------------------------------------------------------------

    async def fill(self, number: int, passphrase: bytes, seconds: float) -> None:
        """Let a passphrase open the volume, which is open, through a slot that is not active.

        Failed or cancelled: the slot is not active, or it opens. Raises: NotSupported, OSError.
        """
        assert self.key is not None
        slot = self.header.slots[number]
        assert not slot.active
        new, material = await asyncio.to_thread(seal, self.header, slot.offset, self.key, passphrase, seconds)
        new.active = False
        await self.file.pwrite(self.offset + slot.offset, material)
        await self._write(slot_field(number, new))
        await self.file.flush()
        new.active = True
        await self._write(active_field(number, new))
        await self.file.flush()
        self.header.slots[number] = new

    async def erase(self, number: int) -> None:
        """Make a slot inactive, and its key material unreadable.

        Failed or cancelled: the slot is not active, or its passphrase still opens it. Raises: OSError.
        """
        old = self.header.slots[number]
        empty = KeySlot(False, 0, bytes(len(old.salt)), old.offset)
        await self._write(active_field(number, empty))
        await self.file.flush()
        self.header.slots[number] = empty
        for _ in range(_WIPES):
            await self.file.pwrite(self.offset + old.offset, os.urandom(self.header.material_bytes))
            await self.file.flush()
        await self._write(slot_field(number, empty))
        await self.file.flush()

    def active(self) -> list[int]:
        """The slots that are active."""
        return [number for number in range(SLOTS) if self.header.slots[number].active]

    async def _write(self, field: tuple[int, bytes]) -> None:
        at, data = field
        await self.file.pwrite(self.offset + at, data)

    # -- information -------------------------------------------------------------------------------------------------

    def describe(self, form: str | None = None) -> dict[str, Any]:
        """What `qemu-img info` shows, in its order; with the name of the format in it where one is given."""
        header = self.header
        facts: dict[str, Any] = {
            "ivgen-alg": header.iv_generator,
            "hash-alg": header.hash,
            "cipher-alg": header.cipher,
            "uuid": header.uuid,
        }
        if form is not None:
            facts["format"] = form
        if header.iv_generator == "essiv":
            facts["ivgen-hash-alg"] = header.iv_hash
        facts["cipher-mode"] = header.mode
        facts["slots"] = [_describe(slot) for slot in header.slots]
        facts["payload-offset"] = header.payload_offset
        facts["master-key-iters"] = header.digest_iterations
        return facts


def _describe(slot: KeySlot) -> dict[str, Any]:
    if not slot.active:
        return {"active": False, "key-offset": slot.offset}
    return {"active": True, "iters": slot.iterations, "key-offset": slot.offset, "stripes": slot.stripes}


# -- what takes long, and needs no file ------------------------------------------------------------------------------


def _cipher(header: Header, key: bytes) -> SectorCipher:
    return SectorCipher(key, header.mode, header.iv_generator, header.iv_hash)


def _open_slot(header: Header, slot: KeySlot, passphrase: bytes, material: bytearray) -> bytes | None:
    check_hash(header.hash)
    slot_key = pbkdf2(header.hash, passphrase, slot.salt, slot.iterations, header.key_bytes)
    _cipher(header, slot_key).decrypt_in_place(0, material)
    key = merge(material, header.key_bytes, slot.stripes, header.hash)
    digest = pbkdf2(header.hash, key, header.digest_salt, header.digest_iterations, len(header.digest))
    return key if hmac.compare_digest(digest, header.digest) else None


def seal(header: Header, offset: int, key: bytes, passphrase: bytes, seconds: float) -> tuple[KeySlot, bytes]:
    """An active slot that a passphrase opens, and its key material. Takes that time, and half a second more.

    Raises: NotSupported.
    """
    check_hash(header.hash)
    slot = KeySlot(True, calibrated(header.hash, header.key_bytes, seconds), os.urandom(32), offset)
    slot_key = pbkdf2(header.hash, passphrase, slot.salt, slot.iterations, header.key_bytes)
    stripes = split(key, slot.stripes, header.hash)
    return slot, bytes(_cipher(header, slot_key).encrypt(0, stripes.ljust(header.material_bytes, b"\0")))

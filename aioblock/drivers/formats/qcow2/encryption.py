"""Encryption of guest data: method 2, LUKS, whose header lies in clusters of the image; method 1, the AES of old.

    LUKS   any cipher of LUKS1; the number of a sector, which its IV is made of, is that of its place in the file
    aes    AES-128 in CBC; the key is the passphrase, cut or filled up with zeroes to 16 bytes; the number of a sector
           is that of its place on the disk. Weak: kept for old images.

Metadata is never encrypted, nor are compressed clusters: who wants both gets an error.
"""

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.base.options import Options
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.data import Data, NoData
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import CRYPT_AES, CRYPT_LUKS, CRYPT_NONE

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO
    from aioblock.core.objects import NamedObject
    from aioblock.drivers.formats.qcow2.header import Header
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.luks.ciphers import SectorCipher
    from aioblock.luks.creating import NewVolume

__all__ = ["EncryptedData", "amend_encryption", "new_encryption", "open_encryption", "place_volume", "write_volume"]

_SECTOR: Final = 512
_AES_KEY_BYTES: Final = 16
_FORMATS: Final = {CRYPT_AES: "aes", CRYPT_LUKS: "luks"}


class EncryptedData(Data):
    """Guest data in encrypted sectors; every request is of whole ones."""

    plain = False

    def __init__(self, file: "BlockIO", cipher: "SectorCipher", *, by_host: bool) -> None:
        """`by_host`: sectors are numbered by their place in the file, else by that on the disk."""
        from aioblock.luks.sectors import EncryptedSectors

        super().__init__(file)
        self._sectors = EncryptedSectors(file, cipher)
        self._by_host = by_host

    def readinto(self, host: int, guest: int, buffer: memoryview) -> "Awaitable[None]":
        """Fill `buffer`. Raises: OSError."""
        return self._sectors.readinto(host, self._sector(host, guest), buffer)

    def pwrite(self, host: int, guest: int, data: memoryview) -> "Awaitable[None]":
        """Write `data`, which does not change meanwhile. Raises: OSError."""
        return self._sectors.pwrite(host, self._sector(host, guest), data)

    def pwrite_zeroes(self, host: int, guest: int, nbytes: int) -> "Awaitable[None]":
        """Make a range read as zeroes for the guest. Raises: OSError."""
        return self._sectors.pwrite_zeroes(host, self._sector(host, guest), nbytes)

    def _sector(self, host: int, guest: int) -> int:
        return (host if self._by_host else guest) // _SECTOR


# -- opening ---------------------------------------------------------------------------------------------------------


async def open_encryption(context: "OpenContext", image: "Image") -> Data:
    """Where guest data is read and written, decrypted if the image is encrypted. Options: `encrypt.*`.

    Cancelled: a thread may go on computing for a while, for nobody.
    Raises: OptionError, ImageError, NotSupported, OSError.
    """
    method = image.header.crypt_method
    if method == CRYPT_NONE and "encrypt" not in context.options:
        return image.data
    options = _options(context.options.take("encrypt", {}))
    form = options.take_str("format", None)
    if method == CRYPT_NONE:
        if form is not None:
            raise OptionError(f"No encryption in image header, but options specified format '{form}'")
        _leave(options)
        return image.data
    if form not in (None, _FORMATS[method]):
        raise OptionError(
            f"Header reported '{_FORMATS[method]}' encryption format but options specify '{form}'",
            option="encrypt.format",
        )
    from aioblock.luks.volume import Volume

    extent = image.header.encryption_header
    if context.metadata_only or (context.for_check and "key-secret" not in options):
        _leave(options)
        if extent is not None:
            image.volume = await Volume.read(image.file, *extent)
        return NoData(image.data_file)
    from aioblock.luks.ciphers import SectorCipher
    from aioblock.luks.unlocking import Unlocking

    unlocking = Unlocking.take(options, context.objects, "encrypt.")
    _refuse_leftover(options)
    image.objects = context.objects
    if extent is None:
        key = unlocking.passphrase[:_AES_KEY_BYTES].ljust(_AES_KEY_BYTES, b"\0")
        return EncryptedData(image.data_file, SectorCipher(key, "cbc", "plain64"), by_host=False)
    image.volume = await Volume.read(image.file, *extent)
    await image.volume.unlock(unlocking)
    return EncryptedData(image.data_file, image.volume.cipher(), by_host=True)


def _options(given: object) -> Options:
    if not isinstance(given, Mapping):
        raise OptionError("Parameter 'encrypt' expects encrypt.format and encrypt.key-secret", option="encrypt")
    return Options(given)


def _leave(options: Options) -> None:
    from aioblock.luks.unlocking import Unlocking

    Unlocking.leave(options)
    _refuse_leftover(options)


def _refuse_leftover(options: Options) -> None:
    if unknown := options.leftover():
        raise OptionError(f"Parameter 'encrypt.{unknown[0]}' is unexpected", option=f"encrypt.{unknown[0]}")


# -- creating --------------------------------------------------------------------------------------------------------


async def new_encryption(options: Mapping[str, Any], header: "Header") -> "NewVolume | None":
    """Enter the encryption that the options of `create` ask for into a header; with LUKS, make the volume.

    The place of the volume is settled by the layout: see `place_volume`. Raises: OptionError, NotSupported.
    """
    form = options.get("encrypt.format")
    if options.get("encryption"):
        if form is not None:
            raise OptionError("'encrypt.format' and its alias 'encryption' can't be used at the same time")
        form = "aes"
    given = [name for name in options if name.startswith("encrypt.") and name != "encrypt.format"]
    if form is None:
        if given:
            raise OptionError("Parameter 'encrypt.format' is missing", option="encrypt.format")
        return None
    if form not in _FORMATS.values():
        raise OptionError(f"Parameter 'format' does not accept value '{form}'", option="encrypt.format")
    if form == "luks":
        from aioblock.luks.creating import NewVolume, take_parameters

        volume = await NewVolume.make(take_parameters(options, "encrypt."))
        header.crypt_method = CRYPT_LUKS
        header.extensions.append(_crypto_extension(0, volume.header.payload_offset))
        header.extensions.sort(key=_extension_order)
        return volume
    for name in given:
        if name != "encrypt.key-secret":
            raise OptionError(f"Parameter '{name}' is unexpected", option=name)
    secret = options.get("encrypt.key-secret")
    if secret is None:
        raise OptionError("Parameter 'encrypt.key-secret' is required for cipher", option="encrypt.key-secret")
    secret.passphrase()
    header.crypt_method = CRYPT_AES
    return None


def _crypto_extension(offset: int, nbytes: int) -> Extension:
    return Extension(ext.CRYPTO, struct.pack(">QQ", offset, nbytes))


def _extension_order(extension: Extension) -> int:
    """The names of features stay last, as QEMU has them."""
    return extension.type == ext.FEATURE_NAMES


def place_volume(header: "Header", offset: int) -> None:
    """The LUKS header of a new image will lie at `offset`."""
    assert header.encryption_header is not None
    _, nbytes = header.encryption_header
    header.extensions = [
        _crypto_extension(offset, nbytes) if extension.type == ext.CRYPTO else extension
        for extension in header.extensions
    ]


async def write_volume(file: "BlockIO", header: "Header", volume: "NewVolume") -> None:
    """Write a new LUKS header with its key material to its place. Raises: OSError."""
    assert header.encryption_header is not None
    offset, nbytes = header.encryption_header
    await file.pwrite_zeroes(offset, -(-nbytes // header.cluster_size) * header.cluster_size, REQ_MAY_UNMAP)
    await volume.write_material(file, offset)
    await volume.write_header(file, offset)


# -- amending --------------------------------------------------------------------------------------------------------


async def amend_encryption(
    image: "Image",
    options: Mapping[str, Any],
    *,
    force: bool = False,
    objects: "Mapping[str, NamedObject] | None" = None,
) -> None:
    """Activate or erase key slots, as the `encrypt.*` among the options say; without any, nothing happens.

    Secrets are named by their id, and looked for in `objects`, or in those that the image was opened with. `force`:
    also where the data would be lost. Failed: each slot is as it was, or as it shall be.
    Raises: OptionError before anything is written; NotSupported; OSError.
    """
    given = {name: value for name, value in options.items() if name.startswith("encrypt.")}
    if not given:
        return
    from aioblock.luks.amending import amend

    if not image.encrypted:
        raise NotSupported("Can't amend encryption options - encryption not present")
    if image.header.crypt_method != CRYPT_LUKS:
        raise NotSupported("Only LUKS encryption options can be amended")
    if image.volume is None or image.volume.key is None:
        raise NotSupported("The image was opened without its key")
    await amend(image.volume, given, image.objects if objects is None else objects, force=force, prefix="encrypt.")

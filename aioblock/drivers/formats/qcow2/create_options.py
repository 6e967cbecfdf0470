"""The options of `create` and `amend`, apart from them: every program that opens an image loads the driver."""

from typing import Final

from aioblock.core.images import SIZE_OPTION, CreateOption, Role
from aioblock.luks import options as luks

__all__ = ["AMEND_OPTIONS", "CREATE_OPTIONS"]

_SIZE_AND_FILES: Final = (
    SIZE_OPTION,
    CreateOption("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    CreateOption("backing_file", "str", "File name of a base image"),
    CreateOption("backing_fmt", "str", "Image format of the base image"),
)
_DATA_FILE: Final = CreateOption("data_file", "str", "File name of an external data file")
_DATA_FILE_RAW: Final = CreateOption("data_file_raw", "bool", "The external data file must stay valid as a raw image")
_LAZY_REFCOUNTS: Final = CreateOption("lazy_refcounts", "bool", "Postpone refcount updates")
_REFCOUNT_BITS: Final = CreateOption("refcount_bits", "int", "Width of a reference count entry in bits")

_KEY_SECRET, *_OTHERS_OF_LUKS = luks.prefixed(luks.CREATE_OPTIONS)

CREATE_OPTIONS: Final = (
    CreateOption(
        "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
    ),
    CreateOption("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    _KEY_SECRET._replace(help="ID of secret providing qcow AES key or LUKS passphrase"),
    *_OTHERS_OF_LUKS,
    CreateOption("cluster_size", "size", "qcow2 cluster size", 65536),
    CreateOption("extended_l2", "bool", "Extended L2 tables", False),
    CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    CreateOption("compression_type", "str", "Compression method used for image cluster compression", "zlib"),
    *_SIZE_AND_FILES,
    _DATA_FILE._replace(role=Role.DATA_FILE),
    _DATA_FILE_RAW,
    _LAZY_REFCOUNTS._replace(default=False),
    _REFCOUNT_BITS._replace(default=16),
)

AMEND_OPTIONS: Final = (
    *luks.prefixed(luks.AMEND_OPTIONS),
    *_SIZE_AND_FILES,
    _DATA_FILE,
    _DATA_FILE_RAW,
    _LAZY_REFCOUNTS,
    _REFCOUNT_BITS,
)

"""The options of `create`, apart from it: every program that opens an image loads the driver, few create one."""

from typing import Final

from aioblock.core.images import CreateOption

__all__ = ["CREATE_OPTIONS"]

CREATE_OPTIONS: Final = (
    CreateOption(
        "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
    ),
    CreateOption("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    CreateOption("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"),
    CreateOption("encrypt.cipher-alg", "str", "Name of encryption cipher algorithm"),
    CreateOption("encrypt.cipher-mode", "str", "Name of encryption cipher mode"),
    CreateOption("encrypt.ivgen-alg", "str", "Name of IV generator algorithm"),
    CreateOption("encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    CreateOption("encrypt.hash-alg", "str", "Name of encryption hash algorithm"),
    CreateOption("encrypt.iter-time", "int", "Time to spend in PBKDF in milliseconds"),
    CreateOption("cluster_size", "size", "qcow2 cluster size", 65536),
    CreateOption("extended_l2", "bool", "Extended L2 tables", False),
    CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    CreateOption("compression_type", "str", "Compression method used for image cluster compression", "zlib"),
    CreateOption("size", "size", "Virtual disk size"),
    CreateOption("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    CreateOption("backing_file", "str", "File name of a base image"),
    CreateOption("backing_fmt", "str", "Image format of the base image"),
    CreateOption("data_file", "str", "File name of an external data file"),
    CreateOption("data_file_raw", "bool", "The external data file must stay valid as a raw image"),
    CreateOption("lazy_refcounts", "bool", "Postpone refcount updates", False),
    CreateOption("refcount_bits", "int", "Width of a reference count entry in bits", 16),
)

"""The options of `create` and `amend`, apart from them: every program that opens an image loads the driver."""

from typing import Final

from aioblock.core.images import CreateOption, Role
from aioblock.core.secrets import Secret

__all__ = ["AMEND_OPTIONS", "CREATE_OPTIONS"]

CREATE_OPTIONS: Final = (
    CreateOption(
        "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
    ),
    CreateOption("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    CreateOption("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase", names=Secret),
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
    CreateOption("data_file", "str", "File name of an external data file", role=Role.DATA_FILE),
    CreateOption("data_file_raw", "bool", "The external data file must stay valid as a raw image"),
    CreateOption("lazy_refcounts", "bool", "Postpone refcount updates", False),
    CreateOption("refcount_bits", "int", "Width of a reference count entry in bits", 16),
)

AMEND_OPTIONS: Final = (
    CreateOption("encrypt.state", "str", "Select new state of affected keyslots (active/inactive)"),
    CreateOption("encrypt.keyslot", "int", "Select a single keyslot to modify explicitly"),
    CreateOption("encrypt.old-secret", "str", "Select all keyslots that match this password", names=Secret),
    CreateOption(
        "encrypt.new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase", names=Secret
    ),
    CreateOption("encrypt.iter-time", "int", "Time to spend in PBKDF in milliseconds"),
    CreateOption("size", "size", "Virtual disk size"),
    CreateOption("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    CreateOption("backing_file", "str", "File name of a base image"),
    CreateOption("backing_fmt", "str", "Image format of the base image"),
    CreateOption("data_file", "str", "File name of an external data file"),
    CreateOption("data_file_raw", "bool", "The external data file must stay valid as a raw image"),
    CreateOption("lazy_refcounts", "bool", "Postpone refcount updates"),
    CreateOption("refcount_bits", "int", "Width of a reference count entry in bits"),
)

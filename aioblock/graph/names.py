"""File names as the programs take them: plain ones, `protocol:...`, and `json:{...}`."""

import os
import stat
from typing import Any

from aioblock.base.errors import OptionError
from aioblock.base.options import parse_json_name
from aioblock.core.driver import BlockDriver
from aioblock.core.registry import find_protocol

__all__ = [
    "beside",
    "check_path",
    "file_protocol",
    "has_protocol",
    "json_name",
    "protocol_of",
    "strip_protocol",
    "to_options",
]


def has_protocol(name: str) -> bool:
    """Whether a name begins like `word:`, before any slash."""
    head, colon, _ = name.partition(":")
    return bool(colon) and "/" not in head


def protocol_of(name: str) -> type[BlockDriver]:
    """The protocol driver that a name means. Raises: OptionError for a `word:` that is none."""
    if not has_protocol(name):
        return file_protocol(name)
    prefix = name.partition(":")[0]
    driver = find_protocol(prefix)
    if driver is None:
        raise OptionError(f"Unknown protocol '{prefix}'")
    return file_protocol(strip_protocol(name)) if driver.name == "file" else driver


def file_protocol(path: str) -> type[BlockDriver]:
    """The protocol driver for a path of the host: that of devices, or of files."""
    try:
        mode = os.stat(path).st_mode
        device = stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    except (OSError, ValueError):
        device = False
    found = find_protocol("host_device") if device else None
    driver = found or find_protocol("file")
    if driver is None:
        raise OptionError("Driver 'file' is not registered")
    return driver


def check_path(name: str) -> None:
    """Raises: OptionError where a name cannot be that of a file: a NUL byte, or what no byte string stands for."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise OptionError(f"{name!r} cannot be the name of a file", option="filename")


def strip_protocol(name: str) -> str:
    """The path in `file:path` (`host_device:`, `host_cdrom:`), as one that is a path by itself; others as they are."""
    prefix, _, path = name.partition(":")
    if prefix not in ("file", "host_device", "host_cdrom"):
        return name
    return f"./{path}" if has_protocol(path) else path


def to_options(name: str) -> dict[str, Any]:
    """The options that a name means: those of `json:{...}`, else just the file name."""
    return parse_json_name(name) if name.startswith("json:") else {"filename": name}


def beside(image: str, name: str) -> str:
    """A name that stands in an image, as seen from here: a relative path counts from the directory of the image.

    Names with a protocol, and absolute ones, stay as they are; so do all where `image` is "".
    Raises: OptionError where `image` lies in no directory.
    """
    if has_protocol(name) or os.path.isabs(name) or not image:
        return name
    protocol = find_protocol(image.partition(":")[0]) if has_protocol(image) else None
    if protocol is not None and protocol.flat_names:
        raise OptionError(f"Cannot generate a base directory for {protocol.name.upper()} nodes")
    directory = os.path.dirname(strip_protocol(image))
    return os.path.join(directory, name) if directory else name


def json_name(options: dict[str, Any]) -> str:
    """Options as a name that opens the same thing, the way QEMU writes it."""
    import json  # here, because most nodes have a plain name

    return "json:" + json.dumps(options, separators=(", ", ": "), ensure_ascii=False)

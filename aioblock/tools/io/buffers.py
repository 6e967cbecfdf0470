"""The bytes that commands write, and the check of those that they have read."""

import os

__all__ = ["DEFAULT_PATTERN", "PatternFileError", "filled", "from_file", "holds", "unread"]

DEFAULT_PATTERN = 0xCD
_UNREAD = b"\xab"
_STEP = 1 << 16


class PatternFileError(Exception):
    """The file that was to be written cannot be read. The message is complete: it begins with the file's name."""


def filled(pattern: int, nbytes: int) -> bytes:
    """`nbytes` times the byte `pattern`."""
    return bytes((pattern,)) * nbytes


def from_file(path: str, nbytes: int) -> bytes:
    """`nbytes` of the file's content, from its beginning again and again. Raises: PatternFileError."""
    try:
        with open(path, "rb") as file:
            content = file.read(nbytes)
    except OSError as error:
        raise PatternFileError(f"{path}: {os.strerror(error.errno or 0)}") from None
    if not content:
        raise PatternFileError(f"{path}: file is empty")
    return (content * (-(-nbytes // len(content))))[:nbytes]


def unread(nbytes: int) -> bytearray:
    """A buffer to read into, of a content that shows what was not."""
    return bytearray(_UNREAD) * nbytes


def holds(data: bytearray, pattern: int, begin: int, nbytes: int) -> bool:
    """Whether a part of `data` is all `pattern`."""
    wanted = filled(pattern, min(_STEP, nbytes))
    end = begin + nbytes
    for at in range(begin, end, _STEP):
        part = data[at : min(at + _STEP, end)]
        if part != wanted[: len(part)]:
            return False
    return True

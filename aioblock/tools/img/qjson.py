"""JSON as QEMU's programs print it: four blanks of indentation, and nothing but ASCII."""

from collections.abc import Mapping
from typing import Any

__all__ = ["to_json"]

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_json(value: Any, indent: int = 0) -> str:
    """`value` (None, bool, int, str, mappings and sequences of such) as text, without a newline at its end."""
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    inner, outer = " " * (indent + 4), " " * indent
    if isinstance(value, Mapping):
        items = [f'{inner}"{_escaped(str(key))}": {to_json(item, indent + 4)}' for key, item in value.items()]
        return "{\n" + ",\n".join(items) + ("\n" if items else "") + outer + "}"
    items = [inner + to_json(item, indent + 4) for item in value]
    return "[\n" + ",\n".join(items) + ("\n" if items else "") + outer + "]"


def _escaped(text: str) -> str:
    return "".join(
        character if " " <= character < "\x7f" and character not in _ESCAPES else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if 0xD800 <= code < 0xE000:  # a byte of a file name that is no UTF-8
        code = 0xFFFD
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
    return f"\\u{code:04X}"

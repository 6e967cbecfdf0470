"""Bytes as people look at them: offsets, hexadecimal, and characters; rows that repeat are left out."""

from rich.text import Text

__all__ = ["hexdump"]

_ROW = 16


def hexdump(data: bytes | bytearray, offset: int = 0) -> Text:
    """`data`, which lies at `offset`, as lines of 16 bytes. Zeroes are dim."""
    text = Text()
    last = b""
    starred = False
    for at in range(0, len(data), _ROW):
        row = bytes(data[at : at + _ROW])
        if row == last and at + _ROW < len(data):
            if not starred:
                text.append("*\n", "bright_black")
            starred = True
            continue
        last, starred = row, False
        text.append(f"{offset + at:012x}  ", "cyan")
        pairs = [f"{byte:02x}" for byte in row] + ["  "] * (_ROW - len(row))
        hexadecimal = " ".join(pairs[:8]) + "  " + " ".join(pairs[8:])
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        text.append(f"{hexadecimal}  |{characters}|\n", "" if any(row) else "bright_black")
    text.right_crop(1)
    return text

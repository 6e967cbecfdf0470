"""How a stream may arrive: whole, byte by byte, and in pieces that end anywhere."""

from collections.abc import Callable, Iterator

__all__ = ["CUTS", "Cut"]

Cut = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    if data:
        yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def sevens(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 7):
        yield data[at : at + 7]


CUTS: dict[str, Cut] = {"whole": whole, "bytes": byte_by_byte, "sevens": sevens}

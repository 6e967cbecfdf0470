"""Edits: entries of L2 tables that a check found to be nonsense, and what they shall say instead."""

from typing import Final

from aioblock.drivers.formats.qcow2.entries import table_to_bytes

__all__ = ["Edits"]

MAX_EDITS: Final = 1 << 17
"""More are left for the next repair."""


class Edits:
    """Collects the edits of one repair. Nothing is written here."""

    def __init__(self) -> None:
        self._edits: dict[int, int] = {}
        self._structures: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._edits)

    def protect(self, first: int, last: int) -> None:
        """Host clusters `first` to `last` hold something else than L2 tables: an edit there would destroy it."""
        self._structures.append((first, last))

    def possible(self, cluster: int) -> bool:
        """Whether nothing but an L2 table lies in a host cluster."""
        return not any(first <= cluster <= last for first, last in self._structures)

    def add(self, offset: int, entry: int, cluster_bits: int) -> bool:
        """The entry at this offset of the file shall be `entry`. False: it must stay as it is."""
        if len(self._edits) >= MAX_EDITS or not self.possible(offset >> cluster_bits):
            return False
        self._edits[offset] = entry
        return True

    def writes(self) -> list[tuple[int, bytes]]:
        """Offsets, and the bytes to write there."""
        return [(offset, table_to_bytes([entry])) for offset, entry in sorted(self._edits.items())]

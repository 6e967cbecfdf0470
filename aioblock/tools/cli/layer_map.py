"""The map of a chain: what each layer holds by itself, as arrays, and what a picture of so many columns shows of it."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioblock import BlockBackend, BlockNode

__all__ = ["COMPRESSED", "DATA", "HIDDEN", "KINDS", "OPEN", "ZERO", "LayerMap", "map_layer", "shares", "totals"]

OPEN, ZERO, COMPRESSED, DATA = range(4)

KINDS = ("open", "zero", "compressed", "data")
"""What a layer says of a run of bytes: it leaves it to the layers below; it reads as zeroes; it holds data."""

HIDDEN = "hidden"


@dataclass(slots=True)
class LayerMap:
    """What one layer holds, run by run, from its beginning to its end."""

    depth: int
    """1 = the top."""
    filename: str
    format: str
    length: int
    """Where the layer ends."""
    start: int
    """Where the map begins."""
    edges: npt.NDArray[np.int64]
    """Where the runs begin, and where the last one ends: one more than there are runs."""
    kinds: npt.NDArray[np.uint8]
    """Of each run: an index into `KINDS`. Neighbours differ."""

    @property
    def end(self) -> int:
        """Where the map ends: at the end of the layer, or of what was asked for."""
        return int(self.edges[-1])

    def runs(self) -> list[tuple[int, int, str]]:
        """(offset, length, kind) of each run."""
        lengths = np.diff(self.edges).tolist()
        return [
            (offset, length, KINDS[kind])
            for offset, length, kind in zip(self.edges.tolist(), lengths, self.kinds.tolist(), strict=False)
        ]


async def map_layer(
    disk: "BlockBackend",
    node: "BlockNode",
    depth: int,
    start: int,
    nbytes: int | None,
    progress: "Callable[[int, int], None]",
) -> LayerMap:
    """Ask one layer of an open chain for all that it holds in a range. Raises: OSError."""
    from aioblock import ALLOCATED
    from aioblock import COMPRESSED as STORED_COMPRESSED
    from aioblock import ZERO as READS_ZERO

    edges: list[Any] = [np.array([start], np.int64)]
    kinds: list[Any] = []
    wanted = max(min(node.length - start, nbytes if nbytes is not None else node.length), 0)
    if wanted:
        async with aclosing(disk.extent_batches(start, wanted, top=node, base=node.below)) as batches:
            async for batch in batches:
                flags = batch.flags
                kind = np.where(flags & STORED_COMPRESSED, COMPRESSED, DATA)
                kind = np.where(flags & READS_ZERO, ZERO, kind)
                kinds.append(np.where(flags & ALLOCATED, kind, OPEN).astype(np.uint8))
                edges.append(batch.offset + np.cumsum(batch.lengths))
                progress(int(edges[-1][-1]) - start, wanted)
    all_edges = np.concatenate(edges)
    all_kinds = np.concatenate(kinds) if kinds else np.zeros(0, np.uint8)
    new = np.ones(len(all_kinds), bool)
    new[1:] = all_kinds[1:] != all_kinds[:-1]
    keep = np.append(new, True)
    return LayerMap(depth, _name(node), node.driver.name, node.length, start, all_edges[keep], all_kinds[new])


def _name(node: "BlockNode") -> str:
    """The name of the file that a layer lies in; how it is shown, where it is no single file."""
    below: BlockNode | None = node
    while below is not None and not below.exact_filename:
        below = below.file.node if below.file is not None else None
    return below.exact_filename if below is not None else node.filename


def totals(layer: LayerMap) -> dict[str, int]:
    """How many bytes there are of each kind."""
    counts = np.bincount(layer.kinds, weights=np.diff(layer.edges), minlength=len(KINDS))
    return {kind: int(count) for kind, count in zip(KINDS, counts, strict=True)}


def shares(layer: LayerMap, columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How many bytes of each kind lie between the offsets `columns`, which grow: one row a kind, one column between."""
    lengths = np.diff(layer.edges)
    rows = []
    for kind in range(len(KINDS)):
        before = np.concatenate(([0], np.cumsum(np.where(layer.kinds == kind, lengths, 0))))
        rows.append(np.diff(np.interp(columns, layer.edges, before)))
    return np.array(rows)

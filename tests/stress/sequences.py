"""Sequences: what is done to the twins, drawn from a seed alone.

A step is one operation on the image; a *session* is a list of guest requests that one open of the image does.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Geometry", "Request", "Step", "geometry", "steps"]


@dataclass(frozen=True)
class Geometry:
    """What kind of image the twins are."""

    cluster: int
    size: int
    version: int
    refcount_bits: int
    extended: bool
    lazy: bool
    backing: int | None
    """Length of a raw backing file, or None."""

    def options(self) -> dict[str, str]:
        """The options of `create`, as both take them."""
        found = {"cluster_size": str(self.cluster), "compat": "1.1" if self.version == 3 else "0.10"}
        if self.version == 3:
            found |= {"refcount_bits": str(self.refcount_bits), "extended_l2": _switch(self.extended)}
            found |= {"lazy_refcounts": _switch(self.lazy)}
        return found


@dataclass(frozen=True)
class Request:
    """One request of a guest."""

    verb: str
    """write, zero, unmap, discard, compress or flush."""
    offset: int = 0
    nbytes: int = 0
    byte: int = 0


@dataclass(frozen=True)
class Step:
    """One operation on the image."""

    verb: str
    """io, resize, snapshot-create, -apply, -delete, bitmap-add, -remove, -clear, -enable, -disable, -merge."""
    name: str = ""
    other: str = ""
    number: int = 0
    requests: list[Request] = field(default_factory=list)


def _switch(on: bool) -> str:
    return "on" if on else "off"


def geometry(chance: random.Random) -> Geometry:
    """A small image of any kind."""
    version = chance.choice([2, 3, 3, 3])
    extended = version == 3 and chance.random() < 0.25
    cluster = chance.choice([16384, 65536]) if extended else chance.choice([512, 4096, 4096, 16384, 65536])
    size = cluster * chance.randrange(2, 40) + 512 * chance.randrange(0, 4) * (cluster > 2048)
    backing = chance.choice([None, 512 * chance.randrange(1, size // 512 + 9)])
    bits = chance.choice([1, 2, 4, 8, 16, 16, 32, 64]) if version == 3 else 16
    return Geometry(cluster, size, version, bits, extended, version == 3 and chance.random() < 0.25, backing)


def steps(chance: random.Random, shape: Geometry, count: int) -> Iterator[Step]:
    """So many steps that make sense one after the other."""
    size = shape.size
    snapshots: dict[str, int] = {}
    bitmaps: list[str] = []
    compressed = False
    numbers = iter(range(1, 1000))
    for _ in range(count):
        verb = chance.choice(
            ["io"] * 5 + ["resize"] + ["snapshot-create", "snapshot-apply", "snapshot-delete"] + ["bitmap"] * 2
        )
        if verb == "resize":
            # QEMU's programs resize no image with snapshots of version 2, nor shrink one with any, nor with bitmaps.
            if (shape.version == 2 or chance.random() < 0.5) and snapshots:
                continue
            low = size if snapshots or bitmaps else 512
            wanted = max(low, size + chance.choice([-1, 1]) * 512 * chance.randrange(0, 3 * shape.cluster // 512 + 1))
            if compressed:  # QEMU 7.2 shows what a compressed last cluster held behind an end that was moved down
                wanted = -(-wanted // shape.cluster) * shape.cluster
            if shape.version == 2 and shape.backing is not None and wanted > size < shape.backing:
                continue  # where a longer backing file would show, QEMU does not grow version 2
            size = wanted
            yield Step("resize", number=size)
        elif verb == "snapshot-create":
            # With refcounts of one bit nothing can be shared, and each count must hold all snapshots at once.
            if shape.refcount_bits < 4 or len(snapshots) > 3:
                continue
            name = f"snap{next(numbers)}"
            snapshots[name] = size
            yield Step(verb, name)
        elif verb == "snapshot-apply" and snapshots:
            name = chance.choice(sorted(snapshots))
            if bitmaps:
                continue  # QEMU refuses it
            size = snapshots[name]
            yield Step(verb, name)
        elif verb == "snapshot-delete" and snapshots:
            name = chance.choice(sorted(snapshots))
            del snapshots[name]
            yield Step(verb, name)
        elif verb == "bitmap" and shape.version == 3:
            yield from _bitmap_step(chance, bitmaps, numbers)
        else:
            requests = list(_requests(chance, shape, size))
            compressed = compressed or any(request.verb == "compress" for request in requests)
            yield Step("io", requests=requests)


def _bitmap_step(chance: random.Random, bitmaps: list[str], numbers: Iterator[int]) -> Iterator[Step]:
    if not bitmaps or (len(bitmaps) < 3 and chance.random() < 0.4):
        name = f"map{next(numbers)}"
        bitmaps.append(name)
        yield Step("bitmap-add", name, number=1 << chance.randrange(9, 17))
        return
    verb = chance.choice(["remove", "clear", "enable", "disable", "merge"])
    name = chance.choice(bitmaps)
    if verb == "remove":
        bitmaps.remove(name)
    if verb == "merge":
        others = [other for other in bitmaps if other != name]
        if others:
            yield Step("bitmap-merge", name, chance.choice(others))
        return
    yield Step(f"bitmap-{verb}", name)


def _requests(chance: random.Random, shape: Geometry, size: int) -> Iterator[Request]:
    for _ in range(chance.randrange(1, 8)):
        verb = chance.choice(["write"] * 4 + ["zero", "unmap", "discard", "discard", "compress", "flush"])
        unit = chance.choice([512, 512, shape.cluster])
        offset = chance.randrange(0, size) // unit * unit
        longest = chance.choice([unit, 2 * shape.cluster, 6 * shape.cluster])
        nbytes = min(max(512, chance.randrange(0, longest + 1) // unit * unit), size - offset)
        if verb == "compress":
            offset = offset // shape.cluster * shape.cluster
            nbytes = min(shape.cluster, size - offset)
        yield Request(verb, offset, nbytes, chance.randrange(1, 256))


def describe(value: Any) -> str:
    """A step, in one line."""
    if isinstance(value, Step) and value.verb == "io":
        return "io " + " ".join(f"{r.verb}@{r.offset}+{r.nbytes}={r.byte}" for r in value.requests)
    return str(value)

"""Twins: the same steps done to one image by aioblock, to another by QEMU's programs; then they are compared."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aioblock
from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.oracle import qemu_img, qemu_io, qemu_map
from tests.stress.sequences import Geometry, Request, Step, describe, geometry, steps

__all__ = ["Differs", "Outcome", "run_seed"]

_IO = {
    "write": "write -P {byte} {offset} {nbytes}",
    "compress": "write -c -P {byte} {offset} {nbytes}",
    "zero": "write -z {offset} {nbytes}",
    "unmap": "write -z -u {offset} {nbytes}",
    "discard": "discard {offset} {nbytes}",
    "flush": "flush",
}
_RESULT = re.compile(r"wrote |discard |\w+ failed: ")
"""How the line begins that tells how a request ended."""


class Differs(AssertionError):
    """The twins are not alike. The text says in what, and gives the seed and the steps."""


class Outcome(NamedTuple):
    """How a sequence went that did not fail."""

    steps: int
    spoilt: bool
    """QEMU's image does not hold what was written, so that there was nothing to compare ours with but the model."""


async def run_seed(seed: int, folder: Path, count: int = 8) -> Outcome:
    """Do the steps of a seed to twins in `folder`. Raises: Differs."""
    chance = random.Random(seed)
    shape = geometry(chance)
    done: list[Step] = []
    twins = _Twins(folder, shape)
    try:
        await twins.create()
        for step in steps(chance, shape, count):
            done.append(step)
            await twins.do(step)
        await twins.compare()
    except BaseException as error:
        lines = "\n  ".join(describe(step) for step in done)
        raise Differs(f"seed {seed}: {shape}\n  {lines}\n{error}") from error
    return Outcome(len(done), twins.spoilt)


def _command(request: Request) -> str:
    return _IO[request.verb].format(byte=request.byte, offset=request.offset, nbytes=request.nbytes)


class _Twins:
    def __init__(self, folder: Path, shape: Geometry) -> None:
        self.shape = shape
        self.ours, self.theirs = folder / "ours.qcow2", folder / "theirs.qcow2"
        self.base = folder / "base.raw"
        self.model = bytearray(shape.size)
        """What the disk holds."""
        self.saved: dict[str, bytes] = {}
        """What the snapshots hold."""
        self.spoilt = False

    async def create(self) -> None:
        shape = self.shape
        options = shape.options()
        if shape.backing is not None:
            self.base.write_bytes(bytes(place // 512 * 7 % 251 for place in range(shape.backing)))
            shown = min(shape.backing, shape.size)
            self.model[:shown] = self.base.read_bytes()[:shown]
            options |= {"backing_file": str(self.base), "backing_fmt": "raw"}
        await aioblock.create(self.ours, "qcow2", options, size=shape.size)
        said = ",".join(f"{name}={value}" for name, value in options.items())
        qemu_img("create", "-q", "-f", "qcow2", "-o", said, self.theirs, str(shape.size))

    async def do(self, step: Step) -> None:
        kind, _, verb = step.verb.partition("-")
        if kind == "io":
            await self._io(step.requests)
            return
        self._change_model(kind, verb, step)
        async with await self._open(writable=True, resize=kind == "resize") as disk:
            if kind == "resize":
                await disk.truncate(step.number)
            elif kind == "snapshot":
                await getattr(disk, f"snapshot_{verb}")(step.name)
            elif verb == "add":
                await disk.bitmap_add(step.name, granularity=step.number)
            elif verb == "merge":
                await disk.bitmap_merge(step.name, step.other)
            else:
                await getattr(disk, f"bitmap_{verb}")(step.name)
        if kind == "resize":
            qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.theirs, str(step.number))
        elif kind == "snapshot":
            qemu_img("snapshot", {"create": "-c", "apply": "-a", "delete": "-d"}[verb], step.name, self.theirs)
        else:
            extra = ["-g", str(step.number)] if verb == "add" else []
            action = ["--merge", step.other] if verb == "merge" else [f"--{verb}"]
            qemu_img("bitmap", *action, *extra, "-f", "qcow2", self.theirs, step.name)

    async def _io(self, requests: Sequence[Request]) -> None:
        commands, ours = [], []
        async with await self._open(writable=True) as disk:
            for request in requests:
                if request.verb == "compress" and await _has_place(disk, request):
                    continue
                commands.append(_command(request))
                try:
                    await self._request(disk, request)
                except OSError:
                    ours.append((request.verb, "failed"))
                else:
                    ours.append((request.verb, "done"))
                    self._request_to_model(request)
        said = qemu_io(self.theirs, *commands, fmt="qcow2", options=["-d", "unmap"], check=False).stdout
        results = ["failed" if "failed" in line else "done" for line in said.splitlines() if _RESULT.match(line)]
        changing = [result for verb, result in ours if verb != "flush"]
        assert results == changing, f"{ours}\n{said}"

    async def _request(self, disk: aioblock.BlockBackend, request: Request) -> None:
        offset, nbytes = request.offset, request.nbytes
        match request.verb:
            case "write":
                await disk.pwrite(offset, bytes([request.byte]) * nbytes)
            case "compress":
                await disk.pwrite(offset, bytes([request.byte]) * nbytes, REQ_COMPRESSED)
            case "zero" | "unmap" as verb:
                await disk.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP if verb == "unmap" else 0)
            case "discard":
                await disk.pdiscard(offset, nbytes)
            case _:
                await disk.flush()

    async def _open(self, *, writable: bool = False, resize: bool = False) -> aioblock.BlockBackend:
        return await aioblock.open(self.ours, format="qcow2", writable=writable, resize=resize)

    # -- the model ---------------------------------------------------------------------------------------------------

    def _change_model(self, kind: str, verb: str, step: Step) -> None:
        if kind == "resize":
            self.model = self.model[: step.number].ljust(step.number, b"\0")
        elif step.verb == "snapshot-create":
            self.saved[step.name] = bytes(self.model)
        elif step.verb == "snapshot-apply":
            self.model = bytearray(self.saved[step.name])
        elif step.verb == "snapshot-delete":
            del self.saved[step.name]

    def _request_to_model(self, request: Request) -> None:
        low, high = request.offset, request.offset + request.nbytes
        content = bytes([request.byte]) if request.verb in ("write", "compress") else b"\0"
        if request.verb == "flush":
            return
        if request.verb == "discard":
            if self.shape.version == 2 and self.shape.backing is not None:
                return  # it cannot say so
            low = -(-low // self.shape.cluster) * self.shape.cluster
            high = high if high == len(self.model) else high // self.shape.cluster * self.shape.cluster
        if low < high:
            self.model[low:high] = content * (high - low)

    # -- comparing ---------------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        """Content, map, check, snapshots and bitmaps agree. Raises: AssertionError, pytest's Failed.

        Ours is compared with the model. So is theirs: where it differs, QEMU 7.2 has spoilt its image (compressed
        clusters and snapshots do that, rarely), and it says nothing about ours.
        """
        qemu_img("check", self.ours)
        assert await self._content(self.ours) == self.model, "content"
        for name, content in self.saved.items():
            assert await self._content(self.ours, name) == content, f"snapshot {name}"
        if await self._content(self.theirs) != self.model:
            self.spoilt = True
            return
        qemu_img("compare", self.ours, self.theirs)
        ours, theirs = qemu_map(self.ours, fmt="qcow2"), qemu_map(self.theirs, fmt="qcow2")
        assert _shape(ours) == _shape(theirs), f"map: {_shape(ours)}\n{_shape(theirs)}"
        async with await self._open() as disk:
            own = [_run(e) async for e in disk.extents()]
            assert _shape(own) == _shape(ours), f"our map of our image: {_shape(own)}"
            result = await disk.check()
            assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), result
            names = [snapshot.name for snapshot in disk.snapshots()]
            assert names == list(self.saved)
            maps = await _bitmaps(disk)
        async with await aioblock.open(self.theirs, format="qcow2") as disk:
            assert names == [snapshot.name for snapshot in disk.snapshots()]
            assert maps == await _bitmaps(disk)

    async def _content(self, path: Path, snapshot: str | None = None) -> bytearray:
        async with await aioblock.open(path, format="qcow2", snapshot=snapshot) as disk:
            return await disk.pread(0, disk.length)


async def _has_place(disk: aioblock.BlockBackend, request: Request) -> bool:
    """Whether a compressed write would replace something: QEMU 7.2 fails then, or spoils its image."""
    status = await disk.block_status(request.offset, request.nbytes)
    return bool(status.flags & (aioblock.DATA | aioblock.OFFSET_VALID))


async def _bitmaps(disk: aioblock.BlockBackend) -> dict[str, tuple[int, bool, list[tuple[int, int]]]]:
    """What the image says of its bitmaps, with all that is marked."""
    found = {}
    for name in disk.bitmaps():
        bitmap = await disk.bitmap(name)
        found[name] = (bitmap.granularity, bitmap.enabled, list(bitmap.ranges()))
    return found


def _run(extent: aioblock.Extent) -> dict[str, Any]:
    """An extent as `qemu-img map` tells it."""
    return {
        "start": extent.offset,
        "length": extent.length,
        "data": bool(extent.flags & aioblock.DATA),
        "zero": bool(extent.flags & aioblock.ZERO),
        "depth": max(extent.depth - 1, 0),
    }


def _shape(runs: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What must be alike in a map: everything but where in the file things lie, and which layer says zero.

    Neighbours that are alike are one.
    """
    merged: list[list[Any]] = []
    for run in runs:
        item = [run["start"], run["length"], run["data"], run["zero"], run["data"] and run["depth"]]
        if merged and merged[-1][2:] == item[2:]:
            merged[-1][1] += item[1]
        else:
            merged.append(item)
    return [tuple(item) for item in merged]

"""Reading a cached qcow2 image of 1 GiB from Python: this library beside dissect.hypervisor, and a plain file of it."""

import asyncio
import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

import aioblock
from benchmarks.peers import ROUNDS, images, report

MIB = 1 << 20
LENGTH = 1024 * MIB
BLOCK = 4096
RANDOM = 20_000


def _offsets() -> list[int]:
    rng = random.Random(4)
    return [rng.randrange(LENGTH // BLOCK) * BLOCK for _ in range(RANDOM)]


async def _ours(path: Path, case: str) -> None:
    async with await aioblock.open(str(path), format="qcow2") as disk:
        if case == "all of it":
            buffer = memoryview(bytearray(MIB))
            for offset in range(0, LENGTH, MIB):
                await disk.readinto(offset, buffer)
        elif case == "4 KiB at random":
            for offset in _offsets():
                await disk.pread(offset, BLOCK)
        else:
            offsets = iter(_offsets())

            async def client() -> None:
                for offset in offsets:
                    await disk.pread(offset, BLOCK)

            await asyncio.gather(*(client() for _ in range(64)))


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _read(stream: Any, case: str) -> None:
    """A file, or what looks like one."""
    if case == "all of it":
        while stream.read(MIB):
            pass
        return
    for offset in _offsets():
        stream.seek(offset)
        stream.read(BLOCK)


def _file(path: Path, case: str) -> None:
    with path.open("rb", buffering=0) as stream:
        _read(stream, case)


def _dissect(path: Path, case: str) -> None:
    from dissect.hypervisor.disk.qcow2 import QCow2

    with path.open("rb") as file:
        _read(QCow2(file).open(), case)


def main() -> None:
    """In turns. The plain file is what Python alone takes for as many bytes."""
    dissect = importlib.util.find_spec("dissect") is not None
    if not dissect:
        print(
            "dissect.hypervisor is not installed (pip install dissect.hypervisor): nothing to compare with but a file"
        )
    with images(1024) as (raw, qcow2):
        for case in ("all of it", "4 KiB at random", "the same, 64 at a time"):
            loops: tuple[list[float], list[float]] = ([], [])
            plain, peer = [], []
            for _ in range(ROUNDS):
                loops[0].append(_seconds(lambda case=case: uvloop.run(_ours(qcow2, case))))
                loops[1].append(_seconds(lambda case=case: asyncio.run(_ours(qcow2, case))))
                plain.append(_seconds(lambda case=case: _file(raw, case)))
                if dissect:
                    peer.append(_seconds(lambda case=case: _dissect(qcow2, case)))
            if peer:
                report(f"{case}, dissect", loops[0], peer)
            report(f"{case}, a raw file", loops[0], plain)
            report(f"{case}, without uvloop", loops[0], loops[1])


if __name__ == "__main__":
    main()

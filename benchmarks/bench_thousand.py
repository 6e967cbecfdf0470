"""A thousand qcow2 images open on one loop, read by a client each: memory an image, and how fairly they share."""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

import aioblock

IMAGES = 1000
SECONDS = 5.0
BLOCK = 4096
DATA = 4 << 20
"""Bytes of data in each image, of 1 GiB."""


def _resident() -> int:
    """Bytes of memory that this process has (proc(5): statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def _open(path: Path) -> aioblock.BlockBackend:
    return await aioblock.open(str(path), format="qcow2")


async def _client(disk: aioblock.BlockBackend, seed: int, until: float) -> int:
    """Read at random until then; how many reads."""
    rng, buffer, done = random.Random(seed), memoryview(bytearray(BLOCK)), 0
    while time.perf_counter() < until:
        await disk.readinto(rng.randrange(DATA // BLOCK) * BLOCK, buffer)
        done += 1
    return done


async def _measure(paths: list[Path]) -> None:
    await (await _open(paths[0])).close()  # what is loaded and kept once
    before, began = _resident(), time.perf_counter()
    disks = [await _open(path) for path in paths]
    took, held = time.perf_counter() - began, _resident() - before
    print(
        f"open, one after the other     {took / len(disks) * 1e3:8.2f} ms each {held / len(disks) / 1024:8.1f} KiB each"
    )
    until = time.perf_counter() + SECONDS
    with aioblock.LoopWatchdog() as watchdog:
        counts = await asyncio.gather(*(_client(disk, number, until) for number, disk in enumerate(disks)))
    low, high, middle = min(counts), max(counts), statistics.median(counts)
    print(f"reads                         {sum(counts) / SECONDS:8.0f} a second")
    print(f"reads of one image            {low} to {high}, median {middle:.0f}; most / fewest {high / low:.2f}")
    lags = watchdog.lags
    print(f"callbacks of the loop late    p99 {lags.percentile(99) * 1e3:.1f} ms, longest {lags.maximum * 1e3:.1f} ms")
    after = _resident() - before
    print(f"after the reads               {after / len(disks) / 1024:8.1f} KiB each, tables included")
    began = time.perf_counter()
    await asyncio.gather(*(disk.close() for disk in disks))
    print(f"close, all at once            {(time.perf_counter() - began) / len(disks) * 1e3:8.2f} ms each")


def main() -> None:
    """In a process of its own, so that nothing else counts."""
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        first = Path(where) / "disk0"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", first, "1G"], check=True)
        subprocess.run(["qemu-io", "-c", f"write 0 {DATA}", first], check=True, stdout=subprocess.DEVNULL)
        for number in range(1, IMAGES):
            (Path(where) / f"disk{number}").write_bytes(first.read_bytes())
        subprocess.run([sys.executable, "-m", "benchmarks.bench_thousand", where], check=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    uvloop.run(_measure(sorted(folder.iterdir())))

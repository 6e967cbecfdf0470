"""A tour in under a minute: a chain whose backing file is shorter than its overlay, and what is in every byte of it.

It makes two images in a temporary directory, writes across the end of the backing file, shows what each byte is and
which layer says so, counts the questions that were asked and those that an end of file made needless, converts the
chain to a raw image, and compares that with a model, a plain bytearray. Where qemu-img is installed, it is asked too.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aioblock

MIB = 1 << 20
BACKING = 5 * MIB + 24 * 1024  # ends in the middle of a cluster of 64 KiB
OVERLAY = 16 * MIB


async def main() -> int:
    """The tour, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="aioblock-demo-") as where:
        return await tour(Path(where))


async def tour(where: Path) -> int:
    """The six steps; 0 if all is well."""
    began = time.perf_counter()
    model = bytearray(OVERLAY)

    step("1. A chain: an overlay of 16 MiB over a backing file of 5 MiB and 24 KiB")
    backing, overlay, flat = where / "backing.qcow2", where / "overlay.qcow2", where / "flat.raw"
    await aioblock.create(backing, "qcow2", size=BACKING)
    await aioblock.create(overlay, "qcow2", {"backing_file": backing.name, "backing_fmt": "qcow2"}, size=OVERLAY)
    async with await aioblock.open(backing, format="qcow2", writable=True) as disk:
        await put(disk, model, 1 * MIB, MIB)
        await put(disk, model, 4 * MIB, 200 * 1024)
    print(f"   {backing.name} <- {overlay.name}, with 1 MiB and 200 KiB of data in the backing file")

    step("2. Writes, many at a time, also across the end of the backing file")
    async with await aioblock.open(overlay, format="qcow2", writable=True) as disk:
        before = os.stat(overlay).st_size
        # It begins in the middle of a cluster; what lies before it there reads as zeroes through the whole chain, in
        # part because the backing file ends. So that cluster becomes a zero cluster too, and no data is allocated.
        zeroed = BACKING + 8 * 1024
        await disk.pwrite_zeroes(zeroed, MIB)
        model[zeroed : zeroed + MIB] = bytes(MIB)
        await disk.flush()
        grown = (os.stat(overlay).st_size - before) // 1024
        print(f"   1 MiB of zeroes behind the end of the backing file: the image grew by {grown} KiB of tables")
        await asyncio.gather(
            put(disk, model, BACKING - 20 * 1024, 40 * 1024),
            put(disk, model, 10 * MIB + 7, 300_000),
            put(disk, model, 12 * MIB, 64 * 1024),
        )
        await disk.flush()
        print(f"   3 writes at once: {disk.statistics.bytes_written:,} bytes")

    step("3. What is in every byte, and which layer says so (depth 1 is the top)")
    async with await aioblock.open(overlay) as disk:
        print("        offset      length  depth  what")
        async for extent in disk.extents():
            print(f"    {extent.offset:>10,} {extent.length:>11,}  {extent.depth or '-':>5}  {say(extent)}")

        step("4. The questions behind it")
        for offset in range(0, OVERLAY, 64 * 1024):
            await disk.block_status_above(None, offset, OVERLAY - offset)
        counted = disk.statistics
        print(f"   {counted.status} more questions over the chain took {counted.probes} questions to single layers,")
        print(f"   {counted.probes_immediate} of them answered without waiting for the disk;")
        print(f"   {counted.probes_short_circuited} were never asked, because the backing file had ended before.")

        step("5. Convert the chain to one raw image")
        await aioblock.create(flat, "raw", size=OVERLAY)
        async with await aioblock.open(flat, format="raw", writable=True) as target:
            await aioblock.convert([disk], target)
        used = os.stat(flat).st_blocks * 512
        print(f"   {flat.name}: {flat.stat().st_size:,} bytes, of which {used:,} take space on the disk")

    step("6. Is it right?")
    good = flat.read_bytes() == model
    print(f"   every byte as in the model: {'yes' if good else 'NO'}")
    if qemu_img := shutil.which("qemu-img"):
        same, said = await ask(qemu_img, "compare", "-f", "qcow2", "-F", "raw", str(overlay), str(flat))
        print(f"   qemu-img compare: {said}")
        clean, said = await ask(qemu_img, "check", "-q", "-f", "qcow2", str(overlay))
        print(f"   qemu-img check: {said or 'no errors'}")
        good = good and same and clean
    else:
        print("   (qemu-img is not installed here, so nobody else was asked)")
    print(f"\n{'All is well' if good else 'SOMETHING IS WRONG'}; {time.perf_counter() - began:.1f} s.")
    return 0 if good else 1


async def ask(*command: str) -> tuple[bool, str]:
    """Run a program: whether it was content, and what it said."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = await process.communicate()
    return process.returncode == 0, said.decode().strip()


async def put(disk: aioblock.BlockBackend, model: bytearray, offset: int, nbytes: int) -> None:
    """Write random bytes into the image and into the model."""
    data = random.Random(offset).randbytes(nbytes)
    await disk.pwrite(offset, data)
    model[offset : offset + nbytes] = data


def say(extent: aioblock.Extent) -> str:
    """An extent in words."""
    flags = extent.flags
    if flags & aioblock.ZERO:
        what = "zeroes" if flags & aioblock.ALLOCATED else "zeroes (no layer has anything here)"
    else:
        what = "data"
    if flags & aioblock.OFFSET_VALID and flags & aioblock.DATA and extent.file is not None:
        what += f" at {extent.map:,} of {Path(extent.file.filename).name}"
    return what + (", up to the end of the image" if flags & aioblock.EOF else "")


def step(title: str) -> None:
    """A heading."""
    print(f"\n{title}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

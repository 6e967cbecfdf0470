"""Converting 1 GiB, half of it data, in the page cache: whole processes, and the most memory that they took."""

from pathlib import Path

from benchmarks.disks import Disks, disks
from benchmarks.peers import ROUNDS, Used, measured, need, ours, report, report_memory, report_size

CASES = {
    "raw to qcow2": ("-f", "raw", "-O", "qcow2", "{raw}"),
    "qcow2 to raw": ("-f", "qcow2", "-O", "raw", "{qcow2}"),
    "raw to raw, -C": ("-C", "-f", "raw", "-O", "raw", "{raw}"),
    "raw to qcow2, -c": ("-c", "-f", "raw", "-O", "qcow2", "{raw}"),
    "the same, zstd": ("-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", "{raw}"),
    "compressed qcow2 to raw": ("-f", "qcow2", "-O", "raw", "{packed}"),
}


def _convert(program: str, words: tuple[str, ...], made: Disks, sizes: list[int]) -> Used:
    target = made.folder / "target"
    target.unlink(missing_ok=True)
    used = measured(program, "convert", *(word.format(**made._asdict()) for word in words), str(target))
    sizes.append(Path(target).stat().st_size)
    target.unlink()
    return used


def _beside_cp(made: Disks) -> None:
    """What the machine can do: a copy with holes, by the tool that does nothing else."""
    words, mine, limit = ("-f", "raw", "-O", "raw", "{raw}"), [], []
    target = made.folder / "target"
    for _ in range(ROUNDS):
        mine.append(_convert(ours("aioblock-img"), words, made, []).wall)
        limit.append(measured("cp", "--sparse=auto", str(made.raw), str(target)).wall)
        target.unlink()
    report("raw to raw, beside cp", mine, limit)


def main() -> None:
    """In turns with the peer, each into a file that was not there."""
    if not need("qemu-img"):
        return
    with disks() as made:
        _beside_cp(made)
        for case, words in CASES.items():
            mine: list[Used] = []
            peer: list[Used] = []
            sizes: tuple[list[int], list[int]] = ([], [])
            for _ in range(ROUNDS):
                mine.append(_convert(ours("aioblock-img"), words, made, sizes[0]))
                peer.append(_convert("qemu-img", words, made, sizes[1]))
            report(case, [used.wall for used in mine], [used.wall for used in peer])
            report("  processor time", [used.processor for used in mine], [used.processor for used in peer])
            report_memory(mine, peer)
            if "-c" in words:
                report_size(sizes[0][-1], sizes[1][-1])


if __name__ == "__main__":
    main()

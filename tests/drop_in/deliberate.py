"""The differences that are meant, each with its reason; docs/programs.md tells them to users."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.drop_in.programs import Result

__all__ = ["DELIBERATE", "Deliberate", "forgiven"]

Results = tuple[Result, Result]
"""Ours and QEMU's."""


class Deliberate(NamedTuple):
    """A difference that is meant."""

    name: str
    reason: str
    covers: Callable[[Sequence[str], Results, str], bool]
    """Whether one line of differences of a command line, with both results, is this one."""


def _unfinished(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] in ("convert", "create", "dd") and results[0].status == 1 and line.startswith("files:")


def _less_data(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] in ("commit", "dd", "convert", "rebase") and ": map: less data" in line


def _bench_failed(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "bench" and results[0].status == results[1].status == 1 and not line.startswith("std")


def _repairs_more(argv: Sequence[str], results: Results, line: str) -> bool:
    unsound = "Check failed" in results[1].err or results[1].status == 2
    return argv[0] == "check" and "-r" in argv and unsound


def _amend_whole(argv: Sequence[str], results: Results, line: str) -> bool:
    failed = argv[0] == "amend" and results[0].status == results[1].status == 1
    return failed and (": info: " in line or ("rebase" in results[0].err and line.startswith("stderr")))


def _copies_less(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] in ("commit", "rebase", "convert") and ": map: other" in line


def _stale_data(argv: Sequence[str], results: Results, line: str) -> bool:
    metadata = argv[0] == "resize" and "--preallocation=metadata" in argv
    return metadata and "Content mismatch" in line


def _reserves_clusters(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "resize" and any("preallocation" in word for word in argv) and ": map: less data" in line


def _divides_by_zero(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "bench" and "The image is empty" in results[0].err and results[1].status == -8


def _data_file_beside(argv: Sequence[str], results: Results, line: str) -> bool:
    return "sub/new" in argv and line.startswith("files:") and "new.data" in line


def _warned_twice(argv: Sequence[str], results: Results, line: str) -> bool:
    mine, other = results[0].err, results[1].err
    end = mine.rfind("qemu-img: ")
    warning = mine[:end]
    return argv[0] == "snapshot" and line.startswith("stderr") and "WARNING" in warning and other == warning + mine


def _grows_version_2(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "resize" and "Failed to zero out new clusters" in results[1].err


def _onto_itself(argv: Sequence[str], results: Results, line: str) -> bool:
    names = {word.partition("=")[2].removeprefix("file:").removeprefix("./") for word in argv if word[2:3] == "="}
    return argv[0] == "dd" and '"write" lock' in results[0].err and results[1].status == 0 and len(names) > 0


def _object_of_bench(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "bench" and "unrecognized option '--obj" in results[1].err


def _data_file_size(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "resize" and line.startswith("ext.qcow2.data: info: ")


def _keeps_compression(argv: Sequence[str], results: Results, line: str) -> bool:
    return argv[0] == "amend" and "Cannot downgrade an image with" in results[0].err


DELIBERATE = (
    Deliberate("zstd in version 2", "version 2 does not know it, and would misread the clusters", _keeps_compression),
    Deliberate("dd onto its input", "QEMU empties it first, and copies nothing", _onto_itself),
    Deliberate("objects of bench", "encrypted images can be measured too", _object_of_bench),
    Deliberate("data file's size", "it is the disk's, not rounded up to a cluster", _data_file_size),
    Deliberate("unfinished", "what was not finished is removed, and what was there before is not", _unfinished),
    Deliberate("less data", "pieces that are all zeroes are written as zeroes", _less_data),
    Deliberate(
        "bench that failed", "the image is closed properly; what was written by then is by chance", _bench_failed
    ),
    Deliberate(
        "repairs more", "what is left of a damaged table is judged otherwise, and QEMU gives up sooner", _repairs_more
    ),
    Deliberate("amend as a whole", "what is asked for is refused before any of it is done", _amend_whole),
    Deliberate(
        "copies less", "what is copied is what differs; where zeroes are found depends on how it is cut", _copies_less
    ),
    Deliberate("stale data", "QEMU shows what its file held before in clusters that it preallocates", _stale_data),
    Deliberate(
        "preallocates clusters", "a cluster that has a part of the disk already stays as it is", _reserves_clusters
    ),
    Deliberate("empty image", "QEMU is ended by a division by zero", _divides_by_zero),
    Deliberate(
        "data file", "QEMU makes it in the current folder, and looks for it beside the image", _data_file_beside
    ),
    Deliberate("warned once", "QEMU opens the image again, and warns again", _warned_twice),
    Deliberate("grows version 2", "QEMU cannot where the backing file is longer", _grows_version_2),
)


def forgiven(argv: Sequence[str], results: Results, found: list[str]) -> list[str]:
    """The differences that are not meant."""
    return [line for line in found if not any(known.covers(argv, results, line) for known in DELIBERATE)]

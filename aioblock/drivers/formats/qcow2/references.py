"""Counting references: how often each cluster of a file is used, next to the refcount that the image stores for it.

Both are dense arrays over the clusters of the file. Their memory is zero pages until it is written to, so a sparse file
costs what is referenced in it, not what it is long.
"""

import errno
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aioblock.core.images import CheckFinding, CheckResult
from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["Findings", "References", "decode_refcounts", "words_of"]

MAX_CLUSTERS: Final = 1 << 29
"""Larger files are not checked: the arrays would take more than 3 GiB."""
MAX_FINDINGS: Final = 1 << 17
"""More findings are counted, but their messages are dropped."""
MAX_REPEATS: Final = 256
"""The same finding, made more often than this at once, is counted too."""

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Where = npt.NDArray[np.bool_]


def words_of(data: bytes | bytearray | memoryview) -> Words:
    """Big-endian 64-bit entries."""
    return np.frombuffer(data, ">u8").astype(np.uint64)


class Findings:
    """Collects what is wrong, in order, and counts it. A list that somebody prints must end somewhere."""

    def __init__(self, result: CheckResult) -> None:
        self.result = result

    def corruption(self, message: str, offset: int | None = None, times: int = 1) -> None:
        """The metadata is wrong."""
        self.result.corruptions += times
        self._add(CheckFinding("corruption", message, offset), times)

    def leak(self, message: str, offset: int) -> None:
        """Space is lost, and nothing else."""
        self.result.leaks += 1
        self._add(CheckFinding("leak", message, offset), 1)

    def error(self, message: str, offset: int | None = None) -> None:
        """Something could not be checked."""
        self.result.check_errors += 1
        self._add(CheckFinding("error", message, offset), 1)

    def _add(self, finding: CheckFinding, times: int) -> None:
        room = MAX_FINDINGS - len(self.result.findings)
        self.result.findings.extend([finding] * min(times, room, MAX_REPEATS))


class References:
    """How often each cluster is referenced, and the refcount that is stored for it."""

    def __init__(self, header: Header, file_length: int, findings: Findings) -> None:
        self.bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.file_length = (file_length + 511) // 512 * 512
        self.nb_clusters = -(-self.file_length >> self.bits)
        """Clusters that are compared: those of the file, and one behind it if there is a reference to it."""
        if self.nb_clusters > MAX_CLUSTERS:
            raise OSError(errno.EFBIG, f"File has too many clusters to be checked (more than {MAX_CLUSTERS})")
        self.findings = findings
        self.max_count = min(header.max_refcount, (1 << 32) - 1)
        self.block_bits = header.refcount_block_bits
        blocks = (self.nb_clusters >> self.block_bits) + 1
        self.count = np.zeros(self.nb_clusters + 2, np.uint32)
        self.stored = np.zeros(
            max(blocks << self.block_bits, self.nb_clusters + 2), f"u{max(1, header.refcount_bits // 8)}"
        )
        self.unreadable = np.zeros(blocks + 1, np.bool_)
        """Refcount blocks that cannot be looked at: nothing is known of the clusters that they describe."""

    # -- counting ----------------------------------------------------------------------------------------------------

    def add_region(self, offset: int, nbytes: int) -> bool:
        """Count each cluster that a range of bytes touches. False, and a finding, where it lies behind the file."""
        if not nbytes:
            return True
        if offset + nbytes - self.file_length >= self.cluster_size:
            self.findings.corruption(beyond_message(offset, nbytes), offset)
            return False
        first, last = offset >> self.bits, offset + nbytes - 1 >> self.bits
        self._raise_by(first, np.ones(last + 1 - first, np.int64))
        return True

    def add_clusters(self, clusters: Ints, weight: int = 1) -> None:
        """Count single clusters, each of them `weight` times. All are in range: see `beyond`."""
        if not clusters.size:
            return
        low, high = int(clusters.min()), int(clusters.max())
        if high - low < max(8 * clusters.size, 1 << 16):
            self._raise_by(low, np.bincount(clusters - low) * weight)
            return
        which, times = np.unique(clusters, return_counts=True)
        self.nb_clusters = max(self.nb_clusters, high + 1)
        total = self.count[which] + times * weight
        self.count[which] = np.minimum(total, self.max_count)
        self._overflow(which, total)

    def beyond(self, offsets: Ints, sizes: Ints | int) -> Where:
        """Which ranges end a cluster or more behind the end of the file, so that they are not counted."""
        return offsets + sizes - self.file_length >= self.cluster_size

    def _raise_by(self, first: int, by: Ints) -> None:
        end = first + len(by)
        self.nb_clusters = max(self.nb_clusters, end)
        total = self.count[first:end] + by
        if int(total.max()) > self.max_count:
            self._overflow(np.arange(first, end), total)
            np.minimum(total, self.max_count, out=total)
        self.count[first:end] = total

    def _overflow(self, clusters: Ints, total: Ints) -> None:
        for at in np.flatnonzero(total > self.max_count):
            offset = int(clusters[at]) << self.bits
            self.findings.corruption(
                f"ERROR: overflow cluster offset={offset:#x}\n"
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy"
                " if the image cannot be opened for writing",
                offset,
                int(total[at]) - self.max_count,
            )

    # -- stored refcounts --------------------------------------------------------------------------------------------

    def store_block(self, number: int, refcounts: npt.NDArray[Any]) -> None:
        """Take over the content of refcount block `number`."""
        first = number << self.block_bits
        part = self.stored[first : first + len(refcounts)]
        part[:] = refcounts[: len(part)]

    def not_copied_once(self, clusters: Ints, copied: Where, which: Where) -> Ints:
        """Where, of `which`, the COPIED flag of an entry contradicts the stored refcount: indices into `clusters`."""
        here = np.minimum(clusters, len(self.stored) - 1)
        once = (self.stored[here] == 1) & (here == clusters)
        wrong = (once != copied) & which
        if self.unreadable.any():
            wrong &= ~self.unreadable[np.minimum(clusters >> self.block_bits, len(self.unreadable) - 1)]
        return np.flatnonzero(wrong)

    def stored_refcount(self, cluster: int) -> int:
        """The stored refcount of one cluster; 0 behind the file."""
        return int(self.stored[cluster]) if cluster < len(self.stored) else 0

    # -- comparing ---------------------------------------------------------------------------------------------------

    def compare(self, first: int, end: int) -> int:
        """Compare the clusters from `first` to before `end`. The highest that is used or has a refcount, or -1."""
        end = min(end, self.nb_clusters)
        count, stored = self.count[first:end], self.stored[first:end]
        differ = count != stored
        used = (count != 0) | (stored != 0)
        if self.unreadable.any():
            unknown = self.unreadable[np.arange(first, end) >> self.block_bits]
            differ |= unknown
            used &= ~unknown
        for index in np.flatnonzero(differ).tolist():
            cluster = first + index
            if self.unreadable[cluster >> self.block_bits]:
                self.findings.error(
                    f"Can't get refcount for cluster {cluster}: Input/output error", cluster << self.bits
                )
                continue
            refcount, references = int(stored[index]), int(count[index])
            text = f"cluster {cluster} refcount={refcount} reference={references}"
            if refcount > references:
                self.findings.leak("Leaked " + text, cluster << self.bits)
            else:
                self.findings.corruption("ERROR " + text, cluster << self.bits)
        places = np.flatnonzero(used)
        return first + int(places[-1]) if places.size else -1


def beyond_message(offset: int, nbytes: int) -> str:
    """The words for a reference to something behind the end of the file."""
    return (
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more:"
        f" offset {offset:#x} size {nbytes:#x}"
    )


def decode_refcounts(block: bytes | bytearray | memoryview, refcount_order: int) -> npt.NDArray[Any]:
    """All refcounts of a refcount block, or of several in a row."""
    if refcount_order >= 3:
        return np.frombuffer(block, f">u{1 << (refcount_order - 3)}")
    bits = np.unpackbits(np.frombuffer(block, np.uint8), bitorder="little").reshape(-1, 1 << refcount_order)
    return np.packbits(bits, axis=1, bitorder="little").reshape(-1)

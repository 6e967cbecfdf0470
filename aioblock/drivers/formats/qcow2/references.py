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

__all__ = [
    "FarReferences",
    "Findings",
    "References",
    "decode_refcounts",
    "distinct",
    "encode_refcounts",
    "repairing",
    "words_of",
]

MAX_CLUSTERS: Final = 1 << 29
"""Larger files are not checked: the arrays would take more than 3 GiB."""
MAX_FINDINGS: Final = 1 << 17
"""More findings are counted, but their messages are dropped."""
MAX_REPEATS: Final = 256
"""The same finding, made more often than this at once, is counted too."""
MAX_FAR: Final = 1 << 22
"""How many distinct clusters behind the end of the file are kept in mind: 32 MiB."""

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

    def corruption(self, message: str, offset: int | None = None, times: int = 1, *, fixed: bool = False) -> None:
        """The metadata is wrong; or was, and is repaired."""
        if fixed:
            self.result.corruptions_fixed += times
        else:
            self.result.corruptions += times
        self._add(CheckFinding("corruption", message, offset, fixed), times)

    def leak(self, message: str, offset: int) -> None:
        """Space is lost, and nothing else."""
        self.result.leaks += 1
        self._add(CheckFinding("leak", message, offset), 1)

    def repaired(self, kind: str, message: str, offset: int | None = None) -> None:
        """Something that was counted as a corruption, or a leak, before is repaired now."""
        if kind == "leak":
            self.result.leaks -= 1
            self.result.leaks_fixed += 1
        else:
            self.result.corruptions -= 1
            self.result.corruptions_fixed += 1
        self._add(CheckFinding(kind, message, offset, True), 1)

    def note(self, message: str, kind: str = "note", offset: int | None = None) -> None:
        """Say something that is not counted, or was counted before."""
        self._add(CheckFinding(kind, message, offset), 1)

    def error(self, message: str, offset: int | None = None) -> None:
        """Something could not be checked."""
        self.result.check_errors += 1
        self._add(CheckFinding("error", message, offset), 1)

    def _add(self, finding: CheckFinding, times: int) -> None:
        room = MAX_FINDINGS - len(self.result.findings)
        self.result.findings.extend([finding] * min(times, room, MAX_REPEATS))


class FarReferences:
    """Clusters that are referenced although they lie behind the end of the file, where nothing is counted."""

    def __init__(self) -> None:
        self._parts: list[Ints] = []
        self._size = 0
        self.data_end = 0
        """Behind the last cluster that guest data is said to be in, of those not further away than `near`."""
        self.near = 0
        self.overflow = False
        """There are so many that not all are known."""

    def add(self, clusters: Ints) -> None:
        """Keep them in mind."""
        if self.overflow or not clusters.size:
            return
        self._parts.append(clusters)
        self._size += clusters.size
        if self._size > 2 * MAX_FAR:
            self._parts = [self.clusters()]
            self._size = self._parts[0].size
            self.overflow = self._size > MAX_FAR

    def add_region(self, first: int, last: int) -> None:
        """The same for all from `first` to `last`."""
        if last - first >= MAX_FAR:
            self.overflow = True
        else:
            self.add(np.arange(first, last + 1))

    def clusters(self) -> Ints:
        """All of them, once each, in order."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return distinct(self._parts[0])[0] if self._parts else np.zeros(0, np.int64)


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
        self.uncounted = False
        """A comparison has found a cluster with references and no refcount, or one whose refcount is not known."""
        self.far: FarReferences | None = None
        """What lies too far behind the end of the file, for who repairs."""

    def grow(self, file_length: int) -> None:
        """The file is longer now."""
        self.file_length = (file_length + 511) // 512 * 512
        self.nb_clusters = max(self.nb_clusters, -(-self.file_length >> self.bits))
        blocks = (self.nb_clusters >> self.block_bits) + 1
        self.count = _extended(self.count, self.nb_clusters + 2)
        self.stored = _extended(self.stored, max(blocks << self.block_bits, self.nb_clusters + 2))
        self.unreadable = _extended(self.unreadable, blocks + 1)

    # -- counting ----------------------------------------------------------------------------------------------------

    def add_region(self, offset: int, nbytes: int) -> bool:
        """Count each cluster that a range of bytes touches. False, and a finding, where it lies behind the file."""
        if not nbytes:
            return True
        first, last = offset >> self.bits, offset + nbytes - 1 >> self.bits
        if offset + nbytes - self.file_length >= self.cluster_size:
            self.findings.corruption(beyond_message(offset, nbytes), offset)
            if self.far is not None:
                self.far.add_region(first, last)
            return False
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
        which, _, times = distinct(clusters)
        self.nb_clusters = max(self.nb_clusters, high + 1)
        total = self.count[which] + times * weight
        self.count[which] = np.minimum(total, self.max_count)
        self._overflow(which, total)

    def add_run(self, first: int, clusters: int) -> None:
        """Count adjoining clusters, all in range."""
        end = first + clusters
        part = self.count[first:end]
        if int(part.max()) >= self.max_count:
            self._raise_by(first, np.ones(clusters, np.int64))
            return
        part += np.uint32(1)
        self.nb_clusters = max(self.nb_clusters, end)

    def add_far(self, clusters: Ints) -> None:
        """References to what lies too far behind the end of the file."""
        if self.far is not None and clusters.size:
            self.far.add(clusters)
            near = clusters[clusters < self.far.near]
            if near.size:
                self.far.data_end = max(self.far.data_end, int(near.max()) + 1)

    def all_once(self, first: int, clusters: int) -> bool:
        """Whether the stored refcount of each of some adjoining clusters is known, and 1."""
        part = self.stored[first : first + clusters]
        return (
            len(part) == clusters
            and bool((part == 1).all())
            and not self.unreadable[first >> self.block_bits : (first + clusters - 1 >> self.block_bits) + 1].any()
        )

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
        known = not self.unreadable.any()
        if known and not differ.any():
            return self._highest(count, first)
        used = (count != 0) | (stored != 0)
        if not known:
            unknown = self.unreadable[np.arange(first, end) >> self.block_bits]
            differ |= unknown
            used &= ~unknown
        wrong = np.flatnonzero(differ)
        room = max(MAX_FINDINGS - len(self.findings.result.findings), 0)
        for index in wrong[:room].tolist():
            self._tell(first + index)
        self._count(wrong[room:] + first)
        places = np.flatnonzero(used)
        return first + int(places[-1]) if places.size else -1

    def _tell(self, cluster: int) -> None:
        """Report a cluster whose refcount is wrong or not known."""
        offset = cluster << self.bits
        if self.unreadable[cluster >> self.block_bits]:
            self.uncounted = True
            self.findings.error(f"Can't get refcount for cluster {cluster}: Input/output error", offset)
            return
        refcount, references = int(self.stored[cluster]), int(self.count[cluster])
        text = f"cluster {cluster} refcount={refcount} reference={references}"
        if refcount > references:
            self.findings.leak("Leaked " + text, offset)
        else:
            self.uncounted |= not refcount
            self.findings.corruption("ERROR " + text, offset)

    def _count(self, clusters: Ints) -> None:
        """The same for so many that nobody reads it: they are only counted."""
        unknown = self.unreadable[clusters >> self.block_bits]
        known = clusters[~unknown]
        leaked = self.stored[known] > self.count[known]
        result = self.findings.result
        result.check_errors += int(unknown.sum())
        result.leaks += int(leaked.sum())
        result.corruptions += int((~leaked).sum())
        self.uncounted |= bool(unknown.any() or (self.stored[known] == 0).any())

    def _highest(self, count: npt.NDArray[np.uint32], first: int) -> int:
        """The highest cluster with a reference; in most images it lies near the end."""
        if len(count) and count[-1]:
            return first + len(count) - 1
        places = np.flatnonzero(count)
        return first + int(places[-1]) if places.size else -1


def _extended(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The values, and zeroes behind them."""
    longer = np.zeros(max(size, len(values)), values.dtype)
    longer[: len(values)] = values
    return longer


def beyond_message(offset: int, nbytes: int) -> str:
    """The words for a reference to something behind the end of the file."""
    return (
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more:"
        f" offset {offset:#x} size {nbytes:#x}"
    )


def repairing(message: str) -> str:
    """The words of a finding for when it is repaired."""
    return "Repairing" + message.removeprefix("ERROR")


def distinct(values: Ints) -> tuple[Ints, Ints, Ints]:
    """The different values in order, where each of them first appears, and how often.

    As `np.unique`, which brings modules with it that take longer to load than a small image takes to be checked.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate((np.ones(min(1, len(values)), np.bool_), ordered[1:] != ordered[:-1])))
    return ordered[first], order[first], np.diff(np.concatenate((first, [len(values)])))


def decode_refcounts(block: bytes | bytearray | memoryview, refcount_order: int) -> npt.NDArray[Any]:
    """All refcounts of a refcount block, or of several in a row."""
    if refcount_order >= 3:
        return np.frombuffer(block, f">u{1 << (refcount_order - 3)}")
    bits = np.unpackbits(np.frombuffer(block, np.uint8), bitorder="little").reshape(-1, 1 << refcount_order)
    return np.packbits(bits, axis=1, bitorder="little").reshape(-1)


def encode_refcounts(refcounts: npt.NDArray[Any], refcount_order: int) -> bytes:
    """The reverse of `decode_refcounts`; counts narrower than a byte must make whole bytes."""
    if refcount_order >= 3:
        return refcounts.astype(f">u{1 << (refcount_order - 3)}").tobytes()
    bits = np.unpackbits(refcounts.astype(np.uint8)[:, None], axis=1, count=1 << refcount_order, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()

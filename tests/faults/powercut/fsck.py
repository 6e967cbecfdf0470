"""Is a content a sound qcow2 image? Written from the specification, and on purpose without the package's own reading.

`Image(content)` parses the header, every table and all that refers to clusters; `check` demands:

- every host cluster is counted at least as often as it is referred to (with the dirty bit, counts may be too low);
- no cluster serves two purposes: metadata is referred to once, a guest cluster of one tree has a host cluster alone;
- an entry of the active tables that says COPIED is the only reference.

Clusters that count too much are leaks, and all right.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Bitmap", "Damage", "Image", "Tree"]

Words = npt.NDArray[Any]

OFFSET = np.uint64(0x00FF_FFFF_FFFF_FE00)
L1_RESERVED = np.uint64(0x7F00_0000_0000_01FF)
L2_RESERVED = np.uint64(0x3F00_0000_0000_01FE)
COPIED = np.uint64(1 << 63)
COMPRESSED = np.uint64(1 << 62)
ZERO = np.uint64(1)

DIRTY, CORRUPT, DATA_FILE, ZSTD, EXTENDED = (1 << bit for bit in range(5))
KNOWN = DIRTY | CORRUPT | DATA_FILE | ZSTD | EXTENDED
AUTOCLEAR_BITMAPS = 1
AUTOCLEAR_RAW = 2

EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_FOREIGN = 0x12345678
FOREIGN = b"foreign."
"""One that nobody knows, and what it says as long as nobody spoils it (see `spoil`)."""
EXTENSIONS = frozenset((EXT_BITMAPS, EXT_CRYPTO, EXT_FOREIGN, 0xE2792ACA, 0x6803F857, 0x44415441))
"""All types; nobody here makes others."""

MOST_CLUSTERS = 1 << 22


class Damage(Exception):
    """What is wrong: `kind` is a word for the statistics."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Tree(NamedTuple):
    """What one L1 table refers to. Cluster numbers; all arrays of L2 entries go together."""

    l1: Words
    """Entries that are not 0."""
    l2: Words
    """The host cluster of each."""
    guest: Words
    """The guest cluster of each L2 entry that is not 0 (nor its bitmap)."""
    entries: Words
    bitmaps: Words
    """Of extended entries; empty otherwise."""

    @property
    def standard(self) -> Words:
        """Which entries have a host cluster of their own."""
        found: Words = ((self.entries & COMPRESSED) == 0) & ((self.entries & OFFSET) != 0)
        return found


class Snapshot(NamedTuple):
    """One internal snapshot."""

    name: str
    l1_offset: int
    l1_size: int
    disk_size: int


class Bitmap(NamedTuple):
    """One persistent bitmap: what its entry in the directory says."""

    name: str
    table_offset: int
    table_size: int
    in_use: bool
    granularity_bits: int


class Image:
    """A parsed image. Raises Damage where it cannot be one."""

    def __init__(self, content: bytearray) -> None:
        self.length = len(content)
        if self.length < 104 and content[:4] == b"QFI\xfb":
            content = content.ljust(104, b"\0")
        if len(content) < 72 or content[:4] != b"QFI\xfb":
            raise Damage("corrupt", "no qcow2 header")
        self._header(content)
        cluster = self.cluster_size
        if len(content) % cluster:
            content = content + bytes(-len(content) % cluster)
        self.content = content
        self.words = np.frombuffer(content, ">u8")
        self.rows = self.words.reshape(-1, cluster // 8)
        self.clusters = len(self.rows)
        self._extensions()
        self.active = self.tree(self.l1_offset, self.l1_size)
        self.snapshots, self.snapshot_bytes = self._snapshots()
        self.snapshot_trees = {each.name: self.tree(each.l1_offset, each.l1_size) for each in self.snapshots}
        self.bitmaps: list[Bitmap] = []
        self._bitmap_clusters: list[Words] = []
        if self.autoclear & AUTOCLEAR_BITMAPS:
            if EXT_BITMAPS not in self.extensions:
                raise Damage("corrupt", "the bit of the bitmaps is set, and there is no extension")
            self._bitmaps()

    # -- header ------------------------------------------------------------------------------------------------------

    def _header(self, content: bytearray) -> None:
        (
            self.version,
            self.backing_offset,
            self.backing_bytes,
            self.cluster_bits,
            self.size,
            self.crypt,
            self.l1_size,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        ) = struct.unpack_from(">IQIIQIIQQIIQ", content, 4)
        self.incompatible = self.compatible = self.autoclear = 0
        self.refcount_order, self.header_length = 4, 72
        if self.version == 3:
            (
                self.incompatible,
                self.compatible,
                self.autoclear,
                self.refcount_order,
                self.header_length,
            ) = struct.unpack_from(">QQQII", content, 72)
        self.zstd = bool(self.incompatible & ZSTD) and content[104] == 1
        if self.version not in (2, 3) or not 9 <= self.cluster_bits <= 21 or self.refcount_order > 6:
            raise Damage("corrupt", "the header is nonsense")
        self.cluster_size = 1 << self.cluster_bits
        if self.incompatible & ~KNOWN:
            raise Damage("corrupt", f"incompatible features {self.incompatible:#x}")
        for what, offset in (("L1 table", self.l1_offset), ("refcount table", self.reftable_offset)):
            if offset % self.cluster_size:
                raise Damage("corrupt", f"{what} at {offset:#x}")
        self.dirty = bool(self.incompatible & DIRTY)
        self.lazy = bool(self.compatible & 1)
        self.raw = bool(self.autoclear & AUTOCLEAR_RAW)
        self.corrupt = bool(self.incompatible & CORRUPT)
        self.external = bool(self.incompatible & DATA_FILE)
        self.extended = bool(self.incompatible & EXTENDED)
        self.entry_words = 2 if self.extended else 1
        self.l2_entries = self.cluster_size // (8 * self.entry_words)
        if self.l1_size * self.l2_entries * self.cluster_size < self.size:
            raise Damage("corrupt", f"{self.l1_size} L1 entries for a size of {self.size}")

    def _extensions(self) -> None:
        self.extensions: dict[int, bytes] = {}
        at = self.header_length
        stop = self.backing_offset or self.cluster_size
        if at % 8 or stop > self.cluster_size or stop + self.backing_bytes > self.cluster_size:
            raise Damage("corrupt", "header length, or the place of the backing name")
        while at + 8 <= stop:
            kind, nbytes = struct.unpack_from(">II", self.content, at)
            if kind == 0:
                break
            if at + 8 + nbytes > stop or kind not in EXTENSIONS:
                raise Damage("corrupt", f"header extension {kind:#x} at {at} with {nbytes} bytes")
            self.extensions[kind] = bytes(self.content[at + 8 : at + 8 + nbytes])
            at += 8 + (nbytes + 7) // 8 * 8
        if (foreign := self.extensions.get(EXT_FOREIGN, FOREIGN)) != FOREIGN:
            raise Damage("corrupt", f"the extension that nobody knows says {foreign!r}")
        self.backing_name = bytes(self.content[stop : stop + self.backing_bytes]) if self.backing_offset else b""

    # -- tables ------------------------------------------------------------------------------------------------------

    def flat(self, offset: int, count: int) -> Words:
        """So many 64-bit words; zeroes behind the end."""
        found = self.words[offset // 8 : offset // 8 + count].astype(np.uint64)
        if len(found) < count:
            found = np.concatenate((found, np.zeros(count - len(found), np.uint64)))
        return found

    def tables(self, clusters: Words) -> Words:
        """Whole clusters as rows of 64-bit words; zeroes behind the end."""
        if not len(clusters):
            return np.zeros((0, self.cluster_size // 8), np.uint64)
        if int(clusters.max()) < self.clusters:
            return self.rows[clusters].astype(np.uint64)
        found = np.zeros((len(clusters), self.cluster_size // 8), np.uint64)
        inside = clusters < self.clusters
        found[inside] = self.rows[clusters[inside]]
        return found

    def host_clusters(self, offsets: Words, what: str) -> Words:
        """The numbers of host clusters at these offsets."""
        if (offsets & np.uint64(self.cluster_size - 1)).any():
            raise Damage("corrupt", f"{what} is not aligned")
        clusters = (offsets >> np.uint64(self.cluster_bits)).astype(np.int64)
        if len(clusters) and int(clusters.max()) > MOST_CLUSTERS:
            raise Damage("corrupt", f"{what} lies at {int(offsets.max()):#x}")
        return clusters

    def tree(self, l1_offset: int, l1_size: int) -> Tree:
        """What an L1 table refers to."""
        if l1_offset % self.cluster_size or l1_size > 1 << 22:
            raise Damage("corrupt", f"L1 table at {l1_offset:#x} with {l1_size} entries")
        l1 = self.flat(l1_offset, l1_size)
        index = np.flatnonzero(l1)
        l1 = l1[index]
        if (l1 & L1_RESERVED).any() or not (l1 & OFFSET).all():
            raise Damage("corrupt", "an L1 entry is nonsense")
        l2 = self.host_clusters(l1 & OFFSET, "an L2 table")
        tables = self.tables(l2)
        entries = tables[:, :: self.entry_words]
        if self.extended:
            bitmaps = tables[:, 1::2]
            row, column = np.nonzero(entries | bitmaps)
            bits = bitmaps[row, column]
        else:
            row, column = np.nonzero(entries)
            bits = np.zeros(0, np.uint64)
        guest = index[row] * self.l2_entries + column
        found = entries[row, column]
        compressed = (found & COMPRESSED) != 0
        reserved = L2_RESERVED | (ZERO if self.extended or self.version < 3 else np.uint64(0))
        if (found[~compressed] & reserved).any() or (found[compressed] & COPIED).any():
            raise Damage("corrupt", "an L2 entry has reserved bits set")
        return Tree(l1, l2, guest, found, bits)

    def compressed_extents(self, tree: Tree) -> list[tuple[int, int, int]]:
        """Guest cluster, offset and sectors' end of each compressed stream."""
        found = []
        shift = 62 - (self.cluster_bits - 8)
        for guest, entry in zip(tree.guest, tree.entries, strict=True):
            entry = int(entry)
            if entry >> 62 & 1:
                offset = entry & (1 << shift) - 1
                sectors = (entry & (1 << 62) - 1) >> shift
                found.append((int(guest), offset, (offset // 512 + sectors + 1) * 512))
        return found

    def _snapshots(self) -> tuple[list[Snapshot], int]:
        found = []
        at = self.snapshots_offset
        if self.nb_snapshots and at % self.cluster_size:
            raise Damage("corrupt", f"snapshot table at {at:#x}")
        for _ in range(self.nb_snapshots):
            at += -at % 8
            head = bytes(self.content[at : at + 40])
            if len(head) < 40:
                raise Damage("corrupt", "the snapshot table ends early")
            l1_offset, l1_size, id_bytes, name_bytes, _, _, _, _, extra_bytes = struct.unpack(">QIHHIIQII", head)
            extra = bytes(self.content[at + 40 : at + 40 + extra_bytes])
            at += 40 + extra_bytes
            name = bytes(self.content[at + id_bytes : at + id_bytes + name_bytes]).decode()
            at += id_bytes + name_bytes
            if not l1_offset or not name:
                raise Damage("corrupt", "a snapshot without an L1 table, or a name")
            size = int.from_bytes(extra[8:16], "big") if len(extra) >= 16 else self.size
            found.append(Snapshot(name, l1_offset, l1_size, size))
        return found, at - self.snapshots_offset

    def _bitmaps(self) -> None:
        count, _, nbytes, offset = struct.unpack(">IIQQ", self.extensions[EXT_BITMAPS])
        if offset % self.cluster_size or offset + nbytes > len(self.content) or not count:
            raise Damage("corrupt", "the bitmap directory")
        self._bitmap_clusters.append(self._span(offset, nbytes))
        at = offset
        for _ in range(count):
            table, size, flags, kind, bits, name_bytes, extra = struct.unpack_from(">QIIBBHI", self.content, at)
            if kind != 1 or extra or not 9 <= bits <= 31 or at + 24 + name_bytes > offset + nbytes or flags > 7:
                raise Damage("corrupt", "an entry of the bitmap directory")
            name = bytes(self.content[at + 24 : at + 24 + name_bytes]).decode()
            at += 24 + name_bytes + 7 & ~7
            self.bitmaps.append(Bitmap(name, table, size, bool(flags & 1), bits))
            self._bitmap_clusters.append(self._span(table, 8 * size))
            entries = self.flat(table, size) & OFFSET
            self._bitmap_clusters.append(self.host_clusters(entries[entries != 0], "a cluster of a bitmap"))
        if at != offset + nbytes:
            raise Damage("corrupt", "the bitmap directory has another length")

    def marks(self, bitmap: Bitmap, bits: int) -> Words:
        """So many bits of a bitmap."""
        found = np.zeros((bitmap.table_size, self.cluster_size), np.uint8)
        for number, entry in enumerate(self.flat(bitmap.table_offset, bitmap.table_size)):
            if offset := int(entry & OFFSET):
                found[number] = np.frombuffer(bytes(self.content[offset:]).ljust(self.cluster_size, b"\0"), np.uint8)[
                    : self.cluster_size
                ]
            elif entry & np.uint64(1):
                found[number] = 0xFF
        return np.unpackbits(found.ravel(), bitorder="little")[:bits].astype(np.bool_)

    # -- the check ---------------------------------------------------------------------------------------------------

    def _span(self, offset: int, nbytes: int) -> Words:
        """The clusters of a range."""
        return np.arange(offset >> self.cluster_bits, -(-(offset + nbytes) >> self.cluster_bits), dtype=np.int64)

    def _metadata(self, blocks: Words) -> Words:
        parts = [
            np.zeros(1, np.int64),
            self._span(self.l1_offset, 8 * self.l1_size),
            self._span(self.reftable_offset, self.reftable_clusters * self.cluster_size),
            blocks,
            *self._bitmap_clusters,
        ]
        if self.nb_snapshots:
            parts.append(self._span(self.snapshots_offset, self.snapshot_bytes))
        parts += [self._span(each.l1_offset, 8 * each.l1_size) for each in self.snapshots]
        if crypto := self.extensions.get(EXT_CRYPTO):
            parts.append(self._span(*struct.unpack(">QQ", crypto)))
        return np.concatenate(parts)

    def _stream_clusters(self, tree: Tree) -> Words:
        if not (tree.entries & COMPRESSED).any():
            return np.zeros(0, np.int64)
        spans = [self._span(start, stop - start) for _, start, stop in self.compressed_extents(tree)]
        return np.concatenate(spans)

    def _counts(self, blocks: Words, places: Words, total: int) -> Words:
        """The refcounts of the first `total` clusters."""
        order = self.refcount_order
        raw = self.tables(blocks).astype(">u8").view(np.uint8)
        if order >= 3:
            counts = raw.view(f">u{1 << order - 3}").astype(np.uint64)
        else:
            width = 1 << order
            shifts = np.arange(0, 8, width, dtype=np.uint8)
            counts = (raw[:, :, None] >> shifts & ((1 << width) - 1)).reshape(len(raw), -1).astype(np.uint64)
        per_block = self.cluster_size * 8 >> order
        found = np.zeros(-(-total // per_block) * per_block, np.uint64).reshape(-1, per_block)
        inside = places < len(found)
        found[places[inside]] = counts[inside]
        return found.ravel()[:total]

    def check(self, *, exact: bool = False) -> None:
        """`exact`: nothing is marked, no cluster leaks, and COPIED is wherever it can be. Raises: Damage."""
        reftable = self.flat(self.reftable_offset, self.reftable_clusters * self.cluster_size // 8)
        places = np.flatnonzero(reftable)
        blocks = self.host_clusters(reftable[places], "a refcount block")
        trees = [self.active, *self.snapshot_trees.values()]
        kinds: list[tuple[str, list[Words]]] = [
            ("metadata", [self._metadata(blocks)]),
            ("L2 table", [tree.l2 for tree in trees]),
            ("data", [] if self.external else [self._data(tree) for tree in trees]),
            ("compressed data", [self._stream_clusters(tree) for tree in trees]),
        ]
        top = max((int(part.max()) for _, parts in kinds for part in parts if len(part)), default=0)
        if top > MOST_CLUSTERS:
            raise Damage("corrupt", f"a reference to host cluster {top:#x}")
        total = max(top + 1, self.clusters)
        references = np.zeros(total, np.int64)
        purposes = np.zeros(total, np.int64)
        for name, parts in kinds:
            of_kind = np.zeros(total, np.int64)
            for part in parts:
                if not len(part):
                    continue
                counts = np.bincount(part, minlength=total)
                if name != "compressed data" and int(counts.max()) > 1:
                    raise Damage("corrupt", f"host cluster {int(counts.argmax()):#x} is {name} twice")
                of_kind += counts
            purposes += of_kind > 0
            references += of_kind
        if int(purposes.max()) > 1:
            cluster = int(purposes.argmax())
            names = [name for name, parts in kinds if any((part == cluster).any() for part in parts)]
            raise Damage("corrupt", f"host cluster {cluster:#x} is {' and '.join(names)}")
        counts = self._counts(blocks, places, total)
        if not self.dirty:
            short = np.flatnonzero(counts < references.astype(np.uint64))
            if len(short):
                cluster = int(short[0])
                names = [name for name, parts in kinds if any((part == cluster).any() for part in parts)]
                raise Damage("corrupt", f"host cluster {cluster:#x} ({names}) has {references[cluster]} references")
        self._check_copied(references)
        if exact:
            if self.incompatible & (DIRTY | CORRUPT):
                raise Damage("check", "a repair left the dirty bit or the corrupt bit")
            if (counts != references.astype(np.uint64)).any():
                cluster = int((counts != references.astype(np.uint64)).argmax())
                raise Damage("check", f"a repair left a leak: host cluster {cluster:#x}")
            self._check_not_copied(references)

    def _data(self, tree: Tree) -> Words:
        return self.host_clusters(tree.entries[tree.standard] & OFFSET, "a data cluster")

    def _check_copied(self, references: Words) -> None:
        tree = self.active
        places = [tree.l2[(tree.l1 & COPIED) != 0]]
        if not self.external:
            copied = tree.standard & ((tree.entries & COPIED) != 0)
            places.append(self.host_clusters(tree.entries[copied] & OFFSET, "a data cluster"))
        clusters = np.concatenate(places)
        wrong = clusters[references[clusters] != 1]
        if len(wrong):
            raise Damage("corrupt", f"host cluster {int(wrong[0]):#x} is COPIED, {references[wrong[0]]} references")

    def _check_not_copied(self, references: Words) -> None:
        """Where there is one reference, it has to say so."""
        tree = self.active
        alone = tree.standard & ((tree.entries & COPIED) == 0)
        data = self.host_clusters(tree.entries[alone] & OFFSET, "a data cluster")
        if (references[data] == 1).any() or (references[tree.l2[(tree.l1 & COPIED) == 0]] == 1).any():
            raise Damage("check", "a repair left an entry without COPIED")

"""Steps whose absence no power cut can show: why the states that it adds are all right, or are none."""

__all__ = ["EQUIVALENT"]

_LEAK = "what is not counted down leaks"
_LESS = "COPIED follows the counts in memory, which go down late: it is set later, or not at all, and never too early"

EQUIVALENT: dict[str, str] = {
    "amend.amend: without write_back before `if wish.version > image.version:`": (
        "each step goes by the tables in memory, or writes back itself; the header is changed under the commit's lock, "
        "from what is in the file; counts and entries that come later than a step come in the order of any commit"
    ),
    "amend.change_backing_file: without write_back before `def change(header: Header) -> None:`": (
        "the name says nothing of clusters: the header is rewritten under the commit's lock, with the tables that the "
        "file has, whatever is still in memory"
    ),
    "amend_refcounts.change_refcount_order: without write_back after "
    "`image.release(old.table_offset, 8 * len(old.table) >> ima...`": _LEAK,
    "amend_refcounts.change_refcount_order: without flush after "
    "`await image.file.pwrite(SWITCHED.start, fixed_fields(head...`": (
        "the next that is written are lower counts, and the old table is always among what is released: the write-back "
        "flushes before it counts down"
    ),
    "amend_zeroes._expand_inactive: without flush before `for host in released:`": (
        "nothing is written before the write-back at the end, which flushes before it counts down"
    ),
    "amend_zeroes._expand_inactive: without write_back after `for host in released:`": _LEAK,
    "driver.Qcow2Driver.reopen: without write_back before `await self.store_bitmaps()`": (
        "the node is flushed before its driver is reopened; a dirty bit that stays costs a repair"
    ),
    "header_extension.drop_extension: without flush before `header.extensions = wanted.extensions`": (
        "the bit is clear, so nobody looks at the extension; before clusters of the old directory are counted down, "
        "`_publish`'s write-back flushes"
    ),
    "header_update.update_header: without flush before `try:`": (
        "all callers come from a write-back or a flush, and nothing was written since"
    ),
    "image.Image._mark_corrupt: without flush after `await self.file.pwrite(*features_field(self.header))`": (
        "nothing is written any more, so no state relies on the mark: one without it is one from before the mark; a "
        "flush and a close wait for it, and flush the file"
    ),
    "shrink._cut_file: without write_back before `end = await _drop_empty_blocks(image)`": (
        "what is cut off, and which blocks are dropped, goes by the counts in memory, which go down when the loss of "
        "the reference is stable: less is cut, and nothing that a stable entry refers to"
    ),
    "shrink._settle_many: without commit at the end": (
        "it bounds memory: what it would write, the write-back in `_cut_file` writes in the same order, or a flush"
    ),
    "snapshots.complete_snapshot_table: without write_back after `try:`": _LEAK,
    "write.write: with lazy refcounts, new tables are not counted first": (
        "the states that differ are dirty, and the dirty bit is stable before the L1 entry: then no count is believed, "
        "and a repair counts tables as it counts data"
    ),
    "commit._mark_dirty: without flush before `image.lazily_dirty = True`": (
        "only L2 entries rely on the dirty bit, and the flush before L2 tables are written covers it"
    ),
    "commit.write_back: without commit at the end": _LEAK,
    "commit.write_back: without flush before `image.lazily_dirty = False`": (
        "a clean bit that is lost costs a repair, and the next dirty bit is flushed together with it"
    ),
    "commit._Commit.run: `await self._free()` after `if self.unused_data:`": (
        "the loss of the references is stable before both; one counts in memory, one discards in the data file"
    ),
    "driver.Qcow2Driver.close: without write_back before `await self.store_bitmaps()`": (
        "the node is flushed before its driver is closed; a dirty bit that stays costs a repair"
    ),
    "snapshots.create_snapshot: without write_back before `return entry`": _LEAK,
    "snapshots.create_snapshot: without write_back before `await _switch_table(image, new, taken)`": (
        "`_switch_table` writes back before it writes the header"
    ),
    "snapshots.apply_snapshot: without write_back before `await set_copied(image)`": _LESS,
    "snapshots.apply_snapshot: without write_back after `await set_copied(image)`": _LESS,
    "snapshots.delete_snapshot: without write_back before `await set_copied(image)`": _LESS,
    "snapshots.delete_snapshot: without write_back after `await set_copied(image)`": _LESS,
    "shrink.shrink: without commit before `header.size = length`": "the size relies on nothing that is in memory",
    "shrink.shrink: without flush after `await image.file.pwrite(*size_field(header))`": (
        "the flush before L2 tables are written, which drops references first, covers the size"
    ),
    "bitmap_store._publish: without write_back after `image.table_moved(*_extent(old), *_extent(place))`": _LEAK,
    "bitmap_store._change_flags: without flush before `await _set_bit(image, True)`": (
        "each flag is one field in one sector, and the flush of the bit covers it before the first guest write"
    ),
    "bitmap_store._change_flags: `await _set_bit(image, False)` after "
    "`await image.file.pwrite(image.bitmap_directory.directory_...`": (
        "each flag is one field in one sector: a torn directory is a mix of true entries while nobody writes"
    ),
}
"""Mutants that cannot do harm, and why."""

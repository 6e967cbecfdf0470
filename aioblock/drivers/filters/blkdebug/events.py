"""The names of events: QEMU's, all of them, so that its rules are understood. Not every driver comes to every event."""

from typing import Final

__all__ = ["EVENTS", "IO_TYPES", "NONE"]

NONE: Final = "none"
"""Happens once, when the filter is opened."""

_EVENTS: Final = """
    l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table
    l1_shrink_write_table l1_shrink_free_l2_clusters
    l2_load l2_update l2_update_compressed l2_alloc_cow_read l2_alloc_write
    read_aio read_backing_aio read_compressed write_aio write_compressed
    vmstate_load vmstate_save cow_read cow_write cor_write
    reftable_load reftable_grow reftable_update
    refblock_load refblock_update refblock_update_part
    refblock_alloc refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks
    refblock_alloc_write_table refblock_alloc_switch_table
    cluster_alloc cluster_alloc_bytes cluster_alloc_space cluster_free
    flush_to_os flush_to_disk
    pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail
    pwritev pwritev_zero pwritev_done empty_image_prepare none
    """

EVENTS: Final = frozenset(_EVENTS.split())

IO_TYPES: Final = ("read", "write", "write-zeroes", "discard", "flush", "block-status")
"""What requests a rule can be about. One that does not say is about all but the last."""

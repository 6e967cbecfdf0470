"""`blkdebug`: requests that fail, or stop, at the steps of the drivers above.

`events` has the names of the steps, `rules` what shall happen at them, `config` how rules are written down, and
`driver` the filter.
"""

from aioblock.drivers.filters.blkdebug.driver import BlkdebugDriver

__all__ = ["BlkdebugDriver"]

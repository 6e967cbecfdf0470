"""qcow2, versions 2 and 3.

The format at rest: `header`, `extensions`, `features`, `validation`, `entries`, `refblocks`, `layout`, `compression`,
`create`, `check`, `info`. An open image: `driver` (the contract), `image` (the state), `tables` and `refcounts` (in
memory), `commit` (the order of writes), `mapping`, and a file for each verb.
"""

from aioblock.drivers.formats.qcow2.driver import Qcow2Driver

__all__ = ["Qcow2Driver"]

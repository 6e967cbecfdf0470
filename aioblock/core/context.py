"""OpenContext: what a driver is given while it opens."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from aioblock.core.images import InnerName, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioblock.base.options import Options
    from aioblock.core.io import BlockIO
    from aioblock.core.objects import NamedObject

__all__ = ["AIO_MODES", "CacheMode", "OpenContext"]

AIO_MODES = ("threads", "native", "io_uring")
"""The ways to ask a system for I/O, as the option `aio` of a file names them."""


class CacheMode:
    """How writes reach the storage: QEMU's `cache.direct`, `cache.no-flush` and `cache.writeback`."""

    __slots__ = ("direct", "no_flush", "writeback")

    def __init__(self, *, direct: bool = False, no_flush: bool = False, writeback: bool = True) -> None:
        self.direct = direct
        """The page cache of the host is passed by (O_DIRECT)."""
        self.no_flush = no_flush
        """Flushes are not asked of the host: fast, and unsafe when the host fails."""
        self.writeback = writeback
        """False: every write of a *backend* is followed by a flush (writethrough)."""

    def __repr__(self) -> str:
        return f"CacheMode(direct={self.direct}, no_flush={self.no_flush}, writeback={self.writeback})"


class OpenContext(ABC):
    """What a driver is given while it opens: its options, its children, and the policy about names inside images.

    Children that were opened are the graph's: when `BlockDriver.open` raises, the graph closes them.
    """

    options: "Options"
    """The options meant for this driver. What the driver does not take is an error, raised by the graph."""
    filename: str
    """The name that the node was opened by, for messages and to find relative names; "" where there is none."""
    node_name: str
    """The name of the node that is being opened."""
    read_only: bool
    """No guest data may be written through this node. The driver writes nothing at all while this is set."""
    cache: CacheMode
    force_share: bool
    """Other users may do what they like meanwhile (`-U`): take no lock against them, and be robust."""
    for_check: bool
    """Opened to be checked or repaired: damaged metadata is let through where the check can tell about it."""
    metadata_only: bool
    """Opened to be asked about itself: no guest data will be read or written, so no key is needed for it."""
    unmap: bool
    """Discards shall reach the storage (`discard=unmap`)."""
    aio: str | None
    """One of AIO_MODES, for files that are not told otherwise; None: what is best there."""
    objects: "Mapping[str, NamedObject]"
    """The named objects that options may refer to by their id: see `core.objects`."""

    probed: bool
    """The format was guessed from the content: guest writes must not turn the image into another format."""

    this: "BlockIO"
    """The node itself as its users see it; works once `open` has returned. For questions about the whole chain."""

    @abstractmethod
    async def open_child(
        self, role: Role, filename: str | None = None, *, number: int | None = None, perm: int = 0, unshared: int = 0
    ) -> "BlockIO":
        """Open the child that the options describe under the role's name (`file`, `data-file` ...), and attach it.

        `number`: which of several of that role it is, described under `children.0` and so on.
        `filename`: its name as the caller of the graph gave it; options under the role's name are laid over it.
        `perm`, `unshared`: PERM_* bits that are asked for, and not shared, beside those that follow from the parents.
        Raises: OptionError where the options name none; what opening it raises.
        """

    @abstractmethod
    async def open_inner(self, role: Role, name: InnerName | None) -> "BlockIO | None":
        """Open the child that the image itself names, unless the options override it (`backing`, `backing=null`).

        The trust policy is asked first, and a relative name is taken from the image's own directory. Returns None
        where there is none, or where the caller wants none.
        Raises: UntrustedReference; what opening it raises.
        """

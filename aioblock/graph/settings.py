"""What holds for a graph while it is opened, and for a place in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from aioblock.base.errors import OptionError
from aioblock.core.context import CacheMode
from aioblock.core.objects import NamedObject
from aioblock.graph.trust import TRUST_DIRECTORY, TrustPolicy

__all__ = ["DETECT_ZEROES", "MAX_DEPTH", "OpenSettings", "Place", "require_unmap", "unmaps"]

DETECT_ZEROES = ("off", "on", "unmap")
"""What the option `detect-zeroes` takes."""

MAX_DEPTH = 256
"""How many layers a chain may have, unless the caller says otherwise. Chains in use are rarely longer than 30."""


@dataclass(frozen=True, slots=True)
class OpenSettings:
    """What holds for the whole graph that one call opens."""

    writable: bool = False
    cache: CacheMode = field(default_factory=CacheMode)
    unmap: bool = True
    """Discards reach the storage, and write-zeroes may give it back."""
    aio: str | None = None
    """How the system is asked for I/O: see `OpenContext.aio`."""
    detect_zeroes: str = "off"
    force_share: bool = False
    backing: bool = True
    """False: backing files are not opened; what they would decide reads as zeroes."""
    trust: TrustPolicy = TRUST_DIRECTORY
    probe: bool | None = None
    """Whether formats may be guessed; None: of the top image, if it is opened read-only."""
    for_check: bool = False
    metadata_only: bool = False
    objects: Mapping[str, NamedObject] = field(default_factory=dict)
    """The named objects that options may refer to."""
    max_depth: int = MAX_DEPTH
    names: set[str] = field(default_factory=set)
    """The names that the caller gave to nodes of this graph."""


class Place(NamedTuple):
    """Where in the graph a node is opened, and what is asked of it there."""

    perm: int
    shared: int
    writable: bool
    protocol: bool = False
    """A name without a driver means a protocol here, not an image to be probed."""
    layers: tuple[object, ...] = ()
    """The identities of the files of the layers above, to find loops."""
    depth: int = 1
    """Which layer of the chain it belongs to, 1 = the top."""


def unmaps(discard: object) -> bool:
    """What the option `discard` means: whether discards reach the storage. Raises: OptionError."""
    if discard not in ("ignore", "off", "unmap", "on"):
        raise OptionError("Invalid discard option", option="discard")
    return discard in ("unmap", "on")


def require_unmap(detect_zeroes: str, unmap: bool) -> None:
    """Raises: OptionError where zeroes that are found shall give storage back, but discards shall not."""
    if detect_zeroes == "unmap" and not unmap:
        raise OptionError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            option="detect-zeroes",
        )

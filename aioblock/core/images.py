"""What drivers tell about images, and what they take to create one: plain records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from aioblock.core.objects import NamedObject

__all__ = [
    "CheckFinding",
    "CheckResult",
    "CreateOption",
    "DriverInfo",
    "InnerName",
    "Measurement",
    "Prealloc",
    "Role",
    "SnapshotInfo",
    "detail_lines",
]


class Role(StrEnum):
    """What a child is to its parent."""

    FILE = "file"
    """Where the bytes of a format lie."""
    BACKING = "backing"
    """What is read where this layer decides nothing."""
    DATA_FILE = "data-file"
    """Where guest data lies when it is apart from the metadata."""
    FILTERED = "filtered"
    """The one child of a filter."""
    IMAGE = "image"
    """The same of `blkdebug`."""
    RAW = "raw"
    """`blkverify`: what is trusted, and read from."""
    TEST = "test"
    """`blkverify`: what is compared with that."""
    LOG = "log"
    """`blklogwrites`: where the log is written."""
    CHILDREN = "children"
    """`quorum`: one of several, `children.0` and so on, whose failures the parent weighs itself."""

    @property
    def is_primary(self) -> bool:
        """Whether the child holds what the parent shows, or the bytes from which it makes that."""
        return self in _PRIMARY


_PRIMARY: Final = frozenset((Role.FILE, Role.FILTERED, Role.IMAGE, Role.RAW))


class Prealloc(StrEnum):
    """How much of a new range is allocated at once; the names are QEMU's."""

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


class InnerName(NamedTuple):
    """The name of another file as it stands inside an image: data, until the trust policy has agreed."""

    filename: str
    format: str | None
    """The format that the image claims for it; None: the image does not say."""


class CreateOption(NamedTuple):
    """One option of `create`, for checking, for defaults and for help texts.

    `kind` is one of "size", "int", "bool", "str". `help` is one line, without a full stop.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    names: "type[NamedObject] | None" = None
    """The value is the id of a named object of that type; `create` is given the object in its place."""
    role: "Role | None" = None
    """The value names another file, which is made too: `create` is given it, open, under the name of the role."""


SIZE_OPTION: Final = CreateOption("size", "size", "Virtual disk size")


class DriverInfo(NamedTuple):
    """What a driver tells about its image beyond its length. Sizes in bytes."""

    cluster_size: int | None = None
    """The unit of allocation; None where there is none."""
    vm_state_offset: int | None = None
    """Where, behind the disk, the state of a machine is kept for snapshots; None where that cannot be."""
    dirty: bool | None = None
    """The image was not closed properly; None: what holds its bytes knows nothing of the kind (`nbd`)."""
    encrypted: bool = False
    compressed: bool = False
    backing: InnerName | None = None
    """The backing file as the image names it."""
    snapshots: int = 0
    """How many internal snapshots the image has."""
    specific: Mapping[str, Any] | None = None
    """Further fields, JSON values, keys as in the `format-specific` `data` of `qemu-img info --output=json`."""
    lines: tuple[str, ...] = ()
    """The same for people, a line each, as `qemu-img info` prints them below "Format specific information"."""


def detail_lines(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> Iterator[str]:
    """`DriverInfo.specific` as `DriverInfo.lines`: a line for each leaf; what lies deeper is indented by four more."""
    pairs: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((key.replace("-", " "), item) for key, item in value.items())
    else:
        pairs = ((f"[{number}]", item) for number, item in enumerate(value))
    for name, item in pairs:
        if isinstance(item, Mapping | list):
            yield f"{indent}{name}:"
            yield from detail_lines(item, indent + "    ")
        else:
            shown = str(item).lower() if isinstance(item, bool) else item
            yield f"{indent}{name}: {shown}"


class Measurement(NamedTuple):
    """How large the file of a new image becomes, in bytes."""

    required: int
    """With the data that it begins with."""
    fully_allocated: int
    """When every byte of the disk has been written."""
    bitmaps: int | None
    """What its persistent bitmaps take besides; None where the format, or the source, has none."""


class CheckFinding(NamedTuple):
    """One thing that a check found or a repair did; `message` is a line for people, or several.

    `kind` is "corruption", "leak", "error" (it could not be checked), or "note" (nothing is wrong by that). What is
    found first and repaired later comes twice, the second time `fixed`.
    """

    kind: str
    message: str
    offset: int | None = None
    fixed: bool = False


@dataclass(slots=True)
class CheckResult:
    """What a check found; counts are of clusters unless said otherwise. The names are those of QEMU's JSON."""

    image_end_offset: int = 0
    """The first byte of the file behind everything that is in use."""
    corruptions: int = 0
    leaks: int = 0
    check_errors: int = 0
    """Places that could not be checked (errors of I/O)."""
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    findings: list[CheckFinding] = field(default_factory=list)


class SnapshotInfo(NamedTuple):
    """One internal snapshot of an image. Sizes in bytes; bytes that are not UTF-8 are surrogates in names."""

    id: str
    name: str
    vm_state_size: int
    """How much of the VM state area belongs to it; 0: a snapshot of the disk alone."""
    date_sec: int
    """When it was made, in seconds since 1970."""
    date_nsec: int
    vm_clock_nsec: int
    """How long the guest had run, in nanoseconds."""
    icount: int | None
    """How many instructions the guest had executed; None: unknown."""
    disk_size: int

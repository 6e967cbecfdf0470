"""What drivers tell about images, and what they take to create one: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

__all__ = ["CheckFinding", "CheckResult", "CreateOption", "DriverInfo", "InnerName", "Prealloc", "Role"]


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


@dataclass(frozen=True, slots=True)
class CreateOption:
    """One option of `create`, for checking, for defaults and for help texts.

    `kind` is one of "size", "int", "bool", "str". `help` is one line, without a full stop.
    """

    name: str
    kind: str
    help: str
    default: Any = None


SIZE_OPTION: Final = CreateOption("size", "size", "Virtual disk size")


@dataclass(slots=True)
class DriverInfo:
    """What a driver tells about its image beyond its length. Sizes in bytes."""

    cluster_size: int | None = None
    """The unit of allocation; None where there is none."""
    vm_state_offset: int | None = None
    """Where, behind the disk, the state of a machine is kept for snapshots; None where that cannot be."""
    dirty: bool = False
    """The image was not closed properly."""
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


class CheckFinding(NamedTuple):
    """One thing that a check found. `kind` is "corruption", "leak" or "error"; `message` a line for people."""

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

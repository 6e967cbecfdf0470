"""The internal snapshots of an image as `snapshot -l` and `info` show them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioblock import SnapshotInfo

__all__ = ["snapshot_list"]


def snapshot_list(snapshots: "Sequence[SnapshotInfo]") -> list[str]:
    """A table for people, as lines; none where there is no snapshot."""
    if not snapshots:
        return []
    from aioblock import human_size

    lines = ["Snapshot list:", _line("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")]
    for snapshot in snapshots:
        size = human_size(snapshot.vm_state_size)
        icount = "" if snapshot.icount is None else str(snapshot.icount)
        clock = _clock(snapshot.vm_clock_nsec)
        lines.append(_line(snapshot.id, snapshot.name, size, _date(snapshot.date_sec), clock, icount))
    return lines


def _line(number: str, tag: str, size: str, date: str, clock: str, icount: str) -> str:
    return f"{_padded(number, 9)} {_padded(tag, 16)}{size:>9}{date:>20}{clock:>13}{icount:>11}"


def _padded(text: str, nbytes: int) -> str:
    """Columns are counted in bytes."""
    import os

    return text + " " * (nbytes - len(os.fsencode(text)))


def _date(seconds: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _clock(nanoseconds: int) -> str:
    """Hours, minutes, seconds and thousandths."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 10**6:03}"

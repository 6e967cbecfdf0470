"""`info`: what an image is, the chain below it, its snapshots and bitmaps."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text
from rich.tree import Tree

from .access import Access, looking_options
from .failures import Failure, explained
from .opening import library_options, warn_of_suffix
from .parameters import image_argument
from .quantities import exact, human, percent
from .subcommand import subcommand, work
from .terminal import shown

if TYPE_CHECKING:
    from aioblock import BitmapInfo, ImageInfo, SnapshotInfo

    from .terminal import Terminal

__all__ = ["command", "show_bitmaps", "show_snapshots", "snapshot_document"]


@subcommand("info", short_help="what an image is, its chain, snapshots and bitmaps")
@image_argument()
@click.option("--no-chain", is_flag=True, help="Do not open the backing files.")
@looking_options
def command(terminal: "Terminal", image: str, no_chain: bool, access: Access) -> int:
    """Show what IMAGE is, the chain of its backing files as a tree, its internal snapshots and its dirty bitmaps.

    Where the chain is broken, what could be opened is shown, and the exit status is 1.
    """
    import aioblock

    found: list[ImageInfo] = []
    broken: Failure | None = None

    async def body() -> None:
        nonlocal broken
        how = library_options(access)
        try:
            found.extend([await aioblock.info(image, **how)] if no_chain else await aioblock.info_chain(image, **how))
        except (OSError, aioblock.BlockError) as error:
            if no_chain:
                raise
            found.append(await aioblock.info(image, **how))  # fails, too, if it is the image itself that cannot be read
            broken = explained(error)

    work(body, fast=False)
    top = found[0]
    if access.format is None:
        warn_of_suffix(terminal, image, top.format)
    terminal.result(_document(found, broken))
    _show(terminal, found, broken)
    if broken is not None:
        if not terminal.json:
            terminal.failed(broken)
        return 1
    return 0


def _document(found: "list[ImageInfo]", broken: Failure | None) -> dict[str, Any]:
    layers = []
    for image in found:
        facts = image._asdict()
        del facts["details"]
        facts["snapshots"] = [snapshot_document(snapshot) for snapshot in image.snapshots]
        facts["bitmaps"] = [bitmap._asdict() for bitmap in image.bitmaps]
        layers.append(facts)
    return {"image": found[0].filename, "layers": layers, "error": broken.as_json()["error"] if broken else None}


def snapshot_document(snapshot: "SnapshotInfo") -> dict[str, Any]:
    """A snapshot as JSON values."""
    return snapshot._asdict()


def _show(terminal: "Terminal", found: "list[ImageInfo]", broken: Failure | None) -> None:
    top = found[0]
    terminal.heading(f"{top.filename}: {top.format}, {exact(top.virtual_size)}")
    stored = top.actual_size
    facts: dict[str, str | Text] = {"storage": _storage(stored, top.virtual_size)}
    if top.cluster_size is not None:
        facts["cluster size"] = exact(top.cluster_size)
    if top.encrypted:
        facts["encrypted"] = "yes"
    if top.compressed:
        facts["compressed"] = "yes"
    if top.dirty:
        facts["closed properly"] = Text("no", style="yellow")
    terminal.facts(facts, indent=2)
    specific = dict(_flat({key: value for key, value in (top.specific or {}).items() if key != "bitmaps"}))
    if specific:
        terminal.print("", Text("Format", style="bold"))
        terminal.facts(specific, indent=2)
    if top.backing_filename is not None or len(found) > 1:
        terminal.print("", Text("Chain", style="bold"))
        terminal.print(_tree(found, broken))
    if top.snapshots:
        terminal.print("", Text("Snapshots", style="bold"))
        show_snapshots(terminal, top.snapshots)
    if top.bitmaps:
        terminal.print("", Text("Bitmaps", style="bold"))
        show_bitmaps(terminal, top.bitmaps)


def _storage(stored: int | None, size: int) -> str:
    if stored is None:
        return "unknown"
    return f"{exact(stored)}, {percent(stored, size)} of the disk" if size else exact(stored)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """What a format says, name by name: what lies deeper has the names above it in front."""
    for name, value in values.items():
        shown_name = f"{before}{name.replace('-', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{shown_name}: ")
        elif isinstance(value, list):
            numbered = {f"[{number}]": item for number, item in enumerate(value)}
            yield from _flat(numbered, f"{shown_name} ")
        else:
            yield shown_name, ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _tree(found: "list[ImageInfo]", broken: Failure | None) -> Tree:
    """The top layer as the root, what it reads from below it."""
    root = branch = Tree(_layer(found[0]), guide_style="bright_black")
    for image in found[1:]:
        branch = branch.add(_layer(image))
    last = found[-1]
    if last.backing_filename is not None:
        said = f" ({last.backing_format})" if last.backing_format else ""
        why = (" cannot be opened", "red") if broken else (" not looked at", "bright_black")
        branch.add(Text.assemble((str(shown(last.backing_filename)), "yellow"), said, why))
    return root


def _layer(image: "ImageInfo") -> Text:
    stored = f", {human(image.actual_size)} stored" if image.actual_size is not None else ""
    facts = f"  {image.format}, {human(image.virtual_size)}{stored}"
    return Text.assemble((str(shown(image.filename)), "bold"), (facts, "bright_black"))


def show_snapshots(terminal: "Terminal", snapshots: "tuple[SnapshotInfo, ...]") -> None:
    """Internal snapshots as a table."""
    rows = []
    for snapshot in snapshots:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec))
        state = human(snapshot.vm_state_size) if snapshot.vm_state_size else "-"
        clock = f"{snapshot.vm_clock_nsec / 1e9:.3f} s" if snapshot.vm_clock_nsec else "-"
        rows.append((snapshot.id, snapshot.name, made, human(snapshot.disk_size), state, clock))
    columns = ("ID", "Name", "Made", "Disk", "VM state", "VM clock")
    terminal.table(columns, rows, right=("Disk", "VM state", "VM clock"))


def _bitmap_state(bitmap: "BitmapInfo") -> Text:
    """Whether a bitmap records, and can be trusted."""
    if bitmap.inconsistent:
        return Text("inconsistent: can only be removed", style="yellow")
    return Text("recording" if bitmap.enabled else "stopped")


def show_bitmaps(terminal: "Terminal", bitmaps: "tuple[BitmapInfo, ...]") -> None:
    """Dirty bitmaps as a table."""
    rows = [(bitmap.name, human(bitmap.granularity), _bitmap_state(bitmap)) for bitmap in bitmaps]
    terminal.table(("Name", "Granularity", "State"), rows, right=("Granularity",))

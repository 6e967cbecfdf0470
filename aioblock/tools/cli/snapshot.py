"""`snapshot`: keep, list, apply and delete internal snapshots."""

from typing import TYPE_CHECKING

import click

from .access import Access, looking_options, writing_options
from .failures import Failure
from .info import show_snapshots, snapshot_document
from .opening import library_options, opened
from .parameters import image_argument
from .quantities import exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import SnapshotInfo

    from .terminal import Terminal

__all__ = ["command"]


@subcommand("list", short_help="list them")
@image_argument()
@looking_options
def _list(terminal: "Terminal", image: str, access: Access) -> None:
    """List the internal snapshots of IMAGE."""
    import aioblock

    found: tuple[SnapshotInfo, ...] = ()

    async def body() -> None:
        nonlocal found
        found = await aioblock.snapshots(image, **library_options(access))

    work(body, fast=False)
    terminal.result({"image": image, "snapshots": [snapshot_document(snapshot) for snapshot in found]})
    if found:
        show_snapshots(terminal, found)
    else:
        terminal.print(f"{image} has no internal snapshot")


@subcommand("create", short_help="keep the disk as it is now")
@image_argument()
@click.argument("name")
@writing_options
def _create(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Keep the disk in IMAGE as it is now, under NAME."""
    terminal.left = f"{image} has the whole snapshot, or none: aioblock snapshot list {image}"
    made: list[SnapshotInfo] = []

    async def body() -> None:
        async with opened(terminal, image, access, writable=True) as disk:
            if any(snapshot.name == name for snapshot in disk.snapshots()):
                terminal.note(f"{image} has a snapshot '{name}' already: the new one is told apart by its id")
            made.append(await disk.snapshot_create(name))

    work(body, fast=False)
    terminal.result({"image": image, "snapshot": snapshot_document(made[0])})
    terminal.print(f"{image}: snapshot '{name}' (id {made[0].id}) of a disk of {exact(made[0].disk_size)}")


@subcommand("apply", short_help="make the disk what a snapshot holds")
@image_argument()
@click.argument("name")
@writing_options
def _apply(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Make the disk in IMAGE what the snapshot NAME (its id, or its name) holds. What the disk holds now is lost."""
    terminal.left = f"The disk in {image} is as it was, or as the snapshot; nothing between."
    _change(terminal, image, name, access, "apply")
    terminal.print(f"{image}: the disk is that of snapshot '{name}'")


@subcommand("delete", short_help="forget a snapshot")
@image_argument()
@click.argument("name")
@writing_options
def _delete(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Forget the snapshot NAME (its id, or its name) of IMAGE, and free what it alone used.

    The disk stays as it is.
    """
    terminal.left = f"{image} is whole; the snapshot may be gone: aioblock snapshot list {image}"
    _change(terminal, image, name, access, "delete")
    terminal.print(f"{image}: snapshot '{name}' is gone")


def _change(terminal: "Terminal", image: str, name: str, access: Access, what: str) -> None:
    async def body() -> None:
        async with opened(terminal, image, access, writable=True, resize=what == "apply") as disk:
            known = disk.snapshots()
            if not any(name in (snapshot.id, snapshot.name) for snapshot in known):
                names = ", ".join(f"'{snapshot.name}'" for snapshot in known)
                raise Failure(f"{image} has no snapshot '{name}'", hint=f"It has {names}." if names else "It has none.")
            await (disk.snapshot_apply(name) if what == "apply" else disk.snapshot_delete(name))

    work(body, fast=False)
    terminal.result({"image": image, "snapshot": name, "done": what})


command = click.Group(
    "snapshot",
    commands=[_list, _create, _apply, _delete],
    help="Internal snapshots: they lie in the image itself.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

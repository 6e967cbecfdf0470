"""`bitmap`: dirty bitmaps, which remember what was written since."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from .access import Access, looking_options, reading_options, writing_options
from .failures import Failure
from .info import show_bitmaps
from .opening import library_options, opened
from .parameters import ImageName, format_option, image_argument
from .quantities import SIZE, exact, percent, plural
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BitmapInfo, BlockBackend

    from .terminal import Terminal

__all__ = ["command"]


@subcommand("list", short_help="list them")
@image_argument()
@looking_options
def _list(terminal: "Terminal", image: str, access: Access) -> None:
    """List the dirty bitmaps that IMAGE keeps."""
    import aioblock

    found: tuple[BitmapInfo, ...] = ()

    async def body() -> None:
        nonlocal found
        found = (await aioblock.info(image, **library_options(access))).bitmaps

    work(body, fast=False)
    terminal.result({"image": image, "bitmaps": [bitmap._asdict() for bitmap in found]})
    if found:
        show_bitmaps(terminal, found)
    else:
        terminal.print(f"{image} has no dirty bitmap")


@subcommand("show", short_help="what is marked in one")
@image_argument()
@click.argument("name")
@reading_options
def _show(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Show which ranges of the disk are marked in the bitmap NAME of IMAGE: what was written since it was cleared."""
    ranges: list[tuple[int, int]] = []
    length = granularity = 0

    async def body() -> None:
        nonlocal length, granularity
        async with opened(terminal, image, access, backing=False) as disk:
            bitmap = await disk.bitmap(name)
            length, granularity = disk.length, bitmap.granularity
            ranges.extend(bitmap.ranges())

    work(body, fast=False)
    dirty = sum(nbytes for _, nbytes in ranges)
    terminal.result(
        {
            "image": image,
            "bitmap": name,
            "granularity": granularity,
            "dirty_bytes": dirty,
            "ranges": [{"offset": offset, "length": nbytes} for offset, nbytes in ranges],
        }
    )
    terminal.heading(
        f"{name}: {exact(dirty)} marked in {plural(len(ranges), 'range')}, {percent(dirty, length)} of the disk"
    )
    if ranges:
        rows = [(str(offset), f"{offset:#x}", exact(nbytes)) for offset, nbytes in ranges]
        terminal.table(("Offset", "", "Length"), rows, right=("Offset", ""))


@subcommand("add", short_help="add a bitmap")
@image_argument()
@click.argument("name")
@click.option("--granularity", type=SIZE, help="How many bytes one mark stands for.  [default: one cluster]")
@click.option("--disabled", is_flag=True, help="It does not record yet.")
@writing_options
def _add(
    terminal: "Terminal",
    image: str,
    name: str,
    granularity: int | None,
    disabled: bool,
    access: Access,
) -> None:
    """Add the clean bitmap NAME to IMAGE. From now on it marks what is written, whoever writes."""
    _change(
        terminal,
        image,
        name,
        access,
        "added",
        lambda disk: disk.bitmap_add(name, granularity, disabled=disabled),
    )


@subcommand("remove", short_help="remove a bitmap")
@image_argument()
@click.argument("name")
@writing_options
def _remove(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Remove the bitmap NAME from IMAGE."""
    _change(terminal, image, name, access, "removed", lambda disk: disk.bitmap_remove(name))


@subcommand("clear", short_help="take all marks from one")
@image_argument()
@click.argument("name")
@writing_options
def _clear(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Take all marks from the bitmap NAME of IMAGE."""
    _change(terminal, image, name, access, "cleared", lambda disk: disk.bitmap_clear(name))


@subcommand("enable", short_help="let one record")
@image_argument()
@click.argument("name")
@writing_options
def _enable(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Let the bitmap NAME of IMAGE record from now on."""
    _change(terminal, image, name, access, "enabled", lambda disk: disk.bitmap_enable(name))


@subcommand("disable", short_help="let one stay as it is")
@image_argument()
@click.argument("name")
@writing_options
def _disable(terminal: "Terminal", image: str, name: str, access: Access) -> None:
    """Let the bitmap NAME of IMAGE stay as it is from now on."""
    _change(terminal, image, name, access, "disabled", lambda disk: disk.bitmap_disable(name))


@subcommand("merge", short_help="add the marks of another bitmap")
@image_argument()
@click.argument("name")
@click.argument("source")
@click.option("--from", "other", type=ImageName(), metavar="FILE", help="SOURCE is a bitmap of this image.")
@format_option("--from-format", help="The format of that image.  [default: guessed from its content]")
@writing_options
def _merge(
    terminal: "Terminal",
    image: str,
    name: str,
    source: str,
    other: str | None,
    from_format: str | None,
    access: Access,
) -> None:
    """Mark in the bitmap NAME of IMAGE what is marked in the bitmap SOURCE."""

    async def merge(disk: "BlockBackend") -> None:
        if other is None:
            await disk.bitmap_merge(name, source)
            return
        async with opened(terminal, other, Access(from_format, access.trust), backing=False) as second:
            await disk.bitmap_merge(name, source, second)

    _change(terminal, image, name, access, "merged", merge)


def _change(
    terminal: "Terminal",
    image: str,
    name: str,
    access: Access,
    done: str,
    verb: "Callable[[BlockBackend], Awaitable[Any]]",
) -> None:
    import aioblock

    terminal.left = f"{image} is whole; the bitmap may be changed: aioblock bitmap list {image}"

    async def body() -> None:
        async with opened(terminal, image, access, writable=True, backing=False) as disk:
            try:
                await verb(disk)
            except aioblock.BitmapError as error:
                names = ", ".join(f"'{known}'" for known in disk.bitmaps())
                hint = f"It has {names}." if names else "It has none."
                raise Failure(f"{image}: {error}", hint=hint, kind="BitmapError") from error

    work(body, fast=False)
    terminal.result({"image": image, "bitmap": name, "done": done})
    terminal.print(f"{image}: bitmap '{name}' {done}")


command = click.Group(
    "bitmap",
    commands=[_list, _show, _add, _remove, _clear, _enable, _disable, _merge],
    help="Dirty bitmaps: they mark what was written since they were made, for backups of what is new.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

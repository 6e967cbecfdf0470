"""`resize`: make a disk larger or smaller."""

from typing import TYPE_CHECKING, Any

import click

from .access import Access, writing_options
from .failures import Failure
from .opening import opened
from .parameters import image_argument
from .quantities import Size, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["command"]


class _NewSize(click.ParamType[tuple[str, int]]):
    """A size, or with a sign how much more or less: ("+", bytes)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        sign = value[0] if value[:1] in ("+", "-") else ""
        return sign, Size().convert(value[len(sign) :], param, ctx)


@subcommand("resize", short_help="make a disk larger or smaller", context={"ignore_unknown_options": True})
@image_argument()
@click.argument("size", type=_NewSize())
@click.option("--shrink", is_flag=True, help="It may become smaller: what lies behind the new end is lost.")
@click.option(
    "--preallocation",
    type=click.Choice(["off", "metadata", "falloc", "full"]),
    default="off",
    show_default=True,
    help="How much of what is new is allocated at once.",
)
@writing_options
def command(
    terminal: "Terminal",
    image: str,
    size: tuple[str, int],
    shrink: bool,
    preallocation: str,
    access: Access,
) -> None:
    """Make the disk in IMAGE SIZE bytes large, or with a sign so much larger or smaller: 20G, +5G, -512M.

    What is new reads as zeroes. Partitions and file systems on the disk stay as they are: shrink those first, grow
    those afterwards.
    """
    import aioblock

    terminal.left = f"{image} has its old size or the new one, and is whole."
    sizes: list[int] = []

    async def body() -> None:
        async with opened(terminal, image, access, writable=True, resize=True) as disk:
            old = disk.length
            new = {"+": old + size[1], "-": old - size[1]}.get(size[0], size[1])
            if new <= 0:
                raise Failure(f"{image} is {exact(old)} large: nothing would be left", status=2)
            if new < old and not shrink:
                raise Failure(
                    f"{image} is {exact(old)} large; {exact(old - new)} at its end would be lost",
                    hint="If nothing in there is needed, add --shrink.",
                )
            await aioblock.resize(disk, new, shrink=shrink, prealloc=preallocation)
            sizes.extend((old, disk.length))

    work(body, fast=False)
    old, new = sizes
    terminal.result({"image": image, "old_size": old, "new_size": new})
    terminal.print(f"{image}: {exact(new)}, before {exact(old)}")

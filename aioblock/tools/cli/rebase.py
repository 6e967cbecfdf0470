"""`rebase`: give an image another backing file."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from .access import Access, writing_options
from .failures import Failure
from .new_file import seen_from
from .opening import opened
from .parameters import ImageName, format_option, image_argument
from .progress import WorkProgress
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend

    from .terminal import Terminal

__all__ = ["command"]


@subcommand("rebase", long=True, short_help="give an image another backing file")
@image_argument()
@click.option(
    "-b",
    "--backing",
    type=ImageName(),
    metavar="FILE",
    help="The new backing file. A relative name counts from here; IMAGE has it as seen from itself.",
)
@format_option("-F", "--backing-format", help="Its format.  [default: guessed from its content]")
@click.option(
    "--no-backing", is_flag=True, help="Let IMAGE have no backing file any more: it then holds everything itself."
)
@click.option(
    "--unsafe",
    is_flag=True,
    help="Only write the new name, for a backing file that was moved or renamed: nothing is compared.",
)
@writing_options
def command(
    terminal: "Terminal",
    image: str,
    backing: str | None,
    backing_format: str | None,
    no_backing: bool,
    unsafe: bool,
    access: Access,
) -> None:
    """Give IMAGE another backing file, so that what is read from it stays the same: what differs is copied into it."""
    import aioblock

    if (backing is None) != no_backing:
        raise Failure("Name the new backing file, or say --no-backing", hint="--backing FILE", status=2)
    if no_backing and unsafe:
        raise Failure("Without its backing file, --unsafe would lose what only that holds", hint="Leave --unsafe away.")
    terminal.left = f"{image} reads as before, and has the backing file that it had. Do the same again."
    stored: str | None = None

    async def body() -> None:
        nonlocal backing_format, stored
        async with AsyncExitStack() as stack:
            below: BlockBackend | None = None
            if backing is not None:
                stored = seen_from(image, backing)
                if not unsafe or backing_format is None:
                    below = await stack.enter_async_context(
                        opened(terminal, backing, Access(backing_format, access.trust), backing=not unsafe)
                    )
                if below is not None and backing_format is None:
                    backing_format = below.node.driver.name
                    terminal.note(f"{backing}: format {backing_format}, as its content says")
            disk = await stack.enter_async_context(opened(terminal, image, access, writable=True, backing=not unsafe))
            if unsafe:
                await disk.change_backing_file(stored, backing_format)
                return
            with WorkProgress(terminal, "rebase") as progress:
                await aioblock.rebase(
                    disk, stored, backing_format=backing_format, backing_disk=below, progress=progress
                )

    work(body)
    terminal.result({"image": image, "backing_file": stored, "backing_format": backing_format, "unsafe": unsafe})
    terminal.print(f"{image}: backing file {stored} ({backing_format})" if stored else f"{image}: no backing file")

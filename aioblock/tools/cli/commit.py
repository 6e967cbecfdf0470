"""`commit`: write what an image holds into its backing file."""

from typing import TYPE_CHECKING

import click

from .access import Access, writing_options
from .failures import Failure
from .opening import opened
from .parameters import ImageName, image_argument
from .progress import WorkProgress
from .quantities import SIZE, duration, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["command"]


@subcommand("commit", long=True, short_help="write an image into its backing file")
@image_argument()
@click.option(
    "--base",
    type=ImageName(),
    metavar="FILE",
    help="Write into this layer of the chain.  [default: the one below the top]",
)
@click.option("--keep", is_flag=True, help="Do not empty IMAGE afterwards.")
@click.option(
    "--rate-limit", type=SIZE, default=0, help="No more bytes a second than this.  [default: as fast as it goes]"
)
@writing_options
def command(
    terminal: "Terminal",
    image: str,
    base: str | None,
    keep: bool,
    rate_limit: int,
    access: Access,
) -> None:
    """Write what IMAGE holds into its backing file, and empty IMAGE then. What is read from it stays the same.

    Other images over the same backing file are spoilt by that. With --base further down, the layers between are too,
    and IMAGE is kept.
    """
    import aioblock

    terminal.left = f"{image} reads as before; its backing file holds a part. Do the same again."
    facts: dict[str, object] = {}

    async def body() -> None:
        async with opened(terminal, image, access, writable=True) as disk:
            layers = disk.layers()
            if len(layers) < 2:
                raise Failure(f"{image} has no backing file: there is nothing to write it into")
            target = layers[1] if base is None else aioblock.find_layer(disk, base)
            if target is None or target is layers[0]:
                names = ", ".join(node.filename for node in layers[1:])
                raise Failure(f"{image} has no layer '{base}' below it", hint=f"Below it: {names}.")
            with WorkProgress(terminal, "commit") as progress:
                await aioblock.commit(disk, target, keep=keep, bytes_per_second=rate_limit, progress=progress)
            facts.update(
                base=target.filename,
                emptied=not keep and target is layers[1],
                bytes_read=disk.statistics.bytes_read,
                seconds=progress.seconds,
            )

    work(body)
    terminal.result({"image": image, **facts})
    terminal.heading(f"{image} is written into {facts['base']}")
    terminal.facts(
        {
            "read": exact(int(str(facts["bytes_read"]))),
            "time": duration(float(str(facts["seconds"]))),
            image: "empty now" if facts["emptied"] else "kept as it is",
        },
        indent=2,
    )

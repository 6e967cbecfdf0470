"""`measure`: how large the file of an image would become."""

from typing import TYPE_CHECKING

import click

from .access import Access, reading_options
from .failures import Failure
from .format_choice import creatable, format_names, option_values
from .opening import opened
from .parameters import ImageName, format_option
from .quantities import SIZE, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import Measurement

    from .terminal import Terminal

__all__ = ["command"]


@subcommand("measure", short_help="how large an image would become")
@click.argument("image", type=ImageName(), metavar="[IMAGE]", required=False)
@click.option("--size", type=SIZE, help="The size of an empty disk, in place of IMAGE.")
@format_option("-O", "--target-format", help="The format that the new image has.  [default: qcow2]")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of it; more than once.")
@reading_options
def command(
    terminal: "Terminal",
    image: str | None,
    size: int | None,
    target_format: str | None,
    options: tuple[str, ...],
    access: Access,
) -> None:
    """Say how large the file of a new image becomes that holds what IMAGE holds, or an empty disk of a --size."""
    import aioblock

    if (image is None) == (size is None):
        raise Failure("Name an image, or a --size", hint="aioblock measure disk.qcow2 - or: --size 10G", status=2)
    made_as = target_format or "qcow2"
    if not creatable(made_as):
        makes = ", ".join(name for name in format_names() if creatable(name))
        raise Failure(f"Format '{made_as}' cannot be made", hint=f"These can: {makes}.")
    values = option_values(aioblock.create_options(made_as), options, made_as)
    found: list[Measurement] = []

    async def body() -> None:
        if image is None:
            found.append(await aioblock.measure(made_as, values, size=size))
            return
        async with opened(terminal, image, access) as disk:
            found.append(await aioblock.measure(made_as, values, source=disk))

    work(body)
    terminal.result({"image": image, "size": size, "format": made_as, **found[0]._asdict()})
    facts = {
        "at first": exact(found[0].required),
        "when every byte is written": exact(found[0].fully_allocated),
    }
    if found[0].bitmaps is not None:
        facts["for its bitmaps, besides"] = exact(found[0].bitmaps)
    terminal.facts(facts)

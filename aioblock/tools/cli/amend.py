"""`amend`: change options of an image."""

from typing import TYPE_CHECKING

import click

from .access import Access, writing_options
from .failures import Failure
from .format_choice import option_values
from .opening import opened
from .parameters import image_argument
from .progress import WorkProgress
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["command"]


@subcommand("amend", long=True, short_help="change options of an image")
@image_argument()
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="What to change; more than once.",
)
@click.option("--force", is_flag=True, help="Also where data may be lost by it (the last key of an encrypted image).")
@writing_options
def command(terminal: "Terminal", image: str, options: tuple[str, ...], force: bool, access: Access) -> None:
    """Change what IMAGE was made with. 'aioblock formats FORMAT' lists what can be changed."""
    terminal.left = f"{image} is whole; some of it may be changed. Do the same again."
    kinds: list[str] = []

    async def body() -> None:
        async with opened(terminal, image, access, writable=True, resize=True) as disk:
            driver = disk.node.driver
            kinds.append(driver.name)
            if not driver.amend_options:
                raise Failure(f"{image}: nothing of format '{driver.name}' can be changed")
            values = option_values(driver.amend_options, options, driver.name)
            with WorkProgress(terminal, "amend") as progress:
                await disk.amend(values, force=force, progress=progress)

    work(body, fast=False)
    terminal.result({"image": image, "format": kinds[0], "changed": dict(text.split("=", 1) for text in options)})
    terminal.print(f"{image}: changed {', '.join(options)}")

"""`create`: make an image."""

from typing import TYPE_CHECKING

import click

from .access import Access, key_option, read_key, trust_option
from .encryption import encrypt
from .failures import Failure
from .format_choice import guessed_format, option_values
from .new_file import appears_complete, refuse_to_overwrite, seen_from
from .opening import opened, trust_policy
from .parameters import ImageName, format_option, image_argument
from .quantities import SIZE, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["command"]


@subcommand("create", short_help="make an image")
@image_argument()
@click.argument("size", type=SIZE, required=False, metavar="[SIZE]")
@format_option("-f", "--format", help="The format of IMAGE.  [default: what its suffix means]")
@click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the format; more than once."
)
@click.option(
    "-b",
    "--backing",
    type=ImageName(),
    metavar="FILE",
    help="What is not written in IMAGE is read from FILE. A relative name counts from here; IMAGE has it as seen "
    "from itself.",
)
@format_option("-F", "--backing-format", help="The format of FILE.  [default: guessed from its content]")
@key_option("--encrypt-with", help="Encrypt it: the passphrase is what is in FILE, to the byte; - asks for it.")
@click.option("--force", is_flag=True, help="Replace IMAGE if it is there.")
@trust_option
def command(
    terminal: "Terminal",
    image: str,
    size: int | None,
    format: str | None,
    options: tuple[str, ...],
    backing: str | None,
    backing_format: str | None,
    encrypt_with: str | None,
    force: bool,
    trust: str,
) -> None:
    """Make IMAGE, a disk of SIZE bytes (64G, 512M) that reads as zeroes, or as the backing file does.

    Without SIZE it is as large as its backing file. 'aioblock formats FORMAT' lists the options of a format.
    """
    import aioblock

    made_as = guessed_format(terminal, image, format)
    refuse_to_overwrite(image, force=force)
    known = aioblock.create_options(made_as, image)
    values = option_values(known, options, made_as)
    objects = encrypt(made_as, known, values, read_key(encrypt_with) if encrypt_with is not None else None)
    if size is not None:
        values["size"] = size
    if backing is not None and not any(option.name == "backing_file" for option in known):
        raise Failure(f"{image}: format '{made_as}' has no backing files", hint="qcow2 has.")
    if "size" not in values and backing is None and "backing_file" not in values:
        raise Failure(f"{image}: how large shall it be?", hint=f"Say so: aioblock create {image} 10G", status=2)
    made: tuple[int, int | None] = (0, None)

    async def body() -> None:
        nonlocal made
        if backing is not None:
            async with opened(terminal, backing, Access(backing_format, trust), metadata_only=True) as below:
                values.setdefault("size", below.length)
                values["backing_fmt"] = below.node.driver.name
            if backing_format is None:
                terminal.note(f"{backing}: format {values['backing_fmt']}, as its content says")
            values["backing_file"] = seen_from(image, backing)
        async with appears_complete(terminal, image) as part:
            await aioblock.create(part, made_as, values, trust=trust_policy(trust), objects=objects)
            async with opened(terminal, part, Access(made_as), backing=False, metadata_only=True) as disk:
                made = disk.length, await disk.allocated_size()

    work(body, fast=False)
    length, stored = made
    terminal.result(
        {
            "image": image,
            "format": made_as,
            "virtual_size": length,
            "allocated_size": stored,
            "backing_file": values.get("backing_file"),
            "backing_format": values.get("backing_fmt"),
        }
    )
    terminal.heading(f"{image}: {made_as}, {exact(length)}")
    facts = {} if stored is None else {"storage": exact(stored)}
    if "backing_file" in values:
        facts["backing file"] = f"{values['backing_file']} ({values.get('backing_fmt', 'format not said')})"
    terminal.facts(facts, indent=2)

"""`convert`: copy an image into a new one."""

import os
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .access import Access, key_option, read_key, reading_options
from .encryption import encrypt
from .failures import Failure, explained
from .format_choice import guessed_format, option_values
from .new_file import appears_complete, refuse_to_overwrite, seen_from
from .opening import opened
from .parameters import ImageName, format_option, image_argument
from .progress import WorkProgress
from .quantities import SIZE, duration, exact, percent, rate
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend

    from .terminal import Terminal

__all__ = ["command"]


class _Summary(NamedTuple):
    """What was done. In bytes."""

    virtual_size: int
    bytes_read: int
    bytes_written: int
    allocated_size: int | None
    """How much storage the new image takes."""
    seconds: float
    unreadable: int
    """How many places could not be read, and became zeroes."""


@subcommand("convert", long=True, short_help="copy an image into a new one of any format")
@image_argument("source")
@click.argument("target", type=ImageName(), metavar="TARGET")
@format_option("-O", "--target-format", help="The format of TARGET.  [default: what its suffix means]")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of TARGET's format; more than once.",
)
@click.option("-c", "--compress", is_flag=True, help="Store the data compressed.")
@click.option(
    "-b",
    "--backing",
    type=ImageName(),
    metavar="FILE",
    help="Let TARGET have this backing file: one that holds what the lower layers of SOURCE hold. Only the top "
    "layer is copied then.",
)
@format_option("-F", "--backing-format", help="The format of that backing file.  [default: guessed from its content]")
@click.option("-s", "--snapshot", metavar="NAME", help="Copy the disk as it was when this internal snapshot was made.")
@key_option("--encrypt-with", help="Encrypt TARGET: the passphrase is what is in FILE, to the byte; - asks for it.")
@click.option(
    "--force", is_flag=True, help="Replace TARGET if it is there. The old one stays until the new one is complete."
)
@click.option("--salvage", is_flag=True, help="Go on where SOURCE cannot be read: such places become zeroes.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="How many pieces of 2 MiB are under way at a time.",
)
@click.option(
    "--rate-limit", type=SIZE, default=0, help="No more bytes a second than this.  [default: as fast as it goes]"
)
@reading_options
def command(
    terminal: "Terminal",
    source: str,
    target: str,
    target_format: str | None,
    options: tuple[str, ...],
    compress: bool,
    backing: str | None,
    backing_format: str | None,
    snapshot: str | None,
    force: bool,
    salvage: bool,
    workers: int,
    rate_limit: int,
    encrypt_with: str | None,
    access: Access,
) -> int:
    """Copy the disk SOURCE, with all its layers, into the new image TARGET.

    The format of TARGET is what its suffix means, if you do not say it. What reads as zeroes is left out where TARGET
    can do without. TARGET appears when it is complete: if the work fails, or is interrupted, nothing is left of it.
    """
    import aioblock

    made_as = guessed_format(terminal, target, target_format)
    refuse_to_overwrite(target, force=force)
    known = aioblock.create_options(made_as, target)
    values = option_values(known, options, made_as)
    key = read_key(encrypt_with) if encrypt_with is not None else None
    objects = encrypt(made_as, known, values, key)
    summary: _Summary | None = None

    async def body() -> None:
        nonlocal summary, backing_format
        async with AsyncExitStack() as stack:
            disk = await stack.enter_async_context(opened(terminal, source, access, snapshot=snapshot))
            _refuse_own_files(disk, target)
            begin = time.monotonic()
            part = await stack.enter_async_context(appears_complete(terminal, target))
            if backing is not None:
                backing_format = backing_format or await _format_of(terminal, backing, access)
                values["backing_file"] = seen_from(target, backing)
                values["backing_fmt"] = backing_format
            values["size"] = -(-disk.length // 512) * 512
            await aioblock.create(part, made_as, values, objects=objects)
            new = await stack.enter_async_context(
                opened(terminal, part, Access(made_as, "all", key=key), writable=True)
            )
            unreadable: list[int] = []
            with WorkProgress(terminal, "convert") as progress:
                await aioblock.convert(
                    [disk],
                    new,
                    compressed=compress,
                    keep_backing=backing is not None,
                    target_is_zero=new.node.driver.has_zero_init(),
                    workers=workers,
                    bytes_per_second=rate_limit,
                    progress=progress,
                    salvage=(lambda offset, error: unreadable.append(offset)) if salvage else None,
                )
            summary = _Summary(
                disk.length,
                disk.statistics.bytes_read,
                new.statistics.bytes_written,
                await new.allocated_size(),
                time.monotonic() - begin,
                len(unreadable),
            )

    try:
        work(body)
    except aioblock.PositionedError as error:
        failure = explained(error)
        where = target if error.action == "write" else source
        raise Failure(f"{where}: {failure.message}", hint=failure.hint, kind=failure.kind) from error
    assert summary is not None
    _show(terminal, source, target, made_as, summary)
    if summary.unreadable:
        terminal.warn(f"{summary.unreadable} places of {source} could not be read, and are zeroes in {target}")
    return 0


async def _format_of(terminal: "Terminal", name: str, access: Access) -> str:
    async with opened(terminal, name, Access(trust=access.trust), backing=False, metadata_only=True) as disk:
        format = disk.node.driver.name
    terminal.note(f"{name}: format {format}, as its content says")
    return format


def _refuse_own_files(disk: "BlockBackend", target: str) -> None:
    """Raises: Failure where the target is a file that the source reads."""
    path = target.removeprefix("file:")
    for node in disk.layers():
        name = node.exact_filename
        if name and os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
            raise Failure(f"{target} belongs to what is copied", hint="Take another name for the new image.")


def _show(terminal: "Terminal", source: str, target: str, format: str, summary: _Summary) -> None:
    saved = max(summary.virtual_size - summary.bytes_written, 0)
    document: dict[str, Any] = {"source": source, "target": target, "format": format, **summary._asdict()}
    terminal.result({**document, "bytes_saved": saved})
    terminal.heading(f"{target}: {format}, {exact(summary.virtual_size)}")
    stored = summary.allocated_size
    terminal.facts(
        {
            "read": exact(summary.bytes_read),
            "written": exact(summary.bytes_written),
            "saved by zeroes": f"{exact(saved)}, {percent(saved, summary.virtual_size)} of the disk",
            "storage": exact(stored) if stored is not None else "unknown",
            "time": f"{duration(summary.seconds)}, {rate(summary.virtual_size, summary.seconds)} of the disk",
        },
        indent=2,
    )

"""`compare`: whether two images hold the same, and where not."""

from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from .access import Access, key_option, read_key, reading_options
from .failures import explained
from .hexdump import hexdump
from .opening import opened
from .parameters import format_option, image_argument
from .progress import WorkProgress
from .quantities import exact, plural
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend, DifferentRange

    from .terminal import Terminal

__all__ = ["command"]

_SHOWN = 10
"""How many ranges are shown unless all are asked for."""

_PEEK = 32
"""How many bytes of the first difference are shown."""


@subcommand("compare", long=True, short_help="whether and where two images differ")
@image_argument("first")
@image_argument("second")
@format_option("-F", "--second-format", help="The format of SECOND.  [default: guessed from its content]")
@key_option("--second-key-file", help="The passphrase of SECOND, as --key-file is that of FIRST.")
@click.option("--all", "everything", is_flag=True, help=f"Find every difference, not the first {_SHOWN} alone.")
@click.option("--strict", is_flag=True, help="They must also be of the same size.")
@reading_options
def command(
    terminal: "Terminal",
    first: str,
    second: str,
    second_format: str | None,
    second_key_file: str | None,
    everything: bool,
    strict: bool,
    access: Access,
) -> int:
    """Compare what is read from FIRST and from SECOND; their formats do not matter.

    Behind its end an image counts as zeroes. Differences are counted in blocks of 512 bytes.

    Exit status: 0 they are the same, 1 they differ, 2 they could not be compared.
    """
    import aioblock

    found: list[DifferentRange] = []
    lengths: list[int] = []
    peeks: list[bytes] = []
    complete = True
    key = read_key(second_key_file) if second_key_file is not None else None
    access_to_second = access._replace(format=second_format, key=key)

    async def body() -> None:
        nonlocal complete
        async with AsyncExitStack() as stack:
            disks: list[BlockBackend] = []
            for name, how in ((first, access), (second, access_to_second)):
                disks.append(await stack.enter_async_context(opened(terminal, name, how)))
            lengths.extend(disk.length for disk in disks)
            progress = stack.enter_context(WorkProgress(terminal, "compare"))
            async with aclosing(aioblock.differences(disks[0], disks[1], progress=progress)) as ranges:
                async for run in ranges:
                    if len(found) == _SHOWN and not everything:
                        complete = False
                        break
                    found.append(run)
            if found:
                peeks.extend([await _peek(disk, found[0].offset) for disk in disks])

    try:
        work(body)
    except aioblock.PositionedError as error:
        failure = explained(error, status=2)
        failure.message = f"{(first, second)[error.source]}: {failure.message}"
        raise failure from error
    except (OSError, aioblock.BlockError) as error:
        raise explained(error, status=2) from error
    differ = bool(found) or (strict and lengths[0] != lengths[1])
    terminal.result(_document(first, second, lengths, found, complete=complete, differ=differ))
    if lengths[0] != lengths[1]:
        terminal.print(f"{first} is {exact(lengths[0])} long, {second} {exact(lengths[1])}")
    if not found:
        text = "What both have is the same" if differ else f"{first} and {second} hold the same"
        terminal.print(Text(text, style="bold yellow" if differ else "bold green"))
        return int(differ)
    total = sum(run.length for run in found)
    what = f"{plural(len(found), 'range')}, {exact(total)} together" if complete else f"the first {len(found)} ranges"
    terminal.print(Text(f"{first} and {second} differ: {what}", style="bold red"), "")
    rows = [(str(run.offset), f"{run.offset:#x}", exact(run.length)) for run in found]
    terminal.table(("Offset", "", "Length"), rows, right=("Offset", ""))
    if not complete:
        terminal.print("", "There are more: --all finds every one.")
    terminal.print("")
    for name, data in zip((first, second), peeks, strict=True):
        terminal.print(Text(name, style="bold"), hexdump(data, found[0].offset))
    return 1


async def _peek(disk: "BlockBackend", offset: int) -> bytes:
    """The first bytes of a place; zeroes behind the end."""
    nbytes = max(min(_PEEK, disk.length - offset), 0)
    return bytes(await disk.pread(offset, nbytes)).ljust(_PEEK, b"\0") if nbytes else bytes(_PEEK)


def _document(
    first: str, second: str, lengths: list[int], found: "list[DifferentRange]", *, complete: bool, differ: bool
) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "lengths": lengths,
        "identical": not differ,
        "complete": complete,
        "differences": [run._asdict() for run in found],
    }

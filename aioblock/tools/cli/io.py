"""`io`: single requests on an image."""

import sys
from collections.abc import Awaitable, Callable
from typing import IO, TYPE_CHECKING, Any

import click

from .access import Access, reading_options, writing_options
from .failures import Failure
from .hexdump import hexdump
from .opening import opened
from .parameters import image_argument
from .quantities import SIZE, exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend, Extent

    from .terminal import Terminal

__all__ = ["command"]

_PIECE = 1 << 20
"""How much is read or written at a time."""

_MOST_SHOWN = 1 << 20
"""How much is shown as a dump at the most."""


@subcommand("read", short_help="read, and show the bytes")
@image_argument()
@click.argument("offset", type=SIZE)
@click.argument("length", type=SIZE)
@click.option("-o", "--output", type=click.File("wb"), help="Write the bytes as they are into this file; - is stdout.")
@reading_options
def _read(
    terminal: "Terminal",
    image: str,
    offset: int,
    length: int,
    output: IO[bytes] | None,
    access: Access,
) -> None:
    """Read LENGTH bytes at OFFSET of IMAGE, and show them in hexadecimal and as characters."""
    if output is None and length > _MOST_SHOWN:
        raise Failure(
            f"{exact(length)} are too many to look at", hint="Write them into a file: --output FILE", status=2
        )
    shown = bytearray()

    async def body() -> None:
        async with opened(terminal, image, access) as disk:
            _check_range(disk, image, offset, length)
            for at in range(offset, offset + length, _PIECE):
                piece = await disk.pread(at, min(_PIECE, offset + length - at))
                if output is not None:
                    output.write(piece)
                else:
                    shown.extend(piece)

    work(body)
    document: dict[str, Any] = {"image": image, "offset": offset, "length": length}
    if output is None:
        terminal.result({**document, "data": shown.hex()})
        if shown:
            terminal.print(hexdump(shown, offset))
    elif output is sys.stdout.buffer or output.name in ("-", "<stdout>"):
        output.flush()
    else:
        terminal.result({**document, "output": output.name})
        terminal.print(f"{output.name}: {exact(length)} from offset {offset} of {image}")


@subcommand("write", short_help="write a pattern, a text or a file")
@image_argument()
@click.argument("offset", type=SIZE)
@click.argument("length", type=SIZE, required=False, metavar="[LENGTH]")
@click.option(
    "-p", "--pattern", help="Fill LENGTH bytes with these, again and again: hexadecimal digits, as in 5a or deadbeef."
)
@click.option("--text", help="Write this text (UTF-8).")
@click.option("--input", "source", type=click.File("rb"), help="Write what is in this file; - is stdin.")
@writing_options
def _write(
    terminal: "Terminal",
    image: str,
    offset: int,
    length: int | None,
    pattern: str | None,
    text: str | None,
    source: IO[bytes] | None,
    access: Access,
) -> None:
    """Write at OFFSET of IMAGE: LENGTH bytes of a --pattern, a --text, or what is in a file (--input)."""
    if sum(given is not None for given in (pattern, text, source)) != 1:
        raise Failure("What shall be written?", hint="Give one of --pattern, --text and --input.", status=2)
    if pattern is not None:
        if length is None:
            raise Failure("How much of the pattern shall be written?", hint="Give the LENGTH behind OFFSET.", status=2)
        data = _repeated(pattern, length)
    else:
        data = text.encode() if text is not None else source.read() if source is not None else b""
        if length is not None and length > len(data):
            raise Failure(f"There are {exact(len(data))} to write, not {exact(length)}", status=2)
        data = data[:length]

    async def write(disk: "BlockBackend") -> None:
        for at in range(0, len(data), _PIECE):
            await disk.pwrite(offset + at, data[at : at + _PIECE])

    _change(terminal, image, offset, len(data), access, "written", write)


def _repeated(pattern: str, length: int) -> bytes:
    digits = pattern.removeprefix("0x")
    try:
        unit = bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2))
    except ValueError:
        unit = b""
    if not unit:
        raise Failure(f"'{pattern}' is no pattern", hint="It is made of hexadecimal digits: --pattern 5a", status=2)
    return (unit * (length // len(unit) + 1))[:length]


@subcommand("zero", short_help="make a range read as zeroes")
@image_argument()
@click.argument("offset", type=SIZE)
@click.argument("length", type=SIZE)
@click.option("--unmap", is_flag=True, help="Give the storage back where that can be.")
@writing_options
def _zero(terminal: "Terminal", image: str, offset: int, length: int, unmap: bool, access: Access) -> None:
    """Make LENGTH bytes at OFFSET of IMAGE read as zeroes."""
    import aioblock

    flags = aioblock.REQ_MAY_UNMAP if unmap else 0
    _change(terminal, image, offset, length, access, "zeroed", lambda disk: disk.pwrite_zeroes(offset, length, flags))


@subcommand("discard", short_help="give storage back")
@image_argument()
@click.argument("offset", type=SIZE)
@click.argument("length", type=SIZE)
@writing_options
def _discard(terminal: "Terminal", image: str, offset: int, length: int, access: Access) -> None:
    """Tell IMAGE that LENGTH bytes at OFFSET are not needed any more. What is read there afterwards is not said."""
    _change(terminal, image, offset, length, access, "discarded", lambda disk: disk.pdiscard(offset, length))


def _change(
    terminal: "Terminal",
    image: str,
    offset: int,
    length: int,
    access: Access,
    done: str,
    verb: "Callable[[BlockBackend], Awaitable[None]]",
) -> None:
    terminal.left = f"Some of the {exact(length)} at offset {offset} of {image} may be {done}."

    async def body() -> None:
        async with opened(terminal, image, access, writable=True) as disk:
            _check_range(disk, image, offset, length)
            await verb(disk)
            await disk.flush()

    work(body)
    terminal.result({"image": image, "offset": offset, "length": length, "done": done})
    terminal.print(f"{image}: {exact(length)} at offset {offset} {done}")


@subcommand("status", short_help="what is where, and which layer says so")
@image_argument()
@click.argument("offset", type=SIZE, default=0, required=False, metavar="[OFFSET]")
@click.argument("length", type=SIZE, required=False, metavar="[LENGTH]")
@reading_options
def _status(
    terminal: "Terminal",
    image: str,
    offset: int,
    length: int | None,
    access: Access,
) -> None:
    """Say of each run of IMAGE, from OFFSET on, what it is, which layer of the chain decides that, and where it lies.

    'aioblock map' shows every layer, also what others hide.
    """
    import aioblock

    runs: list[Extent] = []
    names: dict[int, str] = {}

    async def body() -> None:
        async with opened(terminal, image, access) as disk:
            wanted = disk.length - offset if length is None else length
            _check_range(disk, image, offset, wanted)
            names.update({depth: node.filename for depth, node in enumerate(disk.layers(), 1)})
            runs.extend([run async for run in disk.extents(offset, wanted)])

    work(body)
    rows, documents = [], []
    for run in runs:
        where = run.map if run.flags & aioblock.OFFSET_VALID else None
        file = run.file.filename if where is not None and run.file is not None else None
        documents.append(
            {
                "offset": run.offset,
                "length": run.length,
                "status": aioblock.status_names(run.flags).split("|"),
                "depth": run.depth,
                "map": where,
                "file": file,
            }
        )
        layer = f"{run.depth} {names[run.depth]}" if run.depth else "none"
        place = f"{where:#x} of {file}" if where is not None else ""
        rows.append((f"{run.offset:#x}", exact(run.length), _said(run.flags), layer, place))
    terminal.result({"image": image, "runs": documents})
    terminal.table(("Offset", "Length", "What", "Decided by", "Lies at"), rows, right=("Offset",))


def _said(flags: int) -> str:
    import aioblock

    if flags & aioblock.ZERO:
        return "zeroes" if flags & aioblock.ALLOCATED else "zeroes, never written"
    if flags & aioblock.COMPRESSED:
        return "compressed data"
    return "data" if flags & aioblock.DATA else "nothing"


def _check_range(disk: "BlockBackend", image: str, offset: int, length: int) -> None:
    """Raises: Failure where a range is not inside the disk."""
    if offset + length > disk.length or length < 0:
        raise Failure(
            f"{image} ends at {exact(disk.length)}; offset {offset} and {exact(max(length, 0))} reach behind that",
            hint=f"To make it larger: aioblock resize {image} SIZE",
        )


command = click.Group(
    "io",
    commands=[_read, _write, _zero, _discard, _status],
    help="Single requests on an image. What is changed is on stable storage at the end.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

"""Terminal: where a subcommand says things. Results go to stdout, everything about the work to stderr.

So a result can be read by another program while the progress of the work is watched. Colour and drawn characters are
used where the stream is a terminal; NO_COLOR, TERM=dumb and COLUMNS are minded.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .failures import Failure

__all__ = ["PIPE_WIDTH", "Terminal", "shown"]

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
"""A name in an image may hold anything, also what would make the terminal do something."""
_ESCAPED |= {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}
_ESCAPED |= {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)}
"""Nor need it be text: bytes that are not UTF-8 are such surrogates in Python."""

_UNFIT = re.compile("[" + "".join(re.escape(chr(code)) for code in _ESCAPED if code != 10) + "]")

PIPE_WIDTH = 160
"""Columns where nothing says how many there are: lines are not broken for a program that reads them."""


def shown(text: str | Text) -> Text:
    """Text as it is, apart from control characters and what is no text, which are shown as escapes.

    In a `Text`, which has a style and perhaps several lines, the ends of lines stay.
    """
    if isinstance(text, str):
        return Text(text.translate(_ESCAPED))
    found = [match.start() for match in _UNFIT.finditer(text.plain)]
    if not found:
        return text
    pieces = text.divide(sorted({place for at in found for place in (at, at + 1)}))
    return Text().join(
        Text(piece.plain.translate(_ESCAPED), piece.style) if _UNFIT.fullmatch(piece.plain) else piece
        for piece in pieces
    )


class Terminal:
    """What a subcommand prints to, and how: `json` a document, `quiet` nothing but failures."""

    def __init__(
        self, *, json: bool = False, quiet: bool = False, color: bool | None = None, progress: str = "auto"
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.progress = progress
        self.out = _console(sys.stdout, color)
        self.err = _console(sys.stderr, color)
        self.left = "Nothing was changed."
        """What an interrupt leaves behind; a subcommand that changes something says what."""

    @classmethod
    def for_failures(cls, words: Sequence[str]) -> "Terminal":
        """For what goes wrong before the command line is understood."""
        return cls(json="--json" in words, color=False if "--no-color" in words else None)

    # -- results -----------------------------------------------------------------------------------------------------

    @property
    def shows_text(self) -> bool:
        """Whether a result is shown to a person."""
        return not self.json and not self.quiet

    def result(self, document: Any) -> None:
        """Print the one document of `--json`; nothing otherwise."""
        if self.json:
            sys.stdout.write(json.dumps(document, indent=2) + "\n")

    def print(self, *what: RenderableType) -> None:
        """Show a part of the result. Strings are shown as they are: no markup."""
        if self.shows_text:
            for part in what:
                if isinstance(part, str | Text):
                    self.out.print(shown(part), soft_wrap=True)
                elif self.out.is_terminal:
                    self.out.print(part)
                else:
                    with self.out.capture() as captured:
                        self.out.print(part)
                    lines = captured.get().splitlines()  # filled up with blanks, which nobody sees on a terminal
                    self.out.file.write("".join(line.rstrip() + "\n" for line in lines))

    def print_verbatim(self, text: str) -> None:
        """Show text to the byte: nothing broken, nothing escaped."""
        if self.shows_text:
            self.out.file.write(text if text.endswith("\n") else text + "\n")

    def heading(self, text: str) -> None:
        """A title over a part of the result."""
        self.print(Text(text.translate(_ESCAPED), style="bold"))

    def facts(self, facts: Mapping[str, str | Text], *, indent: int = 0) -> None:
        """Names and values, one a line."""
        if not facts:
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts.items():
            grid.add_row(" " * indent + name, shown(value))
        self.print(grid)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, right: Sequence[str] = ()) -> None:
        """A table; the columns named in `right` are aligned there."""
        table = Table(
            box=box.SIMPLE_HEAD if self.out.is_terminal else None, header_style="bold", pad_edge=False, show_edge=False
        )
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
        for row in rows:
            table.add_row(*(shown(cell) for cell in row))
        self.print(table)

    # -- about the work ----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr."""
        if not self.quiet:
            self.err.print(Text.assemble(("note: ", "cyan"), shown(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something that may be wrong, on stderr, also if `quiet`."""
        self.err.print(Text.assemble(("warning: ", "yellow"), shown(text)), soft_wrap=True)

    def failed(self, failure: Failure) -> None:
        """Show a failure on stderr; with `json`, as the document too."""
        if failure.message:
            self.err.print(Text.assemble(("aioblock: ", "bold red"), shown(failure.message)), soft_wrap=True)
        if failure.hint:
            self.err.print(Text.assemble(("  hint: ", "cyan"), shown(failure.hint)), soft_wrap=True)
        self.result(failure.as_json())

    @property
    def draws(self) -> bool:
        """Whether the result may be drawn with blocks: a picture of them says what it says by colour."""
        console = self.out
        return (
            console.is_terminal
            and not console.options.ascii_only
            and bool(console.color_system)
            and not console.no_color
        )


def _console(stream: IO[str], color: bool | None) -> Console:
    """A console that never guesses: no markup, no highlighting of numbers. `color` None: where it is a terminal."""
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = PIPE_WIDTH
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        no_color=True if color is False else None if color is None else False,
        force_terminal=True if color else None,
        width=width,
    )

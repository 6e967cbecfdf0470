"""The clients of a server while it runs, on stderr: a live table, a line as each comes and goes, or lines of JSON."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from rich.cells import cell_len, set_cell_size
from rich.live import Live
from rich.text import Text

from .quantities import duration, human, plural
from .terminal import Terminal, shown

if TYPE_CHECKING:
    from aioblock import NbdClientInfo, NbdServer

__all__ = ["INTERVAL", "MODES", "ClientView", "Row", "client_view", "table_text"]

INTERVAL: Final = 1.0
"""Seconds between two pictures of the table."""
MODES: Final = ("auto", "table", "lines", "json", "none")
_SMALLEST: Final = 4
"""Lines that a table takes at least: titles, a client, the rest, the sum."""


class ClientView:
    """A context manager, while which a server's clients are shown; call `update` now and then. This one shows none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Show nothing any more."""

    def update(self) -> None:
        """Show what has changed meanwhile."""


class _Events(ClientView, ABC):
    """Something as each comes and goes."""

    def __init__(self, terminal: Terminal, server: "NbdServer") -> None:
        self._terminal = terminal
        server.on_client_begun = self._begun
        server.on_client_gone = self._gone

    @abstractmethod
    def _begun(self, client: "NbdClientInfo") -> None: ...

    @abstractmethod
    def _gone(self, client: "NbdClientInfo") -> None: ...

    def _print(self, line: str) -> None:
        self._terminal.err.print(shown(line), soft_wrap=True)
        self._terminal.err.file.flush()


class _Lines(_Events):
    def _begun(self, client: "NbdClientInfo") -> None:
        encrypted = ", encrypted" if client.tls else ""
        self._print(f"client {client.number} ({client.peer}{encrypted}) has opened '{client.export}'")

    def _gone(self, client: "NbdClientInfo") -> None:
        done = f"{plural(client.requests, 'request')}, {human(client.bytes_read)} read"
        self._print(
            f"client {client.number} ({client.peer}) has gone after {duration(client.seconds)}: "
            f"{done}, {human(client.bytes_written)} written"
        )


class _JsonLines(_Events):
    def _begun(self, client: "NbdClientInfo") -> None:
        self._print(json.dumps({"event": "opened", **asdict(client)}))

    def _gone(self, client: "NbdClientInfo") -> None:
        self._print(json.dumps({"event": "gone", **asdict(client)}))


class Row(NamedTuple):
    """A client, and what it did in the last second."""

    client: "NbdClientInfo"
    requests: float
    read: float
    written: float


class _Column(NamedTuple):
    """One of the table. The width in characters; those with a small rank are there on narrow terminals too."""

    title: str
    width: int
    rank: int
    text: Callable[[Row], str]
    left: bool = False


_COLUMNS: Final = (
    _Column("Client", 22, 0, lambda row: row.client.peer, True),
    _Column("Export", 16, 3, lambda row: _export(row.client), True),
    _Column("For", 12, 7, lambda row: duration(int(row.client.seconds))),
    _Column("Requests/s", 10, 1, lambda row: f"{row.requests:.0f}"),
    _Column("Read/s", 10, 2, lambda row: human(row.read)),
    _Column("Written/s", 10, 4, lambda row: human(row.written)),
    _Column("In flight", 9, 5, lambda row: str(row.client.in_flight)),
    _Column("Held", 10, 6, lambda row: human(row.client.held)),
)
_GAP: Final = "  "


def _export(client: "NbdClientInfo") -> str:
    return client.export if client.export is not None else f"({client.phase})"


class _Table(ClientView):
    """The busiest clients, as many as there is room for, drawn over and over again at the bottom of the terminal.

    It is put together as plain text: a table of rich's takes ten times as long, while which nobody is served.
    """

    def __init__(self, terminal: Terminal, server: "NbdServer") -> None:
        self._server = server
        self._console = terminal.err
        self._live = Live(console=terminal.err, auto_refresh=False, transient=True, redirect_stdout=False)
        self._before: dict[int, NbdClientInfo] = {}
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Draw it as things are now; the rates are those since the last time."""
        now = time.monotonic()
        rows = self._rows(self._server.clients(), max(now - self._drawn, 0.001))
        self._drawn = now
        width, height = self._console.size
        self._live.update(table_text(rows, list(self._server.exports), width, height - 1), refresh=True)

    def _rows(self, clients: "Sequence[NbdClientInfo]", seconds: float) -> list[Row]:
        rows = []
        for client in clients:
            before = self._before.get(client.number)
            requests, read, written = client.requests, client.bytes_read, client.bytes_written
            if before is not None:
                requests, read, written = (
                    requests - before.requests,
                    read - before.bytes_read,
                    written - before.bytes_written,
                )
            took = min(seconds, max(client.seconds, 0.001)) if before is None else seconds
            rows.append(Row(client, requests / took, read / took, written / took))
        self._before = {client.number: client for client in clients}
        return rows


def table_text(rows: Sequence[Row], exports: Sequence[str], width: int, height: int) -> Text:
    """The table, in at most `width` columns and `height` lines, at least one."""
    used = sum(1 for name in exports if any(row.client.export == name for row in rows))
    rates = f"{sum(row.requests for row in rows):.0f} requests/s, {human(sum(row.read for row in rows))}/s read"
    total = (
        f"{plural(len(rows), 'client')} of {used} of {plural(len(exports), 'export')}: {rates}, "
        f"{human(sum(row.written for row in rows))}/s written"
    )
    text = Text(no_wrap=True, overflow="crop", end="")
    if rows and height >= _SMALLEST:
        columns = _fitting(width)
        text.append(_line(columns, [column.title for column in columns], width), "bold")
        busiest = sorted(rows, key=lambda row: (-row.requests, row.client.number))
        room = height - 2
        seen = busiest if len(rows) <= room else busiest[: room - 1]
        for row in seen:
            text.append(_line(columns, [column.text(row) for column in columns], width))
        if len(seen) < len(rows):
            text.append(_cut(f"... and {len(rows) - len(seen)} more", width) + "\n", "dim")
    text.append(_cut(total, width), "cyan")
    return text


def _fitting(width: int) -> list[_Column]:
    """The most important columns that fit."""
    taken: list[_Column] = []
    left = width + len(_GAP)
    for column in sorted(_COLUMNS, key=lambda column: column.rank):
        left -= column.width + len(_GAP)
        if left < 0 and taken:
            break
        taken.append(column)
    return [column for column in _COLUMNS if column in taken]


def _line(columns: Sequence[_Column], cells: Sequence[str], width: int) -> str:
    pieces = []
    for column, cell in zip(columns, cells, strict=True):
        text = _cut(cell, column.width)
        blanks = " " * (column.width - cell_len(text))
        pieces.append(text + blanks if column.left else blanks + text)
    return _cut(_GAP.join(pieces).rstrip(), width) + "\n"


def _cut(text: str, width: int) -> str:
    plain = shown(text).plain
    return plain if cell_len(plain) <= width else set_cell_size(plain, width)


def client_view(mode: str, terminal: Terminal, server: "NbdServer") -> ClientView:
    """`mode` is one of MODES; "auto" is the table on a terminal, else lines."""
    if terminal.quiet:
        mode = "none"
    if mode == "auto":
        mode = "table" if terminal.err.is_terminal and not terminal.err.is_dumb_terminal else "lines"
    kinds = {"table": _Table, "lines": _Lines, "json": _JsonLines}
    return kinds[mode](terminal, server) if mode in kinds else ClientView()

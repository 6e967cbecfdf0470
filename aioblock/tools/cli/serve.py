"""`serve`: let other programs and hosts use images over NBD."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .access import Access, reading_options
from .addresses import given_places, listen, tcp_place, unix_place
from .client_view import INTERVAL, MODES, ClientView, client_view
from .failures import Failure
from .opening import opened
from .parameters import ImageName
from .quantities import exact
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend, NbdExport, NbdServer, NbdUri, TlsCredentials

    from .terminal import Terminal

__all__ = ["command"]


@subcommand("serve", short_help="let other programs and hosts use images over NBD")
@click.argument("images", nargs=-1, required=True, type=ImageName(), metavar="[NAME=]IMAGE...")
@click.option("-u", "--unix", "unix", multiple=True, metavar="PATH", help="Listen at a Unix socket; more than once.")
@click.option(
    "-t",
    "--tcp",
    "tcp",
    multiple=True,
    metavar="[HOST][:PORT]",
    help="Listen at a TCP port; more than once. The host * is every address, port 0 any free one.  "
    "[default: localhost:10809, where no --unix is given]",
)
@click.option("-w", "--writable", is_flag=True, help="Let clients write, and give back storage.  [default: read-only]")
@click.option("-s", "--snapshot", metavar="NAME", help="The disks as they were when this internal snapshot was made.")
@click.option("-D", "--description", default="", metavar="TEXT", help="What clients are told about the exports.")
@click.option(
    "-B", "--bitmap", "bitmaps", multiple=True, metavar="NAME", help="Offer a dirty bitmap of IMAGE; more than once."
)
@click.option("-A", "--allocation-depth", is_flag=True, help="Offer which layer of its chain decides each range.")
@click.option(
    "--tls",
    "tls_folder",
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="Clients must use TLS. FOLDER has server-cert.pem, server-key.pem and the authority of the clients' "
    "certificates, ca-cert.pem; or keys.psk.",
)
@click.option("--tls-optional", is_flag=True, help="They may use TLS, and need not.")
@click.option("--tls-anonymous", is_flag=True, help="They need no certificate of their own.")
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="SUBJECT",
    help="Let in only those whose certificate has this subject, or fits this pattern: 'CN=*,O=example'; more than "
    "once.",
)
@click.option(
    "--max-clients",
    type=click.IntRange(0),
    default=128,
    show_default=True,
    metavar="N",
    help="So many at a time; more wait. 0: any number.",
)
@click.option(
    "--idle-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Close the connection of a client that asks for nothing so long.  [default: never]",
)
@click.option(
    "--show",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How clients are shown on stderr: a live table, a line (or a line of JSON) as each comes and goes. 'auto' is "
    "the table on a terminal, else lines.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say why clients are refused.")
@reading_options
def command(
    terminal: "Terminal",
    images: tuple[str, ...],
    unix: tuple[str, ...],
    tcp: tuple[str, ...],
    writable: bool,
    snapshot: str | None,
    description: str,
    bitmaps: tuple[str, ...],
    allocation_depth: bool,
    tls_folder: str | None,
    tls_optional: bool,
    tls_anonymous: bool,
    allowed: tuple[str, ...],
    max_clients: int,
    idle_timeout: float | None,
    show: str,
    verbose: bool,
    access: Access,
) -> int:
    """Serve each IMAGE over NBD, until Ctrl-C.

    An export is called NAME, or as the file of the image without its suffix. Clients that ask for no name get the first
    one. At the end what was accepted is finished; a second Ctrl-C gives it up.
    """
    import aioblock

    files = _named(images)
    if writable and snapshot is not None:
        raise Failure("A snapshot cannot be written", hint="Leave --writable away.", status=2)
    if tls_folder is None and (tls_optional or tls_anonymous or allowed):
        raise Failure("--tls-optional, --tls-anonymous and --allow go with --tls FOLDER", status=2)
    places = [*map(unix_place, unix), *map(tcp_place, tcp)] or given_places() or [tcp_place("")]
    tls = _credentials(tls_folder, verify=not tls_anonymous) if tls_folder is not None else None
    limits = aioblock.NbdLimits(connections=max_clients or None, idle_timeout=idle_timeout)
    if verbose:
        _show_refusals(terminal)
    status = 0

    async def body() -> None:
        nonlocal status
        async with AsyncExitStack() as stack:
            exports: dict[str, NbdExport] = {}
            how: dict[str, Any] = {"writable": writable, "discard": "unmap" if writable else "ignore"}
            for name, image in files.items():
                disk = await stack.enter_async_context(opened(terminal, image, access, snapshot=snapshot, **how))
                exports[name] = aioblock.NbdExport(
                    disk,
                    read_only=not writable,
                    description=description,
                    allocation_depth=allocation_depth,
                    bitmaps=_bitmaps_of(disk, bitmaps, image, alone=len(files) == 1),
                )
            _check_bitmaps(exports, bitmaps)
            server = await aioblock.serve(
                exports,
                tls=tls,
                tls_required=not tls_optional,
                authorization=_authorization(allowed),
                limits=limits,
            )
            await stack.enter_async_context(server)
            server.default = next(iter(exports))
            view = client_view(show, terminal, server)
            uris = await listen(server, places, tls=tls is not None and not tls_optional)
            _tell(terminal, files, exports, uris)
            status = await _until_told(terminal, server, view)

    work(body)
    return status


# What is asked for


def _named(images: Sequence[str]) -> dict[str, str]:
    """The images by the names of their exports. Raises: Failure."""
    found: dict[str, str] = {}
    for text in images:
        name, equals, image = text.partition("=")
        if not equals or re.search(r"[/:{]", name) or os.path.exists(text):  # the "=" belongs to the image's own name
            name, image = _name_of(text), text
        if name in found:
            raise Failure(
                f"{found[name]} and {image} would both be called '{name}'",
                hint=f"Say how to call them: other={image}",
                status=2,
            )
        found[name] = image
    return found


def _name_of(image: str) -> str:
    path = image.removeprefix("file:")
    if re.match(r"[A-Za-z][\w+.-]*:", path) and not os.path.exists(path):
        raise Failure(
            f"{image}: how shall its export be called?", hint=f"Say it before the image: NAME={image}", status=2
        )
    name = os.path.basename(path)
    return os.path.splitext(name)[0] or name


def _credentials(folder: str, *, verify: bool) -> "TlsCredentials":
    """Raises: OptionError, NotSupported."""
    import aioblock

    shared = os.path.exists(os.path.join(folder, "keys.psk")) and not os.path.exists(
        os.path.join(folder, "server-cert.pem")
    )
    made: TlsCredentials
    if shared:
        made = aioblock.TlsPsk("server", folder)
    else:
        made = aioblock.TlsX509("server", folder, verify_peer=verify)
    made.ssl_context()  # what is wrong with the files is said before anything is opened
    return made


def _authorization(allowed: Sequence[str]) -> Any:
    """Who may come in; None: all who have a certificate. Raises: OptionError."""
    if not allowed:
        return None
    import json

    from aioblock import make_object

    rules = [{"match": subject, "policy": "allow", "format": "glob"} for subject in allowed]
    return make_object(json.dumps({"qom-type": "authz-list", "id": "allow", "policy": "deny", "rules": rules}), {})[1]


def _bitmaps_of(disk: "BlockBackend", wanted: Sequence[str], image: str, *, alone: bool) -> list[str]:
    """Those of the bitmaps that an image has. Raises: Failure where it is the only one, and lacks one."""
    there = disk.bitmaps()
    for name in wanted:
        if alone and name not in there:
            raise Failure(f"{image} has no bitmap '{name}'", hint=f"'aioblock bitmap list {image}' lists them.")
    return [name for name in wanted if name in there]


def _check_bitmaps(exports: "Mapping[str, NbdExport]", wanted: Sequence[str]) -> None:
    for name in wanted:
        if not any(name in export.bitmap_names for export in exports.values()):
            raise Failure(f"No image has a bitmap '{name}'", hint="'aioblock bitmap list IMAGE' lists them.")


def _show_refusals(terminal: "Terminal") -> None:
    import logging

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            terminal.note(f"a client was refused: {record.getMessage()}")

    log = logging.getLogger("aioblock.exports.nbd")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [Shown()]


# While it runs


def _tell(
    terminal: "Terminal", files: Mapping[str, str], exports: "Mapping[str, NbdExport]", uris: "Sequence[NbdUri]"
) -> None:
    """Where the exports are."""
    documents = []
    for name, export in exports.items():
        named = [str(replace(uri, export=name)) for uri in uris]
        format = export.disk.node.driver.name
        documents.append(
            {
                "name": name,
                "image": files[name],
                "format": format,
                "size": export.size,
                "read_only": export.read_only,
                "contexts": list(export.contexts),
                "uris": named,
            }
        )
        mode = "read-only" if export.read_only else "writable"
        terminal.heading(f"{files[name]}: {format}, {exact(export.size)}, {mode}")
        for uri in named:
            terminal.print(f"  {uri}")
    terminal.result({"exports": documents})
    sys.stdout.flush()
    if terminal.err.is_terminal:
        terminal.note("Ctrl-C ends it")


async def _until_told(terminal: "Terminal", server: "NbdServer", view: ClientView) -> int:
    """Serve until a signal; returns the exit status."""
    told = asyncio.Event()
    given_up: list[int] = []
    loop = asyncio.get_running_loop()
    signals = [
        signum
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN
    ]

    def tell(signum: int) -> None:
        if not told.is_set():
            told.set()
            return
        given_up.append(signum)
        server.abort()
        for each in signals:  # should the storage below hang, a third one ends the process
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for signum in signals:
        loop.add_signal_handler(signum, tell, signum)
    with view:
        while not told.is_set():
            view.update()
            try:
                async with asyncio.timeout(INTERVAL):
                    await told.wait()
            except TimeoutError:
                pass
    if any(client.held for client in server.clients()):
        terminal.note("finishing what was accepted; Ctrl-C again gives it up")
    await server.close()
    return 128 + given_up[0] if given_up else 0

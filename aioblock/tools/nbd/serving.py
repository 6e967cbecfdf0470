"""The server: from the open image to its last client."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from ..program import ProgramError, error_text, objects, open_image, print_error, run
from .commandline import CommandLine

if TYPE_CHECKING:
    from aioblock import BlockBackend, NbdServer

__all__ = ["serve_image"]

_PORT = 10809
_ANY = "0.0.0.0"
_LONGEST_PATH = 107
_SECTOR = 512


def serve_image(asked: CommandLine, ready: Callable[[], None]) -> int:
    """Serve the image until it is time to end; `ready` is called when clients can come. Returns the exit status.

    Raises: ProgramError.
    """
    if asked.verbose:
        _show_refusals()
    return run(lambda: _serve(asked, ready))


class _Shown(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


def _show_refusals() -> None:
    log = logging.getLogger("aioblock.exports.nbd")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_Shown()]


async def _serve(asked: CommandLine, ready: Callable[[], None]) -> int:
    from aioblock import BlockError

    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    async with AsyncExitStack() as stack:
        try:
            sockets = _sockets(asked)
            disk = await _open(asked)
            await stack.enter_async_context(disk)
            server = await _begin(asked, disk)
            await stack.enter_async_context(server)
            for address in sockets:
                await server.listen(address)
            if asked.connect is not None:
                from aioblock import KernelDevice

                device = await KernelDevice.connect(server, asked.connect, asked.name or "")
                await stack.enter_async_context(device)
                device.gone.add_done_callback(lambda _: end.set())
        except (OSError, BlockError) as error:
            raise ProgramError(error_text(error)) from error
        if asked.pid_file is not None:
            _write_pid(asked.pid_file)
        if asked.connect is not None and asked.verbose:
            print(f"NBD device {asked.connect} is now connected to {asked.file}", file=sys.stderr, flush=True)
        if not asked.persistent and asked.connect is None:
            server.on_client_gone = lambda _: _maybe_end(server, end)
        ready()
        await end.wait()
    return 0


def _maybe_end(server: "NbdServer", end: asyncio.Event) -> None:
    if not server.connections:
        end.set()


def _sockets(asked: CommandLine) -> list[Any]:
    """Where to listen. Raises: ProgramError, OptionError."""
    from aioblock import activated_sockets

    if given := activated_sockets():
        if asked.socket is not None or asked.bind is not None or asked.port is not None:
            for sock in given:
                sock.close()
            raise ProgramError("-k, -b and -p have no meaning with sockets that come from outside (LISTEN_FDS)")
        return list(given)
    if asked.socket is not None:
        if len(os.fsencode(asked.socket)) > _LONGEST_PATH:
            raise ProgramError(
                f"UNIX socket path '{asked.socket}' is too long\nPath must be less than {_LONGEST_PATH + 1} bytes"
            )
        return [asked.socket]
    if asked.connect is not None and asked.bind is None and asked.port is None:
        return []
    return [(asked.bind if asked.bind is not None else _ANY, asked.port if asked.port is not None else _PORT)]


async def _open(asked: CommandLine) -> "BlockBackend":
    """Raises: ProgramError, OSError, BlockError."""
    from aioblock import BlockError

    writable = not asked.read_only and asked.load_snapshot is None
    how: dict[str, Any] = {
        "format": asked.format,
        "cache": asked.cache,
        "aio": asked.aio,
        "discard": asked.discard,
    }
    try:
        if asked.snapshot:
            if asked.load_snapshot is not None:  # the overlay has none
                raise ProgramError("Failed to load snapshot: Can't find snapshot")
            from ..io.overlay import open_overlay

            name, options = _described(asked)
            return await open_overlay(
                name, options, how | {"force_share": False}, writable=writable, copy_on_read=False
            )
        disk = await open_image(
            asked.file, image_opts=asked.image_opts, writable=writable, detect_zeroes=asked.detect_zeroes, **how
        )
    except (OSError, BlockError) as error:
        raise ProgramError(f"Failed to blk_new_open '{asked.file}': {error_text(error)}") from error
    if asked.load_snapshot is None:
        return disk
    return await _at_snapshot(asked, disk, how)


def _described(asked: CommandLine) -> tuple[str | None, dict[str, Any]]:
    if not asked.image_opts:
        return asked.file, {}
    from ..io.opening import parse_option_string

    return None, parse_option_string(asked.file)


async def _at_snapshot(asked: CommandLine, disk: "BlockBackend", how: dict[str, Any]) -> "BlockBackend":
    """The disk as it was when a snapshot was made. Raises: ProgramError."""
    from aioblock import BlockError, OptionError

    async with disk:  # so that what fails behind this is the snapshot's
        format = disk.node.driver.name
        try:
            return await open_image(
                asked.file, image_opts=asked.image_opts, options={"snapshot": asked.load_snapshot}, **how
            )
        except (OSError, BlockError) as error:
            reason = error_text(error)
            if isinstance(error, OptionError) and reason.endswith("does not support the option 'snapshot'"):
                reason = (
                    f"Block format '{format}' used by device '' does not support temporarily loading internal snapshots"
                )
            raise ProgramError(f"Failed to load snapshot: {reason}") from error


async def _begin(asked: CommandLine, disk: "BlockBackend") -> "NbdServer":
    """The server, which does not listen yet. Raises: ProgramError, OSError, BlockError."""
    from aioblock import (
        Authorization,
        BlockError,
        NbdExport,
        NbdLimits,
        find_tls_credentials,
        serve,
    )

    tls = authorization = None
    if asked.tls_creds is not None:
        try:
            tls = find_tls_credentials(objects, asked.tls_creds, "server")
        except BlockError as error:
            raise ProgramError(f"Failed to get TLS creds: {error_text(error)}") from error
        if asked.tls_authz is not None:
            found = objects.get(asked.tls_authz)
            if not isinstance(found, Authorization):
                raise ProgramError(f"No authorization list with id '{asked.tls_authz}'")
            authorization = found
    length = -(-disk.length // _SECTOR) * _SECTOR
    if asked.offset > length:
        raise ProgramError(f"Offset ({asked.offset}) cannot be greater than size of the containing file ({length})")
    names = disk.bitmaps()
    for bitmap in asked.bitmaps:
        if bitmap not in names:
            raise ProgramError(f"Bitmap '{bitmap}' is not found")
    export = NbdExport(
        disk,
        description=asked.description or "",
        offset=asked.offset,
        allocation_depth=asked.allocation_depth,
        bitmaps=asked.bitmaps,
        whole_sectors=True,
        min_block=_SECTOR if _guessed_raw(asked, disk) else 1,
    )
    limits = NbdLimits(connections=asked.shared or None)
    return await serve({asked.name or "": export}, tls=tls, authorization=authorization, limits=limits)


def _guessed_raw(asked: CommandLine, disk: "BlockBackend") -> bool:
    """Whether it is shown as it is, and nobody said that it is raw: such images are asked for in sectors."""
    if asked.format is not None or asked.image_opts or asked.snapshot or asked.offset:
        return False
    return disk.node.driver.name == "raw" and not asked.file.startswith("json:")


def _write_pid(path: str) -> None:
    """Raises: ProgramError."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise ProgramError(f"Could not create '{path}': {error_text(error)}") from error

"""`--list`: what exports a server has."""

from typing import TYPE_CHECKING

from ..program import ProgramError, error_text, objects, run
from .commandline import CommandLine

if TYPE_CHECKING:
    from aioblock import ListedExport

__all__ = ["list_exports"]

_FLAGS = {
    1: "readonly",
    2: "flush",
    3: "fua",
    4: "rotational",
    5: "trim",
    6: "zeroes",
    7: "df",
    8: "multi",
    9: "resize",
    10: "cache",
    11: "fast-zero",
    12: "block-status-payload",
}
"""By the number of the bit."""
_NO_MAXIMUM = 0xFFFFFFFF
_PORT = 10809


def list_exports(asked: CommandLine) -> int:
    """Print what a server tells about its exports. Raises: ProgramError."""
    return run(lambda: _list(asked), fast=False)


async def _list(asked: CommandLine) -> int:
    import aioblock

    tls = None
    server: str | tuple[str, int | str] = asked.socket or (asked.bind or "0.0.0.0", asked.port or _PORT)
    try:
        if asked.tls_creds is not None:
            try:
                tls = aioblock.find_tls_credentials(objects, asked.tls_creds, "client")
            except aioblock.BlockError as error:
                raise ProgramError(f"Failed to get TLS creds: {error_text(error)}") from error
        found = await aioblock.list_exports(server, tls=tls, tls_hostname=asked.tls_hostname)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error
    print(f"exports available: {len(found)}")
    for export in found:
        _show(export)
    return 0


def _show(export: "ListedExport") -> None:
    info = export.info
    print(f" export: '{info.name}'")
    if info.description:
        print(f"  description: {info.description}")
    if export.refused:
        print(f"  refused: {export.refused}")
        return
    print(f"  size:  {info.size}")
    words = "".join(f" {word}" for bit, word in _FLAGS.items() if info.flags >> bit & 1)
    print(f"  flags: {info.flags:#x} ({words} )")
    print(f"  min block: {info.min_block}")
    print(f"  opt block: {info.preferred_block}")
    print(f"  max block: {info.max_block}" if info.max_block != _NO_MAXIMUM else "  max block: none was told")
    if export.contexts:
        print(f"  available meta contexts: {len(export.contexts)}")
        for context in export.contexts:
            print(f"   {context}")

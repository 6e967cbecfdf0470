"""The command reopen."""

from typing import TYPE_CHECKING, Any

from ..program import CACHE_MODES, ProgramError
from .command import Words, operands, read_options
from .opening import parse_option_string
from .session import Session

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["reopen"]

_SWITCHES = {"on": True, "off": False}


async def reopen(session: Session, words: Words) -> None:
    """Change the mode of the open image. Raises: ProgramError; OSError, BlockError."""
    writable: bool | None = None
    cache: str | None = None
    options: dict[str, Any] = {}
    given = read_options(words, "c:o:rw")
    for letter, value in given:
        match letter:
            case "c":
                if value not in CACHE_MODES:
                    raise ProgramError(f"Invalid cache option: {value}")
                cache = CACHE_MODES[value]
            case "o":
                options |= parse_option_string(value)
            case _:
                if writable is not None:
                    raise ProgramError("Only one -r/-w option may be given")
                writable = letter == "w"
    operands(given, 0, 0)
    disk = session.disk
    if "read-only" in options:
        if writable is not None:
            raise ProgramError("Cannot set both -r/-w and 'read-only'")
        writable = not _take_switch(options, "read-only")
        if not writable and disk.writable:
            raise ProgramError(f"Read-only block node '{disk.node.name}' cannot support read-write users")
    if "cache.direct" in options or "cache.no-flush" in options:
        if cache is not None:
            raise ProgramError("Cannot set both -c and the cache options")
        cache = _changed_cache(disk, options)
    if {"overlap-check", "overlap-check.template"} <= options.keys():
        raise ProgramError(
            f"Conflicting values for qcow2 options 'overlap-check' ('{options['overlap-check']}') and "
            f"'overlap-check.template' ('{options['overlap-check.template']}')"
        )
    for name in ("file", "backing"):
        if name in options:
            raise ProgramError(f"Cannot find device='' nor node-name='{options[name]}'")
    await disk.reopen(writable=writable, cache=cache, options=options)


def _take_switch(options: dict[str, Any], name: str) -> bool:
    value = options.pop(name)
    if value not in _SWITCHES:
        raise ProgramError(f"Parameter '{name}' expects 'on' or 'off'")
    return _SWITCHES[value]


def _changed_cache(disk: "BlockBackend", options: dict[str, Any]) -> str:
    """The name of the present cache mode with the options laid over it."""
    mode = disk.node.cache
    direct = _take_switch(options, "cache.direct") if "cache.direct" in options else mode.direct
    no_flush = _take_switch(options, "cache.no-flush") if "cache.no-flush" in options else mode.no_flush
    if no_flush:
        if direct or not mode.writeback:
            raise ProgramError("cache.no-flush=on goes with cache.direct=off and cache.writeback=on only")
        return "unsafe"
    if direct:
        return "none" if mode.writeback else "directsync"
    return "writeback" if mode.writeback else "writethrough"

"""The commands open and close, and how the program opens the image that it was started with."""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..program import CACHE_MODES, DISCARD_MODES, ProgramError, error_text, open_image, print_error
from .command import Words, operands, read_options
from .failures import CommandFailed
from .session import Session

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["AIO_MODES", "Mode", "close", "open_", "open_described", "open_for", "parse_option_string"]

AIO_MODES = ("threads", "native", "io_uring")
"""What -i takes."""


@dataclass(slots=True)
class Mode:
    """How an image shall be opened; the same for the program and for `open`."""

    read_only: bool = False
    snapshot: bool = False
    copy_on_read: bool = False
    force_share: bool = False
    cache: str = "writethrough"
    """As `-t` takes it. Where nothing is said, every write is on stable storage when it is done."""
    discard: str = "unmap"
    aio: str | None = None
    format: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """With dotted keys."""

    def take(self, letter: str, value: str) -> None:
        """Take one option that the program and `open` both have. Raises: ProgramError."""
        match letter:
            case "C":
                self.copy_on_read = True
            case "U":
                self.force_share = True
            case "d":
                if value not in DISCARD_MODES:
                    raise ProgramError(f"Invalid discard option: {value}")
                self.discard = value
            case "i":
                if value not in AIO_MODES:
                    raise ProgramError(f"Invalid aio option: {value}")
                self.aio = value
            case "k":
                self.aio = "native"
            case "n":
                self.cache = "none"
            case "r":
                self.read_only = True
            case "s":
                self.snapshot = True
            case "t":
                if value not in CACHE_MODES:
                    raise ProgramError(f"Invalid cache option: {value}")
                self.cache = value


# Opening


async def open_for(session: Session, name: str | None, mode: Mode) -> None:
    """Open an image as the session's. Raises: ProgramError, with the whole message."""
    from aioblock import BlockError

    if session.is_open:
        raise ProgramError("file open already, try 'help close'")
    options = dict(mode.options)
    shown = name
    if session.image_opts and name is not None:
        options = parse_option_string(name) | options
        name = shown = None
    if mode.force_share and _switch(options, "force-share") is False:
        raise ProgramError("-U conflicts with image options")
    try:
        disk = await _open(name, options, mode)
    except (OSError, BlockError) as error:
        device = "" if shown is None else f" device {shown}"
        raise ProgramError(f"can't open{device}: {error_text(error)}") from None
    session.adopt(disk)


async def _open(name: str | None, options: dict[str, Any], mode: Mode) -> "BlockBackend":
    """Open an image. Raises: OSError, BlockError."""
    from aioblock import OptionError, PermissionConflict

    stated = _switch(options, "read-only")
    writable = not mode.read_only if stated is None else not stated
    force_share = mode.force_share or bool(_switch(options, "force-share"))
    if writable and force_share and not mode.snapshot:
        raise OptionError("force-share=on can only be used with read-only images", option="force-share")
    if mode.copy_on_read and not writable:
        raise OptionError("Can't use copy-on-read on read-only device")
    if stated and not mode.read_only:
        raise PermissionConflict("Block node is read-only")
    how: dict[str, Any] = {
        "cache": mode.cache,
        "aio": mode.aio,
        "discard": mode.discard,
        "force_share": force_share,
    }
    if mode.format is not None:
        how["format"] = mode.format
    if mode.snapshot:
        from .overlay import open_overlay

        return await open_overlay(name, options, how, writable=writable, copy_on_read=mode.copy_on_read)
    return await open_described(name, options, how | {"writable": writable, "copy_on_read": mode.copy_on_read})


async def open_described(name: str | None, options: dict[str, Any], how: dict[str, Any]) -> "BlockBackend":
    """Open an image by its name, if it has one, and options. Raises: OSError, BlockError."""
    if name is None:
        return await open_image(options, **how)
    return await open_image(name, options=options, **how)


def parse_option_string(text: str) -> dict[str, Any]:
    """Options like `driver=raw,file.filename=x`, with dotted keys. Raises: ProgramError."""
    from aioblock import OptionError, parse_keyval

    for part in text.replace(",,", "").split(","):
        if part and "=" not in part and part != "help":
            print_error(f"warning: short-form boolean option '{part}' deprecated")
            print(f"Please use {part}=on instead", file=sys.stderr)
    try:
        return dict(parse_keyval(text))
    except OptionError as error:
        raise ProgramError(error_text(error)) from None


def _switch(options: dict[str, Any], name: str) -> bool | None:
    """An option that is on or off; None where it is not given, or neither (the library complains of that)."""
    return {"on": True, True: True, "off": False, False: False}.get(options.get(name, ""))


# Commands


async def open_(session: Session, words: Words) -> None:
    """Open an image. Raises: ProgramError."""
    mode = Mode()
    given = read_options(words, "CUd:i:krsno:t:")
    for letter, value in given:
        if letter != "o":
            mode.take(letter, value)
        elif session.image_opts:
            raise CommandFailed("--image-opts and 'open -o' are mutually exclusive")
        else:
            mode.options |= parse_option_string(value)
    names = operands(given, 0, 1)
    await open_for(session, names[0] if names else None, mode)


async def close(session: Session, words: Words) -> None:
    """Give the image up, once its requests are done. Raises: OSError."""
    await session.close()

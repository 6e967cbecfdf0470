"""The `-l` option of `convert`: an image as it was when an internal snapshot was made."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..program import ProgramError, error_text, open_image, print_error
from .command import opened

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["opened_at", "parse_snapshot"]

_PREFIX = "snapshot."


def parse_snapshot(text: str) -> str | dict[str, str]:
    """An id or a name; or `snapshot.id=` and `snapshot.name=`, both of which must fit. Raises: ProgramError."""
    if not text.startswith(_PREFIX):
        return text
    from aioblock import OptionError, parse_keyval

    failed = ProgramError(f"Failed in parsing snapshot param '{text}'")
    try:
        given = parse_keyval(text)
    except OptionError as error:
        print_error(error_text(error))
        raise failed from None
    wanted = {}
    for key, value in given.items():
        name = key.removeprefix(_PREFIX)
        if name not in ("id", "name"):
            print_error(f"Invalid parameter '{key}'")
            raise failed
        wanted[name] = value
    return wanted


@asynccontextmanager
async def opened_at(name: str, snapshot: str | dict[str, str], **how: Any) -> "AsyncIterator[BlockBackend]":
    """An image opened at a snapshot; `how` as in `open_image`. Raises: ProgramError where it cannot be opened."""
    from aioblock import BlockError, OptionError

    async with opened(name, **how) as disk:  # so that what fails behind this is the snapshot's
        format = disk.node.driver.name
        try:
            past = await open_image(name, options={"snapshot": snapshot}, **how)
        except (OSError, BlockError) as error:
            reason = error_text(error)
            if isinstance(error, OptionError) and reason.endswith("does not support the option 'snapshot'"):
                reason = (
                    f"Block format '{format}' used by device '' does not support temporarily loading internal snapshots"
                )
            raise ProgramError(f"Failed to load snapshot: {reason}") from error
    async with past:
        yield past

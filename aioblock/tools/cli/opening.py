"""How subcommands open images: with the trust policy asked for, and never a guess that writes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from .access import Access
from .encryption import with_key
from .failures import Failure
from .format_choice import format_names, suffix_format

if TYPE_CHECKING:
    from aioblock import BlockBackend, TrustPolicy

    from .terminal import Terminal

__all__ = ["format_for_writing", "library_options", "opened", "trust_policy", "unlocking", "warn_of_suffix"]


_DEFAULT: Final = Access()


def trust_policy(name: str) -> "TrustPolicy":
    """What `--trust` means."""
    import aioblock

    return {
        "all": aioblock.TRUST_ALL,
        "directory": aioblock.TRUST_DIRECTORY,
        "none": aioblock.TRUST_NONE,
    }[name]


def library_options(access: Access) -> dict[str, Any]:
    """The arguments of functions of the library that look at an image by its name."""
    return {"format": access.format, "trust": trust_policy(access.trust), "force_share": access.force_share}


@asynccontextmanager
async def opened(
    terminal: "Terminal", name: str, access: Access = _DEFAULT, *, writable: bool = False, **how: Any
) -> AsyncIterator["BlockBackend"]:
    """Open an image; `how`: more of what `aioblock.open` takes. Closed at the end, whatever happens.

    Raises: Failure where it is to be written and its format would have to be guessed; what `aioblock.open` raises.
    """
    import aioblock

    format = access.format
    if writable and format is None:
        format = await format_for_writing(name)
    if access.key is not None:
        how |= await unlocking(name, access)
    if not writable:
        how["force_share"] = access.force_share
    trust = trust_policy(access.trust)
    try:
        disk = await aioblock.open(name, format=format, trust=trust, writable=writable, **how)
    except (OSError, aioblock.BlockError) as error:
        error.filename = error.filename or name  # of several images, people want to know which
        raise
    async with disk:
        if access.format is None:
            warn_of_suffix(terminal, name, disk.node.driver.name)
        yield disk


async def unlocking(name: str, access: Access) -> dict[str, Any]:
    """What `aioblock.open` needs to open an encrypted image with the key. Raises: Failure; as `aioblock.open`."""
    import aioblock

    info = await aioblock.info(name, **library_options(access))
    if not info.encrypted:
        raise Failure(f"{name} is not encrypted", hint="Leave --key-file away.")
    return with_key(info.format, access.key or b"")


async def format_for_writing(name: str) -> str | None:
    """The format of an image, from its content; None where its name says it.

    A disk that is taken as it is can begin with whatever its guest wrote there, also with the header of another format.
    So raw is never a guess to write by. Raises: Failure; what `aioblock.open` raises.
    """
    import aioblock

    if name.startswith("json:"):
        return None
    async with await aioblock.open(name, backing=False, metadata_only=True) as disk:
        format = disk.node.driver.name
    if format == "raw":
        raise Failure(
            f"{name}: it begins like no format that is known here; is it raw?",
            hint="If it is a disk without a format, say so: --format raw",
        )
    return format


def warn_of_suffix(terminal: "Terminal", name: str, format: str) -> None:
    """Warn of an image that is read as raw while its name says it is something else."""
    meant = suffix_format(name)
    if format == "raw" and meant not in (None, "raw"):
        known = "" if meant in format_names() else ", which is not known here"
        terminal.warn(f"{name}: read as raw, as it is, but its name says {meant}{known}")

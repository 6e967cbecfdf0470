"""`rebase`: give an image another backing file."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..program import CACHE_MODES, ProgramError, error_text, open_image, run
from .asked import Asked, long_options
from .command import opened, usage_error
from .progress import Progress

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file "
    "[-F backing_fmt] filename"
)


class _Asked(Asked):
    SHORT = "f:F:b:upt:T:qU"
    LONG = long_options("object", "image-opts", "force-share")
    WORDS: ClassVar = {"F": "backing_format", "b": "backing"}
    SWITCHES: ClassVar = {"u": "unsafe"}

    backing: str | None = None
    backing_format: str | None = None
    unsafe = False

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv)
        self.name = self.one_image()
        if not self.unsafe and self.backing is None:
            raise usage_error("Must specify backing file (-b) or use unsafe mode (-u)")
        self.check_format()


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    progress = Progress(asked.shown and not asked.quiet)
    progress.begin()
    complete = False
    try:
        for cache, what in ((asked.cache, "cache"), (asked.source_cache, "source cache")):
            if cache not in CACHE_MODES:
                raise ProgramError(f"Invalid {what} option: {cache}")
        run(lambda: _rebase(asked, progress))
        complete = True
    except _NotChanged:
        progress.all_done()  # as QEMU has it
        raise
    finally:
        progress.end(complete)
    return 0


async def _rebase(asked: _Asked, progress: Progress) -> None:
    import aioblock

    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(
            opened(
                asked.name,
                image_opts=asked.image_opts,
                format=asked.format,
                writable=True,
                cache=asked.cache,
                backing=not asked.unsafe,
            )
        )
        if asked.backing_format is not None and asked.backing_format not in aioblock.driver_names():
            raise ProgramError(f"Invalid format name: '{asked.backing_format}'")
        backing = asked.backing or None
        try:
            if asked.unsafe:
                _check_format(disk, asked)
                await _change(disk, asked)
                return
            new = None
            if backing is not None:
                new = await stack.enter_async_context(await _open_new(disk, asked, backing))
            _check_format(disk, asked)
            try:
                await aioblock.rebase(
                    disk, backing, backing_format=asked.backing_format, backing_disk=new, progress=progress
                )
            except aioblock.PositionedError:
                raise
            except (OSError, aioblock.BlockError) as error:
                raise _not_changed(asked, error) from error
        except aioblock.PositionedError as error:
            raise ProgramError(error_text(error)) from error


async def _open_new(disk: "BlockBackend", asked: _Asked, backing: str) -> "BlockBackend":
    """The new backing file, open to be read: where its name means it, in the image. Raises: ProgramError."""
    import aioblock

    how: dict[str, Any] = {"format": asked.backing_format, "cache": asked.source_cache}
    try:
        name = aioblock.beside(disk.node.exact_filename, backing)
        return await open_image(name, force_share=asked.force_share, **how)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(f"Could not open new backing file '{backing}': {error_text(error)}") from error


def _check_format(disk: "BlockBackend", asked: _Asked) -> None:
    """The image would be told to guess the format of its backing file otherwise. Raises: ProgramError."""
    if disk.node.driver.supports_backing and asked.backing and asked.backing_format is None:
        raise _NotChanged(asked, "backing format must be specified")


async def _change(disk: "BlockBackend", asked: _Asked) -> None:
    """Write the name only. Raises: ProgramError."""
    import aioblock

    try:
        await disk.change_backing_file(asked.backing or None, asked.backing_format if asked.backing else None)
    except (OSError, aioblock.BlockError) as error:
        raise _not_changed(asked, error) from error


class _NotChanged(ProgramError):
    """The image does not name the new backing file."""

    def __init__(self, asked: _Asked, reason: str) -> None:
        name = "(null)" if asked.backing is None else asked.backing
        super().__init__(f"Could not change the backing file to '{name}': {reason}")


def _not_changed(asked: _Asked, error: Exception) -> _NotChanged:
    """QEMU's words: it tells the errno of what an image cannot do."""
    from aioblock import NotSupported, OptionError

    if isinstance(error, NotSupported):
        return _NotChanged(asked, "Operation not supported")
    return _NotChanged(asked, "Invalid argument" if isinstance(error, OptionError) else error_text(error))

"""`convert`: copy images into a new one, perhaps of another format."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from ..program import CACHE_MODES, ProgramError, error_text, objects, print_error, run
from .asked import Asked, long_options
from .bitmap_copy import check_source_bitmaps, copy_bitmaps
from .command import SECTOR, check_image_opts, opened, parse_number, parse_size_argument
from .create import creation_error, print_option_help
from .progress import Progress
from .snapshot_source import opened_at, parse_snapshot

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = (
    "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] "
    "[--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] "
    "[-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] "
    "[-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] "
    "[--level compression_level] filename [filename2 [...]] output_filename"
)

_MAX_SPARSE = 16 << 20


class _Asked(Asked):
    SHORT = "f:O:B:CcF:o:l:S:pt:T:qnm:WUr:"
    LONG = long_options(
        "object",
        "image-opts",
        "force-share",
        source_image_opts="image-opts",
        target_image_opts="target-image-opts",
        salvage="salvage",
        target_is_zero="target-is-zero",
        bitmaps="bitmaps",
        skip_broken_bitmaps="skip-broken-bitmaps",
        level="level:",
    )
    WORDS: ClassVar = {"O": "target_format", "B": "backing", "F": "backing_format"}
    SWITCHES: ClassVar = {
        "C": "offload",
        "c": "compressed",
        "n": "skip_create",
        "target-image-opts": "target_image_opts",
        "target-is-zero": "target_is_zero",
        "salvage": "salvage",
        "bitmaps": "bitmaps",
        "skip-broken-bitmaps": "skip_broken",
    }

    target_format: str | None = None
    cache = "unsafe"
    backing: str | None = None
    backing_format: str | None = None
    target_image_opts = target_is_zero = compressed = skip_create = offload = False
    salvage = bitmaps = skip_broken = False
    snapshot: str | dict[str, str] | None = None
    sparse: int | None = None
    rate = 0
    level: int | None = None
    workers = 8
    in_order = True
    with_bitmaps: "BlockBackend | None" = None

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv)
        self.sources, self.target = self.operands[:-1], (self.operands or [""])[-1]

    def take(self, option: str, value: str) -> None:
        if option == "W":
            self.in_order = False
        elif option == "l":
            self.snapshot = parse_snapshot(value)
        elif option == "S":
            what = "buffer size for sparse output"
            self.sparse = parse_size_argument(what, value)
            if self.sparse % SECTOR or self.sparse > _MAX_SPARSE:
                raise ProgramError(
                    f"Invalid {what} specified. Valid sizes are multiples of {SECTOR} up to {_MAX_SPARSE}. "
                    "Select 0 to disable sparse detection (fully allocates output)."
                )
        elif option == "m":
            message = "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"
            self.workers = parse_number(value, message, 16, 1)
        elif option == "level":
            self.level = parse_number(value, "Invalid compression level", 22, 1)
        elif option == "r":
            self.rate = parse_size_argument("rate limit", value)
        else:
            super().take(option, value)

    def check(self) -> None:
        """Refuse what does not go together. Raises: ProgramError."""
        if self.target_image_opts and not self.skip_create:
            raise ProgramError("--target-image-opts requires use of -n flag")
        if self.skip_create and self.given:
            raise ProgramError("-o has no effect when skipping image creation")
        if self.offload:
            for asked, name in ((self.compressed, "-c is used"), (self.sparse is not None, "-S is used")):
                if asked:
                    raise ProgramError(f"Cannot enable copy offloading when {name}")
            if self.salvage:
                raise ProgramError("Cannot use copy offloading in salvaging mode")
        if self.level is not None and not self.compressed:
            raise ProgramError("--level requires use of -c flag")
        if self.target_is_zero and not self.skip_create:
            raise ProgramError("--target-is-zero requires use of -n flag")
        if self.skip_broken and not self.bitmaps:
            raise ProgramError("Use of --skip-broken-bitmaps requires --bitmaps")
        if not self.sources:
            raise ProgramError("Must specify image file name")
        if self.source_cache not in CACHE_MODES:
            raise ProgramError(f"Invalid source cache option: {self.source_cache}")
        self.check_format()
        check_image_opts(self.target_image_opts, self.target_format)


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    if asked.given.asks_help:
        return print_option_help(asked.target_format or "raw", asked.target if asked.sources else None)
    asked.check()
    progress = Progress(asked.shown and not asked.quiet)
    progress.begin()
    complete = False
    try:
        run(lambda: _convert(asked, progress))
        complete = True
    finally:
        progress.end(complete)
    return 0


async def _convert(asked: _Asked, progress: Progress) -> None:
    from aioblock import beside, removed_on_failure

    async with AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(_source(asked, *named)) for named in enumerate(asked.sources)]
        if isinstance(asked.snapshot, str) and len(sources) > 1:
            raise ProgramError("No support for concatenating multiple snapshot")
        total = sum(-(-source.length // SECTOR) * SECTOR for source in sources)
        format = asked.target_format or "raw"
        if asked.skip_create and asked.backing is not None and len(sources) > 1:
            raise ProgramError(
                "Having a backing file for the target makes no sense when concatenating multiple input images"
            )
        values = {} if asked.skip_create else _target_options(asked, format)
        asked.with_bitmaps = await _bitmap_source(asked, sources, stack)
        if asked.cache not in CACHE_MODES:
            raise ProgramError(f"Invalid cache option: {asked.cache}")
        if asked.skip_create:
            async with _target(asked) as target:
                _check_given(asked, target, total - -sources[-1].length % SECTOR)
                async with removed_on_failure(target.name):
                    keep_backing = asked.backing is not None
                    await _copy(asked, sources, target, keep_backing, asked.target_is_zero, progress)
            return
        values["size"] = total
        data_file = values.get("data_file")
        async with removed_on_failure(asked.target, *([beside(asked.target, data_file)] if data_file else [])):
            await _create(asked.target, format, values)
            async with _target(asked, values) as target:
                is_zero = target.node.driver.has_zero_init()
                await _copy(asked, sources, target, "backing_file" in values, is_zero, progress)


def _check_given(asked: _Asked, target: "BlockBackend", nbytes: int) -> None:
    """Whether so much can be written to a target that was there. Raises: ProgramError."""
    from aioblock import NotSupported, target_options

    if asked.compressed:
        try:
            target_options(target.node.driver.name, asked.target, {}, sources=1, compressed=True)
        except NotSupported as error:
            raise ProgramError(error_text(error)) from error
    _check_bitmaps(asked, target)
    if target.length < nbytes:
        raise ProgramError("output file is smaller than input file")


def _check_bitmaps(asked: _Asked, target: "BlockBackend") -> None:
    if asked.bitmaps and not target.stores_bitmaps:
        raise ProgramError(f"Format driver '{target.node.driver.name}' does not support bitmaps")


def _reading(asked: _Asked) -> dict[str, Any]:
    """How the sources are opened: least of all may the target be one of them."""
    return {**asked.how(), "cache": asked.source_cache, "share_write": False}


def _source(asked: _Asked, number: int, name: str) -> "AbstractAsyncContextManager[BlockBackend]":
    how = _reading(asked)
    refused = isinstance(asked.snapshot, str) and len(asked.sources) > 1  # once all are open
    if asked.snapshot is None or refused or number:
        return opened(name, **how)
    return opened_at(name, asked.snapshot, **how)


async def _bitmap_source(asked: _Asked, sources: "list[BlockBackend]", stack: AsyncExitStack) -> "BlockBackend | None":
    """The image whose bitmaps are copied. Raises: ProgramError where they cannot be."""
    if not asked.bitmaps:
        return None
    if len(sources) > 1:
        raise ProgramError("Copying bitmaps only possible with single source")
    source = sources[0]
    if asked.snapshot is not None:  # a snapshot has none of its own
        source = await stack.enter_async_context(opened(asked.sources[0], **_reading(asked)))
    check_source_bitmaps(source, asked.skip_broken)
    return source


def _target_options(asked: _Asked, format: str) -> dict[str, Any]:
    """The options to create the target with. Raises: ProgramError."""
    import aioblock

    if format not in aioblock.driver_names():
        raise ProgramError(f"Unknown file format '{format}'")
    try:
        known = aioblock.create_options(format, asked.target)
        values = aioblock.typed_options(known, asked.given.values())
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error
    names = {option.name for option in known}
    for option, value, what in (
        ("backing_file", asked.backing, "Backing file"),
        ("backing_fmt", asked.backing_format, "Backing file format"),
    ):
        if value is not None:
            if option not in names:
                raise ProgramError(f"{what} not supported for file format '{format}'")
            values[option] = value
    try:
        count, compressed = len(asked.sources), asked.compressed
        return aioblock.target_options(format, asked.target, values, sources=count, compressed=compressed)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error


async def _create(name: str, format: str, values: dict[str, Any]) -> None:
    import aioblock

    try:
        await aioblock.create(name, format, values, trust=aioblock.TRUST_ALL, objects=objects)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(f"{name}: error while converting {format}: {creation_error(error, format)}") from error


def _target(asked: _Asked, created: Mapping[str, Any] | None = None) -> "AbstractAsyncContextManager[BlockBackend]":
    """The target, open to be written; where it was created with a secret, with the same one."""
    options = {name: value for name, value in (created or {}).items() if name.endswith("key-secret")}
    if asked.level is not None:
        options["compression-level"] = asked.level
    return opened(
        asked.target,
        image_opts=asked.target_image_opts,
        format=None if asked.target_image_opts else asked.target_format or "raw",
        writable=True,
        cache=asked.cache,
        discard="ignore" if asked.sparse == 0 else "unmap",
        options=options,
    )


async def _copy(
    asked: _Asked,
    sources: "list[BlockBackend]",
    target: "BlockBackend",
    keep_backing: bool,
    target_is_zero: bool,
    progress: Progress,
) -> None:
    import aioblock

    def warn(offset: int, error: OSError) -> None:
        if not asked.quiet:
            print_error(f"warning: error while reading offset {offset}: {error_text(error)}")

    _check_bitmaps(asked, target)
    try:
        await aioblock.convert(
            sources,
            target,
            compressed=asked.compressed,
            sparse=4096 if asked.sparse is None else asked.sparse,
            keep_backing=keep_backing,
            target_is_zero=target_is_zero,
            in_order=asked.in_order,
            offload=asked.offload,
            workers=asked.workers,
            bytes_per_second=asked.rate,
            progress=progress if asked.shown and not asked.quiet else None,
            salvage=warn if asked.salvage else None,
        )
        if asked.with_bitmaps is not None:
            await copy_bitmaps(asked.with_bitmaps, target)
    except (OSError, aioblock.BlockError) as error:
        raise ProgramError(error_text(error)) from error

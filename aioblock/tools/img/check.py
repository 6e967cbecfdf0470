"""`check`: look for errors in the metadata of an image, and repair them where asked."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import CACHE_MODES, ProgramError, error_text, run
from .asked import Asked, long_options
from .command import opened, usage_error
from .progress import Progress
from .qjson import to_json

if TYPE_CHECKING:
    from aioblock import BlockBackend, CheckResult

__all__ = ["USAGE", "main"]

USAGE = (
    "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache]"
    " [-p] [-U] filename"
)

_NEEDS_REBUILD = "ERROR need to rebuild refcount structures"
"""What is said of an image that cannot be repaired in the way that was asked for."""

_FAILED, _CORRUPT, _LEAKED, _NOT_SUPPORTED = 1, 2, 3, 63


class _Asked(Asked):
    SHORT = "f:r:T:pqU"
    LONG = long_options("format", "output", "object", "image-opts", "force-share", "progress", repair="r:")

    repair = ""

    def take(self, option: str, value: str) -> None:
        if option != "r":
            super().take(option, value)
            return
        if value not in ("leaks", "all"):
            raise usage_error(f"Unknown option value for -r (expecting 'leaks' or 'all'): {value}")
        self.repair = value


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    name = asked.one_image()
    if asked.source_cache not in CACHE_MODES:
        raise ProgramError(f"Invalid source cache option: {asked.source_cache}")
    asked.check_format()

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads that a check has no use for

    async def body() -> int:
        async with opened(
            name, cache=asked.source_cache, writable=bool(asked.repair), for_check=True, **asked.how()
        ) as disk:
            progress = Progress(asked.shown and not asked.quiet and not asked.json)
            return await _check(disk, name, asked.repair, asked.json, asked.quiet, progress)

    return run(body, fast=False)


async def _check(disk: "BlockBackend", name: str, repair: str, json: bool, quiet: bool, progress: Progress) -> int:
    result = await _checked(disk, progress, fix_leaks=bool(repair), fix_errors=repair == "all")
    fixed_leaks, fixed_corruptions = result.leaks_fixed, result.corruptions_fixed
    if fixed_leaks or fixed_corruptions:
        if not json and not quiet:
            print("The following inconsistencies were found and repaired:\n")
            print(f"    {fixed_leaks} leaked clusters\n    {fixed_corruptions} corruptions\n")
            print("Double checking the fixed image now...")
        result = await _checked(disk, progress)
        result.leaks_fixed, result.corruptions_fixed = fixed_leaks, fixed_corruptions
    if not quiet:
        if json:
            print(to_json(_facts(result, name, disk.node.driver.name)))
        else:
            print(_text(result), end="")
    if result.check_errors:
        return _FAILED
    if result.corruptions:
        return _CORRUPT
    return _LEAKED if result.leaks else 0


async def _checked(
    disk: "BlockBackend", progress: Progress, *, fix_leaks: bool = False, fix_errors: bool = False
) -> "CheckResult":
    """Check once, and print to stderr what was found. Raises: ProgramError."""
    from aioblock import BlockError, NotSupported

    progress.begin()
    try:
        result = await disk.check(fix_leaks=fix_leaks, fix_errors=fix_errors, progress=progress)
    except NotSupported as error:
        raise ProgramError(error_text(error), _NOT_SUPPORTED) from error
    except (OSError, BlockError) as error:
        raise ProgramError(f"Check failed: {error_text(error)}", _FAILED) from error
    progress.end()
    for finding in result.findings:
        print(finding.message, file=sys.stderr)
    if fix_leaks and any(finding.message == _NEEDS_REBUILD for finding in result.findings):
        raise ProgramError("Check failed: Input/output error", _FAILED)  # QEMU's word for it
    return result


def _facts(result: "CheckResult", name: str, format: str) -> dict[str, int | str]:
    """The result in the order in which QEMU prints it as JSON; most counts only where there is something to count."""
    facts: dict[str, int | str] = {
        "image-end-offset": result.image_end_offset,
        "compressed-clusters": result.compressed_clusters,
        "total-clusters": result.total_clusters,
        "corruptions": result.corruptions,
        "corruptions-fixed": result.corruptions_fixed,
        "check-errors": result.check_errors,
        "leaks": result.leaks,
        "leaks-fixed": result.leaks_fixed,
        "allocated-clusters": result.allocated_clusters,
        "filename": name,
        "format": format,
        "fragmented-clusters": result.fragmented_clusters,
    }
    return {key: value for key, value in facts.items() if value or key == "check-errors"}


def _text(result: "CheckResult") -> str:
    """The result for people."""
    parts = []
    if result.corruptions:
        parts.append(
            f"\n{result.corruptions} errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it.\n"
        )
    if result.leaks:
        parts.append(
            f"\n{result.leaks} leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n"
        )
    if result.check_errors:
        parts.append(f"\n{result.check_errors} internal errors have occurred during the check.\n")
    if not parts:
        parts.append("No errors were found on the image.\n")
    if result.total_clusters and result.allocated_clusters:
        allocated = result.allocated_clusters
        parts.append(
            f"{allocated}/{result.total_clusters} = {allocated * 100 / result.total_clusters:.2f}% allocated, "
            f"{result.fragmented_clusters * 100 / allocated:.2f}% fragmented, "
            f"{result.compressed_clusters * 100 / allocated:.2f}% compressed clusters\n"
        )
    if result.image_end_offset:
        parts.append(f"Image end offset: {result.image_end_offset}\n")
    return "".join(parts)

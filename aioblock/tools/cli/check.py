"""`check`: look for errors in the metadata of an image, and repair them."""

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from .access import Access, reading_options
from .failures import Failure, explained
from .opening import opened
from .parameters import image_argument
from .progress import WorkProgress
from .quantities import exact, percent, plural
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import CheckFinding, CheckResult

    from .terminal import Terminal

__all__ = ["command"]

_FAILED, _CORRUPT, _LEAKED = 1, 2, 3

_SHOWN = 20
"""How many findings are shown unless all are asked for."""

_STYLES = {"corruption": "red", "leak": "yellow", "error": "red", "note": "cyan"}


@subcommand("check", long=True, short_help="look for errors in an image, and repair them")
@image_argument()
@click.option(
    "--repair",
    type=click.Choice(["leaks", "all"]),
    help="Repair what was found: only leaks, which is always safe, or all. Keep a copy before you repair all.",
)
@click.option("--all", "everything", is_flag=True, help=f"Show every finding, not the first {_SHOWN} alone.")
@reading_options
def command(
    terminal: "Terminal",
    image: str,
    repair: str | None,
    everything: bool,
    access: Access,
) -> int:
    """Check the metadata of IMAGE against itself. The content of the disk is not looked at.

    \b
    Exit status: 0 nothing is wrong (any more), 1 it could not be checked,
    2 corruptions: data may be wrong, 3 leaks: storage is wasted, no harm is done.
    """
    import aioblock

    results: list[CheckResult] = []
    if repair is not None:
        terminal.left = f"{image} is no worse than before: a repair that had begun has come to its end."

    async def body() -> None:
        async with opened(
            terminal,
            image,
            access,
            writable=repair is not None,
            for_check=True,
            backing=False,
        ) as disk:
            with WorkProgress(terminal, "check" if repair is None else "repair") as progress:
                leaks, errors = repair is not None, repair == "all"
                results.append(await disk.check(fix_leaks=leaks, fix_errors=errors, progress=progress))
            if repair is not None:
                with WorkProgress(terminal, "check again") as progress:
                    results.append(await disk.check(progress=progress))

    try:
        work(body, fast=False)
    except aioblock.NotSupported as error:
        raise Failure(f"{image}: {explained(error).message}", hint="A format without metadata needs none.") from error
    first, last = results[0], results[-1]
    status = _FAILED if last.check_errors else _CORRUPT if last.corruptions else _LEAKED if last.leaks else 0
    terminal.result(_document(image, first, last, status))
    _show(terminal, image, first, last, repair, everything)
    return status


def _document(image: str, first: "CheckResult", last: "CheckResult", status: int) -> dict[str, Any]:
    """Counts of what is left; findings of the first round, which say what was repaired."""
    names = (
        "corruptions",
        "leaks",
        "check_errors",
        "image_end_offset",
        "total_clusters",
        "allocated_clusters",
        "fragmented_clusters",
        "compressed_clusters",
    )
    return {
        "image": image,
        "status": status,
        **{name: getattr(last, name) for name in names},
        "corruptions_fixed": first.corruptions_fixed,
        "leaks_fixed": first.leaks_fixed,
        "findings": [finding._asdict() for finding in first.findings],
    }


def _show(
    terminal: "Terminal",
    image: str,
    first: "CheckResult",
    last: "CheckResult",
    repair: str | None,
    everything: bool,
) -> None:
    findings = first.findings if everything else first.findings[:_SHOWN]
    for finding in findings:
        terminal.print(_finding(finding))
    if len(first.findings) > len(findings):
        terminal.print(f"... and {len(first.findings) - len(findings)} more (--all shows them)")
    if findings:
        terminal.print("")
    fixed = [
        plural(first.corruptions_fixed, "corruption") if first.corruptions_fixed else "",
        plural(first.leaks_fixed, "leaked cluster") if first.leaks_fixed else "",
    ]
    if any(fixed):
        terminal.print(Text(f"{image}: repaired {' and '.join(filter(None, fixed))}", style="green"))
    if last.corruptions:
        terminal.print(Text(f"{image}: {plural(last.corruptions, 'corruption')}", style="bold red"))
        terminal.print("  Data may be wrong, and writing to the image may destroy more. Do not use it as it is.")
        if repair != "all":
            terminal.print(f"  Keep a copy, then: aioblock check --repair all {image}")
    if last.leaks:
        terminal.print(Text(f"{image}: {plural(last.leaks, 'leaked cluster')}", style="bold yellow"))
        terminal.print("  They take storage that nobody uses. No data is at risk.")
        if repair is None:
            terminal.print(f"  To free it: aioblock check --repair leaks {image}")
    if last.check_errors:
        terminal.print(Text(f"{image}: {plural(last.check_errors, 'place')} could not be checked", style="bold red"))
        terminal.print("  The storage below the image fails: copy what can be read (aioblock convert --salvage).")
    if not (last.corruptions or last.leaks or last.check_errors):
        terminal.print(Text(f"{image}: nothing is wrong", style="bold green"))
    _counts(terminal, last)


def _finding(finding: "CheckFinding") -> Text:
    place = f" at {finding.offset:#x}" if finding.offset is not None else ""
    fixed = ("repaired  ", "green") if finding.fixed else ""
    message = " ".join(finding.message.split()).removeprefix("ERROR ")
    return Text.assemble((f"{finding.kind}{place}  ", _STYLES.get(finding.kind, "")), fixed, message)


def _counts(terminal: "Terminal", result: "CheckResult") -> None:
    allocated = result.allocated_clusters
    facts = {}
    if result.total_clusters:
        facts["allocated"] = f"{allocated} of {plural(result.total_clusters, 'cluster')}"
        facts["allocated"] += f" ({percent(allocated, result.total_clusters)})"
    if allocated:
        facts["fragmented"] = percent(result.fragmented_clusters, allocated)
        facts["compressed"] = percent(result.compressed_clusters, allocated)
    if result.image_end_offset:
        facts["in use up to"] = exact(result.image_end_offset)
    terminal.facts(facts, indent=2)

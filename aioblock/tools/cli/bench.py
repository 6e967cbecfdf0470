"""`bench`: how fast images are under many requests at a time, and how long these take."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..program import Interrupted
from .access import Access, reading_options
from .bench_shown import show_comparison, show_result
from .failures import Failure
from .opening import format_for_writing, unlocking
from .parameters import ImageName
from .progress import WorkProgress
from .quantities import SIZE, human
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock.bench import Job, Result

    from .terminal import Terminal

__all__ = ["command"]

_OF_THE_RUN = ("images", "job", "loop", "processes", "overwrite", "save", "html", "compare")
"""What is not said of a single job, so it goes with --job, too."""

_STEPS = 1000

_MIX = "Kinds of requests and weights, as in read=70,write=30: read, write, zeroes, discard, status, flush."


@subcommand("bench", long=True, short_help="how fast images are")
@click.argument("images", nargs=-1, type=ImageName(), metavar="[IMAGE]...")
@click.option(
    "--job",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="What is to be done, in TOML: docs/bench.md. All its jobs run at the same time.",
)
@click.option("--mix", default="read", show_default=True, help=_MIX)
@click.option("--size", default="4k", show_default=True, help="Bytes of a request; several with weights: 4k=3,64k=1.")
@click.option(
    "--pattern",
    type=click.Choice(["sequential", "random", "zipf"]),
    default="random",
    show_default=True,
    help="Where the requests go; zipf: to few places often.",
)
@click.option("--theta", type=float, default=0.99, show_default=True, help="The exponent of zipf.")
@click.option("--offset", type=SIZE, default="0", show_default=True, help="The part of IMAGE that is used begins here.")
@click.option("--length", type=SIZE, help="How long that part is.  [default: to the end]")
@click.option("--clients", type=int, default=1, show_default=True, help="How many users there are.")
@click.option(
    "--depth", type=int, default=16, show_default=True, help="How many requests each has under way at a time."
)
@click.option(
    "--rate",
    type=float,
    help="So many requests begin each second, whether or not earlier ones have ended; what they wait for that counts.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["uniform", "poisson"]),
    default="poisson",
    show_default=True,
    help="When requests of a --rate come.",
)
@click.option("--warmup", type=float, default=0.0, show_default=True, help="Seconds before anything counts.")
@click.option("--seconds", type=float, help="How long to measure.  [default: 5, or until --count]")
@click.option("--count", type=int, help="So many requests, at most.")
@click.option("--verify", is_flag=True, help="Write what can be recognised, and check all that is read.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which requests: the same seed, the same.")
@click.option(
    "--cache",
    type=click.Choice(["writeback", "none", "writethrough", "directsync", "unsafe"]),
    default="writeback",
    show_default=True,
    help="How the host caches: 'none' measures the storage, not the memory.",
)
@click.option("--aio", help="How the system is asked: the option 'aio' of the file.  [default: as the library does]")
@click.option(
    "--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", show_default=True, help="Which event loop."
)
@click.option("--processes", type=int, default=1, show_default=True, help="So many processes do it together.")
@click.option("--overwrite", is_flag=True, help="Yes, what the images hold may be lost.")
@click.option(
    "--save", type=click.Path(dir_okay=False), metavar="FILE", help="Write the document of --json there, too."
)
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a report with plots there.")
@click.option(
    "--compare",
    type=click.Path(exists=True, dir_okay=False),
    nargs=2,
    metavar="BEFORE AFTER",
    help="Measure nothing: compare two saved documents.",
)
@reading_options
def command(
    terminal: "Terminal",
    images: Sequence[str],
    job: str | None,
    compare: tuple[str, str] | None,
    loop: str,
    processes: int,
    overwrite: bool,
    save: str | None,
    html: str | None,
    access: Access,
    **described: Any,
) -> None:
    """Send requests to each IMAGE at the same time, and tell how many are done a second and how long they take.

    Images that would be changed are left alone without --overwrite. Documents of --json or --save can be compared.

    \b
    aioblock bench disk.qcow2 --depth 64
    aioblock bench nbd://server/disk --rate 2000 --seconds 30 --html report.html
    aioblock bench scratch.raw --format raw --mix read=70,write=30 --verify --overwrite
    aioblock bench --job mixed.toml --save after.json; aioblock bench --compare before.json after.json
    """
    from aioblock import bench

    if compare is not None:
        if images or job is not None:
            raise Failure("--compare measures nothing: it goes with no IMAGE and no --job", status=2)
        before, after = (bench.Result.load(path) for path in compare)
        found = bench.compare(before, after)
        terminal.result({"comparison": [one.as_dict() for one in found]})
        show_comparison(terminal, compare, found)
        return
    if processes < 1:
        raise Failure(f"--processes {processes}: at least one is needed", status=2)
    jobs = _jobs(images, job, described)
    _refuse_to_destroy(jobs, overwrite)
    if lost := sorted({one.name for one in jobs if one.changes}):
        terminal.left = f"Parts of {', '.join(lost)} are overwritten."
    for path in (save, html):
        if path is not None:
            open(path, "a").close()  # whether it can be written is known before the time is spent
    result = _measured(terminal, jobs, access, processes, loop, save, html)
    terminal.result(result.as_dict())
    show_result(terminal, result)


def _jobs(images: Sequence[str], job: str | None, described: dict[str, Any]) -> "list[Job]":
    """What is asked for. Raises: Failure, OptionError, OSError."""
    from aioblock import bench

    if job is not None:
        context = click.get_current_context()
        given = [
            f"--{name}"
            for name in described
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise Failure(f"{', '.join(given)}: with --job this is said in {job}", status=2)
        if len(images) > 1:
            raise Failure("--job takes one IMAGE: that of the jobs that name none", status=2)
        return bench.load_jobs(job, image=images[0] if images else None)
    if not images:
        raise Failure("Nothing to measure", hint="Name an IMAGE, or --job FILE.", status=2)
    described = described | {
        "sizes": bench.parse_sizes(described.pop("size")),
        "mix": bench.parse_mix(described.pop("mix")),
    }
    return [
        bench.Job(image=image, name=image if images.count(image) == 1 else f"{image} ({place})", **described)
        for place, image in enumerate(images, 1)
    ]


def _refuse_to_destroy(jobs: "list[Job]", overwrite: bool) -> None:
    lost = [job for job in jobs if job.changes]
    if overwrite or not lost:
        if overwrite and not lost:
            raise Failure("--overwrite: nothing is written", hint="Say what: --mix write", status=2)
        return
    said = []
    for job in lost:
        where = f"{human(job.length)} from offset {job.offset} on" if job.length is not None else "everything"
        if job.length is None and job.offset:
            where = f"everything from offset {job.offset} on"
        kinds = ", ".join(kind for kind, often in job.mix.items() if often and kind in ("write", "zeroes", "discard"))
        said.append(f"{where} in {job.as_dict()['image']} ({kinds})")
    raise Failure(
        f"This would destroy {'; '.join(said)}", hint="If that may be lost, add --overwrite.", kind="Refused", status=2
    )


async def _completed(job: "Job", access: Access) -> "Job":
    """The job with what the options say about opening its image: its own words go first. Raises: Failure, OSError."""
    name = str(job.as_dict()["image"])
    opening: dict[str, Any] = {"force_share": job.force_share or access.force_share}
    if job.trust == "directory":
        opening["trust"] = access.trust
    if job.format is None:
        opening["format"] = access.format
        if access.format is None and job.writable and isinstance(job.image, str):
            opening["format"] = await format_for_writing(name)
    if access.key is not None:
        more = await unlocking(name, access)
        opening |= {"options": {**job.options, **more["options"]}, "objects": more["objects"]}
    return dataclasses.replace(job, **opening)


def _measured(
    terminal: "Terminal",
    jobs: "list[Job]",
    access: Access,
    processes: int,
    loop: str,
    save: str | None,
    html: str | None,
) -> "Result":
    """Run them; what there is when it is interrupted is saved and shown, too. Raises: Interrupted."""
    from aioblock.bench import Bench, ProcessBench

    running: list[Bench | ProcessBench] = []
    found: list[Result] = []

    async def body() -> None:
        import asyncio

        completed = [await _completed(job, access) for job in jobs]
        with WorkProgress(terminal, "bench", unit="per mille") as progress:

            def moved(done: float) -> None:
                progress(round(done * _STEPS), _STEPS)

            if processes == 1:
                running.append(Bench(completed, progress=moved))
            else:
                running.append(ProcessBench(completed, processes, progress=moved))
            try:
                found.append(await running[0].run())
            except asyncio.CancelledError:
                if running[0].begun:
                    found.append(running[0].result())
                raise

    try:
        work(body, fast=loop == "uvloop")
    except Interrupted:
        if found:
            _write(found[0], save, html)
            show_result(terminal, found[0])
        raise
    _write(found[0], save, html)
    return found[0]


def _write(result: "Result", save: str | None, html: str | None) -> None:
    """Put the result into files. Raises: OSError."""
    import json

    from aioblock.bench import html_report

    if save is not None:
        with open(save, "w", encoding="utf-8") as file:
            json.dump(result.as_dict(), file, indent=1)
            file.write("\n")
    if html is not None:
        with open(html, "w", encoding="utf-8") as file:
            file.write(html_report(result, "aioblock bench: " + ", ".join(job.name for job in result.jobs)))

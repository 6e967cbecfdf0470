"""Cases: a seed makes a shelf and some command lines on it, which both programs run."""

import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.drop_in.commands import COMMANDS
from tests.drop_in.comparison import differences
from tests.drop_in.deliberate import forgiven
from tests.drop_in.mutations import mutated
from tests.drop_in.programs import Ours, Result, theirs
from tests.drop_in.shelf import fill

__all__ = ["Case", "Differs", "run_seed"]

LINES = 6
"""Command lines on one shelf."""


class Case(NamedTuple):
    """One command line on the shelf of a seed."""

    subcommand: str
    seed: int
    number: int
    argv: list[str]


class Differs(NamedTuple):
    """A case that did not go alike."""

    case: Case
    lines: list[str]

    def __str__(self) -> str:
        case = self.case
        told = "\n  ".join(self.lines)
        again = f"--subcommand {case.subcommand} --first {case.seed} --seeds 1 --line {case.number}"
        return f"qemu-img {shlex.join(case.argv)}\n  [{again}]\n  {told}"


def run_seed(
    ours: Ours, subcommand: str, seed: int, folder: Path, *, wrong: bool = False, only: int | None = None
) -> Iterator[Case | Differs]:
    """Run the command lines of a seed in `folder`. `wrong`: they are made wrong first. `only`: one of them alone."""
    # A seed means a subcommand's own series, so that a failing one can be run alone.
    chance = random.Random(f"{subcommand} {seed} {wrong}")
    template = folder / "shelf"
    template.mkdir(parents=True)
    shelf = fill(chance, template, broken=subcommand == "check", luks=chance.random() < 0.08)
    (template / "sub").mkdir()
    (template / "garbage").write_bytes(b"QFI\xfb" + chance.randbytes(1020))
    (template / "short").write_bytes(b"QFI\xfb\0\0\0\3")
    for number in range(LINES):
        argv = COMMANDS[subcommand](chance, shelf)
        if wrong:
            argv = mutated(chance, argv)
        if only is not None and number != only:
            continue
        case = Case(subcommand, seed, number, argv)
        found = _run(ours, case, template, folder)
        yield Differs(case, found) if found else case


def _run(ours: Ours, case: Case, template: Path, folder: Path) -> list[str]:
    places = folder / "ours", folder / "theirs"
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
    results: tuple[Result, Result] = ours.run(case.argv, places[0]), theirs(case.argv, places[1])
    found = differences(case.argv, *places, results)
    return forgiven(case.argv, results, found) if found else []

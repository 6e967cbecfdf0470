"""Find a workload that shows each mutant, and keep the table of them in docs/qcow2.md."""

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

from tests.faults.powercut.explore import Plan, explore, play, start_of
from tests.faults.powercut.harmless import EQUIVALENT
from tests.faults.powercut.layouts import LAYOUTS
from tests.faults.powercut.mutants import applied, mutants
from tests.faults.powercut.states import Effort
from tests.faults.powercut.workloads import valid

__all__ = ["DOCS", "EQUIVALENT", "KILLS", "hunt", "hunt_all", "plan_of", "table"]

KILLS = Path(__file__).with_name("kills.json")
"""For each mutant the workload that shows it, found by `hunt_all`; "": none was found yet."""

DOCS = Path(__file__).parents[3] / "docs" / "qcow2.md"
MARKS = "<!-- mutants: made by `make powercut ARGS=--hunt` -->\n", "<!-- end of mutants -->\n"

PLAN = Plan(Effort(full=6, choices=16, torn=2), go_on=0.02, deeper=4)
OPENING = Plan(Effort(full=3, choices=4, torn=1), go_on=0.3, deeper=12)

PATIENCE = 3.0
"""Seconds of the processor to hunt one mutant."""

WORKLOADS = (
    "w",
    "W",
    "sWa",
    "bWk",
    "Wfd",
    "dfW",
    "zfW",
    "rwR",
    "cfc",
    "sWx",
    "Wkd",
    "wfdfW",
    "saW",
    "bsk",
    "Rrw",
    "gdf",
)

HINTS: dict[str, str] = {
    "amend.": "amend/m down/A raw/T amend/Wm amend/Wmm down/VA named/WN",
    "amend_refcounts": "amend/m amend/Wm amend/mm",
    "amend_zeroes": "down/zV down/zsV down/usVV",
    "bitmap": "c4k/bkWk c512/bkbk c4k/bkbWkb c64k/bkbk c64k/bkWk c512/bWkb ext/bkWkb c4k/bkbkb c4k/bkbbk",
    "commit._Commit.run: without flush before `await self._write_reftable()`": "edge/W edge/WW edge/gW edge/Ww edge/sW",
    "commit._Commit.run: `await self._write([": "edge/W edge/WW edge/Ww edge/sW",
    "commit._Commit.run: `if self.reftable": "cut/Ww edge/W edge/Ww edge/sW",
    "commit._Commit._write_reftable": "table/w table/ww table/wW",
    "commit._Commit._write_l1": "c512/r back512/rw v2/rw",
    "commit._mark_dirty": "lazy4k/w lazy4k/W lazy4k/Wf lazyback/W lazyback/wfo lazy512/W lazy512/wW",
    "commit.write_back": "c4k/uC c4k/us c4k/usW lazy4k/w lazy4k/W lazy4k/Wk lazyback/Wk lazy512/Wk c512/sWa c4k/sWx",
    "compressed": "packed/cc packed/ccc packed/cfc packed/random1",
    "driver.Qcow2Driver.reopen": "c4k/WO lazy4k/WO lazy4k/WOW c4k/bkWO",
    "header_extension": "foreign/b7B c64k/bk c4k/bk named/NbkNB straddle/bkbk named/bkNB",
    "header_update": "named/N named/bkNB named/NN down/V down/VV",
    "image.Image._mark_corrupt": "spoilt/4M spoilt/4MC",
    "image.Image.flush_files": "databack/w databack/W data/Wf data/dW c4k/W",
    "opening": "autoclear/o autoclear/w autoclear/wk c4k/bkW c4k/bkw c512/bkbkW data/bkW",
    "rebuild": "spoilt/5C spoilt/6C",
    "repair": "spoilt/1C spoilt/s2C spoilt/3C spoilt/4C spoilt/4MC",
    "resize": "back512/rw backlong/r backlong/rw v2back/r c512/rw c512/RrW backlong/Rr data/rw",
    "shrink": "cut/WR cut/WfRW c512/R c512/RW back512/fR c512/WR edge/R c4k/RrW data/R c512/rRw c512/random3",
    "snapshots.complete": "down/sVV",
    "snapshot": "c4k/sW c4k/sa c4k/sWa c4k/sx c4k/sWx c4k/sWaW edge/sWa c512/sWx c512/sasx c4k/ssWax packed/csax",
}
"""Workloads to try first, by the beginning of a mutant's name."""

RULES: dict[str, str] = {
    "amend": "a step is stable before the next",
    "amend_refcounts": "new counts before the header that names them",
    "amend_zeroes": "data before its entry",
    "bitmap_store": "a bitmap says that it is in use, or is exact",
    "commit.write_back": "all is stable before the dirty bit is cleared",
    "commit._mark_dirty": "the dirty bit before what relies on it",
    "commit._Commit._write_l1": "the L1 table before the header that names it",
    "commit._Commit._write_reftable": "the refcount table before the header that names it",
    "commit._Commit.run": "data, counts, refcount table, L2, L1, freeing",
    "compressed": "every stream counts",
    "driver": "a flush, a close writes back",
    "header_extension": "the old header is valid at each sector",
    "header_update": "the old header is valid at each sector",
    "image.Image._mark_corrupt": "the corrupt bit is stable at once",
    "image.Image.flush_files": "both files are flushed",
    "image.Image.make_room": "a full cache is written back",
    "image.Image.release": "no reuse before the loss of the reference is stable",
    "opening": "autoclear bits before the first write",
    "rebuild": "new counts before the header that names them",
    "repair": "counts before what refers to them",
    "resize": "all behind the old end is ready before the new size",
    "shrink": "the size before what is dropped",
    "snapshot_counts": "counts and COPIED before the second reference",
    "snapshots": "counts, tables, the header; freeing afterwards",
    "write": "a full cache is written back",
}
"""What a mutant breaks, by the beginning of its name; the longest one counts."""


def rule_of(name: str) -> str:
    """The rule that a mutant breaks, in a few words."""
    return RULES[max((start for start in RULES if name.startswith(start)), key=len)]


def table(kills: dict[str, str]) -> str:
    """The table of all mutants, as docs/qcow2.md has it."""
    lines = ["| rule | left out or changed | shown by |", "|---|---|---|"]
    for name, seed in sorted(kills.items()):
        if seed:
            lines.append(f"| {rule_of(name)} | {_cell(name)} | `{seed}` |")
    lines += ["", "Harmless, so that nothing can show them:", ""]
    lines += ["| left out or changed | why it does no harm |", "|---|---|"]
    lines += [f"| {_cell(name)} | {why} |" for name, why in sorted(EQUIVALENT.items())]
    if alive := [f"- {name}" for name, seed in sorted(kills.items()) if not seed]:
        lines += ["", "Open: neither shown by a workload yet, nor proved to be harmless.", "", *alive]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_table(kills: dict[str, str]) -> None:
    """Put the table where the documentation has it."""
    text = DOCS.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCS.write_text(f"{before}{MARKS[0]}\n{table(kills)}\n{MARKS[1]}{after}")


def candidates(deep: int = 16) -> Iterator[str]:
    """Workloads to try, the short ones first."""
    for number in range(deep):
        for layout in LAYOUTS.values():
            for workload in (*WORKLOADS[number : number + 1], f"random{number + 1}"):
                if valid(workload, layout):
                    yield f"{layout.name}/{workload}"


ON_THE_WAY = ("rebuild", "repair", "copied")
"""Modules that are at work where an image is opened after a power cut, not in the workload itself."""


def plan_of(name: str) -> Plan:
    """How to look for a mutant."""
    return OPENING if name.partition(".")[0] in ON_THE_WAY else PLAN


@cache
def functions_of(seed: str) -> frozenset[str]:
    """The functions of the driver that a workload uses, named as mutants name them."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        found.add(frame.f_code)

    start_of(seed.partition("/")[0])
    sys.setprofile(note)
    try:
        play(seed)
    finally:
        sys.setprofile(None)
    return frozenset(
        f"{Path(code.co_filename).stem}.{code.co_qualname}" for code in found if "/qcow2/" in code.co_filename
    )


def hunt(name: str, first: str = "") -> tuple[str, str]:
    """The seed of a state that shows a mutant, and what is wrong with it; "" where none was found."""
    mutant = mutants()[name]
    give_up = time.process_time() + PATIENCE
    hints = [seed for start, seeds in HINTS.items() if name.startswith(start) for seed in seeds.split()]
    for seed in (*([first] if first else []), *hints, *candidates()):
        if name.partition(".")[0] not in ON_THE_WAY and name.split(": ")[0] not in functions_of(seed):
            continue
        start_of(seed.partition("/")[0])  # made without the mutant
        with applied(mutant):
            tally = explore(seed, plan_of(name), stop=1)
        if tally.failures and not explore(seed, plan_of(name)).failures:
            return tally.failures[0].seed, tally.failures[0].text
        if time.process_time() > give_up:
            break
    return "", ""


def _hunt(job: tuple[str, str]) -> tuple[str, str, str, float]:
    started = time.monotonic()
    seed, text = hunt(*job)
    return job[0], seed, text, time.monotonic() - started


def hunt_all(jobs: int) -> int:
    """Hunt every mutant that is not in `KILLS`, and write that and the table. 1 where one is not found."""
    known: dict[str, str] = json.loads(KILLS.read_text()) if KILLS.exists() else {}
    names = [name for name in mutants() if name not in EQUIVALENT]
    names.sort(key=lambda name: (name not in known, not name.startswith("commit"), not name.startswith("snapshot")))
    found = {name: known.get(name, "") for name in names}
    names = [name for name in names if not found[name]]  # the tests replay the others
    alive = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, seed, text, seconds in pool.imap_unordered(_hunt, [(name, known.get(name, "")) for name in names]):
            print(f"{seconds:6.1f} s  {name}\n          {seed or 'ALIVE'}  {text[:100]}", flush=True)
            if seed:
                found[name] = "/".join(seed.split("/")[:2])
            else:
                alive.append(name)
    KILLS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    write_table(found)
    print(f"{len(found) - len(alive)} mutants killed, {len(alive)} alive, {len(EQUIVALENT)} known to be harmless")
    for name in alive:
        print(f"alive: {name}")
    return 1 if alive else 0

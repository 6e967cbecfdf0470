"""What two runs of one command line left behind, side by side: what they said, and every file."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.drop_in.programs import Result, theirs
from tests.drop_in.shelf import SECRET

__all__ = ["differences"]

_PROGRESS = re.compile(r" +\((\d+\.\d\d)/100%\)\r")
_MASKS = (
    (re.compile(r"Run completed in \d+\.\d+ seconds\."), "Run completed in N seconds."),
    (re.compile(r"^disk size: .*$", re.M), "disk size: N"),
    (re.compile(r"#block\d+"), "#blockN"),
    (re.compile(r'"actual-size": \d+'), '"actual-size": 0'),
)
"""What no two runs have in common."""


def differences(argv: Sequence[str], ours: Path, qemus: Path, results: tuple[Result, Result]) -> list[str]:
    """What differs, as lines; `results` are ours and QEMU's."""
    mine, other = results
    found = []
    if mine.status != other.status:
        found.append(f"status: ours {mine.status}, QEMU's {other.status}")
    for name, one, two in (("stdout", mine.out, other.out), ("stderr", mine.err, other.err)):
        if "-p" in argv:
            found += _progress(one, two, mine.status == 0)
            one, two = _PROGRESS.sub("", one), _PROGRESS.sub("", two)
        if one.startswith("qemu-img version ") and two.startswith("qemu-img version "):
            continue  # help, in each one's own words
        if argv[0] not in ("info",):
            one, two = _masked(one), _masked(two)
        if one != two:
            found.append(_text_difference(name, one, two))
    return found + list(_files(ours, qemus))


def _masked(text: str) -> str:
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text


def _progress(one: str, two: str, complete: bool) -> Iterator[str]:
    """Both begin alike, and end so if `complete`; where they stop on the way is not compared."""
    shown = [[float(number) for number in _PROGRESS.findall(text)] for text in (one, two)]
    ends = [numbers[:1] + numbers[-1:] * complete for numbers in shown]
    if ends[0] != ends[1]:
        yield f"progress: ours {shown[0]}, QEMU's {shown[1]}"


def _text_difference(name: str, ours: str, qemus: str) -> str:
    if len(ours) + len(qemus) < 600:
        return f"{name}:\n    ours {ours!r}\n    QEMU {qemus!r}"
    lines = difflib.unified_diff(qemus.splitlines(), ours.splitlines(), "QEMU", "ours", lineterm="", n=1)
    return "\n    ".join([f"{name}:", *lines])


def _files(ours: Path, qemus: Path) -> Iterator[str]:
    names = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (ours, qemus)]
    if names[0] != names[1]:
        yield f"files: only ours {sorted(names[0] - names[1])}, only QEMU's {sorted(names[1] - names[0])}"
    for name in sorted(names[0] & names[1]):
        one, two = ours / name, qemus / name
        if one.is_dir() or not one.is_file():
            continue
        content = one.read_bytes()
        if content == two.read_bytes():
            if one.stat().st_mode != two.stat().st_mode:
                yield f"{name}: mode {one.stat().st_mode:o}, QEMU's {two.stat().st_mode:o}"
            continue
        yield from _images(name, ours, qemus)


def _images(name: str, ours: Path, qemus: Path) -> Iterator[str]:
    """Two images that are not the same bytes: whether they are the same image."""
    facts = [_facts(name, folder) for folder in (ours, qemus)]
    if facts[0] != facts[1]:
        yield f"{name}: info: ours {_only(*facts)}, QEMU's {_only(facts[1], facts[0])}"
        return
    format = facts[0].get("format")
    if format in (None, "raw"):
        yield f"{name}: other bytes, from {_first(ours / name, qemus / name)} on"
        return
    if format == "luks":
        return  # another key each time
    checks = [theirs(["check", f"./{name}"], folder) for folder in (ours, qemus)]
    if checks[0].status > checks[1].status or "Image end" not in checks[0].out:
        yield f"{name}: check: ours {checks[0]}, QEMU's {checks[1]}"
    how = ["-f", str(format), "-F", str(format)]
    compared = theirs(["compare", *how, str(ours / name), str(qemus / name)], ours)
    if compared.status:
        yield f"{name}: {compared.out.strip()} {compared.err.strip()}"
    maps = [_map(name, folder) for folder in (ours, qemus)]
    if maps[0] != maps[1]:
        kind = "less data" if _is_less(*maps) else "other"
        yield f"{name}: map: {kind}:\n    ours {maps[0]}\n    QEMU {maps[1]}"
    for number, snapshot in enumerate(facts[0].get("snapshots", [])):
        yield from _snapshot(name, snapshot["id"], number, ours, qemus)


def _snapshot(name: str, id: str, number: int, ours: Path, qemus: Path) -> Iterator[str]:
    read = []
    for folder in (ours, qemus):
        out = folder / f".snapshot-{number}"
        theirs(["convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.id={id}", name, out.name], folder)
        read.append(out.read_bytes() if out.exists() else b"")
        out.unlink(missing_ok=True)
    if read[0] != read[1]:
        yield f"{name}: snapshot {id} reads otherwise"


def _facts(name: str, folder: Path) -> dict[str, Any]:
    done = theirs(["info", "--output=json", "--object", SECRET, f"./{name}"], folder)
    if done.status:
        return {"error": done.err}
    facts: dict[str, Any] = json.loads(done.out)
    facts.pop("actual-size", None)
    for snapshot in facts.get("snapshots", []):
        snapshot["date-sec"] = snapshot["date-nsec"] = 0
        snapshot["vm-clock-sec"] = snapshot["vm-clock-nsec"] = 0
    data = facts.get("format-specific", {}).get("data", {})
    if facts["format"] == "luks":
        facts["format-specific"] = sorted(data)
    if facts["format"] == "raw":
        facts["virtual-size"] = os.path.getsize(folder / name)
    return facts


def _only(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key not in two or two[key] != value}


def _first(one: Path, two: Path) -> int:
    a, b = one.read_bytes(), two.read_bytes()
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_less(ours: list[tuple[Any, ...]], qemus: list[tuple[Any, ...]]) -> bool:
    """Whether ours holds data only where QEMU's does, and less of it."""
    mine, other = ([range(run[0], run[0] + run[1]) for run in runs if run[-1] is True] for runs in (ours, qemus))
    return all(any(one.start >= two.start and one.stop <= two.stop for two in other) for one in mine)


def _map(name: str, folder: Path) -> list[tuple[Any, ...]]:
    """What is allocated where; neighbours that are alike are one run. Where in the file is each one's own choice."""
    done = theirs(["map", "--output=json", f"./{name}"], folder)
    if done.status:
        return [(done.err,)]
    merged: list[list[Any]] = []
    for run in json.loads(done.out):
        kind = [run["depth"], run["present"], run["zero"], run["data"]]
        if merged and merged[-1][2:] == kind:
            merged[-1][1] += run["length"]
        else:
            merged.append([run["start"], run["length"], *kind])
    return [tuple(item) for item in merged]

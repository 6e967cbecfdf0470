"""The tree is the architecture: an import goes to the same folder or to a lower layer, never up.

Every import counts: inside functions, under TYPE_CHECKING, relative or absolute, and `import_module("...")` too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BELOW: dict[str, set[str]] = {
    "base": set(),
    "nbd": {"base"},
    "core": {"base"},
    "luks": {"base", "core"},
    "blockio": {"base", "nbd", "core"},
    "graph": {"base", "nbd", "core", "blockio"},
    "drivers": {"base", "nbd", "core", "luks", "blockio", "graph"},
    "jobs": {"base", "nbd", "core", "blockio", "graph", "drivers"},
    "exports": {"base", "nbd", "core", "blockio", "graph"},
    "api": {"base", "nbd", "core", "luks", "blockio", "graph", "drivers", "jobs", "exports"},
    "bench": {""},
    "tools": {"", "bench"},
}
"""What each layer may use beside itself; drivers and jobs have rules of their own below.

The package's own `__init__`, called "" here, offers the public names: it may use all but what stands on them.
"""
BELOW[""] = {*BELOW, ""} - {"bench", "tools"}

DRIVER_KINDS = {"protocols", "formats", "filters"}

WITHOUT_IO = {"base", "nbd"}
IO_MODULES = {"aiofiles", "asyncio", "concurrent", "select", "selectors", "socket", "subprocess", "threading", "uvloop"}

MAX_LINES = 500
VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}

# Put together here, so that this file does not contain them.
MACHINE_PATHS = ["/" + "work/", "/" + "farm/", ".." + "/shared"]
TEXT_FOLDERS = ["aioblock", "tests", "docs", "examples", "benchmarks", "scripts", ".ci"]
TEXT_SUFFIXES = {"", ".cfg", ".json", ".md", ".py", ".pyi", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def modules(package: Path) -> dict[str, Path]:
    """Each module's name in the package `aioblock`, and its file: {"aioblock.core": .../core/__init__.py, ...}."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [*path.relative_to(package).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(["aioblock", *parts])] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """The (line, full module name) of everything that a module imports.

    `known` are the modules of the package, folders without `__init__` too: they tell `from a import module` from
    `from a import name`.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield node.lineno, full if full in known else origin
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                target = str(first.value)
                dots = len(target) - len(target.lstrip("."))
                start = package[: len(package) - dots + 1] if dots else []
                yield node.lineno, ".".join([*start, *filter(None, [target[dots:]])])
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "aioblock":
            full = f"aioblock.{node.attr}"  # `import aioblock`, then `aioblock.core...`
            if full in known:
                yield node.lineno, full


def driver_of(parts: list[str]) -> list[str] | None:
    """The package of the driver that a module belongs to: ["drivers", kind, name]; None for one that is no driver."""
    return parts[:3] if parts[:1] == ["drivers"] and len(parts) >= 3 else None


def objection(importer: str, target: str) -> str | None:
    """Why a module of the package may not import another module; None if it may."""
    source, wanted = importer.split(".")[1:], target.split(".")
    if wanted[0] != "aioblock":
        if source[:1] and source[0] in WITHOUT_IO and wanted[0] in IO_MODULES:
            return f"{source[0]} does no I/O and knows no event loop"
        return None
    wanted = wanted[1:]
    layer, below = source[0] if source else "", wanted[0] if wanted else ""
    if layer == "__main__":
        layer = "tools"
    if layer not in BELOW:
        return f"{layer} is in no layer"
    if layer in ("bench", "tools"):
        return None if below in (layer, *BELOW[layer]) else f"{layer} uses the public aioblock only"
    if layer == "drivers" and len(source) > 1:
        return _driver_objection(source, wanted)
    if layer == below:
        return None
    if layer == "jobs" and below == "drivers" and wanted[:2] != ["drivers", "filters"]:
        return "of the drivers, jobs use the filters only"
    if below not in BELOW[layer]:
        return f"{layer or 'aioblock'} may not use {below or 'the top of the package'}"
    return None


def _driver_objection(source: list[str], wanted: list[str]) -> str | None:
    if source[1] not in DRIVER_KINDS:
        return f"drivers are in {', '.join(sorted(DRIVER_KINDS))}"
    own = driver_of(source)
    if own is not None and wanted[:3] == own:
        return None
    if wanted[:1] and wanted[0] in ("base", "nbd", "core", "luks"):
        return None
    if wanted[:1] == ["drivers"]:
        return "drivers never import each other"
    return "a driver uses base, nbd, core, luks and its own package"


def violations(package: Path) -> list[str]:
    found = []
    files = modules(package)
    known = {".".join(name.split(".")[:end]) for name in files for end in range(1, name.count(".") + 2)}
    for name, path in files.items():
        for line, target in dict.fromkeys(imports(name, path, known)):
            if reason := objection(name, target):
                found.append(f"{path.relative_to(package.parent)}:{line}: {target}: {reason}")
    return found


def long_files(package: Path) -> list[str]:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package).values()}
    return [f"{path.relative_to(package.parent)}: {n} lines" for path, n in sizes.items() if n > MAX_LINES]


def vague_names(package: Path) -> list[str]:
    return [name for name in modules(package) if any(part.strip("_") in VAGUE_NAMES for part in name.split("."))]


def machine_paths(root: Path) -> list[str]:
    found = []
    for path in [*root.iterdir(), *(path for folder in TEXT_FOLDERS for path in (root / folder).rglob("*"))]:
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name != ".git":  # of a work tree: says where git is
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(root)}: {needle}" for needle in MACHINE_PATHS if needle in text]
    return found


# The package itself


def test_there_is_a_package_to_look_at() -> None:
    assert "aioblock" in modules(ROOT / "aioblock")


def test_imports_go_down_only() -> None:
    assert violations(ROOT / "aioblock") == []


def test_no_file_is_longer_than_a_reader_likes() -> None:
    assert long_files(ROOT / "aioblock") == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert vague_names(ROOT / "aioblock") == []


def test_no_path_of_a_machine() -> None:
    assert machine_paths(ROOT) == []


# The test itself: it must be able to fail


def _tree(root: Path, files: dict[str, str]) -> Path:
    package = root / "aioblock"
    layers = ["", "base", "nbd", "core", "graph", "drivers", "drivers/filters", "drivers/formats", "jobs", "tools"]
    everywhere = {f"{layer}/__init__.py": "" for layer in layers}
    drivers = dict.fromkeys(
        ["drivers/formats/raw.py", "drivers/filters/throttle.py", "core/node.py", "api/__init__.py"], ""
    )
    for name, text in (everywhere | drivers | files).items():
        path = package / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        pytest.param("base/a.py", "import aioblock.core.node", "base may not use core", id="up, absolute"),
        pytest.param("core/a.py", "from ..graph import x", "core may not use graph", id="up, relative"),
        pytest.param("core/__init__.py", "from ..graph import x", "core may not use graph", id="up, from a package"),
        pytest.param("core/a.py", "from .. import graph", "core may not use graph", id="up, module as a name"),
        pytest.param("base/a.py", "def f():\n    from aioblock.core import node", "base may not use core", id="lazy"),
        pytest.param(
            "base/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from aioblock.core.node import Node",
            "base may not use core",
            id="type-only",
        ),
        pytest.param(
            "graph/a.py",
            "import importlib\nimportlib.import_module('aioblock.drivers')",
            "graph may not use drivers",
            id="import_module, absolute",
        ),
        pytest.param(
            "graph/a.py",
            "from importlib import import_module\nimport_module('..drivers.formats', __package__)",
            "graph may not use drivers",
            id="import_module, relative",
        ),
        pytest.param("nbd/a.py", "from aioblock import core", "nbd may not use core", id="nbd uses core"),
        pytest.param("core/a.py", "import aioblock.nbd", "core may not use nbd", id="core uses nbd"),
        pytest.param("base/a.py", "import asyncio", "base does no I/O", id="base with a loop"),
        pytest.param("nbd/a.py", "from asyncio import StreamReader", "nbd does no I/O", id="nbd with a loop"),
        pytest.param("core/a.py", "from aioblock import open", "the top of the package", id="the public names"),
        pytest.param("drivers/formats/qcow2/a.py", "from ..raw import Raw", "each other", id="another driver"),
        pytest.param("drivers/formats/a.py", "from .. import formats", "each other", id="the folder of its kind"),
        pytest.param("drivers/formats/__init__.py", "from . import raw", "each other", id="a kind is no table"),
        pytest.param("drivers/filters/a.py", "from ...blockio import read", "a driver uses base", id="blockio"),
        pytest.param("drivers/filters/a.py", "import aioblock.graph", "a driver uses base", id="graph"),
        pytest.param("drivers/strange/a.py", "import aioblock.base", "drivers are in", id="a kind that is none"),
        pytest.param("drivers/shared.py", "import aioblock.base", "drivers are in", id="a driver of no kind"),
        pytest.param("jobs/a.py", "from aioblock.drivers.formats import raw", "filters only", id="job uses a format"),
        pytest.param("jobs/a.py", "import aioblock.drivers", "filters only", id="job uses the table"),
        pytest.param("jobs/a.py", "import aioblock.exports.nbd", "jobs may not use exports", id="job uses exports"),
        pytest.param("exports/a.py", "import aioblock.jobs", "exports may not use jobs", id="export uses jobs"),
        pytest.param(
            "exports/a.py", "import aioblock.drivers.filters.throttle", "exports may not use drivers", id="export"
        ),
        pytest.param("api/a.py", "from ..tools import img", "api may not use tools", id="api uses tools"),
        pytest.param("__init__.py", "from .tools import img", "aioblock may not use tools", id="top uses tools"),
        pytest.param("tools/img/a.py", "from aioblock.core import node", "the public aioblock only", id="tools go in"),
        pytest.param("tools/img/a.py", "from aioblock import core", "the public aioblock only", id="tools, as a name"),
        pytest.param(
            "tools/img/a.py", "import aioblock\naioblock.core.node.x()", "the public aioblock only", id="tools, by dots"
        ),
        pytest.param("strange/a.py", "import aioblock.base", "strange is in no layer", id="an unknown folder"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str, reason: str) -> None:
    found = violations(_tree(tmp_path, {file: text}))
    assert len(found) == 1
    assert re.match(rf"aioblock/{re.escape(file)}:\d+: ", found[0])
    assert reason in found[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("base/a.py", "import errno, struct\nfrom . import b\nfrom aioblock.base import c"),
        ("core/a.py", "import asyncio\nfrom ..base.errors import BlockError"),
        ("blockio/a.py", "from ..core.node import BlockNode\nfrom .request import Request"),
        ("graph/a.py", "from ..blockio import read\nfrom ..core import node"),
        ("drivers/__init__.py", "from .formats import raw\nfrom aioblock.drivers.filters.throttle import Throttle"),
        ("drivers/formats/qcow2/a.py", "from . import header\nfrom .header import Header\nfrom ....core import node"),
        ("drivers/protocols/nbd.py", "import socket\nfrom ...nbd import uri"),
        ("jobs/a.py", "from ..drivers.filters import throttle\nfrom ..graph import drain\nfrom .job import Job"),
        ("exports/a.py", "from ..nbd import messages\nfrom ..graph import backend"),
        ("api/a.py", "from ..drivers.formats import raw\nfrom ..jobs import job\nfrom ..exports import nbd"),
        ("__init__.py", "from .api import open\nfrom .base.errors import BlockError"),
        ("__main__.py", "from aioblock.tools.img import main"),
        ("tools/img/a.py", "import aioblock\nfrom aioblock import open\nfrom . import info\naioblock.open()"),
    ],
)
def test_an_allowed_import_is_not(tmp_path: Path, file: str, text: str) -> None:
    assert violations(_tree(tmp_path, {file: text})) == []


def test_a_long_file_and_a_vague_name_are_found(tmp_path: Path) -> None:
    package = _tree(tmp_path, {"core/long.py": "x = 1\n" * 501, "core/just.py": "x = 1\n" * 500, "nbd/_utils.py": ""})
    assert long_files(package) == ["aioblock/core/long.py: 501 lines"]
    assert vague_names(package) == ["aioblock.nbd._utils"]


def test_a_path_of_a_machine_is_found(tmp_path: Path) -> None:
    _tree(tmp_path, {"core/a.py": f"# see {MACHINE_PATHS[0]}main", "core/b.py": "# network/x, rework"})
    (tmp_path / "README.md").write_text(MACHINE_PATHS[2], encoding="utf-8")
    assert machine_paths(tmp_path) == [f"README.md: {MACHINE_PATHS[2]}", f"aioblock/core/a.py: {MACHINE_PATHS[0]}"]

"""The qcow2 driver with one rule of its order left out: the proof that the simulator would see it.

Mutants are made from the driver's source as it is, one function at a time, by its syntax tree:

    without     a flush, an `await commit(...)` or an `await write_back(...)` is left out
    swapped     two steps of a function in `ORDERED` change places
    instead     a piece of the source is replaced by another (see `REPLACED`)

Only the code of the function is exchanged, so whoever imported it runs the mutant, and the rest knows nothing of it.
A name says where the mutant is by the source around it, not by a line number, so it lasts as long as that.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import aioblock.drivers.formats.qcow2 as package

__all__ = ["Mutant", "applied", "mutants"]

STEPS = ("flush", "flush_files", "commit", "write_back")
"""What puts an order into writes: methods and functions."""

PURE = frozenset(("check", "checker", "table_check", "create", "info", "status"))
"""Modules that never write to an image that is in use."""

ORDERED = (
    "commit._Commit.run",
    "commit.write_back",
    "bitmap_store._change_flags",
)
"""Functions whose statements are the steps of an order."""


@dataclass(frozen=True)
class Mutant:
    """A function of the driver, and its code with a rule left out."""

    name: str
    function: FunctionType
    code: CodeType


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The driver is the mutant inside."""
    before = mutant.function.__code__
    mutant.function.__code__ = mutant.code
    try:
        yield
    finally:
        mutant.function.__code__ = before


def mutants() -> dict[str, Mutant]:
    """All mutants of the driver as it is, by their names."""
    found: dict[str, Mutant] = {}
    for place in _functions():
        for name, node in (*_without(place), *_swapped(place), *_instead(place)):
            full = f"{place.name}: {name}"
            number = 2
            while full in found:
                full = f"{place.name}: {name} ({number})"
                number += 1
            found[full] = Mutant(full, place.function, place.compiled(node))
    missing = {name for name, *_ in REPLACED} - {name.split(": ")[0] for name in found}
    if missing:
        raise LookupError(f"REPLACED names functions that are not there: {sorted(missing)}")
    return found


# -- the functions of the driver -------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class _Place:
    """A function in the source, and as it runs."""

    module: ModuleType
    owner: str
    """The name of its class, or ""."""
    node: Function
    function: FunctionType

    @property
    def name(self) -> str:
        short = self.module.__name__.rpartition(".")[2]
        return ".".join(part for part in (short, self.owner, self.node.name) if part)

    def compiled(self, node: Function) -> CodeType:
        """The code of a changed function."""
        node.decorator_list = []
        body: ast.stmt = node
        if self.owner:  # a class around it: private names, and super()
            body = ast.ClassDef(self.owner, [], [], [node], [])
        tree = ast.fix_missing_locations(ast.Module([body], []))
        made: dict[str, Any] = {}
        exec(compile(tree, self.module.__file__ or "", "exec", dont_inherit=True), self.module.__dict__, made)
        found = made[self.owner].__dict__[node.name] if self.owner else made[node.name]
        code: CodeType = found.__code__
        return code


def _functions() -> Iterator[_Place]:
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in PURE:
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, Function):
                yield from _place(module, "", node, module.__dict__)
            elif isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function):
                        yield from _place(module, node.name, inner, module.__dict__[node.name].__dict__)


def _place(module: ModuleType, owner: str, node: Function, names: Any) -> Iterator[_Place]:
    found = names[node.name]
    found = getattr(found, "__func__", found)  # a class method
    found = getattr(found, "__wrapped__", found)
    if isinstance(found, FunctionType) and not found.__code__.co_freevars:
        yield _Place(module, owner, node, found)


# -- what is left out ------------------------------------------------------------------------------------------------


def _is_step(statement: ast.stmt) -> str:
    """The name of the step, if the statement is nothing else."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Await):
        call = statement.value.value
        if isinstance(call, ast.Call):
            called = call.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            return name if name in STEPS else ""
    return ""


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements in a function, always in the same order."""
    for child in ast.walk(node):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(child, field, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def _shown(statement: ast.stmt) -> str:
    text = ast.unparse(statement).splitlines()[0]
    return text if len(text) <= 60 else text[:57] + "..."


def _without(place: _Place) -> Iterator[tuple[str, Function]]:
    # `while crowded: commit` bounds memory
    waiting = [node.body for node in ast.walk(place.node) if isinstance(node, ast.While) and len(node.body) == 1]
    for which, block in enumerate(_blocks(place.node)):
        for at, statement in enumerate(block):
            again = at + 1 < len(block) and isinstance(block[at + 1], ast.Continue)  # it would never end
            if (step := _is_step(statement)) and block not in waiting and not again:
                changed = deepcopy(place.node)
                list(_blocks(changed))[which][at] = ast.Pass()
                where = f"before `{_shown(block[at + 1])}`" if at + 1 < len(block) else "at the end"
                if at + 1 == len(block) and at:
                    where = f"after `{_shown(block[at - 1])}`"
                yield f"without {step} {where}", changed


def _swapped(place: _Place) -> Iterator[tuple[str, Function]]:
    if place.name not in ORDERED:
        return
    for which, block in enumerate(_blocks(place.node)):
        for at in range(len(block) - 1):
            one, other = block[at : at + 2]
            if all(any(isinstance(node, ast.Await) for node in ast.walk(each)) for each in (one, other)) and not (
                _is_step(one) or _is_step(other)
            ):
                changed = deepcopy(place.node)
                inside = list(_blocks(changed))[which]
                inside[at : at + 2] = inside[at : at + 2][::-1]
                yield f"`{_shown(one)}` after `{_shown(other)}`", changed


_AT_ONCE = """for cluster in range(first, first + count):
        block = self.refcounts.blocks.get(cluster >> self.refcounts.shift)
        if block is None:
            frees.append(Free(cluster, 1, discard))
        else:
            block.entries[cluster & self.refcounts.mask] -= 1
            self.refcounts._changed(block, cluster & self.refcounts.mask, (cluster & self.refcounts.mask) + 1)
            self.refcounts.hint = min(self.refcounts.hint, cluster)"""

REPLACED: list[tuple[str, str, str, str]] = [
    (
        "image.Image.release",
        "what lost its reference is free at once",
        "frees.append(Free(first, count, discard))",
        _AT_ONCE,
    ),
    (
        "write.write",
        "with lazy refcounts, new tables are not counted first",
        "image.options.lazy_refcounts and table.index in image.l1_dirty",
        "False",
    ),
    ("compressed_write.Packer._place", "a shared cluster is not counted", "refcounts.count_up(shared)", "True"),
]
"""Function, what is wrong then, a piece of its source (as `ast.unparse` writes it), and what stands there instead."""


def _instead(place: _Place) -> Iterator[tuple[str, Function]]:
    for name, what, piece, other in REPLACED:
        if name == place.name:
            source = ast.unparse(place.node)
            if source.count(piece) != 1:
                raise LookupError(f"{name} has `{piece}` {source.count(piece)} times")
            (changed,) = ast.parse(source.replace(piece, other)).body
            assert isinstance(changed, Function)
            yield what, changed

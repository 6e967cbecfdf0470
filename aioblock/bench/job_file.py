"""Jobs from TOML: a table `[[job]]` for each, and `[defaults]` for what is the same in all."""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from typing import Any

from aioblock import OptionError, parse_size

from .job import Job

__all__ = ["load_jobs", "parse_jobs", "parse_mix", "parse_sizes"]

_KEYS = tuple(item.name for item in dataclasses.fields(Job) if item.name != "objects")

_KINDS: dict[str, tuple[type, ...]] = {
    "image": (str, dict),
    "options": (dict,),
    "mix": (dict,),
    "shared": (bool,),
    "force_share": (bool,),
    "verify": (bool,),
    **dict.fromkeys(("name", "format", "cache", "aio", "trust", "pattern", "arrivals"), (str,)),
    **dict.fromkeys(("clients", "depth", "count", "seed"), (int,)),
    **dict.fromkeys(("theta", "rate", "warmup", "seconds"), (int, float)),
}
"""What TOML has to have for a key; sizes are read by `_size`."""

_SAID = {str: "text", dict: "a table", bool: "true or false", int: "a whole number", float: "a number"}


def load_jobs(path: str | os.PathLike[str], *, image: str | None = None) -> list[Job]:
    """The jobs in a file; relative names of images count from the current directory, as everywhere.

    `image`: that of the jobs that name none. Raises: OSError; OptionError with the file, the job and the key.
    """
    with open(path, encoding="utf-8") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise OptionError(f"{os.fspath(path)}: {error}", filename=os.fspath(path)) from None
    return parse_jobs(text, source=os.fspath(path), image=image)


def parse_jobs(text: str, *, source: str = "jobs", image: str | None = None) -> list[Job]:
    """The jobs in a text, which messages call `source`. Raises: as `load_jobs`, apart from OSError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{source}: {error}", filename=source) from None
    if unknown := sorted(document.keys() - {"defaults", "job"}):
        raise OptionError(f"{source}: {unknown[0]}: there are only [defaults] and [[job]] here", option=unknown[0])
    defaults, tables = document.get("defaults", {}), document.get("job", [])
    if not isinstance(defaults, dict):
        raise OptionError(f"{source}: defaults: has to be a table: [defaults]", option="defaults")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise OptionError(f"{source}: job: at least one table is needed, with two brackets: [[job]]", option="job")
    jobs = []
    for number, table in enumerate(tables, 1):
        where = f"{source}: job {number}" + (f" ({table['name']!r})" if table.get("name") else "")
        jobs.append(_job(where, defaults | table, image))
    return jobs


def _job(where: str, table: Mapping[str, Any], image: str | None) -> Job:
    given = dict(table) if image is None else {"image": image} | dict(table)
    try:
        values = {key: value for name, item in given.items() for key, value in [_value(name, item)]}
        if "size" in given and "sizes" in given:
            raise OptionError("size: there is 'sizes' too; say one of them", option="size")
        if "image" not in values:
            raise OptionError("image: is missing", option="image")
        return Job(**values)
    except OptionError as error:
        raise OptionError(f"{where}: {error.message}", option=error.option) from None


def _value(key: str, value: Any) -> tuple[str, Any]:
    """The field of a job and its value. Raises: OptionError with the key."""
    if key in ("offset", "length"):
        return key, _size(key, value)
    if key == "size":
        return "sizes", {_size(key, value): 1.0}
    if key == "sizes":
        if isinstance(value, str):
            return key, parse_sizes(value)
        if not isinstance(value, dict):
            raise OptionError("sizes: has to be a table of sizes and weights, as { 4k = 3, 64k = 1 }", option=key)
        return key, {_size(f"sizes.{name}", name): weight for name, weight in value.items()}
    if key not in _KEYS:
        raise OptionError(f"{key}: is not known; there are size, {', '.join(_KEYS)}", option=key)
    kinds = _KINDS[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise OptionError(f"{key}: {value!r} is not {' or '.join(_SAID[kind] for kind in kinds)}", option=key)
    return key, value


def _size(key: str, value: Any) -> int:
    """Bytes, of a number or of text such as "64k"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise OptionError(f"{key}: {value!r} is not a size", option=key)
    try:
        return parse_size(value)
    except OptionError as error:
        raise OptionError(f"{key}: {error.message} (a number of bytes, or one as '64k')", option=key) from None


def parse_sizes(text: str) -> dict[int, float]:
    """Sizes with weights, as in "4k=3,64k=1"; without a weight it is 1. Raises: OptionError."""
    found: dict[int, float] = {}
    for part in text.split(","):
        size, _, weight = part.partition("=")
        found[_size("sizes", size)] = _weight("sizes", weight)
    return found


def parse_mix(text: str) -> dict[str, float]:
    """Kinds of requests with weights, as in "read=70,write=30". Raises: OptionError."""
    return {kind: _weight("mix", weight) for kind, _, weight in (part.partition("=") for part in text.split(","))}


def _weight(key: str, text: str) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        raise OptionError(f"{key}: {text!r} is not a weight: a number", option=key) from None

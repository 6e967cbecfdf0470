"""Options of nodes: the forms people write them in, and a reader that knows what was not used.

Forms, all of QEMU's programs: `key=value,key.sub=value` (a comma in a value is doubled), dotted keys, and
`json:{...}`. Inside they are one thing, a nested dict: {"driver": "qcow2", "file": {"driver": "file", ...}}.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from aioblock.base.errors import OptionError
from aioblock.base.units import parse_size

__all__ = ["Options", "flatten", "nest", "overlaid", "parse_json_name", "parse_keyval"]

_T = TypeVar("_T")
_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)", re.ASCII)
_BOOLEANS = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}


def parse_keyval(text: str, *, implied: str | None = None) -> dict[str, str]:
    """`a=b,c.d=e` as a flat dict in order; `,,` is a comma in a value. A first word without `=` is `implied`'s value.

    Raises: OptionError.
    """
    found: dict[str, str] = {}
    parts: list[str] = []
    for piece in text.replace(",,", "\0").split(","):
        parts.append(piece.replace("\0", ","))
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if not equals:
            if number == 0 and implied is not None:
                key, value = implied, part
            elif not part:
                continue
            elif part.startswith("no") and len(part) > 2:
                key, value = part[2:], "off"
            else:
                key, value = part, "on"
        if not key:
            raise OptionError(f"Invalid parameter '{part}'")
        found[key] = value
    return found


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dicts; a dict whose keys are 0, 1, 2 ... becomes a list. Raises: OptionError on a clash."""
    root: dict[str, Any] = {}
    for key, value in flatten(flat).items():
        *path, last = key.split(".")
        place = root
        for step in path:
            inner = place.setdefault(step, {})
            if not isinstance(inner, dict):
                raise OptionError(f"Cannot mix scalar and non-scalar keys at '{step}'", option=key)
            place = inner
        if isinstance(place.get(last), dict):
            raise OptionError(f"Cannot mix scalar and non-scalar keys at '{last}'", option=key)
        place[last] = value
    return {key: _listed(value) for key, value in root.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(item) for key, item in value.items()}
    numbers = [str(number) for number in range(len(inner))]
    return [inner[number] for number in numbers] if inner and inner.keys() == set(numbers) else inner


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The reverse of `nest`. An empty dict or list is no option, and is left out."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, list):
            flat.update(flatten({str(number): item for number, item in enumerate(value)}, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options with others laid over them: what `over` names takes its place, dicts on both sides are merged."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = overlaid(below, value) if both else value  # type: ignore[arg-type]
    return merged


_QUOTED = r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""


def parse_json_name(name: str) -> dict[str, Any]:
    """The options in a name of the form `json:{...}`; strings may stand in single quotes, as QEMU lets them.

    Raises: OptionError.
    """
    import json  # here, because hardly any name is of this form
    import re

    def double(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == '"':
            return text
        changed = {"\\'": "'", '"': '\\"'}
        return '"' + re.sub(r'(?s)\\.|"', lambda found: changed.get(found[0], found[0]), text[1:-1]) + '"'

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    text = name.removeprefix("json:")
    try:
        found = json.loads(re.sub(_QUOTED, double, text), object_pairs_hook=once)
        if not isinstance(found, dict):
            raise OptionError("Invalid JSON object given")
        return nest(found)
    except (ValueError, RecursionError):
        from aioblock.base.json_fault import json_fault

        fault = json_fault(text)
        raise OptionError(f"Could not parse the JSON options{fault and ': '}{fault}") from None


class Options:
    """Reads options by name and type, and remembers which were not asked for.

    Values may be of their own type (from Python or JSON) or strings (from a command line). `take_*` removes the option.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"Options({self._values!r})"

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def peek(self, name: str) -> Any:
        """The value of an option as it stands, or None; it stays."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Set an option."""
        self._values[name] = value

    def take(self, name: str, default: Any = None) -> Any:
        """The value of an option as it stands."""
        return self._values.pop(name, default)

    def take_str(self, name: str, default: _T = None) -> str | _T:  # type: ignore[assignment]
        """A string. Raises: OptionError."""
        value = self._values.pop(name, default)
        if value is not default and not isinstance(value, str):
            raise OptionError(f"Parameter '{name}' expects a string", option=name)
        return value

    def take_bool(self, name: str, default: _T = False) -> bool | _T:  # type: ignore[assignment]
        """A boolean; on, off, yes, no, true, false as strings. Raises: OptionError."""
        value = self._values.pop(name, default)
        if isinstance(value, bool) or value is default:
            return value
        if isinstance(value, str) and value in _BOOLEANS:
            return _BOOLEANS[value]
        raise OptionError(f"Parameter '{name}' expects 'on' or 'off'", option=name)

    def take_size(self, name: str, default: _T = None) -> int | _T:  # type: ignore[assignment]
        """A size in bytes, as a number or with a suffix. Raises: OptionError."""
        value = self._values.pop(name, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63):
            return value
        try:
            return parse_size(str(value))
        except OptionError:
            raise OptionError(f"Parameter '{name}' expects a non-negative number below 2^64", option=name) from None

    def take_int(self, name: str, default: _T = None) -> int | _T:  # type: ignore[assignment]
        """A whole number. Raises: OptionError."""
        value = self._values.pop(name, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        try:
            if not _NUMBER.fullmatch(str(value)):
                raise ValueError
            return int(str(value), 0)
        except ValueError:
            raise OptionError(f"Parameter '{name}' expects a number", option=name) from None

    def take_choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """One of the given words. Raises: OptionError."""
        value = self._values.pop(name, default)
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value not in choices:
            raise OptionError(f"invalid parameter value: {value}", option=name)
        return str(value)

    def leftover(self) -> list[str]:
        """The names of the options that nobody took, dotted."""
        return sorted(flatten(self._values))

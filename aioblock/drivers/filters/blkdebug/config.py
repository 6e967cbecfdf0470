"""How rules are written: sections of a file, or options `inject-error.0.event=...`, which mean the same.

A file is made of lines `[inject-error]` and `key = "value"`, empty ones, and comments that begin with `#`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aioblock.base.errors import OptionError
from aioblock.base.options import Options
from aioblock.drivers.filters.blkdebug.events import EVENTS, IO_TYPES
from aioblock.drivers.filters.blkdebug.rules import InjectError, Rule, SetState

__all__ = ["check_event", "parse_config", "take_rules"]

_SECTIONS: Final = ("inject-error", "set-state")
_GROUP: Final = re.compile(r'\s*\[([^\s"\]]+)(?:\s+"[^"]*")?\]')
_ENTRY: Final = re.compile(r'\s*(\S+)\s+=\s*"([^"]*)"')


def check_event(name: str) -> str:
    """The name of an event. Raises: OptionError where there is no such event."""
    if name not in EVENTS:
        raise OptionError(f"invalid parameter value: {name}", option="event")
    return name


def parse_config(text: str) -> list[Rule]:
    """The rules in a config file. Raises: OptionError."""
    found: dict[str, list[dict[str, Any]]] = {section: [] for section in _SECTIONS}
    section: dict[str, Any] | None = None
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if group := _GROUP.match(line):
            if group[1] not in found:
                raise OptionError(f"There is no option group '{group[1]}'")
            section = {}
            found[group[1]].append(section)
        elif section is None:
            raise OptionError("no group defined")
        elif entry := _ENTRY.match(line):
            section[entry[1]] = entry[2]
        else:
            raise OptionError(f"Invalid parameter '{line.split()[0]}'")
    return [
        _rule(name, Options(values), lambda left, _: f"Invalid parameter '{left}'")
        for name, sections in found.items()
        for values in sections
    ]


def take_rules(options: Options) -> list[Rule]:
    """The rules in the options of the driver, taken out of them. Raises: OptionError."""
    return [
        _rule(section, Options(values), lambda left, name: f"[{name}] section doesn't support the option '{left}'")
        for section in _SECTIONS
        for values in _numbered(options, section)
    ]


def _numbered(options: Options, section: str) -> Iterator[Mapping[str, Any]]:
    described = options.take(section, [])
    if isinstance(described, Mapping):  # the numbers have a gap
        count = 0
        while str(count) in described:
            count += 1
        unused = next(
            key for key in Options(described).leftover() if key.partition(".")[0] not in map(str, range(count))
        )
        raise OptionError(f"Unused option '{unused}' for [{section}]", option=section)
    if not isinstance(described, list) or not all(isinstance(values, Mapping) for values in described):
        raise OptionError(f"Parameter '{section}' expects a list of rules", option=section)
    yield from described


def _rule(section: str, values: Options, unknown: Any) -> Rule:
    """One rule from its values; `unknown` makes the message for a value that nobody knows."""
    rule: Rule
    event = values.take_str("event", None)
    state = values.take_int("state", 0)
    if section == "set-state":
        rule = SetState("", state, values.take_int("new_state", 0))
    else:
        iotype = values.take_str("iotype", None)
        rule = InjectError(
            "",
            state,
            errno=values.take_int("errno", 5),
            sector=values.take_int("sector", -1),
            once=values.take_bool("once"),
            immediately=values.take_bool("immediately"),
            iotype=iotype,
        )
        if iotype is not None and iotype not in IO_TYPES:
            raise OptionError(f"invalid parameter value: {iotype}", option="iotype")
    if left := values.leftover():
        raise OptionError(unknown(left[0], section), option=left[0])
    if event is None:
        raise OptionError("Missing event name for rule", option="event")
    rule.event = check_event(event)
    return rule

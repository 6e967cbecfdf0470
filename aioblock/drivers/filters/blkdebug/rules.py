"""The rules of one filter: which requests fail, in what state, and who stops where. No I/O, nothing suspends.

At an event all its rules are looked at in the state that was before it, the last one first:

- `InjectError`: becomes *active*, and those that earlier events made active end. A request fails by the first active
  rule that it matches. So a rule works from its event until another event has one, or until it has worked `once`.
- `SetState`: sets the state; of several the first one counts.
- `Break`: the request that came to the event is suspended, and the breakpoint is used up.
"""

from dataclasses import dataclass
from typing import Final

from aioblock.drivers.filters.blkdebug.events import IO_TYPES, NONE

__all__ = ["Break", "InjectError", "Rule", "Rules", "SetState"]

_SECTOR: Final = 512
_BY_DEFAULT: Final = frozenset(IO_TYPES) - {"block-status"}


@dataclass(eq=False, slots=True)
class Rule:
    """What happens at an event."""

    event: str
    state: int = 0
    """The state it is for; 0: every one."""


@dataclass(eq=False, slots=True)
class InjectError(Rule):
    """Requests fail from the event on."""

    errno: int = 5
    sector: int = -1
    """The 512-byte sector that a request must touch; -1: any, or none at all."""
    once: bool = False
    immediately: bool = False
    """The request fails without giving other tasks their turn before."""
    iotype: str | None = None

    def matches(self, iotype: str, offset: int, nbytes: int) -> bool:
        """Whether the rule is about a request."""
        about = iotype in _BY_DEFAULT if self.iotype is None else iotype == self.iotype
        return about and (self.sector < 0 or offset <= self.sector * _SECTOR < offset + nbytes)


@dataclass(eq=False, slots=True)
class SetState(Rule):
    """The state changes behind the event."""

    new_state: int = 0


@dataclass(eq=False, slots=True)
class Break(Rule):
    """The next request that comes to the event is suspended."""

    tag: str = ""


class Rules:
    """All rules, those that are active, and the state, which begins as 1."""

    def __init__(self, rules: list[Rule]) -> None:
        self.state = 1
        self.active: list[InjectError] = []
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self.add(rule)
        self.trigger(NONE)

    def __repr__(self) -> str:
        count = sum(map(len, self._rules.values()))
        return f"<Rules {count} state={self.state} active={len(self.active)}>"

    def add(self, rule: Rule) -> None:
        """One more rule, behind the others of its event."""
        self._rules.setdefault(rule.event, []).append(rule)

    def trigger(self, event: str) -> list[str]:
        """An event: the tags of the breakpoints that hold whoever came to it."""
        rules = self._rules.get(event)
        if not rules:
            return []
        due = [rule for rule in reversed(rules) if rule.state in (0, self.state)]
        if injected := [rule for rule in due if isinstance(rule, InjectError)]:
            self.active = injected[::-1]
        breaks = [rule for rule in due if isinstance(rule, Break)]
        states = [rule.new_state for rule in due if isinstance(rule, SetState)]
        self._rules[event] = [rule for rule in rules if rule not in breaks]
        if states:
            self.state = states[-1]
        return [rule.tag for rule in breaks]

    def failure(self, iotype: str, offset: int, nbytes: int) -> InjectError | None:
        """The rule by which a request fails, if any; one that works once is gone with that."""
        rule = next((rule for rule in self.active if rule.matches(iotype, offset, nbytes)), None)
        if rule is not None and rule.once:
            self.active.remove(rule)
            self._rules[rule.event].remove(rule)
        return rule

    def remove_breaks(self, tag: str) -> int:
        """Take the breakpoints of a tag away; how many there were."""
        found = 0
        for rules in self._rules.values():
            for rule in [rule for rule in rules if isinstance(rule, Break) and rule.tag == tag]:
                rules.remove(rule)
                found += 1
        return found

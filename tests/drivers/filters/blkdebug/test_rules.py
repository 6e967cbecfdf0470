"""The engine alone: states, active rules, breakpoints."""

import random

import pytest

from aioblock.drivers.filters.blkdebug.events import EVENTS, IO_TYPES
from aioblock.drivers.filters.blkdebug.rules import Break, InjectError, Rule, Rules, SetState


def test_a_rule_works_from_its_event_on() -> None:
    rules = Rules([InjectError("pwritev", errno=28)])
    assert rules.failure("read", 0, 512) is None
    assert rules.trigger("pwritev") == []
    for _ in range(3):
        failed = rules.failure("read", 0, 512)
        assert failed is not None
        assert failed.errno == 28


def test_none_happens_at_once_and_once_is_for_good() -> None:
    rules = Rules([InjectError("none", once=True)])
    assert rules.failure("read", 0, 512) is not None
    assert rules.failure("read", 0, 512) is None
    rules.trigger("none")
    assert rules.failure("read", 0, 512) is None


def test_the_rules_of_a_later_event_take_the_place_of_those_before() -> None:
    rules = Rules([InjectError("pwritev", sector=0), InjectError("pwritev_zero", sector=8)])
    rules.trigger("pwritev")
    rules.trigger("l2_load")
    assert rules.failure("read", 0, 512) is not None
    rules.trigger("pwritev_zero")
    assert rules.failure("read", 0, 512) is None
    assert rules.failure("read", 4096, 512) is not None


@pytest.mark.parametrize(
    ("sector", "offset", "nbytes", "fails"),
    [
        (-1, 0, 0, True),
        (0, 0, 0, False),
        (1, 0, 512, False),
        (1, 0, 513, True),
        (1, 512, 1, True),
        (1, 513, 511, False),
        (1, 1024, 512, False),
    ],
)
def test_a_sector_must_begin_in_the_request(sector: int, offset: int, nbytes: int, fails: bool) -> None:
    assert InjectError("none", sector=sector).matches("read", offset, nbytes) is fails


def test_kinds_of_requests() -> None:
    everything = InjectError("none")
    assert [kind for kind in IO_TYPES if everything.matches(kind, 0, 1)] == [
        "read",
        "write",
        "write-zeroes",
        "discard",
        "flush",
    ]
    for kind in IO_TYPES:
        only = InjectError("none", iotype=kind)
        assert [other for other in IO_TYPES if only.matches(other, 0, 1)] == [kind]


def test_all_rules_of_an_event_see_the_state_before_it_and_the_first_new_state_counts() -> None:
    rules = Rules(
        [
            SetState("pwritev", state=1, new_state=2),
            SetState("pwritev", state=2, new_state=3),
            SetState("pwritev", state=2, new_state=4),
            InjectError("pwritev", state=2),
        ]
    )
    assert rules.state == 1
    rules.trigger("pwritev")
    assert (rules.state, rules.failure("write", 0, 1)) == (2, None)
    rules.trigger("pwritev")
    assert rules.state == 3
    assert rules.failure("write", 0, 1) is not None


def test_of_two_rules_the_first_one_fails_the_request() -> None:
    rules = Rules([InjectError("pwritev", errno=5, once=True), InjectError("pwritev", errno=28, once=True)])
    errors = []
    for _ in range(3):
        rules.trigger("pwritev")
        failed = rules.failure("write", 0, 1)
        errors.append(failed.errno if failed else 0)
    assert errors == [5, 28, 0]


def test_breakpoints_are_used_up_the_last_one_first() -> None:
    rules = Rules([])
    for tag in "ABA":
        rules.add(Break("pwritev", tag=tag))
    rules.add(Break("l2_load", tag="B"))
    assert rules.trigger("pwritev") == ["A", "B", "A"]
    assert rules.trigger("pwritev") == []
    assert rules.remove_breaks("B") == 1
    assert rules.remove_breaks("B") == 0
    assert rules.trigger("l2_load") == []


class _Plain:
    """The same rules, kept as a plain list."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules, self.active, self.state = list(rules), list[InjectError](), 1

    def trigger(self, event: str) -> None:
        mine = [rule for rule in self.rules if rule.event == event and rule.state in (0, self.state)]
        injected = [rule for rule in mine if isinstance(rule, InjectError)]
        self.active = injected or self.active
        for rule in mine:
            if isinstance(rule, SetState):
                self.state = rule.new_state
                break

    def failure(self, iotype: str, offset: int, nbytes: int) -> InjectError | None:
        for rule in self.active:
            if rule.matches(iotype, offset, nbytes):
                if rule.once:
                    self.rules.remove(rule)
                    self.active = [other for other in self.active if other is not rule]
                return rule
        return None


@pytest.mark.parametrize("seed", range(20))
def test_against_a_plain_model(seed: int) -> None:
    rng = random.Random(seed)
    events = rng.sample(sorted(EVENTS - {"none"}), 3)
    made: list[Rule] = []
    for _ in range(rng.randrange(1, 8)):
        event, state = rng.choice(events), rng.choice([0, 0, 1, 2, 3])
        if rng.random() < 0.4:
            made.append(SetState(event, state, rng.randrange(1, 4)))
        else:
            kind = rng.choice([None, "read", "write"])
            made.append(InjectError(event, state, sector=rng.choice([-1, 0, 1]), once=rng.random() < 0.5, iotype=kind))
    ours, plain = Rules(made), _Plain(made)
    for _ in range(200):
        if rng.random() < 0.5:
            event = rng.choice(events)
            ours.trigger(event)
            plain.trigger(event)
            assert ours.state == plain.state
        else:
            request = rng.choice(["read", "write", "flush"]), rng.choice([0, 512]), rng.choice([0, 512, 1024])
            assert ours.failure(*request) is plain.failure(*request)

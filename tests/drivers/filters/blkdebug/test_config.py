"""How rules are written down, in a file and as options."""

import pytest

from aioblock.base.errors import OptionError
from aioblock.base.options import Options, nest
from aioblock.drivers.filters.blkdebug.config import parse_config, take_rules
from aioblock.drivers.filters.blkdebug.rules import InjectError, Rule, SetState

TEXT = """
# what a script writes
[inject-error]
event = "l2_load"
errno = "28"
once ="on"
sector = "0x10"
iotype = "read"
immediately = "off"
state = "2"

[set-state]
    event  =  "pwritev"
new_state = "2"
[inject-error]
event = "none"
"""


def fields(rules: list[Rule]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for rule in rules:
        if isinstance(rule, InjectError):
            found.append((rule.event, rule.state, rule.errno, rule.sector, rule.once, rule.immediately, rule.iotype))
        elif isinstance(rule, SetState):
            found.append((rule.event, rule.state, rule.new_state))
    return found


EXPECTED = [("l2_load", 2, 28, 16, True, False, "read"), ("none", 0, 5, -1, False, False, None), ("pwritev", 0, 2)]


def test_a_file() -> None:
    assert fields(parse_config(TEXT)) == EXPECTED


def test_the_same_as_options() -> None:
    flat = {
        "inject-error.0.event": "l2_load",
        "inject-error.0.errno": "28",
        "inject-error.0.once": True,
        "inject-error.0.sector": 16,
        "inject-error.0.iotype": "read",
        "inject-error.0.state": 2,
        "inject-error.1.event": "none",
        "set-state.0.event": "pwritev",
        "set-state.0.new_state": "2",
        "align": "512",
    }
    options = Options(nest(flat))
    assert fields(take_rules(options)) == EXPECTED
    assert options.leftover() == ["align"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('event = "none"\n', "no group defined"),
        ('[suspend]\nevent = "none"\n', "There is no option group 'suspend'"),
        ('[inject-error]\nerrno = "5"\n', "Missing event name for rule"),
        ('[inject-error]\nevent="none"\n', "Invalid parameter 'event=\"none\"'"),
        ("[inject-error]\nevent\n", "Invalid parameter 'event'"),
        ('[inject-error]\nevent = "none"\nnew_state = "2"\n', "Invalid parameter 'new_state'"),
        ('[set-state]\nevent = "none"\nerrno = "2"\n', "Invalid parameter 'errno'"),
        ('[inject-error]\nevent = "never"\n', "invalid parameter value: never"),
        ('[inject-error]\nevent = "none"\niotype = "x"\n', "invalid parameter value: x"),
        ('[inject-error]\nevent = "none"\nerrno = "EIO"\n', "Parameter 'errno' expects a number"),
        ('[inject-error]\nevent = "none"\nonce = "1"\n', "Parameter 'once' expects 'on' or 'off'"),
    ],
)
def test_what_a_file_may_not_say(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_config(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"inject-error.1.event": "none"}, "Unused option '1.event' for [inject-error]"),
        (
            {"inject-error.0.foo": "x", "inject-error.0.event": "none"},
            "[inject-error] section doesn't support the option 'foo'",
        ),
        ({"inject-error": "x"}, "Parameter 'inject-error' expects a list of rules"),
        ({"set-state.0": "x"}, "Parameter 'set-state' expects a list of rules"),
    ],
)
def test_what_options_may_not_say(flat: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        take_rules(Options(nest(flat)))
    assert str(caught.value) == message

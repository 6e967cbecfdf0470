"""Who may come in."""

from typing import Any

import pytest

from aioblock.base.errors import OptionError
from aioblock.core.authorization import Authorization, distinguished_name
from aioblock.graph.objects import make_object


def _made(definition: str | dict[str, Any]) -> Authorization:
    made = make_object(definition, {})[1]
    assert isinstance(made, Authorization)
    return made


def test_simple() -> None:
    allowed = _made("authz-simple,id=a,identity=CN=one,,O=x")
    assert allowed.allows("CN=one,O=x")
    assert not allowed.allows("CN=one")
    with pytest.raises(OptionError, match="Parameter 'identity' is missing"):
        _made("authz-simple,id=a")


def test_list() -> None:
    rules = [
        {"match": "CN=bad,O=x", "policy": "deny"},
        {"match": "*,O=x", "policy": "allow", "format": "glob"},
    ]
    allowed = _made({"qom-type": "authz-list", "id": "a", "rules": rules})
    assert allowed.allows("CN=one,O=x")
    assert not allowed.allows("CN=bad,O=x")
    assert not allowed.allows("CN=one,O=y")
    assert _made("authz-list,id=a,policy=allow,rules.0.match=x,rules.0.policy=deny").allows("y")
    assert not _made("authz-list,id=a").allows("y")


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("authz-list,id=a,policy=maybe", "Parameter 'policy' does not accept value 'maybe'"),
        ("authz-list,id=a,rules=x", "expected: array"),
        ("authz-list,id=a,rules.0.policy=deny", "Parameter 'match' is missing"),
        ("authz-list,id=a,rules.0.match=x", "Parameter 'policy' is missing"),
        ("authz-list,id=a,rules.0.match=x,rules.0.policy=deny,rules.0.to=y", "Parameter 'to' is unexpected"),
    ],
)
def test_wrong_lists(definition: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _made(definition)


def test_names_have_the_last_part_first() -> None:
    subject = ((("countryName", "GB"),), (("organizationName", "a, b"),), (("commonName", "#x "),))
    assert distinguished_name({"subject": subject}) == "CN=\\#x\\ ,O=a\\, b,C=GB"
    assert distinguished_name({}) == ""

"""Definitions of named objects, in the forms and with the words of QEMU's `--object`."""

from typing import Any

import pytest

from aioblock.base.errors import OptionError
from aioblock.core.objects import NamedObject
from aioblock.core.secrets import Secret
from aioblock.graph.objects import OBJECT_TYPES, make_object
from tests.kit import oracle


@pytest.mark.parametrize(
    "definition",
    [
        "secret,id=sec0,data=a,,b",
        "qom-type=secret,id=sec0,data=a,,b",
        '{"qom-type": "secret", "id": "sec0", "data": "a,b"}',
        {"qom-type": "secret", "id": "sec0", "data": "a,b"},
    ],
)
def test_forms(definition: str | dict[str, Any]) -> None:
    id, made = make_object(definition, {})
    assert id == made.id == "sec0"
    assert isinstance(made, Secret)
    assert made.data == b"a,b"


WRONG = [
    ("id=x", "Parameter 'qom-type' is missing"),
    ("secret", "Parameter 'id' is missing"),
    ("secret,data=x", "Parameter 'id' is missing"),
    ("foo,id=x", "Parameter 'qom-type' does not accept value 'foo'"),
    (
        "secret,id=9,data=x",
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    ),
    ("secret,id=s,data", "Expected '=' after parameter 'data'"),
    ("secret,id=s,data=x,foo=bar", "Parameter 'foo' is unexpected"),
    ("secret,id=s", "Either 'file' or 'data' must be provided"),
    ("secret,id=s,data=a,file=b", "'file' and 'data' are mutually exclusive"),
    ("secret,id=s,data=x,format=foo", "Parameter 'format' does not accept value 'foo'"),
    ("secret,id=s,data=x,keyid=none,iv=AAAA", "No secret with id 'none'"),
    ("secret,id=s,data=eA =,format=base64", "Base64 data contains invalid characters"),
]


@pytest.mark.parametrize(("definition", "message"), WRONG)
def test_wrong_ones(definition: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_object(definition, {})
    assert str(caught.value) == message


@pytest.mark.oracle
@pytest.mark.parametrize(("definition", "message"), WRONG)
def test_wrong_ones_as_qemu_calls_them(definition: str, message: str) -> None:
    done = oracle.qemu_img("info", "--object", definition, "/dev/null", check=False)
    assert done.returncode == 1
    assert done.stderr == f"qemu-img: {message}\n"


def test_json_that_is_none() -> None:
    with pytest.raises(OptionError, match="JSON parse error"):
        make_object('{"qom-type":"secret"', {})
    with pytest.raises(OptionError, match="expects a string"):
        make_object('{"qom-type":"secret","id":"s","data":5}', {})


def test_an_id_is_used_once() -> None:
    objects: dict[str, NamedObject] = dict([make_object("secret,id=s,data=a", {})])
    with pytest.raises(OptionError, match="attempt to add duplicate property 's' to object"):
        make_object("secret,id=s,data=b", objects)
    objects |= [make_object("secret,id=t,data=b", objects)]
    assert sorted(objects) == ["s", "t"]


def test_every_kind_is_in_the_table_under_its_name() -> None:
    assert OBJECT_TYPES["secret"] is Secret
    assert all(kind.type_name == name for name, kind in OBJECT_TYPES.items())
    assert all(kind.properties for kind in OBJECT_TYPES.values())

"""Options: the forms that people write them in, and the reader that knows what was left over."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioblock.base.errors import OptionError, message_of
from aioblock.base.options import Options, flatten, nest, overlaid, parse_json_name, parse_keyval

# -- key=value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("driver=raw,file.filename=x", {"driver": "raw", "file.filename": "x"}),
        ("file.filename=a,,b,driver=raw", {"file.filename": "a,b", "driver": "raw"}),
        ("file.filename=a,,,,b", {"file.filename": "a,,b"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("read-only,noforce-share", {"read-only": "on", "force-share": "off"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=1,", {"a": "1"}),
        ("no=1", {"no": "1"}),
        ("no", {"no": "on"}),
    ],
)
def test_keyval(text, found):
    assert parse_keyval(text) == found


def test_the_first_word_may_be_implied():
    assert parse_keyval("x.img,size=5", implied="file") == {"file": "x.img", "size": "5"}
    assert parse_keyval("a=b,size=5", implied="file") == {"a": "b", "size": "5"}


def test_keyval_without_a_key():
    with pytest.raises(OptionError):
        parse_keyval("=x")


@pytest.mark.slow
@settings(max_examples=50)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,3})?", fullmatch=True), st.text(max_size=8), min_size=1))
def test_keyval_gives_back_any_value(values):
    if any("\0" in value for value in values.values()):
        return
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
    assert parse_keyval(text) == values


# -- nested and flat -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({"driver": "raw", "file.filename": "x"}, {"driver": "raw", "file": {"filename": "x"}}),
        ({"a.b.c": 1, "a.b.d": 2, "a.e": 3}, {"a": {"b": {"c": 1, "d": 2}, "e": 3}}),
        ({"x.0": "a", "x.1": "b"}, {"x": ["a", "b"]}),
        ({"x.0.y": "a", "x.1.y": "b"}, {"x": [{"y": "a"}, {"y": "b"}]}),
        ({"x.0": "a", "x.2": "b"}, {"x": {"0": "a", "2": "b"}}),
        ({"x.00": "a"}, {"x": {"00": "a"}}),
        ({"x.\u00b2": "a", "y.\u0660": 1}, {"x": {"\u00b2": "a"}, "y": {"\u0660": 1}}),
        ({"backing": None}, {"backing": None}),
        ({}, {}),
    ],
)
def test_nest_and_flatten(flat, nested):
    assert nest(flat) == nested
    assert flatten(nested) == flat
    assert nest(nested) == nested


def test_nest_takes_a_mixture_in_any_order():
    wanted = {"file": {"driver": "file", "filename": "x"}}
    assert nest({"file": {"filename": "x"}, "file.driver": "file"}) == wanted
    assert nest({"file.driver": "file", "file": {"filename": "x"}}) == wanted


@pytest.mark.parametrize(
    "clash", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b.c": 1, "a.b": 2}, {"a": [1], "a.0.x": 1}]
)
def test_an_option_is_not_a_value_and_a_group(clash):
    with pytest.raises(OptionError, match="Cannot mix scalar and non-scalar keys"):
        nest(clash)


keys = st.text("abc-1", min_size=1, max_size=3).filter(lambda key: not key.isdigit())
leaves = st.integers() | st.text(max_size=3)
trees = st.dictionaries(
    keys, leaves | st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, min_size=1), min_size=1)
)


@pytest.mark.slow
@settings(max_examples=50)
@given(trees)
def test_nesting_undoes_flattening(tree):
    assert nest(flatten(tree)) == tree
    assert nest(tree) == tree


def test_overlaid():
    base = {"driver": "raw", "file": {"driver": "file", "filename": "x"}}
    assert overlaid(base, {"file": {"locking": "off"}, "size": 5}) == {
        "driver": "raw",
        "file": {"driver": "file", "filename": "x", "locking": "off"},
        "size": 5,
    }
    assert overlaid(base, {"file": None})["file"] is None
    assert base == {"driver": "raw", "file": {"driver": "file", "filename": "x"}}


# -- json: -----------------------------------------------------------------------------------------------------------


def test_json_name():
    text = 'json:{"driver": "raw", "file.filename": "x", "file": {"locking": "off"}, "size": 512}'
    assert parse_json_name(text) == {"driver": "raw", "file": {"filename": "x", "locking": "off"}, "size": 512}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:{", "Could not parse the JSON options: JSON parse error, premature EOI"),
        ("json:", "Could not parse the JSON options: Expecting a JSON value"),
        ("json:[]", "Invalid JSON object given"),
        ("json:5", "Invalid JSON object given"),
        ('json:{"a": 1, "a.b": 2}', "Cannot mix scalar and non-scalar keys at 'a'"),
        ("json:" + "[" * 100_000, "Could not parse the JSON options: JSON parse error, JSON nesting too deep"),
        (
            "json:" + '{"a":' * 100_000 + "1" + "}" * 100_000,
            "Could not parse the JSON options: JSON parse error, JSON nesting too deep",
        ),
        ('json:{"n": ' + "9" * 5000 + "}", "Could not parse the JSON options"),
    ],
)
def test_bad_json(name, message):
    with pytest.raises(OptionError) as caught:
        parse_json_name(name)
    assert message_of(caught.value) == message


@settings(max_examples=50)
@given(st.text())
def test_any_text_is_json_or_an_option_error(text):
    try:
        assert isinstance(parse_json_name("json:" + text), dict)
    except OptionError:
        pass


json_keys = st.text(".01a\u00b2", max_size=3)
json_leaves = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3)
json_values = json_leaves | st.lists(json_leaves, max_size=2) | st.dictionaries(json_keys, json_leaves, max_size=3)


@pytest.mark.slow
@given(st.dictionaries(json_keys, json_values, max_size=4))
def test_any_object_is_options_or_an_option_error(value):
    try:
        parse_json_name("json:" + json.dumps(value))
    except OptionError:
        pass


# -- the reader ------------------------------------------------------------------------------------------------------


def test_what_is_taken_is_gone():
    options = Options({"a": "1", "b": {"c": 1}, "d": 5})
    assert "a" in options and options.peek("a") == "1"
    assert options.take("a") == "1"
    assert "a" not in options and options.peek("a") is None
    assert options.take("a", 7) == 7
    options.put("e", 6)
    assert options.leftover() == ["b.c", "d", "e"]


def test_the_given_mapping_is_left_alone():
    given_options = {"a": "1"}
    Options(given_options).take("a")
    assert given_options == {"a": "1"}


@pytest.mark.parametrize("text", ["on", "yes", "true", "y"])
def test_true(text):
    assert Options({"x": text}).take_bool("x") is True


@pytest.mark.parametrize("text", ["off", "no", "false", "n"])
def test_false(text):
    assert Options({"x": text}).take_bool("x", True) is False


def test_booleans_of_their_own_type_and_absent_ones():
    assert Options({"x": True}).take_bool("x") is True
    assert Options({}).take_bool("x", True) is True
    assert Options({}).take_bool("x", None) is None


@pytest.mark.parametrize("value", ["ON", "", "1", 1, 0, None, [], "maybe"])
def test_what_is_no_boolean(value):
    with pytest.raises(OptionError, match="Parameter 'x' expects 'on' or 'off'") as caught:
        Options({"x": value}).take_bool("x")
    assert caught.value.option == "x"


@pytest.mark.parametrize(
    ("value", "nbytes"), [("64k", 65536), (5, 5), ("0x10", 16), (0, 0), ((1 << 63) - 1, (1 << 63) - 1)]
)
def test_sizes(value, nbytes):
    assert Options({"x": value}).take_size("x") == nbytes


@pytest.mark.parametrize("value", [-1, "-1", True, 1.5, float("nan"), "abc", None, 1 << 63, 10**30, {}, []])
def test_what_is_no_size(value):
    with pytest.raises(OptionError, match="Parameter 'x' expects a non-negative number below 2\\^64"):
        Options({"x": value}).take_size("x", 0)


@pytest.mark.parametrize(("value", "number"), [("5", 5), (-3, -3), ("-3", -3), ("0x1f", 31), ("+7", 7)])
def test_numbers(value, number):
    assert Options({"x": value}).take_int("x") == number


@pytest.mark.parametrize("value", ["", "5k", "1_0", " 5", "\u0665", 1.5, True, None, "0b1", "9" * 5000])
def test_what_is_no_number(value):
    with pytest.raises(OptionError, match="Parameter 'x' expects a number"):
        Options({"x": value}).take_int("x", 0)


def test_choices():
    choices = ("on", "off", "auto")
    assert Options({"x": "auto"}).take_choice("x", choices, "on") == "auto"
    assert Options({}).take_choice("x", choices, "on") == "on"
    assert Options({"x": True}).take_choice("x", choices, "off") == "on"
    with pytest.raises(OptionError, match="invalid parameter value: maybe"):
        Options({"x": "maybe"}).take_choice("x", choices, "on")
    with pytest.raises(OptionError):
        Options({"x": []}).take_choice("x", choices, "on")


def test_strings():
    assert Options({"x": "a"}).take_str("x") == "a"
    assert Options({}).take_str("x", None) is None
    with pytest.raises(OptionError, match="Parameter 'x' expects a string"):
        Options({"x": 5}).take_str("x")


def test_repr_shows_what_is_left():
    options = Options({"a": 1, "b": 2})
    options.take("a")
    assert repr(options) == "Options({'b': 2})"


def test_json_strings_may_stand_in_single_quotes() -> None:
    name = """json:{'driver': 'raw',
        "a": "it's", 'b': 'say "x"', 'c': 'it\\'s', 'd': 'x\\"y', 'e': '\\\\', 'f': [1, {'k': true}]}"""
    assert parse_json_name(name) == {
        "driver": "raw",
        "a": "it's",
        "b": 'say "x"',
        "c": "it's",
        "d": 'x"y',
        "e": "\\",
        "f": [1, {"k": True}],
    }

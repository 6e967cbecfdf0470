"""The faults of JSON are told as QEMU's programs tell them."""

import re

import pytest

from aioblock.base.json_fault import json_fault
from tests.kit.oracle import qemu_img

FAULTY = r"""
{ | [ | {"a"} | {"a":} | {"a":1,} | {"a":1 | {"a" 1} | {a:1} | {"a":1}} | {"a":1} x | {"a":nul} | {"a":01} | {"a":"x}
{"a":"\q"} | {"a":1,"a":2} | {,} | } | {"driver" "raw"} | {'driver':'raw' | {"a":[1,2} | {"a":[1,]} | {1:2} | {"a":@}
{"a":1 "b":2} | x | tru | {"a":tru} | {"a":"\u12"} | {"a":-} | {"a":1e} | {"a":[} | {"driver":"raw","file":"a" | -0 1
{"a":1.} | {"a":1.5e+} | {"a":-01} | {"a":{"b":[{"c":1}]} | {"a":'b"} | [[], {}] 5 | {"a":1:2}
"""


@pytest.mark.oracle
@pytest.mark.parametrize("text", ["", " ", *(part.strip() for part in re.split(r" \| |\n", FAULTY) if part.strip())])
def test_the_words_are_qemus(text):
    said = qemu_img("info", f"json:{text}", check=False).stderr
    assert said.partition("JSON options: ")[2].rstrip("\n") == json_fault(text)


@pytest.mark.parametrize(
    "text", ['{"a": [1, -2.5e3, {}, [], true, null, "\\u00e9\\n"], "b": {"c": \'d"e\'}}', " 0 ", '""']
)
def test_no_fault(text):
    assert json_fault(text) == ""


def test_depth():
    assert json_fault("[" * 100_000).startswith("JSON parse error")

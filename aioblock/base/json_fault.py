"""What is wrong with a text that should be JSON, in the words that QEMU's programs have for it."""

import re
from typing import Final

__all__ = ["json_fault"]

_PUNCTUATION: Final = "{}[]:,"
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_BEGUN: Final = re.compile(r"-?(?:0\d|(?:0|[1-9]\d*)(?:\.(?:\d+(?:[eE][+-]?)?)?|[eE][+-]?)?)?", re.S)
_STRING: Final = re.compile(r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""")
_KEYWORD: Final = re.compile(r"[a-z]+")


class _Fault(Exception):
    pass


def json_fault(text: str) -> str:
    """The first fault of a text; "" where there is none. Strings may stand in single quotes."""
    try:
        reader = _Reader(text)
        if not reader.token:
            return "Expecting a JSON value"
        reader.value()
        return "Expecting at most one JSON value" if reader.token else ""
    except _Fault as fault:
        return f"JSON parse error, {fault}"
    except RecursionError:
        return "JSON parse error, JSON nesting too deep"


class _Reader:
    """Reads a text token by token; `token` is the next one, "" at the end."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self.token = ""
        self._next()

    def value(self) -> None:
        """Read a value."""
        token = self.token
        if not token:
            raise _Fault("premature EOI")
        if token == "{":
            self._object()
        elif token == "[":
            self._next()
            if self.token == "]":
                self._next()
                return
            self.value()
            while self._goes_on("]", "list"):
                self.value()
        elif token in _PUNCTUATION:
            raise _Fault("expecting value")
        else:
            self._check_plain(token)
            self._next()

    def _object(self) -> None:
        self._next()
        if self.token == "}":
            self._next()
            return
        names: set[str] = set()
        self._pair(names)
        while self._goes_on("}", "dict"):
            self._pair(names)

    def _pair(self, names: set[str]) -> None:
        name = self.token
        self.value()
        if name[0] not in "\"'":
            raise _Fault("key is not a string in object")
        if not self.token:
            raise _Fault("premature EOI")
        if self.token != ":":
            raise _Fault("missing : in object pair")
        self._next()
        self.value()
        if name[1:-1] in names:
            raise _Fault("duplicate key")
        names.add(name[1:-1])

    def _goes_on(self, end: str, where: str) -> bool:
        """Behind a value: whether another one follows, or `end` was read."""
        token = self.token
        if not token:
            raise _Fault("premature EOI")
        if token not in (",", end):
            raise _Fault(f"expected separator in {where}")
        self._next()
        return token == ","

    def _next(self) -> None:
        text = self._text
        while self._at < len(text) and text[self._at] in " \t\r\n":
            self._at += 1
        at = self._at
        self.token = ""
        if at == len(text):
            return
        if text[at] in _PUNCTUATION:
            self.token = text[at]
        elif found := (_STRING.match(text, at) or _KEYWORD.match(text, at) or self._number(at)):
            self.token = found[0]
        else:
            raise _Fault(f"stray '{self._stray(at)}'")
        self._at += len(self.token)

    def _number(self, at: int) -> "re.Match[str] | None":
        found, begun = _NUMBER.match(self._text, at), _BEGUN.match(self._text, at)
        return found if found and begun and found.end() >= begun.end() else None

    def _stray(self, at: int) -> str:
        """What was read of a token when it turned out to be none."""
        if self._text[at] in "\"'":
            return self._text[at:]
        begun = _BEGUN.match(self._text, at)
        end = begun.end() if begun else at
        leading_zero = (
            end - at >= 2 and self._text[end - 2 : end].isdigit() and self._text[at:end].lstrip("-")[0] == "0"
        )
        return self._text[at : end if leading_zero else end + 1]

    @staticmethod
    def _check_plain(token: str) -> None:
        if token[0] in "\"'":
            for found in re.finditer(r"(?s)\\(u(?![0-9a-fA-F]{4}).{0,4}|[^u])", token):
                if found[1][0] == "u":
                    raise _Fault(f"\\{found[1]} is not a valid Unicode character")
                if found[1] not in "\"'\\/bfnrt":
                    raise _Fault("invalid escape sequence in string")
        elif token[0].isalpha() and token not in ("true", "false", "null"):
            raise _Fault(f"invalid keyword '{token}'")

"""The lists of tests that pass: `passing/FORMAT.txt`, a test a line, with a comment behind `#` if there is one."""

from pathlib import Path

__all__ = ["FOLDER", "ListError", "parse", "passing"]

FOLDER = Path(__file__).parent / "passing"


class ListError(Exception):
    """A list is wrong. The message says where."""


def parse(text: str, name: str) -> list[str]:
    """The tests in a list. Raises: ListError where a line is none, or a test is there twice."""
    tests: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise ListError(f"{name}:{number}: one test a line, a comment behind '#'")
        if words and words[0] in tests:
            raise ListError(f"{name}:{number}: {words[0]} is listed twice")
        tests += words
    return tests


def passing(fmt: str) -> list[str]:
    """The tests that pass for a format; none where it has no list. Raises: ListError."""
    path = FOLDER / f"{fmt}.txt"
    return parse(path.read_text(), path.name) if path.exists() else []

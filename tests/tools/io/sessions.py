"""Command sequences by chance: what a user may give the program, on an image of SIZE bytes, all of it valid."""

import random
from collections.abc import Iterator

__all__ = ["SIZE", "commands"]

SIZE = 4 << 20
_CLUSTER = 65536
_FORMS = ("{}", "{:#x}", "{:#X}", "+{}", "{}b")


class _Random(random.Random):
    """What a command is made of."""

    def number(self, value: int) -> str:
        """A number of bytes, in one of the forms that are taken for it."""
        if value and value % 1024 == 0 and self.random() < 0.5:
            return self.choice((f"{value // 1024}k", f"{value // 1024}K", f"{value / (1 << 20)}M"))
        return self.choice(_FORMS).format(value)

    def range(self, unit: int = 1, longest: int = 3 * _CLUSTER, past: float = 0.05) -> tuple[int, int]:
        """Offset and length in bytes, whole units; now and then it reaches past the end."""
        nbytes = self.choice((unit, self.randrange(0, longest), _CLUSTER, 512)) // unit * unit
        end = SIZE if self.random() >= past else SIZE + 2 * _CLUSTER
        return self.randrange(0, max(end - nbytes, 1)) // unit * unit, nbytes

    def flags(self, letters: str, often: float = 0.2) -> str:
        """Some of the options that take no value, bundled or apart."""
        chosen = [letter for letter in letters if self.random() < often]
        if not chosen:
            return ""
        return " -" + (" -" if self.random() < 0.3 else "").join(chosen)

    def pattern(self, often: float = 0.5) -> str:
        if self.random() >= often:
            return ""
        space = self.choice((" ", ""))
        return f" -P{space}{self.choice(('{}', '{:#x}')).format(self.randrange(256))}"


def commands(seed: int, count: int, *, compressed: bool) -> list[str]:
    """A sequence; `compressed`: the format can write compressed clusters."""
    choose = _Random(seed)
    made: list[str] = []
    fresh = list(range(0, SIZE, _CLUSTER))
    while len(made) < count:
        kind = choose.choice(("read", "read", "readv", "write", "write", "writev", "zero", "discard", "ask", "aio"))
        made += {
            "read": _read,
            "readv": _readv,
            "write": _write,
            "writev": _writev,
            "zero": _zero,
            "discard": _discard,
            "ask": _ask,
            "aio": _aio,
        }[kind](choose)
    if compressed:  # at the beginning: compressed data cannot take the place of other data
        choose.shuffle(fresh)
        made[:0] = [f"write -c{choose.pattern()} {choose.number(at)} {choose.number(_CLUSTER)}" for at in fresh[:4]]
    return [*made, "map"]


def _spaced(choose: _Random, words: str) -> str:
    """Spaces count for nothing, wherever they are."""
    return words.replace(" ", "  ") if choose.random() < 0.1 else words


def _read(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range()
    part = ""
    pattern = choose.pattern()
    if pattern and choose.random() < 0.4:
        begin = choose.randrange(nbytes + 1)
        part = f" -s {choose.number(begin)}"
        if choose.random() < 0.7:
            part += f" -l {choose.number(choose.randrange(nbytes - begin + 1))}"
    dump = " -v" if nbytes < 2000 and choose.random() < 0.3 else ""
    name = choose.choice(("read", "r"))
    yield _spaced(
        choose,
        f"{name}{choose.flags('Cqp')}{dump}{pattern}{part} {choose.number(offset)} {choose.number(nbytes)}",
    )


def _vector(choose: _Random, nbytes: int) -> str:
    cuts = sorted(choose.randrange(nbytes + 1) for _ in range(choose.randrange(4)))
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, nbytes], strict=True)]
    return " ".join(map(choose.number, lengths))


def _readv(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range()
    yield f"readv{choose.flags('Cq')}{choose.pattern()} {choose.number(offset)} {_vector(choose, nbytes)}"


def _write(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range()
    source = choose.choice((choose.pattern(), " -s pattern"))
    name = choose.choice(("write", "w"))
    yield _spaced(choose, f"{name}{choose.flags('Cfqp')}{source} {choose.number(offset)} {choose.number(nbytes)}")


def _writev(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range()
    yield f"writev{choose.flags('Cfq')}{choose.pattern()} {choose.number(offset)} {_vector(choose, nbytes)}"


def _zero(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range(longest=1 << 20)
    yield f"write -z{choose.flags('Cfquu')} {choose.number(offset)} {choose.number(nbytes)}"


def _discard(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range(_CLUSTER, 1 << 20)  # less than a cluster may stay or go
    yield f"{choose.choice(('discard', 'd'))}{choose.flags('Cq')} {choose.number(offset)} {choose.number(nbytes)}"


def _ask(choose: _Random) -> Iterator[str]:
    offset, nbytes = choose.range(longest=SIZE)
    yield choose.choice(
        ("length", "l", "map", "flush", "f", f"alloc {choose.number(offset)} {choose.number(nbytes)}", f"a {offset}")
    )


def _aio(choose: _Random) -> Iterator[str]:
    """A request beside the commands, and the wait for it: of several, nobody knows which one ends first."""
    offset, nbytes = choose.range()
    where = f"{choose.number(offset)} {_vector(choose, nbytes)}"
    yield choose.choice(
        (
            f"aio_read{choose.flags('Cq')}{choose.pattern()} {where}",
            f"aio_write{choose.flags('Cfq')}{choose.pattern()} {where}",
            f"aio_write -z{choose.flags('Cfqu')} {choose.number(offset)} {choose.number(nbytes)}",
        )
    )
    yield "aio_flush"

"""What the command lines say about `aio` reaches the library."""

import importlib
from typing import Any

import pytest

import aioblock


@pytest.mark.parametrize(
    ("program", "line", "aio"),
    [
        ("img", "bench -i threads -t none x", "threads"),
        ("img", "bench -n -t none x", "native"),
        ("img", "bench -t none x", None),
        ("io", "-i io_uring -n -c length x", "io_uring"),
        ("io", "-k -n -c length x", "native"),
        ("nbd", "--aio=threads --cache=none -f raw x", "threads"),
        ("nbd", "--aio=native --cache=none -s -f raw x", "native"),
    ],
)
def test_aio(
    program: str, line: str, aio: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | None] = []

    async def refuse(name: Any, **how: Any) -> aioblock.BlockBackend:
        asked.append(how["aio"])
        raise OSError(5, "enough")

    monkeypatch.setattr(aioblock, "open", refuse)
    main = importlib.import_module(f"aioblock.tools.{program}").main
    assert main(line.split()) == 1
    assert asked == [aio]
    assert "enough" in capsys.readouterr().err
